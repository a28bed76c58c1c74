//! Has each member a volume of its own, that outlives it, and the folders that its containers share?

use serde_json::Value;

use super::Note;
use super::object::{Container, Part, Workload, list};

const DEFAULT_RUN_DIRECTORY: &str = "/run/podgres";

pub(super) fn check(workload: &Workload<'_>, note: &mut Note<'_>) {
    for part in [Part::Server, Part::Init] {
        if let Some(container) = workload.part(part) {
            check_data(workload, container, note);
        }
    }
    check_shared_folder(workload, note);
    check_passfile(workload, note);
}

fn check_data(workload: &Workload<'_>, container: &Container<'_>, note: &mut Note<'_>) {
    let name = container.name;
    let Some(directory) = container.variables.get("PGDATA").copied().flatten() else {
        // The image's own, which the manifests do not say.
        return;
    };
    let Some((volume, path)) = mounted(container, directory) else {
        note(
            format!("no volume is mounted where container \"{name}\" has its data, \"{directory}\""),
            "Mount the claim template's volume above PGDATA: what a container writes elsewhere is lost with it.",
        );
        return;
    };
    if path == directory {
        note(
            format!("PGDATA \"{directory}\" of container \"{name}\" is where the volume is mounted"),
            "Set PGDATA to a sub-directory: a new file system has lost+found at its root, and podgres renames finished directories into place.",
        );
    }
    let of_template =
        list(workload.spec, "volumeClaimTemplates").any(|claim| claim["metadata"]["name"] == volume);
    if of_template {
        return;
    }
    let source = list(workload.pod, "volumes").find(|source| source["name"] == volume);
    match source {
        Some(source) if source["persistentVolumeClaim"].is_object() => note(
            format!(
                "all pods share one claim for their data, \"{}\"",
                source["persistentVolumeClaim"]["claimName"]
                    .as_str()
                    .unwrap_or(volume)
            ),
            "Use volumeClaimTemplates, which give each member a claim of its own.",
        ),
        Some(source) if source["emptyDir"] != Value::Null => note(
            format!("the data are on an emptyDir, \"{volume}\", and go with the pod"),
            "Use volumeClaimTemplates.",
        ),
        Some(_) => {}
        None => note(
            format!("volume \"{volume}\", where the data are, is not defined"),
            "Define it in volumeClaimTemplates.",
        ),
    }
}

/// The volume that a path lies on, and where it is mounted: the longest path wins.
fn mounted<'a>(container: &Container<'a>, path: &str) -> Option<(&'a str, &'a str)> {
    let below =
        |mount: &str| path == mount || path.strip_prefix(mount).is_some_and(|rest| rest.starts_with('/'));
    list(container.value, "volumeMounts")
        .filter_map(|mount| {
            Some((
                mount["name"].as_str()?,
                mount["mountPath"].as_str()?.trim_end_matches('/'),
            ))
        })
        .filter(|(_, mount)| below(mount))
        .max_by_key(|(_, mount)| mount.len())
}

fn check_shared_folder(workload: &Workload<'_>, note: &mut Note<'_>) {
    let folder = workload
        .variable("PODGRES_RUN_DIR")
        .unwrap_or(DEFAULT_RUN_DIRECTORY);
    for container in workload.parts() {
        if mounted(container, folder).is_none() {
            note(
                format!("container \"{}\" does not mount \"{folder}\"", container.name),
                "Mount one emptyDir (medium: Memory) there in all of podgres' containers: it holds the socket between them.",
            );
        }
    }
}

/// libpq passes over a passfile that the group may read, and `fsGroup` lets the group read what is in a Secret.
fn check_passfile(workload: &Workload<'_>, note: &mut Note<'_>) {
    for container in workload.parts() {
        let Some(path) = container.variables.get("PGPASSFILE").copied().flatten() else {
            continue;
        };
        let secret = mounted(container, path).and_then(|(volume, _)| {
            let source = list(workload.pod, "volumes").find(|source| source["name"] == volume)?;
            source["secret"].is_object().then_some(volume)
        });
        if secret.is_some() && workload.pod["securityContext"]["fsGroup"] != Value::Null {
            note(
                format!(
                    "PGPASSFILE of container \"{}\" is in a Secret, which fsGroup makes readable for the group",
                    container.name
                ),
                "libpq passes over such a file. Remove PGPASSFILE: podgres writes its own from POSTGRES_PASSWORD_FILE.",
            );
        }
    }
}
