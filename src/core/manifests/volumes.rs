//! Has each member a volume of its own, that outlives it, and the folders that its containers share?

use serde_json::Value;

use super::Note;
use super::image;
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
    check_files(workload, note);
}

/// What is wrong and what to do about it.
type Problem = (String, &'static str);

fn check_data(workload: &Workload<'_>, container: &Container<'_>, note: &mut Note<'_>) {
    let before_18 = image::major(container).map(|major| major < 18);
    let places: Vec<(&str, bool)> = match container.variables.get("PGDATA") {
        Some(Some(directory)) => vec![(directory, before_18 == Some(true))],
        // From somewhere that the manifests do not show, or of an image that is not known.
        Some(None) => return,
        None => image::data_directories(container),
    };
    // Where the tag does not tell the version, it must be wrong for each.
    let problems = places
        .iter()
        .map(|(directory, before_18)| data_problem(workload, container, directory, *before_18));
    let problems: Option<Vec<Problem>> = problems.collect();
    if let Some((problem, hint)) = problems.and_then(|problems| problems.into_iter().next()) {
        note(problem, hint);
    }
}

fn data_problem(
    workload: &Workload<'_>,
    container: &Container<'_>,
    directory: &str,
    before_18: bool,
) -> Option<Problem> {
    let name = container.name;
    let Some((volume, path)) = mounted(container, directory) else {
        return Some((
            format!("no volume is mounted where container \"{name}\" has its data, \"{directory}\""),
            "Mount the claim template's volume above PGDATA: what a container writes elsewhere is lost with it.",
        ));
    };
    if path == directory {
        return Some((
            format!("PGDATA \"{directory}\" of container \"{name}\" is where the volume is mounted"),
            "Set PGDATA to a sub-directory: a new file system has lost+found at its root, and podgres renames finished directories into place.",
        ));
    }
    if before_18 && below(directory, image::OWN_VOLUME) && !below(path, image::OWN_VOLUME) {
        return Some((
            format!(
                "PGDATA \"{directory}\" of container \"{name}\" is on the image's own volume, \"{}\", which goes with the container",
                image::OWN_VOLUME
            ),
            "Set PGDATA to another folder below the mounted one, e.g. /var/lib/postgresql/pgdata.",
        ));
    }
    source_problem(workload, volume)
}

/// The volume must be the member's own and outlive its pod.
fn source_problem(workload: &Workload<'_>, volume: &str) -> Option<Problem> {
    let of_template =
        list(workload.spec, "volumeClaimTemplates").any(|claim| claim["metadata"]["name"] == volume);
    if of_template {
        return None;
    }
    let Some(source) = list(workload.pod, "volumes").find(|source| source["name"] == volume) else {
        return Some((
            format!("volume \"{volume}\", where the data are, is not defined"),
            "Define it in volumeClaimTemplates.",
        ));
    };
    let claim = &source["persistentVolumeClaim"];
    if claim.is_object() {
        let claim = claim["claimName"].as_str().unwrap_or(volume);
        return Some((
            format!("all pods share one claim for their data, \"{claim}\""),
            "Use volumeClaimTemplates, which give each member a claim of its own.",
        ));
    }
    (source["emptyDir"] != Value::Null).then(|| {
        (
            format!("the data are on an emptyDir, \"{volume}\", and go with the pod"),
            "Use volumeClaimTemplates.",
        )
    })
}

fn below(path: &str, folder: &str) -> bool {
    path == folder
        || path
            .strip_prefix(folder)
            .is_some_and(|rest| rest.starts_with('/'))
}

/// The volume that a path lies on, and where it is mounted: the longest path wins.
fn mounted<'a>(container: &Container<'a>, path: &str) -> Option<(&'a str, &'a str)> {
    list(container.value, "volumeMounts")
        .filter_map(|mount| {
            Some((
                mount["name"].as_str()?,
                mount["mountPath"].as_str()?.trim_end_matches('/'),
            ))
        })
        .filter(|(_, mount)| below(path, mount))
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

/// Each container has mounts of its own: what is mounted in one is not there in another.
fn check_files(workload: &Workload<'_>, note: &mut Note<'_>) {
    for container in workload.parts() {
        let files = container
            .variables
            .iter()
            .filter(|(name, _)| name.ends_with("PASSWORD_FILE") || *name == "PODGRES_TLS_DIR");
        for (name, path) in files {
            if let Some(path) = path.filter(|path| mounted(container, path).is_none()) {
                note(
                    format!(
                        "{name} of container \"{}\" is \"{path}\", where nothing is mounted",
                        container.name
                    ),
                    "Mount the Secret there too: each container has its own volumeMounts.",
                );
            }
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
