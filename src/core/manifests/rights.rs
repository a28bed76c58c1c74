//! May the members do with the Lease, the EndpointSlices, their pods' labels and Events what they have to, and do they carry a token if so?

use std::collections::BTreeSet;

use serde_json::Value;

use super::Note;
use super::object::{Object, Part, Workload, find, holds, list};
use crate::core::routing::slice::slice_name;

/// The API group of Leases.
pub const LEASE_GROUP: &str = "coordination.k8s.io";
/// What a member does with the Lease. RBAC cannot bind `create` to a name.
pub const LEASE_VERBS: [&str; 5] = ["get", "list", "watch", "update", "create"];

/// The API group of EndpointSlices.
pub const SLICE_GROUP: &str = "discovery.k8s.io";
/// What the holder of the Lease does with each slice that it keeps, all by name.
pub const SLICE_VERBS: [&str; 2] = ["get", "patch"];
/// The API group of Events.
pub const EVENT_GROUP: &str = "events.k8s.io";

/// The endpoints that every pod has; each has a slice and a Service.
const ENDPOINTS: [&str; 2] = ["read_write", "read_only"];

const TOKEN_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What is wrong whatever has been granted.
pub(super) fn check(workload: &Workload<'_>, objects: &[Object<'_>], note: &mut Note<'_>) {
    let slices = asked_for(workload, "PODGRES_ENDPOINT_SLICES");
    if slices && !workload.led_by_lease() {
        note(
            "EndpointSlices are kept by the holder of the Lease, and leadership is fixed".to_owned(),
            "Set PODGRES_LEADERSHIP=lease, or take PODGRES_ENDPOINT_SLICES away.",
        );
    }
    check_token(workload, objects, note);
    for name in slice_names(workload) {
        if find(objects, &workload.object, "Service", &name).is_none() {
            note(
                format!("EndpointSlices are kept, and there is no Service \"{name}\""),
                "Apply k8s/components/endpoint-slices, or take PODGRES_ENDPOINT_SLICES away.",
            );
        }
    }
}

/// What the service account may not do and has to.
pub(super) fn check_granted(workload: &Workload<'_>, objects: &[Object<'_>], note: &mut Note<'_>) {
    let account = account(workload);
    let Some(rules) = rules(workload, objects) else {
        return;
    };
    for need in needs(workload) {
        let allowed = |name: &&String| {
            rules
                .iter()
                .any(|rule| grants(rule, need.verb, (need.what, name)))
        };
        let denied: Vec<&String> = need.names.iter().filter(|name| !allowed(name)).collect();
        if let Some(name) = denied.first() {
            let object = need.object.replace("NAME", name);
            note(
                format!("service account \"{account}\" may not {} {object}", need.verb),
                need.hint,
            );
        }
    }
}

/// A verb, on objects told by API group and plural, each of these names.
struct Need {
    verb: &'static str,
    what: (&'static str, &'static str),
    names: Vec<String>,
    /// As people call it; NAME is one of the names.
    object: &'static str,
    hint: &'static str,
}

fn needs(workload: &Workload<'_>) -> Vec<Need> {
    let mut needs = Vec::new();
    let mut need = |verbs: &[&'static str], what, names: Vec<String>, object, hint| {
        needs.extend(verbs.iter().map(|verb| Need {
            verb,
            what,
            names: names.clone(),
            object,
            hint,
        }));
    };
    let set = workload.object.name;
    if workload.led_by_lease() {
        need(
            &LEASE_VERBS,
            (LEASE_GROUP, "leases"),
            vec![set.to_owned()],
            "the Lease \"NAME\"",
            "Grant get, list, watch and update on leases of coordination.k8s.io with that name, and create, by a Role and a RoleBinding.",
        );
    }
    for name in slice_names(workload) {
        need(
            &SLICE_VERBS,
            (SLICE_GROUP, "endpointslices"),
            vec![name],
            "the EndpointSlice \"NAME\"",
            "Grant get and patch on endpointslices of discovery.k8s.io with that name, by a Role and a RoleBinding.",
        );
    }
    if asked_for(workload, "PODGRES_LABEL_POD") {
        need(
            &["patch"],
            ("", "pods"),
            pod_names(workload),
            "the pod \"NAME\"",
            "Grant patch on pods with these names, by a Role and a RoleBinding (k8s/components/role-label), or take PODGRES_LABEL_POD away.",
        );
    }
    if asked_for(workload, "PODGRES_EMIT_EVENTS") {
        need(
            &["create"],
            (EVENT_GROUP, "events"),
            vec![set.to_owned()],
            "Events",
            "Grant create on events of events.k8s.io, by a Role and a RoleBinding (k8s/components/events), or take PODGRES_EMIT_EVENTS away.",
        );
    }
    needs
}

fn asked_for(workload: &Workload<'_>, setting: &str) -> bool {
    workload.variable(setting) == Some("true")
}

/// Those that the holder of a Lease keeps.
fn slice_names(workload: &Workload<'_>) -> Vec<String> {
    let kept = asked_for(workload, "PODGRES_ENDPOINT_SLICES") && workload.led_by_lease();
    let endpoints = ENDPOINTS.iter().filter(|_| kept);
    endpoints
        .map(|endpoint| slice_name(workload.object.name, endpoint))
        .collect()
}

fn pod_names(workload: &Workload<'_>) -> Vec<String> {
    let first = workload.spec["ordinals"]["start"].as_u64().unwrap_or(0);
    let replicas = workload.spec["replicas"].as_u64().unwrap_or(1);
    let name = |ordinal| format!("{}-{ordinal}", workload.object.name);
    (first..first + replicas).map(name).collect()
}

fn account<'a>(workload: &Workload<'a>) -> &'a str {
    workload.pod["serviceAccountName"].as_str().unwrap_or("default")
}

/// The pod says it, or its service account for all its pods.
fn mounted_by_itself(workload: &Workload<'_>, objects: &[Object<'_>]) -> bool {
    const KEY: &str = "automountServiceAccountToken";
    let of_account = || {
        let account = find(objects, &workload.object, "ServiceAccount", account(workload))?;
        account.value[KEY].as_bool()
    };
    workload.pod[KEY].as_bool().or_else(of_account).unwrap_or(true)
}

fn check_token(workload: &Workload<'_>, objects: &[Object<'_>], note: &mut Note<'_>) {
    let reports = ["PODGRES_LABEL_POD", "PODGRES_EMIT_EVENTS"]
        .iter()
        .any(|setting| asked_for(workload, setting));
    let (parts, why): (&[Part], _) = if workload.led_by_lease() {
        (&[Part::Init, Part::Sidecar], "leadership is by Lease")
    } else if reports {
        (&[Part::Sidecar], "labels or Events are asked for")
    } else {
        return;
    };
    let automatic = mounted_by_itself(workload, objects);
    for container in parts.iter().filter_map(|part| workload.part(*part)) {
        let mounted = list(container.value, "volumeMounts").any(|mount| {
            mount["mountPath"]
                .as_str()
                .is_some_and(|path| path.trim_end_matches('/') == TOKEN_FOLDER)
        });
        if !automatic && !mounted && workload.variable("PODGRES_KUBECONFIG").is_none() {
            note(
                format!(
                    "container \"{}\" has no token for the Kubernetes API, and {why}",
                    container.name
                ),
                "Mount a projected service account token, or remove automountServiceAccountToken: false, of the pod and of its service account.",
            );
        }
    }
}

/// The ClusterRoles that bindings among the objects give to the service accounts of their StatefulSets.
#[must_use]
pub fn cluster_roles(objects: &[Value]) -> BTreeSet<String> {
    let objects: Vec<Object<'_>> = objects.iter().filter_map(Object::read).collect();
    let sets = objects.iter().filter(|object| object.kind == "StatefulSet");
    let workloads = sets.map(|object| Workload::read(object, &objects, &[]));
    let mut names = BTreeSet::new();
    for workload in workloads {
        let bindings = objects.iter().filter(|object| binds(object, &workload));
        let references = bindings.map(|binding| &binding.value["roleRef"]);
        names.extend(
            references
                .filter(|reference| reference["kind"] == "ClusterRole")
                .filter_map(|reference| reference["name"].as_str().map(str::to_owned)),
        );
    }
    names
}

/// A binding that gives something to the pods' service account, by its name or as one of all.
fn binds(object: &Object<'_>, workload: &Workload<'_>) -> bool {
    let (near, account) = (workload.object.namespace, account(workload));
    let subject = |subject: &Value| {
        let name = subject["name"].as_str().unwrap_or_default();
        let here = near.is_empty() || subject["namespace"].as_str().is_none_or(|space| space == near);
        match subject["kind"].as_str() {
            Some("ServiceAccount") => here && name == account,
            Some("User") => name == format!("system:serviceaccount:{near}:{account}"),
            Some("Group") => {
                let all = ["system:serviceaccounts", "system:authenticated"];
                all.contains(&name) || name == format!("system:serviceaccounts:{near}")
            }
            _ => false,
        }
    };
    let of_namespace = object.kind == "RoleBinding" && object.namespace == near;
    (of_namespace || object.kind == "ClusterRoleBinding") && list(object.value, "subjects").any(subject)
}

/// What the bindings give the service account; `None` where one names a ClusterRole that is not among the objects.
fn rules<'a>(workload: &Workload<'_>, objects: &[Object<'a>]) -> Option<Vec<&'a Value>> {
    let mut rules = Vec::new();
    for binding in objects.iter().filter(|object| binds(object, workload)) {
        let reference = &binding.value["roleRef"];
        let name = reference["name"].as_str().unwrap_or_default();
        if reference["kind"] == "Role" {
            let role = find(objects, &workload.object, "Role", name);
            rules.extend(role.iter().flat_map(|role| list(role.value, "rules")));
        } else {
            let role = objects
                .iter()
                .find(|object| object.kind == "ClusterRole" && object.name == name)?;
            rules.extend(list(role.value, "rules"));
        }
    }
    Some(rules)
}

/// The object is told by its API group, its plural, and its name.
fn grants(rule: &Value, verb: &str, ((group, plural), name): ((&str, &str), &str)) -> bool {
    let named = rule["resourceNames"]
        .as_array()
        .is_some_and(|names| !names.is_empty());
    holds(rule, "apiGroups", &[group, "*"])
        && holds(rule, "resources", &[plural, "*"])
        && holds(rule, "verbs", &[verb, "*"])
        && (!named || (verb != "create" && holds(rule, "resourceNames", &[name])))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fixtures::{SETTINGS, working};
    use super::super::{check, cluster_roles};

    #[test]
    fn a_service_account_without_a_token_was_not_seen() {
        let mut objects = working();
        objects.push(json!({"kind": "ServiceAccount", "metadata": {"name": "pg"}, "automountServiceAccountToken": false}));
        let found = check(&objects, &SETTINGS);
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(
            found
                .iter()
                .all(|finding| finding.problem.contains("has no token"))
        );
        objects[0]["spec"]["template"]["spec"]["automountServiceAccountToken"] = json!(true);
        assert_eq!(check(&objects, &SETTINGS), [], "the pod's own word counts");
    }

    #[test]
    fn what_is_granted_in_all_namespaces_counts() {
        let everything = json!({"kind": "ClusterRole", "metadata": {"name": "all"}, "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]});
        let group = |kind: &str, name: &str| {
            json!({"kind": kind, "metadata": {"name": "b", "namespace": "shop"}, "roleRef": {"kind": "ClusterRole", "name": "all"},
                   "subjects": [{"kind": "Group", "name": name}]})
        };
        for (binding, enough) in [
            (group("RoleBinding", "system:serviceaccounts:shop"), true),
            (group("ClusterRoleBinding", "system:serviceaccounts"), true),
            (group("ClusterRoleBinding", "system:serviceaccounts:other"), false),
        ] {
            let mut objects = working();
            objects.truncate(3);
            for object in &mut objects {
                object["metadata"]["namespace"] = json!("shop");
            }
            objects.push(binding);
            let wanted = cluster_roles(&objects);
            assert_eq!(wanted.contains("all"), enough);
            // A role that was not given may grant anything.
            assert_eq!(check(&objects, &SETTINGS).is_empty(), enough);
            objects.push(everything.clone());
            let found = check(&objects, &SETTINGS);
            assert_eq!(found.is_empty(), enough, "{found:#?}");
            assert!(
                found
                    .iter()
                    .all(|finding| finding.unless == Some("ClusterRoleBinding"))
            );
        }
    }
}
