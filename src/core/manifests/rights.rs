//! May the members do with the Lease, and with the EndpointSlices if they keep any, what they have to, and do they carry a token if so?

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
/// The endpoints that every pod has; each has a slice and a Service.
const ENDPOINTS: [&str; 2] = ["read_write", "read_only"];

const TOKEN_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

pub(super) fn check(workload: &Workload<'_>, objects: &[Object<'_>], note: &mut Note<'_>) {
    let slices = workload.variable("PODGRES_ENDPOINT_SLICES") == Some("true");
    if !workload.led_by_lease() {
        if slices {
            note(
                "EndpointSlices are kept by the holder of the Lease, and leadership is fixed".to_owned(),
                "Set PODGRES_LEADERSHIP=lease, or take PODGRES_ENDPOINT_SLICES away.",
            );
        }
        return;
    }
    check_token(workload, note);
    if slices {
        check_slices(workload, objects, note);
    }
    let account = workload.pod["serviceAccountName"].as_str().unwrap_or("default");
    let rules = rules(account, &workload.object, objects);
    for verb in LEASE_VERBS {
        let lease = ((LEASE_GROUP, "leases"), workload.object.name);
        if !rules.iter().any(|rule| grants(rule, verb, lease)) {
            note(
                format!(
                    "service account \"{account}\" may not {verb} the Lease \"{}\"",
                    workload.object.name
                ),
                "Grant get, list, watch and update on leases of coordination.k8s.io with that name, and create, by a Role and a RoleBinding.",
            );
        }
    }
}

fn check_slices(workload: &Workload<'_>, objects: &[Object<'_>], note: &mut Note<'_>) {
    let account = workload.pod["serviceAccountName"].as_str().unwrap_or("default");
    let rules = rules(account, &workload.object, objects);
    for endpoint in ENDPOINTS {
        let name = slice_name(workload.object.name, endpoint);
        for verb in SLICE_VERBS {
            let slice = ((SLICE_GROUP, "endpointslices"), name.as_str());
            if !rules.iter().any(|rule| grants(rule, verb, slice)) {
                note(
                    format!("service account \"{account}\" may not {verb} the EndpointSlice \"{name}\""),
                    "Grant get and patch on endpointslices of discovery.k8s.io with that name, by a Role and a RoleBinding.",
                );
            }
        }
        if find(objects, &workload.object, "Service", &name).is_none() {
            note(
                format!("EndpointSlices are kept, and there is no Service \"{name}\""),
                "Apply k8s/components/endpoint-slices, or take PODGRES_ENDPOINT_SLICES away.",
            );
        }
    }
}

fn check_token(workload: &Workload<'_>, note: &mut Note<'_>) {
    let automatic = workload.pod["automountServiceAccountToken"] != false;
    for part in [Part::Init, Part::Sidecar] {
        let Some(container) = workload.part(part) else {
            continue;
        };
        let mounted = list(container.value, "volumeMounts").any(|mount| {
            mount["mountPath"]
                .as_str()
                .is_some_and(|path| path.trim_end_matches('/') == TOKEN_FOLDER)
        });
        if !automatic && !mounted && workload.variable("PODGRES_KUBECONFIG").is_none() {
            note(
                format!(
                    "container \"{}\" has no token for the Kubernetes API, and leadership is by Lease",
                    container.name
                ),
                "Mount a projected service account token, or remove automountServiceAccountToken: false.",
            );
        }
    }
}

/// What the bindings in the namespace give a service account.
fn rules<'a>(account: &str, near: &Object<'_>, objects: &[Object<'a>]) -> Vec<&'a Value> {
    let bound = |object: &&Object<'a>| {
        let here = object.kind == "RoleBinding" && object.namespace == near.namespace;
        let subject = |subject: &Value| subject["kind"] == "ServiceAccount" && subject["name"] == account;
        (here || object.kind == "ClusterRoleBinding") && list(object.value, "subjects").any(subject)
    };
    let role = |object: &Object<'a>| {
        let reference = &object.value["roleRef"];
        let name = reference["name"].as_str()?;
        match reference["kind"].as_str()? {
            "Role" => find(objects, near, "Role", name),
            kind => objects
                .iter()
                .find(|object| object.kind == kind && object.name == name)
                .copied(),
        }
    };
    let roles = objects.iter().filter(bound).filter_map(role);
    roles.flat_map(|role| list(role.value, "rules")).collect()
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
