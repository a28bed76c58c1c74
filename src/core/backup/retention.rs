//! Which backups may go: `--keep 7`, `--keep 30d`, `--keep daily=7,weekly=4,monthly=12,yearly=3`.
//!
//! A rule is that of a run, and only backups of the run's kind may go by it. Whatever it says, the newest good backup stays,
//! the newest verified one too, and what a kept one builds on. Order is the sequence number; a clock decides only how old
//! something is, see [`super::moments`].

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use super::chain::sound;
use super::moments::in_order;
use super::name::utc;
use super::{Entry, Kind};
use crate::core::wal::Lsn;

const DAY_SECONDS: u64 = 86_400;

/// How many backups of the kind stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The newest so many.
    Count(u64),
    /// Those of so many days before the newest one.
    Days(u64),
    /// The newest of each of so many days, weeks, months and years (grandfather, father, son).
    Calendar {
        daily: usize,
        weekly: usize,
        monthly: usize,
        yearly: usize,
    },
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || {
            format!(
                "\"{text}\" is no rule; write e.g. 7, 30d or daily=7,weekly=4,monthly=12 (at least one stays)"
            )
        };
        let positive = |digits: &str| digits.parse::<u64>().ok().filter(|number| *number > 0);
        if text.contains('=') {
            return calendar(text).ok_or_else(invalid);
        }
        match text.strip_suffix('d') {
            Some(days) => positive(days).map(Self::Days),
            None => positive(text).map(Self::Count),
        }
        .ok_or_else(invalid)
    }
}

fn calendar(text: &str) -> Option<Keep> {
    let mut numbers = BTreeMap::new();
    for part in text.split(',') {
        let (name, number) = part.split_once('=')?;
        let known = ["daily", "weekly", "monthly", "yearly"].contains(&name.trim());
        if !known || numbers.insert(name.trim(), number.trim().parse().ok()?).is_some() {
            return None;
        }
    }
    let of = |name| numbers.get(name).copied().unwrap_or(0_usize);
    let (daily, weekly, monthly, yearly) = (of("daily"), of("weekly"), of("monthly"), of("yearly"));
    (daily + weekly + monthly + yearly > 0).then_some(Keep::Calendar {
        daily,
        weekly,
        monthly,
        yearly,
    })
}

/// The names of the backups of one kind that may be deleted, newest first: an incremental one goes before what it builds
/// on. Those of the other kind have a rule of their own, which nobody knows here.
#[must_use]
pub fn expired(entries: &[Entry], kind: Kind, keep: Keep) -> Vec<String> {
    let mut of_kind: Vec<&Entry> = entries.iter().filter(|entry| entry.record.kind == kind).collect();
    of_kind.sort_by_key(|entry| std::cmp::Reverse(entry.record.sequence));
    let kept = kept(entries, &of_kind, keep);
    let gone = of_kind.iter().filter(|entry| !kept.contains(&entry.record.name));
    gone.map(|entry| entry.record.name.clone()).collect()
}

/// The names that stay of one kind, given newest first.
fn kept<'a>(entries: &'a [Entry], of_kind: &[&'a Entry], keep: Keep) -> BTreeSet<&'a String> {
    let sound: Vec<&Entry> = of_kind
        .iter()
        .copied()
        .filter(|entry| sound(entries, entry))
        .collect();
    let last_good = sound.first().copied();
    let last_verified = sound.iter().copied().find(|entry| entry.verified());
    // The one just made, which nobody has looked at yet.
    let newest = of_kind.first().copied();
    let mut kept: BTreeSet<&String> = chosen(&sound, keep)
        .into_iter()
        .chain([last_good, last_verified, newest].into_iter().flatten())
        .map(|entry| &entry.record.name)
        .collect();
    let by_name: BTreeMap<&String, &Entry> =
        entries.iter().map(|entry| (&entry.record.name, entry)).collect();
    let mut needed: Vec<&String> = kept.iter().copied().collect();
    while let Some(name) = needed.pop() {
        let parent = by_name.get(name).and_then(|entry| entry.record.parent.as_ref());
        needed.extend(parent.filter(|parent| kept.insert(parent)));
    }
    kept
}

/// What the rule itself keeps of sound entries of one kind, newest first: bad ones take nobody's place.
fn chosen<'a>(sound: &[&'a Entry], keep: Keep) -> Vec<&'a Entry> {
    let dated = dated(sound);
    match keep {
        Keep::Count(count) => {
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            sound.iter().take(count).copied().collect()
        }
        Keep::Days(days) => {
            let since = newest(&dated, days).saturating_sub(days.saturating_mul(DAY_SECONDS));
            let young = dated.iter().filter(|(at, _)| *at >= since);
            young.map(|(_, entry)| *entry).collect()
        }
        Keep::Calendar {
            daily,
            weekly,
            monthly,
            yearly,
        } => {
            let day = |at: u64| at / DAY_SECONDS;
            // 1 January 1970 was a Thursday.
            let week = |at: u64| (day(at) + 3) / 7;
            let month = |at: u64| utc(at).date().first_of_month();
            let year = |at: u64| utc(at).year();
            let mut all = newest_of_each(&dated, daily, day);
            all.extend(newest_of_each(&dated, weekly, week));
            all.extend(newest_of_each(&dated, monthly, month));
            all.extend(newest_of_each(&dated, yearly, year));
            all
        }
    }
}

/// Entries, newest first, with the time that each counts as made at.
fn dated<'a>(newest_first: &[&'a Entry]) -> Vec<(u64, &'a Entry)> {
    let times: Vec<u64> = newest_first
        .iter()
        .rev()
        .map(|entry| entry.record.finished_at)
        .collect();
    let moments = in_order(&times).into_iter().rev();
    moments.zip(newest_first.iter().copied()).collect()
}

/// From when days are counted: the newest backup, unless it alone, by its clock, would let all others go. Then the one
/// before it, until another one says the same.
fn newest(dated: &[(u64, &Entry)], days: u64) -> u64 {
    let at = |place: usize| dated.get(place).map_or(0, |(at, _)| *at);
    match at(0).saturating_sub(at(1)) {
        pause if dated.len() > 1 && pause > days.saturating_mul(DAY_SECONDS) => at(1),
        _ => at(0),
    }
}

fn newest_of_each<'a, P: Ord>(
    newest_first: &[(u64, &'a Entry)],
    periods: usize,
    period: impl Fn(u64) -> P,
) -> Vec<&'a Entry> {
    let mut seen = BTreeSet::new();
    let first_of_its_period = newest_first.iter().filter(|(at, _)| seen.insert(period(*at)));
    first_of_its_period
        .take(periods)
        .map(|(_, entry)| *entry)
        .collect()
}

/// WAL before this position is needed by no backup; `None` if there is no physical backup, so that nothing is known.
#[must_use]
pub fn wal_needed_from(kept: &[Entry]) -> Option<Lsn> {
    let physical = kept.iter().filter(|entry| entry.record.kind == Kind::Physical);
    physical.map(|entry| entry.record.start_lsn).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::backup::Verification;
    use crate::core::backup::fixtures::{child, entry, failed};

    const DAY: u64 = DAY_SECONDS;
    /// Sunday, 1 March 2026, noon.
    const NOON: u64 = 1_772_366_400;

    fn gone(entries: &[Entry], keep: &str) -> Vec<u64> {
        let keep = keep.parse().expect("a rule");
        let sequence = |name: &String| super::super::name::sequence_of(name).expect("a name");
        let mut oldest_first: Vec<u64> = expired(entries, Kind::Physical, keep)
            .iter()
            .map(sequence)
            .collect();
        oldest_first.reverse();
        oldest_first
    }

    fn daily(number: u64) -> Vec<Entry> {
        (1..=number).map(|n| entry(n, NOON + n * DAY)).collect()
    }

    #[test]
    fn rules_as_people_write_them() {
        assert_eq!("7".parse(), Ok(Keep::Count(7)));
        assert_eq!("30d".parse(), Ok(Keep::Days(30)));
        let calendar = Keep::Calendar {
            daily: 7,
            weekly: 4,
            monthly: 0,
            yearly: 0,
        };
        assert_eq!("daily=7, weekly=4".parse(), Ok(calendar));
        for text in [
            "",
            "0",
            "0d",
            "-1",
            "d",
            "7w",
            "daily=0",
            "daily=x",
            "hourly=3",
            "daily=1,daily=2",
        ] {
            assert!(text.parse::<Keep>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn the_newest_stay() {
        assert_eq!(gone(&daily(5), "2"), [1, 2, 3]);
        assert_eq!(gone(&daily(5), "2d"), [1, 2]);
        assert_eq!(gone(&daily(2), "7"), [0; 0]);
    }

    #[test]
    fn the_newest_of_each_day_week_and_month_stay() {
        let mut entries = daily(10);
        entries.push(entry(11, NOON + 10 * DAY + 3_600));
        assert_eq!(gone(&entries, "daily=2"), [1, 2, 3, 4, 5, 6, 7, 8, 10]);
        assert_eq!(
            gone(&entries, "daily=1,weekly=2"),
            [1, 2, 3, 4, 5, 6, 8, 9, 10],
            "7 is a Sunday"
        );
        let entries: Vec<Entry> = (1..=40).map(|n| entry(n, NOON + n * 10 * DAY)).collect();
        assert_eq!(entries.len() - gone(&entries, "monthly=3,yearly=3").len(), 4);
    }

    #[test]
    fn the_last_good_one_stays_whatever_came_later() {
        let mut entries = daily(5);
        entries[3] = failed(entries[3].clone());
        entries[4] = failed(entries[4].clone());
        assert_eq!(
            gone(&entries, "1"),
            [1, 2, 4],
            "3 is the last good one, 5 the newest"
        );
        let mut entries = daily(4);
        entries[0].verification = Some(Verification {
            at: NOON,
            differences: Vec::new(),
            checks: Vec::new(),
        });
        assert_eq!(gone(&entries, "1"), [2, 3], "1 is the only one that is proven");
    }

    #[test]
    fn a_run_of_one_kind_deleted_backups_of_the_other() {
        let mut entries = daily(6);
        for at in [1, 3, 5] {
            entries[at].record.kind = Kind::Logical;
        }
        assert_eq!(gone(&entries, "1"), [1, 3], "the physical ones but the newest");
        let logical = expired(&entries, Kind::Logical, Keep::Count(2));
        let sequences: Vec<_> = logical
            .iter()
            .map(|name| super::super::name::sequence_of(name))
            .collect();
        assert_eq!(sequences, [Some(2)], "the oldest logical one only");
    }

    #[test]
    fn what_a_kept_one_builds_on_stays() {
        let mut entries = daily(5);
        entries[4] = child(5, NOON + 5 * DAY, &entries[3]);
        entries[3] = child(4, NOON + 4 * DAY, &entries[1]);
        assert_eq!(gone(&entries, "1"), [1, 3]);
        entries.push(entry(6, NOON + 6 * DAY));
        assert_eq!(gone(&entries, "1"), [1, 2, 3, 4, 5]);
        let names = expired(&entries, Kind::Physical, Keep::Count(1));
        assert!(
            names[0] > names[1],
            "a kill in between leaves no orphan: {names:?}"
        );
    }

    #[test]
    fn one_that_builds_on_a_bad_one_is_not_the_last_good_one() {
        let mut entries = daily(4);
        entries[3] = child(4, NOON + 4 * DAY, &entries[2]);
        entries[2] = failed(entries[2].clone());
        assert_eq!(
            gone(&entries, "1"),
            [1],
            "2 is the last that can be restored, 4 the newest"
        );
    }

    #[test]
    fn a_clock_that_was_set_back_deletes_nothing_new() {
        // 4 and 5 were made after the clock went back by a year.
        let mut entries = daily(5);
        entries[3] = entry(4, NOON - 365 * DAY);
        entries[4] = entry(5, NOON - 364 * DAY);
        assert_eq!(gone(&entries, "2"), [1, 2, 3]);
        assert_eq!(gone(&entries, "7d"), [0; 0], "4 is newer than 3");
        assert_eq!(
            gone(&entries, "daily=2"),
            [1, 3, 4],
            "4 and 5 count as of the day of 3"
        );
    }

    #[test]
    fn a_clock_that_was_ahead_once_deletes_nothing() {
        let mut entries = daily(3);
        entries.push(entry(4, NOON + 4_000 * DAY));
        assert_eq!(gone(&entries, "7d"), [0; 0], "one clock alone is not believed");
        assert_eq!(gone(&entries, "daily=7"), [0; 0]);
        entries.push(entry(5, NOON + 5 * DAY));
        entries.push(entry(6, NOON + 6 * DAY));
        assert_eq!(gone(&entries, "7d"), [0; 0], "it was put right");
        assert_eq!(gone(&entries, "2d"), [1, 2, 3], "4 counts as made with 5");
        // Or it was no clock, but a long pause.
        let mut entries = daily(2);
        entries.push(entry(3, NOON + 400 * DAY));
        assert_eq!(gone(&entries, "30d"), [0; 0]);
        entries.push(entry(4, NOON + 401 * DAY));
        assert_eq!(gone(&entries, "30d"), [1, 2]);
    }

    #[test]
    fn wal_is_needed_from_the_oldest_kept_backup_on() {
        assert_eq!(wal_needed_from(&daily(5)[2..]), Some(Lsn(3 << 24)));
        assert_eq!(wal_needed_from(&[]), None);
    }
}
