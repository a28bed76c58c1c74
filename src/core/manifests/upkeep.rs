//! What becomes of the members when nodes are emptied, and of their data when there are fewer pods.

use serde_json::Value;

use super::Note;
use super::names::selects;
use super::object::{Object, Workload};

pub(super) fn check(workload: &Workload<'_>, objects: &[Object<'_>], note: &mut Note<'_>) {
    check_retention(workload, note);
    let labels = &workload.spec["template"]["metadata"]["labels"];
    let budgets = objects.iter().filter(|object| {
        let near = object.namespace == workload.object.namespace;
        object.kind == "PodDisruptionBudget"
            && near
            && selects(&object.value["spec"]["selector"]["matchLabels"], labels)
    });
    for budget in budgets {
        if evicts_nobody(&budget.value["spec"], workload.replicas()) {
            note(
                format!(
                    "PodDisruptionBudget \"{}\" lets no pod go, so no node of a member can be drained",
                    budget.name
                ),
                "Set maxUnavailable: 1. A member that is evicted hands over first.",
            );
        }
    }
}

fn check_retention(workload: &Workload<'_>, note: &mut Note<'_>) {
    let policy = &workload.spec["persistentVolumeClaimRetentionPolicy"];
    for (key, when) in [
        ("whenScaled", "are scaled away"),
        ("whenDeleted", "lose their StatefulSet"),
    ] {
        if policy[key] == "Delete" {
            note(
                format!(
                    "persistentVolumeClaimRetentionPolicy.{key} is Delete: the data of members that {when} are deleted"
                ),
                "Set Retain, and delete a claim by hand once its data are of no use to anybody.",
            );
        }
    }
}

fn evicts_nobody(budget: &Value, replicas: u64) -> bool {
    let none = |value: &Value| *value == 0 || *value == "0%";
    let all = |value: &Value| value.as_u64().is_some_and(|least| least >= replicas) || *value == "100%";
    none(&budget["maxUnavailable"]) || (replicas > 0 && all(&budget["minAvailable"]))
}
