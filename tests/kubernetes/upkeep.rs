//! What is done to a running cluster day by day: evictions, updates that go wrong, changed secrets, all pods off.

use std::time::Duration;

use serde_json::json;

use crate::cluster::{Cluster, PASSWORD, SELECTOR};
use crate::kubectl;
use crate::wait::{until, within};
use crate::writer::Writer;

/// Seconds are three probes, and what a busy cluster takes to act upon them.
const SECONDS: Duration = Duration::from_secs(20);

pub(crate) fn row_44(cluster: &Cluster) {
    let standby = cluster.standby();
    let address = cluster.pod(&standby).address;
    // Ready, and led to by each of the clients' Services.
    let there = || {
        let ready = cluster.pod(&standby).ready;
        [
            ready,
            led_to(cluster, "pg-ro", &address),
            led_to(cluster, "pg-rw", &address),
        ]
    };
    cluster.sql(&standby, "ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.9'");
    cluster.sql(&standby, "SELECT pg_reload_conf()");
    let gone = within(
        SECONDS,
        "it is not ready, and no Service leads to it",
        there,
        |there| {
            cluster.sql_by("pg-ro", "SELECT 1").expect("clients see no error");
            *there == [false; 3]
        },
    );
    cluster.sql(&standby, "ALTER SYSTEM RESET primary_conninfo");
    cluster.sql(&standby, "SELECT pg_reload_conf()");
    let back = within(SECONDS, "it is back", there, |there| *there == [true; 3]);
    println!(
        "    not ready after {:.1?}, ready again after {:.1?}",
        gone.0, back.0
    );
}

fn led_to(cluster: &Cluster, service: &str, address: &str) -> bool {
    cluster.led_to(service).iter().any(|known| known == address)
}

pub(crate) fn row_46(cluster: &Cluster) {
    let (first, second) = (cluster.standby(), cluster.primary());
    let before = cluster.pod(&first).uid;
    evict(cluster, &first).expect("one may go");
    let again = evict(cluster, &second).expect_err("the next one has to wait");
    assert!(again.contains("disruption budget"), "{again}");
    until(
        "it is back",
        || cluster.pods(),
        |pods| pods.get(&first).is_some_and(|pod| pod.uid != before),
    );
    cluster.settle();
    assert_eq!(cluster.primary(), second);
}

/// Asks for an eviction as `kubectl drain` does, and does not ask again if it is refused.
fn evict(cluster: &Cluster, pod: &str) -> Result<String, String> {
    let version = if cluster.world.minor < 22 {
        "policy/v1beta1"
    } else {
        "policy/v1"
    };
    let eviction = json!({"apiVersion": version, "kind": "Eviction", "metadata": {"name": pod, "namespace": cluster.namespace}});
    let path = format!("/api/v1/namespaces/{}/pods/{pod}/eviction", cluster.namespace);
    let mut create = kubectl::kubectl();
    create.args(["create", "--raw", &path, "-f", "-"]);
    kubectl::try_with_input(&mut create, &eviction.to_string())
}

pub(crate) fn bad_image(cluster: &Cluster) {
    let writer = Writer::start(cluster);
    let before = cluster.pods();
    cluster.kubectl(&["set", "image", "statefulset/pg", "postgres=localhost/nowhere:1"]);
    let reason = "jsonpath={.status.containerStatuses[*].state.waiting.reason}";
    // Between the old pod and the new one there is none.
    let waiting = || {
        cluster
            .try_kubectl(&["get", "pod", "pg-2", "-o", reason])
            .unwrap_or_default()
    };
    until("the image cannot be had", waiting, |reason| {
        reason.contains("Image")
    });
    let now = cluster.pods();
    for other in ["pg-0", "pg-1"] {
        assert_eq!(
            now[other].uid, before[other].uid,
            "the update stops at the first member that does not become ready"
        );
    }
    writer.progress(100);
    cluster.kubectl(&["rollout", "undo", "statefulset/pg"]);
    // A StatefulSet does not replace a pod that never became ready.
    cluster.delete_pod("pg-2", false);
    cluster.settle();
    writer.verify();
    writer.remove();
}

/// A changed setting: all pods are replaced, the last one first, which is the primary's here, and another one when it comes back.
pub(crate) fn rolling(cluster: &Cluster) {
    let first = format!("pg-{}", cluster.replicas() - 1);
    if cluster.primary() != first {
        cluster.switch_over(&first);
        cluster.settle();
    }
    let before = cluster.pods();
    let writer = Writer::start(cluster);
    let patch = json!({"data": {"PODGRES_MAX_STALENESS": "9s"}}).to_string();
    cluster.kubectl(&["patch", "configmap/pg-settings", "-p", &patch]);
    let outage = writer.outage(|| {
        cluster.kubectl(&["rollout", "restart", "statefulset/pg"]);
        cluster.kubectl(&["rollout", "status", "statefulset/pg", "--timeout=240s"]);
    });
    println!("    outage by pg-rw, the worst of an update of all pods: {outage:?}");
    cluster.settle();
    for (name, pod) in cluster.pods() {
        assert_ne!(pod.uid, before[&name].uid, "{name} is the pod of before");
        let setting = [
            "exec",
            &name,
            "-c",
            "postgres",
            "--",
            "printenv",
            "PODGRES_MAX_STALENESS",
        ];
        assert_eq!(cluster.kubectl(&setting).trim(), "9s", "{name}");
    }
    writer.verify();
    writer.remove();
    assert!(outage < Duration::from_secs(10), "{outage:?}");
}

pub(crate) fn password(cluster: &Cluster) {
    let before = cluster.pods();
    let login = |password: &str| {
        let host = cluster.primary();
        let script = format!(
            "PGPASSWORD='{}' exec psql -XAtq -h 127.0.0.1 -U postgres -d postgres -c 'SELECT 1'",
            password.replace('\'', "'\\''")
        );
        cluster.try_kubectl(&["exec", &host, "-c", "postgres", "--", "sh", "-c", &script])
    };
    login(PASSWORD).expect("the password so far");
    let patch = json!({"stringData": {"password": "another one"}}).to_string();
    cluster.kubectl(&["patch", "secret/pg", "-p", &patch]);
    // The kubelet looks at a pod's volumes within about a minute; at a pod that has changed, at once.
    cluster.kubectl(&["annotate", "pods", "-l", SELECTOR, "podgres.dev/test=changed"]);
    let (after, _) = until(
        "the new password is taken",
        || login("another one"),
        Result::is_ok,
    );
    println!("    the new password was taken after {after:.1?}");
    login(PASSWORD).expect_err("the old one is refused");
    cluster.settle();
    assert_eq!(cluster.pods(), before, "no container was started again");
    // Replication logs in with it too.
    cluster.replace_standby(&before);
    cluster.kubectl(&[
        "patch",
        "secret/pg",
        "-p",
        &json!({"stringData": {"password": PASSWORD}}).to_string(),
    ]);
    cluster.kubectl(&[
        "annotate",
        "--overwrite",
        "pods",
        "-l",
        SELECTOR,
        "podgres.dev/test=again",
    ]);
    drop(until(
        "the first password is back",
        || login(PASSWORD),
        Result::is_ok,
    ));
}

pub(crate) fn check_live(cluster: &Cluster) {
    let kubeconfig = kubectl::kubeconfig();
    let check = || {
        let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_podgres"));
        check.args(["check", "--live", "pg", "-n", &cluster.namespace, "--kubeconfig"]);
        check.arg(kubeconfig.path());
        let output = check.output().expect("podgres runs");
        (output.status.code(), kubectl::complaint(&output))
    };
    let (code, said) = check();
    assert_eq!(code, Some(0), "{said}");
    let publish = |published: bool| {
        let patch = json!({"spec": {"publishNotReadyAddresses": published}}).to_string();
        cluster.kubectl(&["patch", "service/pg", "-p", &patch]);
    };
    publish(false);
    let (code, said) = check();
    publish(true);
    assert_eq!(code, Some(64), "{said}");
    assert!(
        said.contains("does not have publishNotReadyAddresses: true"),
        "{said}"
    );
}
