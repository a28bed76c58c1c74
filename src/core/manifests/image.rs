//! What the official PostgreSQL image brings along and no manifest says: where its data are. Read from its Dockerfiles of 15 to 18.

use super::object::Container;

/// The image declares it up to 17: a container gets a volume of its own there that goes with it, unless something is mounted on exactly this path.
pub(super) const OWN_VOLUME: &str = "/var/lib/postgresql/data";

/// The version by the tag of an image that is named `postgres`; `None` where the tag does not tell.
pub(super) fn major(container: &Container<'_>) -> Option<u32> {
    let (_, tag) = official(container)?;
    let digits = tag.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// PGDATA as the image sets it, and whether that is the place up to 17; both where the tag does not tell, none where it is another image.
pub(super) fn data_directories(container: &Container<'_>) -> Vec<(&'static str, bool)> {
    const UP_TO_17: (&str, bool) = (OWN_VOLUME, true);
    const FROM_18: (&str, bool) = ("/var/lib/postgresql/18/docker", false);
    match (official(container), major(container)) {
        (Some(_), Some(..18)) => vec![UP_TO_17],
        (Some(_), Some(18)) => vec![FROM_18],
        (Some(_), None) => vec![UP_TO_17, FROM_18],
        (Some(_), Some(_)) | (None, _) => Vec::new(),
    }
}

/// Name and tag of an image whose last name is `postgres`, whoever mirrors it.
fn official<'a>(container: &Container<'a>) -> Option<(&'a str, &'a str)> {
    let image = container.value["image"].as_str()?;
    let image = image.split('@').next()?;
    let last = image.rsplit('/').next()?;
    let (name, tag) = last.split_once(':').unwrap_or((last, ""));
    (name == "postgres").then_some((name, tag))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::fixtures::{SETTINGS, put, working};
    use super::super::{Finding, check};

    /// Objects without PGDATA, whose image and mount path are these.
    fn as_the_image_has_it(image: &str, path: &str) -> Vec<Value> {
        let mut objects = working();
        for list in ["initContainers", "containers"] {
            let container = &mut objects[0]["spec"]["template"]["spec"][list][0];
            container["image"] = json!(image);
            container["env"][1] = json!({"name": "OTHER"});
            container["volumeMounts"][0]["mountPath"] = json!(path);
        }
        objects
    }

    #[test]
    fn data_are_where_the_official_image_has_them() {
        let nothing = "";
        for (image, path, expected) in [
            ("postgres:18", "/var/lib/postgresql", nothing),
            (
                "mirror.example/library/postgres:18.1-alpine@sha256:00",
                "/var/lib/postgresql",
                nothing,
            ),
            ("postgres:18", "/var/lib/postgresql/data", "no volume is mounted"),
            (
                "postgres:18",
                "/var/lib/postgresql/18/docker",
                "is where the volume is mounted",
            ),
            (
                "postgres:17",
                "/var/lib/postgresql/data",
                "is where the volume is mounted",
            ),
            (
                "postgres:17",
                "/var/lib/postgresql",
                "is on the image's own volume",
            ),
            ("postgres:17", "/data", "no volume is mounted"),
            // The tag does not tell: wrong is what is wrong for either.
            ("postgres:latest", "/var/lib/postgresql", nothing),
            ("postgres", "/data", "no volume is mounted"),
            ("registry.example/ours:17", "/data", nothing),
        ] {
            let found = check(&as_the_image_has_it(image, path), &SETTINGS);
            let as_expected = |finding: &Finding| !expected.is_empty() && finding.problem.contains(expected);
            assert!(
                found.iter().all(as_expected) && found.is_empty() == expected.is_empty(),
                "{image} {path}: {found:#?}"
            );
        }
        let mut objects = as_the_image_has_it("postgres:18", "/var/lib/postgresql");
        objects[0]["spec"]["volumeClaimTemplates"].take();
        for (source, expected) in [
            (json!({"emptyDir": {}}), "emptyDir"),
            (
                json!({"persistentVolumeClaim": {"claimName": "one"}}),
                "all pods share one claim",
            ),
        ] {
            let mut source = source;
            source["name"] = json!("data");
            put(&mut objects[0], "/spec/template/spec/volumes/2", source);
            let found = check(&objects, &SETTINGS);
            assert!(
                !found.is_empty() && found.iter().all(|finding| finding.problem.contains(expected)),
                "{found:#?}"
            );
        }
    }
}
