//! Are the parts there, in an order that ends, as a user who may, with variables that exist and time to stop?

use std::collections::BTreeSet;

use serde_json::Value;

use super::Note;
use super::object::{Container, Part, Workload, list};
use crate::core::units;

/// A fast stop ends with a checkpoint, and takes what that takes: what Kubernetes gives by itself is little enough.
pub const STOP_SECONDS: u64 = 30;
/// What a sidecar that holds the Lease may take besides: for the checkpoint before the stop, and to hand over after it.
pub const HAND_OVER_SECONDS: u64 = 15;
/// Of `--stop-timeout`, where it is not set.
pub const DEFAULT_STOP_TIMEOUT_SECONDS: u64 = 3;

pub(super) fn check(workload: &Workload<'_>, settings: &[&str], note: &mut Note<'_>) {
    check_parts(workload, note);
    check_order(workload, note);
    check_grace(workload, note);
    check_users(workload, note);
    check_sources(workload, note);
    check_variables(workload, settings, note);
}

fn check_parts(workload: &Workload<'_>, note: &mut Note<'_>) {
    for (part, verb, why) in [
        (
            Part::Server,
            "postgres",
            "It is process 1 of the PostgreSQL container: without it nobody starts PostgreSQL.",
        ),
        (
            Part::Sidecar,
            "sidecar",
            "It decides, answers probes and routes clients: without it PostgreSQL is never started.",
        ),
        (
            Part::Init,
            "init",
            "It brings the data directory to \"ready to start\", and needs to be an init container.",
        ),
    ] {
        if workload.part(part).is_none() {
            note(format!("no container runs `podgres {verb}`"), why);
        }
    }
    let position = |part: Part| {
        let init = workload.pod["initContainers"].as_array()?;
        let name = workload.part(part)?.name;
        init.iter().position(|container| container["name"] == name)
    };
    if let (Some(sidecar), Some(init)) = (position(Part::Sidecar), position(Part::Init)) {
        let native = workload
            .part(Part::Sidecar)
            .is_some_and(|sidecar| sidecar.native_sidecar);
        if native && sidecar < init {
            note(
                "the sidecar comes before `podgres init`".to_owned(),
                "Put it behind: both work on one data directory, one after the other.",
            );
        }
        if !native {
            note(
                "the sidecar is an init container without restartPolicy: Always, so the pod waits for its end".to_owned(),
                "Add restartPolicy: Always (Kubernetes 1.29 and later), or make it an ordinary container.",
            );
        }
    }
}

/// A standby that waits for another one to prove who may be primary is not ready.
fn check_order(workload: &Workload<'_>, note: &mut Note<'_>) {
    let several = workload.replicas() > 1;
    if several && workload.led_by_lease() && workload.spec["podManagementPolicy"] != "Parallel" {
        note(
            "leadership is by Lease, and podManagementPolicy is OrderedReady: when all pods are gone at once, the first one may wait for ever for the next"
                .to_owned(),
            "Set podManagementPolicy: Parallel. On a set that is there: kubectl delete statefulset NAME --cascade=orphan, then apply it anew; its pods are adopted.",
        );
    }
}

fn check_grace(workload: &Workload<'_>, note: &mut Note<'_>) {
    let seconds = workload.pod["terminationGracePeriodSeconds"]
        .as_u64()
        .unwrap_or(30);
    let least = least_grace_seconds(workload);
    if seconds < least {
        note(
            format!(
                "terminationGracePeriodSeconds is {seconds}, and PostgreSQL may take {least} s to stop and to hand over"
            ),
            "Give at least that, better 120: the last checkpoint takes what it takes; KILL means crash recovery.",
        );
    }
}

/// PostgreSQL's stop, and under a Lease the hand-over after it.
fn least_grace_seconds(workload: &Workload<'_>) -> u64 {
    if !workload.led_by_lease() {
        return STOP_SECONDS;
    }
    let stop_timeout = workload
        .variable("PODGRES_STOP_TIMEOUT")
        .and_then(|text| units::duration(text).ok())
        .map_or(DEFAULT_STOP_TIMEOUT_SECONDS, |stop| stop.as_secs());
    STOP_SECONDS + HAND_OVER_SECONDS + stop_timeout
}

fn check_users(workload: &Workload<'_>, note: &mut Note<'_>) {
    let context = &workload.pod["securityContext"];
    let user = |container: &Container<'_>| {
        let own = container.value["securityContext"]["runAsUser"].as_u64();
        own.or_else(|| context["runAsUser"].as_u64())
    };
    let users: BTreeSet<Option<u64>> = workload.parts().map(user).collect();
    if users.contains(&Some(0)) {
        note(
            "a container of podgres runs as root, which PostgreSQL refuses".to_owned(),
            "Set securityContext.runAsUser and fsGroup: 999 in Debian's images, 70 in Alpine's.",
        );
    }
    if context["fsGroup"] != Value::Null {
        return;
    }
    // Somebody's own init container may hand the folders over, as root.
    let handed_over =
        list(workload.pod, "initContainers").any(|container| container["securityContext"]["runAsUser"] == 0);
    if users.len() > 1 {
        note(
            "podgres' containers run as different users, and the pod has no fsGroup".to_owned(),
            "They share a folder with a socket: give all the same runAsUser, or the pod an fsGroup.",
        );
    } else if !handed_over && !users.contains(&Some(0)) {
        note(
            "the pod has no fsGroup: a new volume belongs to root, and PostgreSQL's user cannot write to it"
                .to_owned(),
            "Set securityContext.fsGroup to the group of runAsUser: 999 in Debian's images, 70 in Alpine's.",
        );
    }
}

/// The pod would not start, and what is said of its settings here would be of others. Secrets are in no file as a rule, nor to be read by everybody.
fn check_sources(workload: &Workload<'_>, note: &mut Note<'_>) {
    let unseen = workload.parts().flat_map(|container| &container.unseen);
    let missing: BTreeSet<&str> = unseen
        .filter(|source| source.kind == "ConfigMap" && !source.optional)
        .map(|source| source.name)
        .collect();
    for name in missing {
        note(
            format!("there is no ConfigMap \"{name}\", which podgres' settings come from"),
            "Apply it, or give its file too: whose settings are not known is not looked at as a whole.",
        );
    }
}

fn check_variables(workload: &Workload<'_>, settings: &[&str], note: &mut Note<'_>) {
    let unknown: BTreeSet<&str> = workload
        .parts()
        .flat_map(|container| container.variables.keys().map(String::as_str))
        .filter(|name| name.starts_with("PODGRES_") && !settings.contains(name))
        .collect();
    for name in unknown {
        note(
            format!("\"{name}\" is no setting of podgres"),
            "`podgres sidecar --help` lists them all.",
        );
    }
    for container in workload.parts() {
        let has = |name: &str| container.variables.contains_key(name);
        let lacks = |name: &str| !has(name) && container.unseen.is_empty();
        if workload.led_by_lease() && lacks("POD_UID") {
            note(
                format!("container \"{}\" has no POD_UID", container.name),
                "Give it by the downward API, fieldRef metadata.uid: under a Lease a pod must be told from an earlier one of the same name.",
            );
        }
        if lacks("POSTGRES_PASSWORD") && lacks("POSTGRES_PASSWORD_FILE") {
            note(
                format!("container \"{}\" has no POSTGRES_PASSWORD_FILE", container.name),
                "Mount a Secret and give the path of the superuser's password.",
            );
        }
        if has("POSTGRES_PASSWORD") && has("POSTGRES_PASSWORD_FILE") {
            note(
                format!(
                    "container \"{}\" has both POSTGRES_PASSWORD and POSTGRES_PASSWORD_FILE",
                    container.name
                ),
                "Set one of them.",
            );
        }
    }
}
