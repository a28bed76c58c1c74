//! How old the data of a standby can be, known without comparing two clocks.
//!
//! Whoever routes notes its own time, asks the primary for its WAL position, and keeps both: a *mark*. Everything
//! that was acknowledged up to that instant lies before that position. A standby that says later, at whatever
//! time, that it has replayed so far contains all of it: `staleness = now - the instant of that mark`. Positions only
//! grow, so late, delayed or repeated words can make a standby look older than it is and never younger.
//!
//! Who does not hear the primary has the word of the standby's own podgres, which has measured in the same way: an age, not a moment, counted from
//! before the question.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::core::wal::{Lsn, TimelineId};

/// Marks that are kept; beyond that the grid becomes coarser in the middle, which only makes standbys look older.
const MAX_MARKS: usize = 256;
/// The header of a segment's first page; those of the others are shorter, and no record ends within so many bytes of a page's
/// start but one that began before.
const LONGEST_HEADER_BYTES: u64 = 40;
const PAGE_BYTES: u64 = 8192;

/// What a member says of its server's position, asked just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub timeline: TimelineId,
    /// A primary: where all acknowledged commits end. A standby: what it has replayed.
    pub lsn: Lsn,
    /// It is the primary, and was so by right when it answered.
    pub primary: bool,
    /// A standby whose WAL receiver streams.
    pub streaming: bool,
    /// Of a standby, if its podgres knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// What a standby's own podgres has measured of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// How old its data was when it answered.
    pub staleness_ms: u64,
    /// The newest position on its timeline that it knows of.
    pub newest_lsn: Lsn,
}

impl Position {
    /// Of a primary with these positions.
    ///
    /// Acknowledged commits end at the flush position, or with `synchronous_commit=off` at the insert
    /// position; the latter may stand behind the header of a page that nothing is written to yet.
    #[must_use]
    pub fn of_primary(timeline: TimelineId, flush_lsn: Lsn, insert_lsn: Lsn) -> Self {
        Self {
            timeline,
            lsn: written_end(insert_lsn).max(flush_lsn),
            primary: true,
            streaming: false,
            measured: None,
        }
    }
}

/// The instant up to which everything acknowledged lies before a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    at_ms: u64,
    lsn: Lsn,
}

/// What is known of one server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Known {
    timeline: TimelineId,
    lsn: Lsn,
    /// The newest position that its own podgres knew of.
    newest_lsn: Lsn,
    /// The newest instant whose mark it has passed.
    fresh_at_ms: Option<u64>,
}

/// Marks of the primary, and how far each standby has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Freshness {
    timeline: TimelineId,
    marks: VecDeque<Mark>,
    servers: BTreeMap<String, Known>,
}

impl Freshness {
    /// `name` has answered with `position`; it was asked at `asked_at_ms` of the asker's own clock.
    pub fn heard(&mut self, name: &str, position: Position, asked_at_ms: u64) {
        if position.primary {
            self.mark(position, asked_at_ms);
        } else {
            let known = self.servers.entry(name.to_owned()).or_default();
            if known.timeline != position.timeline {
                *known = Known {
                    timeline: position.timeline,
                    ..Known::default()
                };
            }
            known.lsn = known.lsn.max(position.lsn);
            if let Some(measured) = position.measured {
                if position.timeline > self.timeline {
                    // Its podgres has heard a primary of that timeline.
                    self.timeline = position.timeline;
                    self.marks.clear();
                }
                known.newest_lsn = known.newest_lsn.max(measured.newest_lsn);
                let fresh_at_ms = asked_at_ms.checked_sub(measured.staleness_ms);
                known.fresh_at_ms = known.fresh_at_ms.max(fresh_at_ms);
            }
        }
        self.compare();
    }

    /// A member that is none any more.
    pub fn forget_others(&mut self, names: &[&str]) {
        self.servers.retain(|name, _| names.contains(&name.as_str()));
    }

    /// Milliseconds since the newest instant of which `name` is known to contain everything acknowledged.
    #[must_use]
    pub fn staleness_ms(&self, name: &str, now_ms: u64) -> Option<u64> {
        let fresh_at_ms = self.servers.get(name)?.fresh_at_ms?;
        Some(now_ms.saturating_sub(fresh_at_ms))
    }

    /// Bytes from what `name` has replayed to the newest known position: the primary's own word, or what a standby
    /// has or knows of it.
    #[must_use]
    pub fn lag_bytes(&self, name: &str) -> Option<u64> {
        let known = self.servers.get(name)?;
        let newest_lsn = self.newest_lsn()?;
        (known.timeline == self.timeline).then(|| newest_lsn.bytes_since(known.lsn))
    }

    /// What to tell others of `name`, the own server, which says that it is on `timeline`. Nothing while that is news: what is known is of another.
    #[must_use]
    pub fn measured(&self, name: &str, timeline: TimelineId, now_ms: u64) -> Option<Measured> {
        let known = self.servers.get(name)?.timeline;
        let same = known == timeline && known == self.timeline;
        same.then_some(Measured {
            staleness_ms: self.staleness_ms(name, now_ms)?,
            newest_lsn: self.newest_lsn()?,
        })
    }

    fn newest_lsn(&self) -> Option<Lsn> {
        let told = self.marks.back().map(|mark| mark.lsn);
        let same = |server: &&Known| server.timeline == self.timeline;
        let known = self.servers.values().filter(same).map(|server| server.newest_lsn);
        let told = told.max(known.max().filter(|newest| *newest > Lsn::default()))?;
        let had = self.servers.values().filter(same).map(|server| server.lsn);
        Some(had.fold(told, Lsn::max))
    }

    /// The newest timeline that a primary has told of, to this podgres or to a standby's.
    #[must_use]
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// Whether `name` is known to have replayed up to a token of a client's.
    #[must_use]
    pub fn has_reached(&self, name: &str, token: Lsn) -> bool {
        let known = self.servers.get(name);
        known.is_some_and(|known| known.timeline == self.timeline && known.lsn >= written_end(token))
    }

    fn mark(&mut self, position: Position, at_ms: u64) {
        if position.timeline < self.timeline {
            return;
        }
        if position.timeline > self.timeline {
            // What lies before the branch is in the new history too, but where it branched is not known here.
            self.timeline = position.timeline;
            self.marks.clear();
        }
        let lsn = self
            .marks
            .back()
            .map_or(position.lsn, |last| last.lsn.max(position.lsn));
        let mark = Mark { at_ms, lsn };
        match self.marks.back_mut() {
            Some(last) if last.at_ms >= at_ms => return,
            Some(last) if last.lsn == lsn => *last = mark,
            _ => self.marks.push_back(mark),
        }
        if self.marks.len() > MAX_MARKS {
            self.marks.remove(MAX_MARKS / 2);
        }
    }

    fn compare(&mut self) {
        for known in self.servers.values_mut() {
            if known.timeline == self.timeline {
                let passed = self.marks.iter().rev().find(|mark| mark.lsn <= known.lsn);
                known.fresh_at_ms = known.fresh_at_ms.max(passed.map(|mark| mark.at_ms));
            }
        }
        // What everybody has passed is not looked for again.
        let slowest = self
            .servers
            .values()
            .map(|known| known.fresh_at_ms.unwrap_or(0))
            .min()
            .unwrap_or(0);
        while self.marks.len() > 1 && self.marks.front().is_some_and(|mark| mark.at_ms < slowest) {
            self.marks.pop_front();
        }
    }
}

/// Where the WAL of a commit ends whose client read `pg_current_wal_insert_lsn()`: just behind a page's header
/// nothing was written yet, and replay ends at the page's start.
///
/// The tail of a record that began on the page before may end there too. Who has replayed up to the page's start has replayed
/// that record: no other ends between the two.
#[must_use]
pub fn written_end(token: Lsn) -> Lsn {
    let into_page = token.0 % PAGE_BYTES;
    Lsn(if into_page <= LONGEST_HEADER_BYTES {
        token.0 - into_page
    } else {
        token.0
    })
}

#[cfg(test)]
#[path = "freshness_tests.rs"]
mod tests;
