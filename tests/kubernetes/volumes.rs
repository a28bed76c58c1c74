//! Volumes: one for each member, kept while pods and sets come and go, and what happens without one.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use serde_json::json;

use crate::backup::apply;
use crate::cluster::{Cluster, SELECTOR};
use crate::overlay::POSTGRES_IMAGE;
use crate::wait::until;
use crate::world::image;
use crate::writer::Writer;

const FIRST: &str = "pg-0";

pub(crate) fn row_30(cluster: &Cluster) {
    assert_eq!(cluster.claims(), ["data-pg-0", "data-pg-1", "data-pg-2"]);
    let mut made = Vec::new();
    for name in cluster.claims() {
        let claim: PersistentVolumeClaim = cluster.get(&name).expect("the claim");
        made.push(claim.metadata.creation_timestamp.clone().expect("a time").0);
        assert_eq!(
            claim.status.and_then(|status| status.phase).as_deref(),
            Some("Bound"),
            "{name}"
        );
    }
    assert!(made.is_sorted_by(|one, next| one < next), "in order: {made:?}");
    let run = |pod: &str, command: &[&str]| {
        cluster.try_kubectl(&[&["exec", pod, "-c", "postgres", "--"], command].concat())
    };
    run(FIRST, &["touch", "/var/lib/postgresql/mine"]).expect("written");
    run(FIRST, &["ls", "/var/lib/postgresql/mine"]).expect("there");
    let refused = run("pg-1", &["ls", "/var/lib/postgresql/mine"]).expect_err("another volume");
    assert!(refused.contains("No such file"), "{refused}");
}

pub(crate) fn row_35(cluster: &Cluster) {
    let patch = r#"[{"op": "add", "path": "/spec/volumeClaimTemplates/-", "value": {"metadata": {"name": "more"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}}]"#;
    let refused = cluster.try_kubectl(&["patch", "statefulset/pg", "--type=json", "-p", patch]);
    assert!(refused.expect_err("refused").contains("Forbidden"));
}

pub(crate) fn row_34(cluster: &Cluster) {
    cluster.sql(FIRST, "CREATE TABLE IF NOT EXISTS outlived AS SELECT 3 AS number");
    let identifier = cluster.status()["system_identifier"].clone();
    let claims = cluster.claims();
    cluster.kubectl(&["delete", "all", "-l", SELECTOR, "--timeout=90s"]);
    until("no pod", || cluster.pods(), BTreeMap::is_empty);
    assert_eq!(cluster.claims(), claims);
    cluster.apply();
    cluster.settle();
    assert_eq!(cluster.status()["system_identifier"], identifier);
    assert_eq!(cluster.sql(FIRST, "SELECT number FROM outlived"), "3");
}

/// A primary that is scaled away hands over; and from three to one in one step nothing is lost, whoever can take writes then.
pub(crate) fn scaled_away(cluster: &Cluster) {
    cluster.scale(4);
    cluster.switch_over("pg-3");
    cluster.settle();
    let writer = Writer::start(cluster);
    let outage = writer.outage(|| cluster.scale(3));
    println!("    outage by pg-rw, the primary scaled away: {outage:?}");
    writer.verify();
    // The one that goes before the last; pg-3 may have chosen it.
    if cluster.primary() != "pg-2" {
        cluster.switch_over("pg-2");
        cluster.settle();
    }
    writer.progress(100);
    cluster.kubectl(&["scale", "statefulset/pg", "--replicas=1"]);
    until(
        "one pod is left",
        || cluster.pods().into_keys().collect::<Vec<_>>(),
        |pods| *pods == [FIRST],
    );
    cluster.scale(3);
    writer.progress(100);
    writer.verify();
    writer.remove();
    assert!(outage < Duration::from_secs(10), "{outage:?}");
}

/// What is on a member's volume, as a pod of its own sees it.
fn on_volume(cluster: &Cluster, member: &str) -> String {
    let name = format!("looks-at-{member}");
    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "restartPolicy": "Never",
        "automountServiceAccountToken": false,
        "securityContext": {"runAsNonRoot": true, "runAsUser": 999, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "look",
            "image": image(POSTGRES_IMAGE.0, POSTGRES_IMAGE.1),
            "command": ["ls", "-A", "/data"],
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        }],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": format!("data-{member}")}}],
    }});
    apply(cluster, &object.to_string());
    let phase = || cluster.kubectl(&["get", "pod", &name, "-o", "jsonpath={.status.phase}"]);
    until("it has looked", phase, |phase| phase == "Succeeded");
    let found = cluster.kubectl(&["logs", &name]);
    cluster.kubectl(&["delete", "pod", &name]);
    found
}

/// The fault that gives hand-written set-ups an empty primary. Nobody takes over with fixed leadership, so this is the last test.
pub(crate) fn first_lost(cluster: &Cluster) {
    let identifier = cluster.status()["system_identifier"].clone();
    let identifier = identifier
        .as_str()
        .map_or_else(|| identifier.to_string(), str::to_owned);
    cluster.lose_volume(FIRST);
    let log = || {
        let said = cluster.try_kubectl(&["logs", FIRST, "-c", "bootstrap"]);
        said.unwrap_or_default()
    };
    let (_, said) = until("it says who holds data", log, |log| log.contains("holds data"));
    assert!(
        said.contains("pg-1 holds data") && said.contains(&identifier),
        "{said}"
    );
    for pod in ["pg-1", "pg-2"] {
        assert_eq!(cluster.sql(pod, "SELECT pg_is_in_recovery()"), "t");
    }
    assert!(!cluster.pod(FIRST).ready);
    // Its container ends again and again: another pod looks.
    assert!(on_volume(cluster, "pg-1").contains("pgdata"));
    let made = on_volume(cluster, FIRST);
    assert!(!made.contains("pgdata"), "a directory was made: {made}");
    // Volumes go when somebody says so, and not before.
    cluster.kubectl(&["delete", "all", "-l", SELECTOR, "--timeout=90s"]);
    until("no pod", || cluster.pods(), BTreeMap::is_empty);
    assert!(cluster.claims().len() >= 3, "{:?}", cluster.claims());
    cluster.kubectl(&["delete", "pvc", "-l", SELECTOR, "--timeout=60s"]);
    assert!(cluster.claims().is_empty(), "{:?}", cluster.claims());
}

/// Started in order, the first pod alone was a standby that waited for the others, and they for it: 0037. Beforehand, how a set that was started in
/// order is made one that is not: its object is deleted and made anew, and no pod is touched.
pub(crate) fn all_gone(cluster: &Cluster) {
    let before = cluster.pods();
    let in_order = r#"{"spec": {"podManagementPolicy": "OrderedReady"}}"#;
    let refused = cluster.try_kubectl(&["patch", "statefulset/pg", "-p", in_order]);
    assert!(refused.expect_err("refused").contains("Forbidden"));
    cluster.without_controller(|| {});
    cluster.kubectl(&["rollout", "status", "statefulset/pg", "--timeout=60s"]);
    assert_eq!(cluster.pods(), before, "no pod was touched");
    let last = "pg-2";
    if cluster.primary() != last {
        cluster.switch_over(last);
    }
    cluster.sql(last, "CREATE TABLE IF NOT EXISTS gone AS SELECT 6 AS number");
    cluster.kubectl(&["delete", "statefulset/pg", "--cascade=foreground"]);
    until("no pod", || cluster.pods(), BTreeMap::is_empty);
    cluster.apply();
    cluster.settle();
    assert_eq!(cluster.sql(&cluster.primary(), "SELECT number FROM gone"), "6");
}

/// The primary's own volume, under load: the fault that gives hand-written set-ups an empty primary.
pub(crate) fn primary_lost(cluster: &Cluster) {
    let first = "pg-0";
    if cluster.primary() != first {
        cluster.switch_over(first);
    }
    let identifier = cluster.status()["system_identifier"].clone();
    let writer = Writer::start(cluster);
    let outage = writer.outage(|| cluster.lose_volume(first));
    println!("    outage by pg-rw, the primary's pod and volume lost: {outage:?}");
    cluster.settle();
    assert_ne!(cluster.primary(), first);
    assert_eq!(cluster.status()["system_identifier"], identifier);
    let log = cluster.logs(first, "bootstrap", &[]);
    assert!(log.contains("cloning"), "{log}");
    writer.verify();
    writer.remove();
}

pub(crate) fn all_off(cluster: &Cluster) {
    cluster.sql(
        &cluster.primary(),
        "CREATE TABLE IF NOT EXISTS slept AS SELECT 5 AS number",
    );
    cluster.scale(0);
    cluster.scale(3);
    assert_eq!(cluster.sql(&cluster.primary(), "SELECT number FROM slept"), "5");
    assert_eq!(
        cluster
            .kubectl(&["get", "pods", "-l", SELECTOR, "-o", "name"])
            .lines()
            .count(),
        3
    );
}
