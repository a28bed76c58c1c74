//! May the members do with the Lease what they have to, and do they carry a token if so?

use serde_json::Value;

use super::Note;
use super::object::{Object, Part, Workload, find, holds, list};

/// The API group of Leases.
pub const LEASE_GROUP: &str = "coordination.k8s.io";
/// What a member does with the Lease. RBAC cannot bind `create` to a name.
pub const LEASE_VERBS: [&str; 5] = ["get", "list", "watch", "update", "create"];

const TOKEN_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

pub(super) fn check(workload: &Workload<'_>, objects: &[Object<'_>], note: &mut Note<'_>) {
    if !workload.led_by_lease() {
        return;
    }
    check_token(workload, note);
    let account = workload.pod["serviceAccountName"].as_str().unwrap_or("default");
    let rules = rules(account, &workload.object, objects);
    for verb in LEASE_VERBS {
        if !rules.iter().any(|rule| grants(rule, verb, workload.object.name)) {
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

fn grants(rule: &Value, verb: &str, lease: &str) -> bool {
    let named = rule["resourceNames"]
        .as_array()
        .is_some_and(|names| !names.is_empty());
    holds(rule, "apiGroups", &[LEASE_GROUP, "*"])
        && holds(rule, "resources", &["leases", "*"])
        && holds(rule, "verbs", &[verb, "*"])
        && (!named || (verb != "create" && holds(rule, "resourceNames", &[lease])))
}
