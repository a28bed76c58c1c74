//! Do the members find each other? Each needs a name of its own, before it is ready.

use serde_json::Value;

use super::Note;
use super::object::{Object, Workload, find, list};

const WHY_HEADLESS: &str = "Members find each other by the names POD.SERVICE, which only a headless Service (clusterIP: None) gives them.";

pub(super) fn check(workload: &Workload<'_>, objects: &[Object<'_>], note: &mut Note<'_>) {
    check_ports(workload, objects, note);
    let Some(name) = workload.spec["serviceName"]
        .as_str()
        .filter(|name| !name.is_empty())
    else {
        note(
            "serviceName is not set, so no pod has a name in DNS".to_owned(),
            WHY_HEADLESS,
        );
        return;
    };
    let Some(service) = find(objects, &workload.object, "Service", name) else {
        note(
            format!("serviceName \"{name}\" names no Service, so no pod has a name in DNS"),
            WHY_HEADLESS,
        );
        return;
    };
    let spec = &service.value["spec"];
    if spec["clusterIP"] != "None" {
        note(
            format!("Service \"{name}\" is not headless, so no pod has a name in DNS"),
            WHY_HEADLESS,
        );
    }
    if !selects(
        &spec["selector"],
        &workload.spec["template"]["metadata"]["labels"],
    ) {
        note(
            format!("Service \"{name}\" does not select the pods"),
            "Its selector must be a part of the template's labels.",
        );
    }
    if spec["publishNotReadyAddresses"] != true {
        note(
            format!("Service \"{name}\" does not have publishNotReadyAddresses: true"),
            "Without it a pod has no name until it is ready, and members that wait for each other's names never become ready.",
        );
    }
    let asked = workload
        .variable("PODGRES_SERVICE")
        .unwrap_or(workload.object.name);
    if asked != name {
        note(
            format!("podgres looks for the members in Service \"{asked}\", their names are in \"{name}\""),
            "Set PODGRES_SERVICE to serviceName.",
        );
    }
    check_first_ordinal(workload, note);
}

fn check_first_ordinal(workload: &Workload<'_>, note: &mut Note<'_>) {
    let start = workload.spec["ordinals"]["start"].as_u64().unwrap_or(0);
    let told = workload.variable("PODGRES_FIRST_ORDINAL").unwrap_or("0");
    if told != start.to_string() {
        note(
            format!("spec.ordinals.start is {start}, and PODGRES_FIRST_ORDINAL is {told}"),
            "Both must be the same: the first ordinal alone makes a new cluster.",
        );
    }
}

/// A Service that leads to the pods by a port's name leads nowhere if no container has that name.
fn check_ports(workload: &Workload<'_>, objects: &[Object<'_>], note: &mut Note<'_>) {
    let labels = &workload.spec["template"]["metadata"]["labels"];
    let services = objects.iter().filter(|object| {
        object.kind == "Service"
            && object.namespace == workload.object.namespace
            && selects(&object.value["spec"]["selector"], labels)
    });
    let named = |name: &str| {
        let mut ports = workload
            .containers
            .iter()
            .flat_map(|container| list(container.value, "ports"));
        ports.any(|port| port["name"] == name)
    };
    for service in services {
        let targets = list(&service.value["spec"], "ports").filter_map(|port| port["targetPort"].as_str());
        for target in targets.filter(|target| !named(target)) {
            note(
                format!(
                    "Service \"{}\" leads to port \"{target}\", and no container has a port of that name",
                    service.name
                ),
                "Name the port in the sidecar's list of ports, or give targetPort as a number.",
            );
        }
    }
}

pub(super) fn selects(selector: &Value, labels: &Value) -> bool {
    selector.as_object().is_some_and(|selector| {
        !selector.is_empty() && selector.iter().all(|(key, value)| labels[key.as_str()] == *value)
    })
}
