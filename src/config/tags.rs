//! Tags of members. All pods of a StatefulSet are started with the same settings, so a tag says itself which pods it is of.

use std::str::FromStr;

use super::InvalidSetting;
use crate::core::member::MemberName;

/// Of all pods (`true`), of none (`false`), or of those that are named: `pg-3,pg-4`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tag {
    All(bool),
    Pods(Vec<MemberName>),
}

impl Tag {
    pub fn is_of(&self, pod: &MemberName) -> bool {
        match self {
            Self::All(all) => *all,
            Self::Pods(pods) => pods.contains(pod),
        }
    }

    /// Refuses pods of another cluster than `own`'s: a name that is mistyped would leave the tag on nobody.
    pub(super) fn check(&self, key: &str, own: &MemberName) -> Result<(), InvalidSetting> {
        match self {
            Self::All(_) => Ok(()),
            Self::Pods(pods) => pods.iter().try_for_each(|pod| check_cluster(key, pod, own)),
        }
    }
}

impl FromStr for Tag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "true" => Ok(Self::All(true)),
            "false" => Ok(Self::All(false)),
            list => named(list.split(',').map(pod), |name| name)
                .map(Self::Pods)
                .map_err(|error| format!("{error}; true, false, or pods as in pg-3,pg-4 are expected")),
        }
    }
}

/// One number for all pods (`100`), or numbers for some (`pg-0=10,pg-1=20`); the others have [`Priorities::DEFAULT`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Priorities {
    All(u32),
    Pods(Vec<(MemberName, u32)>),
}

impl Priorities {
    pub const DEFAULT: u32 = 100;

    pub fn of(&self, pod: &MemberName) -> u32 {
        match self {
            Self::All(number) => *number,
            Self::Pods(pods) => pods
                .iter()
                .find(|(name, _)| name == pod)
                .map_or(Self::DEFAULT, |(_, number)| *number),
        }
    }

    pub(super) fn check(&self, key: &str, own: &MemberName) -> Result<(), InvalidSetting> {
        match self {
            Self::All(_) => Ok(()),
            Self::Pods(pods) => pods.iter().try_for_each(|(pod, _)| check_cluster(key, pod, own)),
        }
    }
}

impl FromStr for Priorities {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = if text.contains('=') {
            named(text.split(',').map(pair), |(name, _)| name).map(Self::Pods)
        } else {
            number(text).map(Self::All)
        };
        parsed.map_err(|error| format!("{error}; a number, or numbers as in pg-0=10,pg-1=20 are expected"))
    }
}

fn pair(entry: &str) -> Result<(MemberName, u32), String> {
    let (name, value) = entry
        .split_once('=')
        .ok_or_else(|| format!("\"{entry}\" is no POD=NUMBER"))?;
    Ok((pod(name)?, number(value)?))
}

/// All entries, each of another pod.
fn named<T>(
    entries: impl Iterator<Item = Result<T, String>>,
    name: impl Fn(&T) -> &MemberName,
) -> Result<Vec<T>, String> {
    let mut all: Vec<T> = Vec::new();
    for entry in entries {
        let entry = entry?;
        if all.iter().any(|known| name(known) == name(&entry)) {
            return Err(format!("\"{}\" is named twice", name(&entry)));
        }
        all.push(entry);
    }
    Ok(all)
}

fn pod(text: &str) -> Result<MemberName, String> {
    MemberName::parse(text.trim()).map_err(|error| error.to_string())
}

fn number(text: &str) -> Result<u32, String> {
    let text = text.trim();
    text.parse()
        .map_err(|_| format!("\"{text}\" is no number from 0 to {}", u32::MAX))
}

fn check_cluster(key: &str, pod: &MemberName, own: &MemberName) -> Result<(), InvalidSetting> {
    if pod.cluster == own.cluster {
        return Ok(());
    }
    Err(InvalidSetting::new(
        key,
        format!("\"{pod}\" is no pod of \"{}\"", own.cluster),
        "name pods of this StatefulSet, separated by commas",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> MemberName {
        MemberName::parse(text).expect("a name")
    }

    #[test]
    fn a_tag_is_of_all_of_none_or_of_those_that_are_named() {
        for (text, first, second) in [
            ("true", true, true),
            ("false", false, false),
            ("pg-0", true, false),
            ("pg-0, pg-1", true, true),
            ("pg-11", false, false),
        ] {
            let tag: Tag = text.parse().expect(text);
            assert_eq!(
                (tag.is_of(&named("pg-0")), tag.is_of(&named("pg-1"))),
                (first, second),
                "{text}"
            );
        }
        for text in ["", "yes", "1", "pg-0,", "pg", "pg-0,pg-0"] {
            let error = text.parse::<Tag>().expect_err(text);
            assert!(error.contains("true, false, or pods as in"), "{error}");
        }
    }

    #[test]
    fn a_priority_is_for_all_or_for_those_that_are_named() {
        for (text, first, second) in [("7", 7, 7), ("pg-0=10", 10, 100), ("pg-0=10, pg-1 = 20", 10, 20)] {
            let priorities: Priorities = text.parse().expect(text);
            assert_eq!(
                (priorities.of(&named("pg-0")), priorities.of(&named("pg-1"))),
                (first, second),
                "{text}"
            );
        }
        for text in [
            "",
            "-1",
            "high",
            "pg-0",
            "pg-0=",
            "pg-0=1,5",
            "0=1",
            "pg-0=1,pg-0=2",
        ] {
            let error = text.parse::<Priorities>().expect_err(text);
            assert!(error.contains("a number, or numbers as in"), "{error}");
        }
    }

    #[test]
    fn a_pod_of_another_cluster_is_refused() {
        let own = named("pg-1");
        let tag: Tag = "pg-0,gp-1".parse().expect("names");
        let refused = tag.check("PODGRES_NO_READS", &own).expect_err("another's");
        assert_eq!(
            refused.to_string(),
            "invalid value for PODGRES_NO_READS: \"gp-1\" is no pod of \"pg\""
        );
        let priorities: Priorities = "gp-1=5".parse().expect("a pair");
        assert!(priorities.check("PODGRES_PRIORITY", &own).is_err());
        assert!(Tag::All(true).check("PODGRES_NO_READS", &own).is_ok());
    }
}
