//! Write-ahead log as entries that are unlike each other, and the data directory that they are in.

use podgres::core::data_directory::ControlState;
use podgres::core::lease::Incarnation;
use podgres::core::status::SlotStatus;
use podgres::core::wal::{Lsn, TimelineHistory, TimelineId, WalPosition};

/// Bytes of each entry, so that a position inside one can be told from its end.
pub(crate) const ENTRY_BYTES: u64 = 16;

/// What has been flushed; what was not is nowhere.
#[derive(Clone, Debug)]
pub(crate) struct Wal {
    pub(crate) entries: Vec<u64>,
    pub(crate) history: TimelineHistory,
}

pub(crate) fn lsn(count: usize) -> Lsn {
    Lsn(count as u64 * ENTRY_BYTES)
}

impl Wal {
    pub(crate) fn new() -> Self {
        Self {
            entries: Vec::new(),
            history: TimelineHistory {
                timeline: TimelineId(1),
                ancestors: Vec::new(),
            },
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn end(&self) -> WalPosition {
        WalPosition {
            timeline: self.history.timeline,
            lsn: lsn(self.len()),
        }
    }

    /// A promotion: PostgreSQL takes the next timeline of which there is no history file, and the supervisor has seen to
    /// it that there is one for each below `next`.
    pub(crate) fn branch(&mut self, next: TimelineId) {
        let end = self.end();
        self.history.ancestors.push(end);
        self.history.timeline = next.max(TimelineId(end.timeline.0 + 1));
    }

    /// What is here came from `source`: so far as it reaches, its timelines are that one's.
    pub(crate) fn take_history_of(&mut self, source: &Self) {
        let end = self.end().lsn;
        let branches = &source.history.ancestors;
        let passed = branches.iter().take_while(|branch| branch.lsn <= end).count();
        if self.history.ancestors != branches[..passed] {
            self.history.ancestors = branches[..passed].to_vec();
        }
        self.history.timeline = branches
            .get(passed)
            .map_or(source.history.timeline, |branch| branch.timeline);
    }

    pub(crate) fn is_prefix_of(&self, other: &Wal) -> bool {
        other
            .entries
            .get(..self.len())
            .is_some_and(|head| head == self.entries)
    }

    /// Where the two go apart.
    pub(crate) fn common(&self, other: &Wal) -> usize {
        let pairs = self.entries.iter().zip(&other.entries);
        pairs.take_while(|(one, two)| one == two).count()
    }
}

/// What stands at PGDATA.
#[derive(Clone, Debug)]
pub(crate) struct Data {
    pub(crate) wal: Wal,
    pub(crate) incarnation: Incarnation,
    pub(crate) system_identifier: u64,
    pub(crate) standby_signal: bool,
    pub(crate) control: ControlState,
    /// What the control file vouches for.
    pub(crate) control_position: WalPosition,
    pub(crate) half_rewound: bool,
    pub(crate) slots: Vec<SlotStatus>,
}
