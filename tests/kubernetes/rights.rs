//! The Role of `overlays/lease` with components that need more: every verb in it is needed, and whoever takes one away reads which one it was.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use podgres::core::manifests::LEASE_GROUP;

use crate::cluster::Cluster;
use crate::overlay::Overlay;
use crate::runner::Group;
use crate::wait::until;

pub(crate) const GROUP: Group = Group {
    name: "rights",
    alone: false,
    overlay: || Overlay::new("lease").with("role-label").with("events"),
    begin: |cluster| cluster.start(),
    tests: &[
        ("nothing_else_may_be_touched", nothing_else),
        ("a_denied_get_is_named", get),
        ("a_denied_list_is_named", |cluster| denied(cluster, "list")),
        ("a_denied_watch_is_named", |cluster| denied(cluster, "watch")),
        ("a_denied_update_is_named", |cluster| denied(cluster, "update")),
        ("a_denied_create_is_named", create),
        ("denied_labels_and_events_are_named_and_hold_nobody_up", reports),
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

/// The Role without some of its rights while it lives, however that ends.
struct Denied<'a> {
    cluster: &'a Cluster<'a>,
    whole: Vec<PolicyRule>,
}

impl<'a> Denied<'a> {
    fn new(cluster: &'a Cluster<'a>, taken: impl Fn(Vec<PolicyRule>) -> Vec<PolicyRule>) -> Self {
        let role: Role = cluster.get("pg").expect("the Role");
        let whole = role.rules.expect("rules");
        set_rules(cluster, &taken(whole.clone())).expect("the Role is changed");
        Self { cluster, whole }
    }
}

impl Drop for Denied<'_> {
    fn drop(&mut self) {
        if let Err(error) = set_rules(self.cluster, &self.whole) {
            println!("could not give the Role its rights back: {error}");
        }
    }
}

/// What pods' containers have said, as text: the logs are JSON.
fn logs(cluster: &Cluster, pods: &[&str], containers: &[&str]) -> String {
    let log = |pod: &str, container: &str| cluster.try_kubectl(&["logs", pod, "-c", container]);
    let each = pods
        .iter()
        .flat_map(|pod| containers.iter().map(move |container| (pod, container)));
    each.map(|(pod, container)| log(pod, container).unwrap_or_default())
        .collect::<String>()
        .replace("\\\"", "\"")
}

/// Takes a verb away, starts a member anew, reads its complaint, and gives the verb back.
fn denied(cluster: &Cluster, verb: &str) {
    let _denied = Denied::new(cluster, |rules| without(rules, (LEASE_GROUP, verb)));
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
    let (after, _) = until(
        "it says which verb is missing",
        || logs(cluster, &[&pod], &["bootstrap", "sidecar"]),
        |log| log.contains(&complaint) && log.contains(&hint),
    );
    println!("    said after {after:.1?}");
}

/// Orders read the Lease before they change it; the members follow it, and read it where it is silent.
fn get(cluster: &Cluster) {
    let _denied = Denied::new(cluster, |rules| without(rules, (LEASE_GROUP, "get")));
    let to = cluster.standby();
    let refused = cluster.try_switch_over(&to).expect_err("refused");
    assert!(
        refused.contains("could not get lease \"pg\"") && refused.contains("Grant the verb \"get\""),
        "{refused}"
    );
}

/// A Lease that was deleted is made again, where that is allowed.
fn create(cluster: &Cluster) {
    let denied = Denied::new(cluster, |rules| without(rules, (LEASE_GROUP, "create")));
    let deleted = cluster
        .world
        .now(cluster.api::<Lease>().delete("pg", &DeleteParams::default()));
    deleted.expect("deleted").map_left(drop);
    until(
        "it says which verb is missing",
        || logs(cluster, &MEMBERS, &["sidecar"]),
        |log| log.contains("Grant the verb \"create\" on \"leases\""),
    );
    drop(denied);
    until(
        "the Lease is there again",
        || cluster.get::<Lease>("pg").is_some(),
        |there| *there,
    );
}

/// What only tells others is no reason to do nothing: a switchover goes on, and the logs say what is missing.
fn reports(cluster: &Cluster) {
    let _denied = Denied::new(cluster, |rules| {
        let kept = |rule: &PolicyRule| rule.api_groups.as_deref() == Some(&[LEASE_GROUP.to_owned()]);
        rules.into_iter().filter(kept).collect()
    });
    cluster.switch_over(&cluster.standby());
    for (what, verb, objects) in [
        ("label", "patch", "pods"),
        ("emit an event about", "create", "events"),
    ] {
        let hint = format!("Grant the verb \"{verb}\" on \"{objects}\"");
        until(
            "it says what is missing",
            || logs(cluster, &MEMBERS, &["sidecar"]),
            |log| log.contains(&format!("could not {what}")) && log.contains(&hint),
        );
    }
}

const MEMBERS: [&str; 3] = ["pg-0", "pg-1", "pg-2"];

fn without(mut rules: Vec<PolicyRule>, (group, verb): (&str, &str)) -> Vec<PolicyRule> {
    let of_group = |rule: &&mut PolicyRule| rule.api_groups.as_deref() == Some(&[group.to_owned()]);
    for rule in rules.iter_mut().filter(of_group) {
        rule.verbs.retain(|granted| granted != verb);
    }
    rules.retain(|rule| !rule.verbs.is_empty());
    rules
}

fn set_rules(cluster: &Cluster, rules: &[PolicyRule]) -> kube::Result<Role> {
    let patch = Patch::Merge(json!({ "rules": rules }));
    cluster
        .world
        .now(cluster.api::<Role>().patch("pg", &PatchParams::default(), &patch))
}
