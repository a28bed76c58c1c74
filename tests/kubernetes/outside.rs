//! Orders from a machine that reaches the Kubernetes API and no pod: each is one change of the Lease.

use std::process::{Command, Output};

use serde_json::Value;

use crate::cluster::Cluster;
use crate::kubectl;
use crate::wait::until;

/// `podgres` with a kubeconfig file.
struct Operator<'a> {
    cluster: &'a Cluster<'a>,
    kubeconfig: tempfile::NamedTempFile,
}

impl Operator<'_> {
    fn run(&self, arguments: &[&str]) -> Output {
        let mut podgres = Command::new(env!("CARGO_BIN_EXE_podgres"));
        podgres
            .args(arguments)
            .args(["--cluster", "pg", "-n", &self.cluster.namespace, "--kubeconfig"]);
        podgres.arg(self.kubeconfig.path());
        podgres.output().expect("podgres runs")
    }

    fn ask(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = kubectl::complaint(&output);
        assert!(output.status.success(), "{arguments:?}: {said}");
        said
    }

    fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        until(what, || self.cluster.status(), holds);
    }
}

fn clones(status: &Value, pod: &str) -> u64 {
    let members = status["members"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let member = members.iter().find(|member| member["name"] == pod);
    member
        .and_then(|member| member["clones_total"].as_u64())
        .unwrap_or(0)
}

pub(crate) fn orders(cluster: &Cluster) {
    let operator = Operator {
        cluster,
        kubeconfig: kubectl::kubeconfig(),
    };
    let (before, standby) = (cluster.primary(), cluster.standby());
    let table = operator.ask(&["status"]);
    assert!(table.contains(&before) && table.contains("primary"), "{table}");

    operator.ask(&["pause"]);
    operator.until("paused", |status| status["paused"] == true);
    operator.ask(&["resume"]);
    operator.until("not paused", |status| status["paused"] == false);

    operator.ask(&["switchover", "--to", &standby]);
    assert_eq!(cluster.primary(), standby);
    let history = operator.ask(&["history"]);
    assert!(history.contains("switchover"), "{history}");
    cluster.settle();

    operator.ask(&["read-only", "on", "--reason", "a move"]);
    operator.until("read-only", |status| status["read_only"] == true);
    operator.ask(&["read-only", "off"]);
    operator.until("writable", |status| status["read_only"] == false);

    let started = || cluster.sql(&before, "SELECT pg_postmaster_start_time()");
    let first = started();
    operator.ask(&["restart", &before]);
    cluster.settle();
    assert_ne!(started(), first);
    let cloned = clones(&cluster.status(), &before);
    operator.ask(&["reinit", &before]);
    operator.until("cloned", |status| clones(status, &before) > cloned);
    cluster.settle();

    let refused = operator.run(&["reinit", &standby]);
    let said = kubectl::complaint(&refused);
    assert_eq!(
        refused.status.code(),
        Some(65),
        "the primary is not cloned over: {said}"
    );
    let unknown = operator.run(&["switchover", "--to", "pg-9"]);
    let said = kubectl::complaint(&unknown);
    assert_eq!(unknown.status.code(), Some(64), "{said}");
}
