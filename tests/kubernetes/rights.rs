//! The Role of `overlays/lease`: every verb in it is needed, and whoever takes one away reads which one it was.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::cluster::Cluster;
use crate::overlay::Overlay;
use crate::runner::Group;
use crate::wait::until;

pub(crate) const GROUP: Group = Group {
    name: "rights",
    alone: false,
    overlay: || Overlay::new("lease"),
    begin: |cluster| cluster.start(),
    tests: &[
        ("nothing_else_may_be_touched", nothing_else),
        ("a_denied_list_is_named", |cluster| denied(cluster, "list")),
        ("a_denied_watch_is_named", |cluster| denied(cluster, "watch")),
        ("a_denied_update_is_named", |cluster| denied(cluster, "update")),
        ("a_denied_create_is_named", create),
    ],
};

fn nothing_else(cluster: &Cluster) {
    let user = format!("--as=system:serviceaccount:{}:pg", cluster.namespace);
    let can = |verb: &str, what: &str| cluster.try_kubectl(&["auth", "can-i", verb, what, &user]).is_ok();
    for verb in ["get", "list", "watch", "update"] {
        assert!(can(verb, "leases.coordination.k8s.io/pg"), "{verb}");
        assert!(
            !can(verb, "leases.coordination.k8s.io/other"),
            "{verb} another Lease"
        );
    }
    for (verb, what) in [
        ("delete", "leases.coordination.k8s.io/pg"),
        ("patch", "leases.coordination.k8s.io/pg"),
        ("get", "secrets"),
        ("get", "pods"),
        ("patch", "pods"),
        ("create", "pods/exec"),
        ("get", "endpoints"),
        ("get", "configmaps"),
        ("get", "nodes"),
    ] {
        assert!(!can(verb, what), "{verb} {what}");
    }
}

/// Takes a verb away, starts a member anew, reads its complaint, and gives the verb back.
fn denied(cluster: &Cluster, verb: &str) {
    let role: Role = cluster.get("pg").expect("the Role");
    set_rules(cluster, &without(role.rules.clone().unwrap_or_default(), verb));
    let pod = if verb == "update" {
        cluster.primary()
    } else {
        cluster.standby()
    };
    if verb != "update" {
        cluster.delete_pod(&pod, true);
    }
    let complaint = format!(
        "could not {verb} lease \"pg\" in namespace \"{}\"",
        cluster.namespace
    );
    let hint = format!("Grant the verb \"{verb}\" on \"leases\"");
    let said = || {
        ["bootstrap", "sidecar"]
            .map(|container| {
                cluster
                    .try_kubectl(&["logs", &pod, "-c", container])
                    .unwrap_or_default()
            })
            .concat()
            // The logs are JSON.
            .replace("\\\"", "\"")
    };
    let (after, _) = until("it says which verb is missing", said, |log| {
        log.contains(&complaint) && log.contains(&hint)
    });
    println!("    said after {after:.1?}");
    set_rules(cluster, &role.rules.unwrap_or_default());
}

/// A Lease that was deleted is made again, where that is allowed.
fn create(cluster: &Cluster) {
    let role: Role = cluster.get("pg").expect("the Role");
    set_rules(
        cluster,
        &without(role.rules.clone().unwrap_or_default(), "create"),
    );
    let deleted = cluster
        .world
        .now(cluster.api::<Lease>().delete("pg", &DeleteParams::default()));
    deleted.expect("deleted").map_left(drop);
    let said = || {
        ["pg-0", "pg-1", "pg-2"]
            .map(|pod| {
                cluster
                    .try_kubectl(&["logs", pod, "-c", "sidecar"])
                    .unwrap_or_default()
            })
            .concat()
            // The logs are JSON.
            .replace("\\\"", "\"")
    };
    until("it says which verb is missing", said, |log| {
        log.contains("Grant the verb \"create\" on \"leases\"")
    });
    set_rules(cluster, &role.rules.unwrap_or_default());
    until(
        "the Lease is there again",
        || cluster.get::<Lease>("pg").is_some(),
        |there| *there,
    );
}

fn without(mut rules: Vec<PolicyRule>, verb: &str) -> Vec<PolicyRule> {
    for rule in &mut rules {
        rule.verbs.retain(|granted| granted != verb);
    }
    rules.retain(|rule| !rule.verbs.is_empty());
    rules
}

fn set_rules(cluster: &Cluster, rules: &[PolicyRule]) {
    let patch = Patch::Merge(json!({ "rules": rules }));
    let patched = cluster
        .world
        .now(cluster.api::<Role>().patch("pg", &PatchParams::default(), &patch));
    patched.expect("the Role is changed");
}
