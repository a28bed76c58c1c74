//! Example clients in pods of their own, and what the steady writer says of a fault.

use std::cell::Cell;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::kubectl;
use crate::overlay::{EXAMPLES_IMAGE, PODGRES_IMAGE};
use crate::wait::{self, until};
use crate::world::image;

const PORT: u16 = 8080;

/// A deployed example.
pub(crate) struct Example<'a> {
    cluster: &'a Cluster<'a>,
    name: &'static str,
    pod: String,
}

impl<'a> Example<'a> {
    pub(crate) fn deploy(cluster: &'a Cluster<'a>, name: &'static str) -> Self {
        apply(cluster, name, &format!("deployment/{name}"));
        let ours = ListParams::default().labels(&format!("app.kubernetes.io/name={name}"));
        let pods = cluster.world.now(cluster.api::<Pod>().list(&ours)).expect("pods");
        let running = pods
            .items
            .iter()
            .find(|pod| pod.metadata.deletion_timestamp.is_none());
        let pod = running.and_then(|pod| pod.metadata.name.clone()).expect("a pod");
        Self { cluster, name, pod }
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> Option<String> {
        self.cluster.http(method, &self.pod, PORT, path)
    }

    /// A form as a browser sends it: status and page.
    pub(crate) fn submit(&self, path: &str, form: &str) -> (u16, String) {
        let answer = self.cluster.http_form("POST", &self.pod, PORT, (path, form));
        answer.expect("an answer")
    }

    /// Waits for its end: another one of that name must be another pod.
    pub(crate) fn remove(&self) {
        let (deployment, service) = (
            format!("deployment/{}", self.name),
            format!("service/{}", self.name),
        );
        self.cluster.kubectl(&[
            "delete",
            &deployment,
            &service,
            "--cascade=foreground",
            "--wait=false",
            "--ignore-not-found",
        ]);
        let left = || {
            self.cluster
                .kubectl(&["get", &deployment, &service, "--ignore-not-found", "-o", "name"])
        };
        // An old kubelet tells of a pod's end some ten seconds later, and the collector of a busy cluster comes when it comes.
        wait::within(2 * wait::LIMIT, "it is gone", left, String::is_empty);
    }
}

/// Applies `k8s/examples/NAME/NAME.yaml` with the images under test, and waits for what it deploys.
pub(crate) fn apply(cluster: &Cluster, name: &str, deployed: &str) {
    let file = format!("{}/k8s/examples/{name}/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    let mut manifest = std::fs::read_to_string(file).expect("the example");
    for (shown, (variable, default)) in [("podgres-examples", EXAMPLES_IMAGE), ("podgres", PODGRES_IMAGE)] {
        let wanted = format!("image: {}\n", image(variable, default));
        manifest = manifest.replace(&format!("image: {shown}\n"), &wanted);
    }
    // As its page says of clusters before 1.21.
    let versions = cluster.kubectl(&["api-versions"]);
    if !versions.lines().any(|version| version == "policy/v1") {
        manifest = manifest.replace("apiVersion: policy/v1\n", "apiVersion: policy/v1beta1\n");
    }
    let mut apply = kubectl::kubectl();
    apply.args(["-n", &cluster.namespace, "apply", "-f", "-"]);
    kubectl::text_with_input(&mut apply, &manifest);
    cluster.kubectl(&["rollout", "status", deployed, "--timeout=60s"]);
}

/// The steady writer, and how many of its rows were acknowledged when it last said so: what it knows goes with its process.
pub(crate) struct Writer<'a>(Example<'a>, Cell<u64>);

impl<'a> Writer<'a> {
    /// Deploys it and waits until it writes.
    pub(crate) fn start(cluster: &'a Cluster<'a>) -> Self {
        let writer = Self(Example::deploy(cluster, "steady-writer"), Cell::new(0));
        writer.progress(50);
        writer
    }

    fn report(&self) -> Value {
        let text = self.0.request("GET", "/").unwrap_or_default();
        let report: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        if let Some(acknowledged) = report["acknowledged"].as_u64() {
            self.remembers(acknowledged);
        }
        report
    }

    /// A count that falls is a writer that began anew, and could not miss what it was told before.
    fn remembers(&self, acknowledged: u64) {
        let seen = self.1.replace(acknowledged);
        assert!(
            acknowledged >= seen,
            "the writer knew of {seen} rows, and now of {acknowledged}"
        );
    }

    /// Waits until so many more rows are acknowledged.
    pub(crate) fn progress(&self, more: u64) {
        let before = self.report()["acknowledged"].as_u64().unwrap_or_default();
        until(
            "rows are acknowledged",
            || self.report(),
            |report| {
                report["acknowledged"]
                    .as_u64()
                    .is_some_and(|now| now >= before + more)
            },
        );
    }

    /// The longest time without an acknowledgement that a fault costs.
    pub(crate) fn outage(&self, fault: impl FnOnce()) -> Duration {
        self.0.request("POST", "/reset").expect("reset");
        fault();
        // The fault may take a moment to bite: writing must have gone on for a while.
        wait::until(
            "writing goes on",
            || (self.calm(), self.report()),
            |(calm, _)| *calm,
        );
        let longest = self.report()["longest_gap_ms"].as_u64().unwrap_or_default();
        Duration::from_millis(longest)
    }

    fn calm(&self) -> bool {
        let errors = || self.report()["errors"].as_u64();
        let before = errors();
        let acknowledged = || self.report()["acknowledged"].as_u64().unwrap_or_default();
        let rows = acknowledged();
        std::thread::sleep(Duration::from_secs(3));
        before.is_some() && before == errors() && acknowledged() > rows + 100
    }

    /// Everything that was acknowledged is there.
    pub(crate) fn verify(&self) {
        let (_, text) = until(
            "the writer reads back",
            || self.0.request("GET", "/verify"),
            Option::is_some,
        );
        let verified: Value = serde_json::from_str(&text.expect("an answer")).expect("JSON");
        assert_eq!(
            verified["missing"].as_array().map(Vec::len),
            Some(0),
            "acknowledged and lost: {verified}"
        );
        let acknowledged = verified["acknowledged"].as_u64().expect("a number");
        assert!(acknowledged > 0, "{verified}");
        self.remembers(acknowledged);
        assert_eq!(self.0.cluster.pod(&self.0.pod).restarts, 0, "the writer ran on");
    }

    pub(crate) fn remove(&self) {
        self.0.remove();
    }
}
