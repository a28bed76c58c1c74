//! Positions in the write-ahead log, and the family tree of timelines.
//!
//! Sources: PostgreSQL manual, "WAL Internals" and "Timelines"; `pg_lsn` text form.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A byte position in the write-ahead log, written as PostgreSQL writes it: `0/3000060`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lsn(pub u64);

impl Lsn {
    /// Bytes from `earlier` to this position; 0 if `earlier` is not earlier.
    #[must_use]
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The first position of the WAL segment that holds this position.
    ///
    /// `segment_size_bytes` is a power of two (`wal_segment_size`, 16 MiB by default).
    #[must_use]
    pub fn segment_start(self, segment_size_bytes: u64) -> Lsn {
        Lsn(self.0 - self.0 % segment_size_bytes)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A text that is no WAL position or timeline history.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid {kind} \"{text}\"")]
pub struct InvalidWalText {
    /// What was expected: "WAL position" or "timeline history line".
    pub kind: &'static str,
    /// What was found.
    pub text: String,
}

impl FromStr for Lsn {
    type Err = InvalidWalText;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidWalText {
            kind: "WAL position",
            text: text.to_owned(),
        };
        let (high, low) = text.split_once('/').ok_or_else(invalid)?;
        let half = |digits: &str| {
            let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            if plain {
                u64::from_str_radix(digits, 16).map_err(|_| invalid())
            } else {
                Err(invalid())
            }
        };
        Ok(Lsn(half(high)? << 32 | half(low)?))
    }
}

impl TryFrom<String> for Lsn {
    type Error = InvalidWalText;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> Self {
        lsn.to_string()
    }
}

/// A timeline: 1 for a new cluster, one more with each promotion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TimelineId(pub u32);

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A place in the history of a cluster: two positions compare only within one timeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalPosition {
    pub timeline: TimelineId,
    pub lsn: Lsn,
}

/// See [`TimelineHistory::relation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// It has nothing that the upstream lacks: it can follow.
    Contained,
    /// It has WAL of the upstream's own timeline, or of a later one, that the upstream does not have: the
    /// upstream has lost it, since a WAL sender never sends what it has not flushed.
    Ahead,
    /// It went on after the place where the upstream's history branched off.
    Forked,
}

/// The ancestors of a timeline, oldest first, each with the position where the next one branched off.
///
/// Timeline 1 has no ancestors and no history file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineHistory {
    pub timeline: TimelineId,
    pub ancestors: Vec<WalPosition>,
}

impl TimelineHistory {
    /// Reads the text of a `.history` file (`parent<TAB>switch LSN<TAB>reason` a line, `#` comments).
    ///
    /// A recovery that ended before it came to the timeline it was told to follow writes that timeline as its parent, with
    /// a position before that one's own begin: what lies between is nobody's history.
    ///
    /// # Errors
    /// A line that is neither empty, a comment, nor of that form.
    pub fn parse(timeline: TimelineId, text: &str) -> Result<Self, InvalidWalText> {
        let mut ancestors = Vec::new();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let invalid = || InvalidWalText {
                kind: "timeline history line",
                text: line.to_owned(),
            };
            let mut words = line.split_whitespace();
            let parent = words.next().and_then(|w| w.parse().ok()).ok_or_else(invalid)?;
            let lsn = words.next().and_then(|w| w.parse().ok()).ok_or_else(invalid)?;
            ancestors.push(WalPosition {
                timeline: TimelineId(parent),
                lsn,
            });
        }
        let mut end = Lsn(u64::MAX);
        for ancestor in ancestors.iter_mut().rev() {
            end = end.min(ancestor.lsn);
            ancestor.lsn = end;
        }
        Ok(Self { timeline, ancestors })
    }

    /// The last position that a server with the history `own` has in common with this one, on the timeline where they
    /// part; at the end of all positions if one's timeline is the other's too. `None`: nothing in common.
    #[must_use]
    pub fn branch_point(&self, own: &Self) -> Option<WalPosition> {
        let mut common = None;
        for (ours, theirs) in own.ends().zip(self.ends()) {
            if ours.timeline != theirs.timeline {
                break;
            }
            let lsn = ours.lsn.min(theirs.lsn);
            common = Some(WalPosition { lsn, ..ours });
            if ours.lsn != theirs.lsn {
                break;
            }
        }
        common
    }

    /// Every timeline with the position where it ended for this server; the last one has no end.
    pub fn ends(&self) -> impl Iterator<Item = WalPosition> {
        let last = WalPosition {
            timeline: self.timeline,
            lsn: Lsn(u64::MAX),
        };
        self.ancestors.iter().copied().chain([last])
    }

    /// How a server at `position` stands to an upstream with this history that has flushed up to `end`.
    #[must_use]
    pub fn relation(&self, position: WalPosition, end: Lsn) -> Relation {
        if position.timeline > self.timeline || (position.timeline == self.timeline && position.lsn > end) {
            return Relation::Ahead;
        }
        let on_the_way =
            |branch: &WalPosition| branch.timeline == position.timeline && position.lsn <= branch.lsn;
        if position.timeline == self.timeline || self.ancestors.iter().any(on_the_way) {
            Relation::Contained
        } else {
            Relation::Forked
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_that_ended_early_on_the_way_leaves_later_branches_behind() {
        let text = "1\t0/6000000\tx\n2\t0/80000D8\tx\n3\t0/6000200\tbefore a time";
        let history = TimelineHistory::parse(TimelineId(4), text).expect("history");
        for (timeline, lsn, expected) in [
            (1, 0x600_0000, Relation::Contained),
            (2, 0x600_0200, Relation::Contained),
            (2, 0x700_0060, Relation::Forked),
            (3, 0x800_00D8, Relation::Forked),
        ] {
            let position = WalPosition {
                timeline: TimelineId(timeline),
                lsn: Lsn(lsn),
            };
            assert_eq!(
                history.relation(position, Lsn(u64::MAX)),
                expected,
                "{position:?}"
            );
        }
    }

    #[test]
    fn an_lsn_reads_what_it_writes() {
        for text in ["0/0", "0/3000060", "16/B374D848", "FFFFFFFF/FFFFFFFF"] {
            let lsn: Lsn = text.parse().expect(text);
            assert_eq!(lsn.to_string(), text);
        }
    }

    #[test]
    fn an_lsn_refuses_what_postgresql_refuses() {
        for text in [
            "",
            "0",
            "/",
            "0/",
            "/0",
            "0/123456789",
            "0x1/0",
            "+1/0",
            "0/-1",
            "0/ 1",
            "G/0",
        ] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn histories_part_where_their_common_timeline_ends_for_one_of_them() {
        let history =
            |timeline, text: &str| TimelineHistory::parse(TimelineId(timeline), text).expect("valid");
        let first = history(1, "");
        let second = history(2, "1\t0/5000000\tx");
        let third = history(3, "1\t0/5000000\tx\n2\t0/7000000\tx");
        let other = history(3, "1\t0/4000000\tx");
        let at = |timeline, lsn| {
            Some(WalPosition {
                timeline: TimelineId(timeline),
                lsn: Lsn(lsn),
            })
        };
        assert_eq!(second.branch_point(&first), at(1, 0x500_0000));
        assert_eq!(third.branch_point(&second), at(2, 0x700_0000));
        assert_eq!(other.branch_point(&third), at(1, 0x400_0000));
        assert_eq!(first.branch_point(&first), at(1, u64::MAX));
        assert_eq!(
            first.branch_point(&second),
            at(1, 0x500_0000),
            "an upstream behind"
        );
        assert_eq!(first.branch_point(&history(7, "4\t0/1\tx")), None);
    }

    #[test]
    fn a_history_tells_who_can_follow() {
        let text = "1\t0/5000000\tno recovery target specified\n\n# note\n2\t0/7000000\tx\n";
        let history = TimelineHistory::parse(TimelineId(3), text).expect("valid history");
        let at = |timeline, lsn| WalPosition {
            timeline: TimelineId(timeline),
            lsn: Lsn(lsn),
        };
        let relation = |position| history.relation(position, Lsn(0x800_0000));
        assert_eq!(relation(at(1, 0x500_0000)), Relation::Contained);
        assert_eq!(
            relation(at(1, 0x500_0001)),
            Relation::Forked,
            "past the branch point"
        );
        assert_eq!(relation(at(3, 0x800_0000)), Relation::Contained);
        assert_eq!(
            relation(at(3, 0x800_0001)),
            Relation::Ahead,
            "the upstream lost it"
        );
        assert_eq!(relation(at(4, 1)), Relation::Ahead, "of a later timeline");
        assert!(TimelineHistory::parse(TimelineId(2), "one 0/1").is_err());
    }
}
