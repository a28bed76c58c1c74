//! Which backup a new incremental one adds to, and why there is none.

use std::str::FromStr;

use super::chain::{chain, forked};
use super::{Entry, Kind};
use crate::core::wal::TimelineHistory;

/// The first version whose servers take incremental backups.
pub const FIRST_VERSION: u32 = 17;
/// Where nobody names a parent, a full backup begins a new chain after so many: a restore needs all of them.
pub const MOST_IN_CHAIN: usize = 7;

/// What a new physical backup adds to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Base {
    /// Nothing.
    #[default]
    None,
    /// The newest backup that fits.
    Newest,
    /// This one.
    Named(String),
    /// The newest one that fits; nothing if there is none, or its chain is long.
    Auto,
}

impl FromStr for Base {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "" | "none" => Self::None,
            "newest" => Self::Newest,
            "auto" => Self::Auto,
            name => Self::Named(name.to_owned()),
        })
    }
}

/// What is known of the server that is to be read.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    /// `server_version`.
    pub postgres_version: &'a str,
    /// `summarize_wal`; `None` if the server has no such setting.
    pub summarizes_wal: Option<bool>,
    /// Of the server's own timeline.
    pub history: &'a TimelineHistory,
    /// Fingerprint of the key that the new backup gets.
    pub key: Option<&'a str>,
}

/// Why there is nothing that an incremental backup could add to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoParent {
    #[error("PostgreSQL {version} cannot be backed up incrementally")]
    Version { version: String },
    #[error("an incremental backup is not possible: \"summarize_wal\" is off on the server")]
    NoSummaries,
    #[error("there is no physical backup that an incremental one could add to")]
    Nothing,
    #[error("there is no backup \"{name}\" at the destination")]
    Unknown { name: String },
    #[error("an incremental backup cannot add to \"{name}\", which {why}")]
    Unfit { name: String, why: String },
    #[error("the newest chain has {backups} backups")]
    Long { backups: usize },
}

impl NoParent {
    /// What the operator can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Version { .. } => "Incremental backups need PostgreSQL 17 or later.",
            Self::NoSummaries => {
                "Set summarize_wal = on in every server's configuration (a reload is enough), then make a full backup."
            }
            Self::Nothing | Self::Unfit { .. } => {
                "Make a full backup first, or let --incremental=auto make one where it must."
            }
            Self::Unknown { .. } => "Look at `podgres backups` for what is there.",
            Self::Long { .. } => return None,
        })
    }
}

/// The backup that a new one adds to; `None` for a full one. The text is why [`Base::Auto`] makes a full one.
///
/// # Errors
/// An incremental backup was asked for, and none is possible.
pub fn parent<'a>(
    entries: &'a [Entry],
    base: &Base,
    reader: &Reader<'_>,
) -> Result<(Option<&'a Entry>, Option<NoParent>), NoParent> {
    match base {
        Base::None => Ok((None, None)),
        Base::Newest => newest(entries, reader).map(|entry| (Some(entry), None)),
        Base::Named(name) => named(entries, name, reader).map(|entry| (Some(entry), None)),
        Base::Auto => Ok(match short(entries, reader) {
            Ok(entry) => (Some(entry), None),
            Err(reason) => (None, Some(reason)),
        }),
    }
}

fn short<'a>(entries: &'a [Entry], reader: &Reader<'_>) -> Result<&'a Entry, NoParent> {
    let entry = newest(entries, reader)?;
    let backups = chain(entries, entry).map_or(0, |chain| chain.len());
    if backups < MOST_IN_CHAIN {
        Ok(entry)
    } else {
        Err(NoParent::Long { backups })
    }
}

fn newest<'a>(entries: &'a [Entry], reader: &Reader<'_>) -> Result<&'a Entry, NoParent> {
    able(reader)?;
    let physical = entries.iter().filter(|entry| entry.record.kind == Kind::Physical);
    let mut newest_first: Vec<&Entry> = physical.collect();
    newest_first.sort_by_key(|entry| std::cmp::Reverse(entry.record.sequence));
    let fits = newest_first
        .iter()
        .find(|entry| unfit(entries, entry, reader).is_none());
    if let Some(entry) = fits {
        return Ok(entry);
    }
    let newest = newest_first.first().ok_or(NoParent::Nothing)?;
    Err(told(newest, unfit(entries, newest, reader)))
}

fn named<'a>(entries: &'a [Entry], name: &str, reader: &Reader<'_>) -> Result<&'a Entry, NoParent> {
    able(reader)?;
    let found = entries.iter().find(|entry| entry.record.name == name);
    let entry = found.ok_or_else(|| NoParent::Unknown {
        name: name.to_owned(),
    })?;
    match unfit(entries, entry, reader) {
        None => Ok(entry),
        why => Err(told(entry, why)),
    }
}

fn told(entry: &Entry, why: Option<String>) -> NoParent {
    NoParent::Unfit {
        name: entry.record.name.clone(),
        why: why.unwrap_or_default(),
    }
}

fn able(reader: &Reader<'_>) -> Result<(), NoParent> {
    let version = reader.postgres_version;
    match (major(version), reader.summarizes_wal) {
        (FIRST_VERSION.., Some(true)) => Ok(()),
        (FIRST_VERSION.., _) => Err(NoParent::NoSummaries),
        _ => Err(NoParent::Version {
            version: version.to_owned(),
        }),
    }
}

fn unfit(entries: &[Entry], entry: &Entry, reader: &Reader<'_>) -> Option<String> {
    let record = &entry.record;
    if record.kind != Kind::Physical {
        return Some("is a logical one".to_owned());
    }
    if let Some(first) = entry.first_difference() {
        return Some(format!("failed its verification: {first}"));
    }
    if let Err(broken) = chain(entries, entry) {
        return Some(format!("is incomplete: {broken}"));
    }
    if major(&record.postgres_version) != major(reader.postgres_version) {
        return Some(format!("is of PostgreSQL {}", record.postgres_version));
    }
    if record.key.as_deref() != reader.key {
        return Some("has another key".to_owned());
    }
    if forked(entry, reader.history) {
        let timeline = reader.history.timeline;
        return Some(format!(
            "was taken on a branch that timeline {timeline} does not contain"
        ));
    }
    None
}

/// The number before the first dot of `server_version`; 0 if there is none.
#[must_use]
pub fn major(version: &str) -> u32 {
    let digits = version.bytes().take_while(u8::is_ascii_digit).count();
    version[..digits].parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::backup::fixtures::{child, entry, failed};
    use crate::core::wal::TimelineId;

    fn first_timeline() -> TimelineHistory {
        TimelineHistory::parse(TimelineId(1), "").expect("history")
    }

    fn reader(history: &TimelineHistory) -> Reader<'_> {
        Reader {
            postgres_version: "18.4",
            summarizes_wal: Some(true),
            history,
            key: None,
        }
    }

    /// A full backup, two that add to it, and a full one.
    fn entries() -> Vec<Entry> {
        let mut entries = vec![entry(1, 1_000)];
        for sequence in 2..=3 {
            let parent = entries.last().expect("one").clone();
            entries.push(child(sequence, sequence * 1_000, &parent));
        }
        entries.push(entry(4, 4_000));
        for entry in &mut entries {
            "18.4".clone_into(&mut entry.record.postgres_version);
        }
        entries
    }

    fn sequence(found: Result<(Option<&Entry>, Option<NoParent>), NoParent>) -> Result<u64, String> {
        let (parent, _) = found.map_err(|error| error.to_string())?;
        Ok(parent.map_or(0, |entry| entry.record.sequence))
    }

    #[test]
    fn the_newest_that_fits() {
        let history = first_timeline();
        let of = |entries: &[Entry], base: &str| {
            let base = base.parse().expect("a base");
            sequence(parent(entries, &base, &reader(&history)))
        };
        let mut entries = entries();
        assert_eq!(of(&entries, "none"), Ok(0));
        assert_eq!(of(&entries, "newest"), Ok(4));
        assert_eq!(of(&entries, "auto"), Ok(4));
        let third = entries[2].record.name.clone();
        assert_eq!(of(&entries, &third), Ok(3));
        entries[3].record.key = Some("abc".to_owned());
        assert_eq!(of(&entries, "newest"), Ok(3), "4 has another key");
        entries[1] = failed(entries[1].clone());
        assert_eq!(of(&entries, "newest"), Ok(1), "3 builds on 2");
        assert!(
            of(&entries, &third).expect_err("broken").contains(
                "which is incomplete: backup \"000003-19700101T005000Z-physical\" builds on \"000002"
            )
        );
        entries[0].record.kind = Kind::Logical;
        assert_eq!(of(&entries, "auto"), Ok(0));
        let error = of(&entries, "newest").expect_err("nothing fits");
        assert!(error.ends_with("which has another key"), "{error}");
        assert!(
            of(&entries, "000009-x")
                .expect_err("unknown")
                .starts_with("there is no backup")
        );
    }

    #[test]
    fn a_server_that_cannot_is_told_apart() {
        let history = first_timeline();
        for (version, summarizes_wal, auto, told) in [
            ("18.4", Some(true), 4, ""),
            ("18.4", Some(false), 0, "\"summarize_wal\" is off"),
            ("16.14", None, 0, "PostgreSQL 16.14 cannot"),
            ("17.6", Some(true), 0, "which is of PostgreSQL 18.4"),
        ] {
            let reader = Reader {
                postgres_version: version,
                summarizes_wal,
                ..reader(&history)
            };
            let entries = entries();
            assert_eq!(
                sequence(parent(&entries, &Base::Auto, &reader)),
                Ok(auto),
                "{version}"
            );
            let error = sequence(parent(&entries, &Base::Newest, &reader))
                .err()
                .unwrap_or_default();
            assert!(error.contains(told), "{version}: {error}");
        }
    }

    #[test]
    fn a_branch_that_was_left_is_no_parent() {
        // Timeline 2 left timeline 1 at 0/3800000: before the fourth backup.
        let history = TimelineHistory::parse(TimelineId(2), "1\t0/3800000\tx").expect("history");
        assert_eq!(
            sequence(parent(&entries(), &Base::Newest, &reader(&history))),
            Ok(3)
        );
    }

    #[test]
    fn a_chain_does_not_grow_for_ever() {
        let history = first_timeline();
        let mut entries = entries();
        entries.pop();
        for number in 4..=7 {
            assert_eq!(
                sequence(parent(&entries, &Base::Auto, &reader(&history))),
                Ok(number - 1)
            );
            let parent = entries.last().expect("one").clone();
            entries.push(child(number, number * 1_000, &parent));
        }
        let (found, reason) = parent(&entries, &Base::Auto, &reader(&history)).expect("a full one");
        assert_eq!((found, reason), (None, Some(NoParent::Long { backups: 7 })));
        assert_eq!(
            sequence(parent(&entries, &Base::Newest, &reader(&history))),
            Ok(7)
        );
    }
}
