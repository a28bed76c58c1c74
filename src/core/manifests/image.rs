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
        (None, _) => Vec::new(),
        (Some(_), Some(..18)) => vec![UP_TO_17],
        (Some(_), Some(18)) => vec![FROM_18],
        (Some(_), Some(_)) => Vec::new(),
        (Some(_), None) => vec![UP_TO_17, FROM_18],
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
