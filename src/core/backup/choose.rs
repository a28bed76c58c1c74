//! Which backup a restore begins with.
//!
//! The newest sound one that ends before the target and lies on the way to the timeline that is followed: a backup of a
//! branch that was left cannot be replayed onto the one that went on.

use super::chain::{BrokenChain, chain, forked, sound};
use super::name::{parse_moment, utc_text};
use super::{Entry, Kind};
use crate::core::wal::{Lsn, TimelineHistory};

/// How far to replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The end of the backup itself: no archived WAL is needed.
    Backup,
    /// All archived WAL.
    Latest,
    /// The last commit before a time; as given, since PostgreSQL reads fractions and zones too.
    Time(String),
    Lsn(Lsn),
    /// A point that `pg_create_restore_point` made.
    Name(String),
}

/// Why no backup fits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    #[error("there is no {kind} backup at the destination")]
    None { kind: &'static str },
    #[error("there is no backup \"{name}\" at the destination")]
    Unknown { name: String },
    #[error("backup \"{name}\" failed its verification: {first}")]
    Bad { name: String, first: String },
    #[error("no backup ends before {target}: the oldest, \"{oldest}\", ends at {ends}")]
    TooEarly {
        target: String,
        oldest: String,
        ends: String,
    },
    #[error("backup \"{name}\" was taken on a branch that timeline {timeline} does not contain")]
    Forked { name: String, timeline: u32 },
    #[error("{0}")]
    Time(String),
    #[error(transparent)]
    Chain(#[from] BrokenChain),
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wish<'a> {
    pub kind: Kind,
    /// This one and no other.
    pub name: Option<&'a str>,
    pub target: &'a Target,
    /// Of the timeline that is followed; `None` if there is no archive.
    pub history: Option<&'a TimelineHistory>,
}

/// The backup to restore.
///
/// # Errors
/// None fits, and why.
pub fn choose<'a>(entries: &'a [Entry], wish: &Wish<'_>) -> Result<&'a Entry, ChooseError> {
    if let Some(name) = wish.name {
        return named(entries, name, wish);
    }
    let none = ChooseError::None {
        kind: wish.kind.as_str(),
    };
    let mut fit: Vec<&Entry> = entries
        .iter()
        .filter(|entry| entry.record.kind == wish.kind && sound(entries, entry))
        .collect();
    fit.sort_by_key(|entry| entry.record.sequence);
    let oldest = *fit.first().ok_or(none.clone())?;
    let on_the_way: Vec<&Entry> = fit
        .into_iter()
        .filter(|entry| !left(entry, wish.history))
        .collect();
    if on_the_way.is_empty() {
        return Err(fork(oldest, wish));
    }
    let mut early = Vec::new();
    for entry in on_the_way {
        if ends_before(entry, wish.target)? {
            early.push(entry);
        }
    }
    early.pop().ok_or_else(|| too_early(oldest, wish.target))
}

fn named<'a>(entries: &'a [Entry], name: &str, wish: &Wish<'_>) -> Result<&'a Entry, ChooseError> {
    let unknown = || ChooseError::Unknown {
        name: name.to_owned(),
    };
    let entry = entries
        .iter()
        .find(|entry| entry.record.name == name)
        .ok_or_else(unknown)?;
    if let Some(first) = entry.first_difference() {
        return Err(ChooseError::Bad {
            name: name.to_owned(),
            first: first.to_owned(),
        });
    }
    chain(entries, entry)?;
    if left(entry, wish.history) {
        return Err(fork(entry, wish));
    }
    if !ends_before(entry, wish.target)? {
        return Err(too_early(entry, wish.target));
    }
    Ok(entry)
}

fn left(entry: &Entry, history: Option<&TimelineHistory>) -> bool {
    history.is_some_and(|history| forked(entry, history))
}

fn fork(entry: &Entry, wish: &Wish<'_>) -> ChooseError {
    let timeline = wish.history.map_or(0, |history| history.timeline.0);
    ChooseError::Forked {
        name: entry.record.name.clone(),
        timeline,
    }
}

fn ends_before(entry: &Entry, target: &Target) -> Result<bool, ChooseError> {
    Ok(match target {
        Target::Backup | Target::Latest | Target::Name(_) => true,
        // Both are cut to whole seconds: of one that ended in the target's second nobody knows whether it did before.
        Target::Time(text) => entry.record.finished_at < parse_moment(text).map_err(ChooseError::Time)?,
        Target::Lsn(lsn) => entry.record.stop_lsn <= *lsn,
    })
}

fn too_early(oldest: &Entry, target: &Target) -> ChooseError {
    let (target, ends) = match target {
        Target::Time(text) => (
            text.clone(),
            format!("{} UTC", utc_text(oldest.record.finished_at)),
        ),
        Target::Lsn(lsn) => (lsn.to_string(), oldest.record.stop_lsn.to_string()),
        Target::Backup | Target::Latest | Target::Name(_) => ("its end".to_owned(), String::new()),
    };
    ChooseError::TooEarly {
        target,
        oldest: oldest.record.name.clone(),
        ends,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::backup::fixtures::{child, entry, failed};
    use crate::core::wal::TimelineId;

    fn wish<'a>(target: &'a Target, history: Option<&'a TimelineHistory>) -> Wish<'a> {
        Wish {
            kind: Kind::Physical,
            name: None,
            target,
            history,
        }
    }

    fn chosen(entries: &[Entry], target: &Target) -> Result<u64, ChooseError> {
        choose(entries, &wish(target, None)).map(|entry| entry.record.sequence)
    }

    #[test]
    fn the_newest_that_ends_before_the_target() {
        let entries = [entry(1, 1_000), entry(2, 2_000), entry(3, 3_000)];
        assert_eq!(chosen(&entries, &Target::Latest), Ok(3));
        assert_eq!(
            chosen(&entries, &Target::Time("1970-01-01 00:33:21".to_owned())),
            Ok(2)
        );
        assert_eq!(
            chosen(&entries, &Target::Time("1970-01-01 00:33:20.9".to_owned())),
            Ok(1),
            "2 may have ended after the target, in its second"
        );
        assert_eq!(chosen(&entries, &Target::Lsn(Lsn(0x200_1000))), Ok(2));
        assert_eq!(chosen(&entries, &Target::Lsn(Lsn(0x200_0FFF))), Ok(1));
        let error = chosen(&entries, &Target::Time("1970-01-01 00:00:01".to_owned())).expect_err("too early");
        assert_eq!(
            error.to_string(),
            "no backup ends before 1970-01-01 00:00:01: the oldest, \"000001-19700101T001640Z-physical\", ends at \
             1970-01-01 00:16:40 UTC"
        );
        assert!(matches!(
            chosen(&entries, &Target::Time("soon".to_owned())),
            Err(ChooseError::Time(_))
        ));
    }

    #[test]
    fn a_bad_one_is_passed_over_and_refused_by_name() {
        let entries = [entry(1, 1_000), failed(entry(2, 2_000))];
        assert_eq!(chosen(&entries, &Target::Latest), Ok(1));
        let name = Some(entries[1].record.name.as_str());
        let wish = Wish {
            name,
            ..wish(&Target::Latest, None)
        };
        assert!(matches!(choose(&entries, &wish), Err(ChooseError::Bad { .. })));
    }

    #[test]
    fn one_whose_parent_is_gone_or_bad_is_passed_over_and_refused_by_name() {
        let mut entries = vec![entry(1, 1_000), entry(2, 2_000)];
        entries.push(child(3, 3_000, &entries[1]));
        assert_eq!(chosen(&entries, &Target::Latest), Ok(3));
        entries[1] = failed(entries[1].clone());
        assert_eq!(chosen(&entries, &Target::Latest), Ok(1));
        entries.remove(1);
        assert_eq!(chosen(&entries, &Target::Latest), Ok(1));
        let name = Some(entries[1].record.name.as_str());
        let wish = Wish {
            name,
            ..wish(&Target::Latest, None)
        };
        let error = choose(&entries, &wish).expect_err("no parent");
        assert!(error.to_string().ends_with("which is gone"), "{error}");
    }

    #[test]
    fn a_backup_of_a_branch_that_was_left_is_passed_over() {
        // Timeline 2 left timeline 1 at 0/2800000; backup 3 was made by the deposed primary after that.
        let history = TimelineHistory::parse(TimelineId(2), "1\t0/2800000\tx").expect("history");
        let entries = [entry(2, 2_000), entry(3, 3_000)];
        let found =
            choose(&entries, &wish(&Target::Latest, Some(&history))).map(|entry| entry.record.sequence);
        assert_eq!(found, Ok(2));
        let error = choose(&entries[1..], &wish(&Target::Latest, Some(&history))).expect_err("forked");
        assert!(
            error
                .to_string()
                .ends_with("on a branch that timeline 2 does not contain"),
            "{error}"
        );
    }

    #[test]
    fn where_there_is_nothing_it_is_said() {
        assert_eq!(
            chosen(&[], &Target::Latest).expect_err("none").to_string(),
            "there is no physical backup at the destination"
        );
    }
}
