//! What a sidecar tells the Kubernetes API about its pod, if it is asked to. Each needs a right that nothing else does.

use clap::Args;

use super::InvalidSetting;
use super::lease::reach;
use super::pod::{LeadershipArgument, Pod};
use crate::kube::pod::PodReporter;
use crate::kube::slice::SliceApi;

/// Flags of what is shown on the pod.
#[derive(Args, Clone, Copy, Debug)]
pub struct ReportArguments {
    /// Keep the label `podgres.dev/role` on this pod: primary or standby (needs "patch" on "pods")
    #[arg(long, env = "PODGRES_LABEL_POD", default_value_t = false, action = clap::ArgAction::Set)]
    pub label_pod: bool,
    /// An Event of this pod for each change of what it does (needs "create" on "events" of events.k8s.io)
    #[arg(long, env = "PODGRES_EMIT_EVENTS", default_value_t = false, action = clap::ArgAction::Set)]
    pub emit_events: bool,
    /// Keep an EndpointSlice for each endpoint of the routes, CLUSTER-direct-NAME, for clients that want no route in their
    /// path (needs "get" and "patch" on these "endpointslices" of discovery.k8s.io)
    #[arg(long, env = "PODGRES_ENDPOINT_SLICES", default_value_t = false, action = clap::ArgAction::Set)]
    pub endpoint_slices: bool,
}

impl ReportArguments {
    /// Who reports on this pod; `None` if nothing is to be reported.
    pub fn reporter(self, pod: &Pod) -> Option<PodReporter> {
        (self.label_pod || self.emit_events)
            .then(|| PodReporter::new(reach(&pod.arguments.lease), &pod.namespace, pod.identity()))
    }

    /// Where the slices are; `None` if none are to be kept.
    ///
    /// # Errors
    /// Leadership is fixed, so that nobody holds a Lease and speaks for all.
    pub fn slices(self, pod: &Pod) -> Result<Option<SliceApi>, InvalidSetting> {
        if self.endpoint_slices && pod.arguments.leadership == LeadershipArgument::Fixed {
            return Err(InvalidSetting::new(
                "PODGRES_ENDPOINT_SLICES",
                "with fixed leadership nobody holds the Lease and keeps EndpointSlices",
                "set PODGRES_LEADERSHIP=lease, or use the Services that lead to the routes",
            ));
        }
        let slices = || SliceApi::new(reach(&pod.arguments.lease), &pod.namespace);
        Ok(self.endpoint_slices.then(slices))
    }
}
