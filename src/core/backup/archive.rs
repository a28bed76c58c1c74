//! How far archived WAL leads from a backup on: to its end, or to a file that is missing in the middle.
//!
//! PostgreSQL's recovery cannot tell the two apart: it asks for a file, is told that there is none, and ends. Only whoever sees
//! all names knows that more was to come.

use std::collections::BTreeSet;

use serde::Serialize;

use super::chain::forked;
use super::{Entry, Kind, Record};
use crate::core::wal::{Lsn, TimelineHistory, TimelineId, WalPosition};
use crate::core::wal_file::WalFile;

/// The names in a cluster's archive.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    pub files: BTreeSet<WalFile>,
    /// Of the timeline that is followed; `None` if nobody knows.
    pub history: Option<TimelineHistory>,
}

/// Where a replay ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reach {
    pub timeline: TimelineId,
    /// After the last byte that can be replayed.
    pub lsn: Lsn,
    /// The file that would follow, if it is missing although later ones are there.
    pub gap: Option<WalFile>,
}

impl Reach {
    /// The gap in a sentence.
    #[must_use]
    pub fn gap_text(&self) -> Option<String> {
        let (file, lsn) = (self.gap?, self.lsn);
        Some(format!(
            "WAL file \"{file}\" is not archived, although later ones are: nothing after {lsn} can be restored"
        ))
    }
}

impl Archive {
    /// Where a replay of everything ends that begins with this backup; `None` if its way is not known, or it has none: it is a
    /// dump, or of a branch that was left.
    #[must_use]
    pub fn reach(&self, entry: &Entry) -> Option<Reach> {
        let history = self.history.as_ref()?;
        let on_the_way = entry.record.kind == Kind::Physical && !forked(entry, history);
        on_the_way.then(|| reach(&self.files, &entry.record, history))
    }
}

/// Where a replay ends that begins with a backup and follows `history`, which leads past the backup.
#[must_use]
pub fn reach(files: &BTreeSet<WalFile>, record: &Record, history: &TimelineHistory) -> Reach {
    let segment_bytes = record.wal_segment_bytes;
    let mut end = WalPosition {
        timeline: record.timeline,
        lsn: record.stop_lsn,
    };
    let mut start = record.stop_lsn.segment_start(segment_bytes);
    let mut wanted = segment(history, start, segment_bytes);
    while files.contains(&wanted) {
        start = Lsn(start.0 + segment_bytes);
        end = WalPosition {
            timeline: wanted.timeline(),
            lsn: start,
        };
        wanted = segment(history, start, segment_bytes);
    }
    let later = |file: &WalFile| {
        let at = file.end(segment_bytes).map(|end| Lsn(end.0 - segment_bytes));
        at.is_some_and(|at| at > start && *file == segment(history, at, segment_bytes))
    };
    Reach {
        timeline: end.timeline,
        lsn: end.lsn,
        gap: files.iter().any(later).then_some(wanted),
    }
}

/// The file that recovery reads a segment from: of the newest timeline that has a part of it, which begins with a copy of
/// what the earlier one had (`XLogFileReadAnyTLI`).
fn segment(history: &TimelineHistory, start: Lsn, segment_bytes: u64) -> WalFile {
    let end = Lsn(start.0 + segment_bytes);
    let mut timeline = None;
    for ended in history.ends() {
        timeline = Some(ended.timeline);
        if ended.lsn >= end {
            break;
        }
    }
    WalFile::segment(timeline.unwrap_or(history.timeline), start, segment_bytes)
}

/// The file that begins with a copy of what `file` has, if `file`'s timeline ended in the middle of it for `history`.
#[must_use]
pub fn continued_in(file: WalFile, history: &TimelineHistory, segment_bytes: u64) -> Option<WalFile> {
    let WalFile::Segment { partial: false, .. } = file else {
        return None;
    };
    let end = file.end(segment_bytes)?;
    let start = Lsn(end.0.checked_sub(segment_bytes)?);
    let ended = |ancestor: &WalPosition| {
        ancestor.timeline == file.timeline() && start <= ancestor.lsn && ancestor.lsn < end
    };
    let ended = history.ancestors.iter().any(ended);
    ended.then(|| segment(history, start, segment_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::backup::fixtures::entry;

    const SEGMENT: u64 = 16 << 20;

    fn files(names: &[&str]) -> BTreeSet<WalFile> {
        let full = |name: &&str| {
            let (timeline, number) = name.split_once('/').expect("timeline/number");
            format!("{timeline:0>8}00000000{number:0>8}")
                .parse()
                .expect("a name")
        };
        names.iter().map(full).collect()
    }

    /// Of a backup that ends in segment 2 of timeline 1.
    fn told(names: &[&str], timeline: u32, history: &str) -> String {
        let archive = Archive {
            files: files(names),
            history: Some(TimelineHistory::parse(TimelineId(timeline), history).expect("a history")),
        };
        let reach = archive.reach(&entry(2, 2_000)).expect("a way");
        let gap = reach.gap.map(|file| format!(", not {file}")).unwrap_or_default();
        format!("{}/{:X}{gap}", reach.timeline, reach.lsn.0)
    }

    #[test]
    fn a_gap_is_told_from_the_end() {
        let cases: [(&[&str], &str); 7] = [
            (&[], "1/2001000"),
            (&["1/1"], "1/2001000"),
            (&["1/2"], "1/3000000"),
            (&["1/1", "1/2", "1/3", "1/4"], "1/5000000"),
            (&["1/2", "1/4"], "1/3000000, not 000000010000000000000003"),
            (&["1/3"], "1/2001000, not 000000010000000000000002"),
            // Of a branch that nobody follows.
            (&["1/2", "2/4"], "1/3000000"),
        ];
        for (names, expected) in cases {
            assert_eq!(told(names, 1, ""), expected, "{names:?}");
        }
    }

    #[test]
    fn the_way_goes_over_to_the_timeline_that_has_a_part_of_the_segment() {
        let history = "1\t0/4000100\tx\n2\t0/6000000\tx";
        let cases: [(&[&str], &str); 5] = [
            (&["1/2", "1/3", "2/4", "2/5", "3/6"], "3/7000000"),
            // What the lost primary archived of its last segments.
            (&["1/2", "1/3", "1/4", "1/5", "2/4"], "2/5000000"),
            (&["1/2", "1/3", "1/4"], "1/4000000"),
            (
                &["1/2", "1/3", "1/4", "2/5"],
                "1/4000000, not 000000020000000000000004",
            ),
            (&["1/2", "2/4", "3/6"], "1/3000000, not 000000010000000000000003"),
        ];
        for (names, expected) in cases {
            assert_eq!(told(names, 3, history), expected, "{names:?}");
        }
    }

    #[test]
    fn the_last_segment_of_a_timeline_goes_on_in_the_one_that_recovery_reads() {
        let text = "1\t0/4000100\tx\n2\t0/4000200\tx\n3\t0/6000000\tx";
        let history = TimelineHistory::parse(TimelineId(4), text).expect("a history");
        let one = |name: &str| files(&[name]).pop_first().expect("a file");
        for (name, expected) in [
            ("1/4", Some("3/4")),
            ("2/4", Some("3/4")),
            // Whole, or of nobody's history.
            ("1/3", None),
            ("3/5", None),
            ("1/5", None),
            ("3/4", None),
            ("4/6", None),
            ("5/4", None),
        ] {
            assert_eq!(
                continued_in(one(name), &history, SEGMENT),
                expected.map(one),
                "{name}"
            );
        }
        for name in ["00000002.history", "000000010000000000000004.partial"] {
            let file = name.parse().expect(name);
            assert_eq!(continued_in(file, &history, SEGMENT), None, "{name}");
        }
    }

    #[test]
    fn a_backup_of_a_branch_that_was_left_has_no_reach() {
        let archive = Archive {
            files: files(&["1/2"]),
            history: TimelineHistory::parse(TimelineId(2), "1\t0/1000100\tx").ok(),
        };
        assert_eq!(archive.reach(&entry(2, 2_000)), None);
        assert_eq!(Archive::default().reach(&entry(2, 2_000)), None);
    }

    #[test]
    fn a_gap_in_words() {
        let reach = Reach {
            timeline: TimelineId(1),
            lsn: Lsn(3 * SEGMENT),
            gap: Some(WalFile::segment(TimelineId(1), Lsn(3 * SEGMENT), SEGMENT)),
        };
        assert_eq!(
            reach.gap_text().as_deref(),
            Some(
                "WAL file \"000000010000000000000003\" is not archived, although later ones are: \
                 nothing after 0/3000000 can be restored"
            )
        );
    }
}
