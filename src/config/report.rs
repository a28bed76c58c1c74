//! What a sidecar tells the Kubernetes API about its pod, if it is asked to. Each needs a right that nothing else does.

use clap::Args;

use super::lease::reach;
use super::pod::Pod;
use crate::kube::pod::PodReporter;

/// Flags of what is shown on the pod.
#[derive(Args, Clone, Copy, Debug)]
pub struct ReportArguments {
    /// Keep the label `podgres.dev/role` on this pod: primary or standby (needs "patch" on "pods")
    #[arg(long, env = "PODGRES_LABEL_POD", default_value_t = false, action = clap::ArgAction::Set)]
    pub label_pod: bool,
    /// An Event of this pod for each change of what it does (needs "create" on "events" of events.k8s.io)
    #[arg(long, env = "PODGRES_EMIT_EVENTS", default_value_t = false, action = clap::ArgAction::Set)]
    pub emit_events: bool,
}

impl ReportArguments {
    /// Who reports on this pod; `None` if nothing is to be reported.
    pub fn reporter(self, pod: &Pod) -> Option<PodReporter> {
        (self.label_pod || self.emit_events)
            .then(|| PodReporter::new(reach(&pod.arguments.lease), &pod.namespace, pod.identity()))
    }
}
