//! What follows from an observation: at most one action on PostgreSQL, and what to remember.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::lease::{FinalPosition, LeadershipReport, LeaseRecord, LeaseWrite, Office};
use super::member::Ordinal;
use super::situation::Situation;
use super::status::ServerStatus;
use super::supervision::{CloneReason, JobRequest, NextTimeline, ServerRole, StopMode};
use super::wal::Lsn;

/// One thing to do. The executor carries it out and makes no choice of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum PostgresAction {
    /// Lets the supervisor run PostgreSQL writable until a time on `CLOCK_BOOTTIME`; `None` is without a deadline.
    GrantLicence {
        until_ms: Option<u64>,
    },
    /// Takes a running standby into office.
    Promote {
        synchronous_standby_names: String,
        /// As in [`ServerRole::Primary`].
        #[serde(default)]
        read_only: bool,
        term: u64,
        timeline: NextTimeline,
    },
    /// Promises `term` and ends the WAL receiver.
    Detach {
        term: u64,
    },
    /// Writes down that this member runs as the primary of `term`.
    Hold {
        term: u64,
    },
    /// Marks the place in the WAL from which on `synchronous_standby_names` is in force.
    Barrier {
        synchronous_standby_names: String,
    },
    /// Before a planned stop, so that the stop has little left to write.
    Checkpoint,
    /// Ends the running job.
    Cancel,
    /// Runs a job; for a clone, this member's slot is made on the upstream first.
    Run {
        job: JobRequest,
    },
    Start {
        server: ServerRole,
    },
    /// Writes the configuration anew for the same role and reloads.
    Reload {
        server: ServerRole,
    },
    Stop {
        mode: StopMode,
    },
    /// Brings the superuser's and the replication role's passwords to the secrets' contents.
    EnsureRoles,
    /// Makes the members' slots that are missing, drops podgres' slots of members that are gone; on a standby
    /// moves each forward to where the primary's slot of that name is.
    ReconcileSlots {
        expected: Vec<String>,
        #[serde(default)]
        advance: BTreeMap<String, Lsn>,
    },
    /// Drops logical slots on this standby: see [`ServerStatus::superseded_slots`].
    ///
    /// [`ServerStatus::superseded_slots`]: crate::core::status::ServerStatus::superseded_slots
    DropSlots {
        names: Vec<String>,
    },
}

/// What `decide` wants to know at the next turn. Starts as `Memory::default()` in each process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The first turn's time: how long this process has been looking.
    pub began_at_ms: Option<u64>,
    /// The last turn at which PostgreSQL ran, a job ran, or a job's end was first seen.
    pub busy_at_ms: u64,
    /// Failed tries in a row, of jobs or starts.
    pub failures: u32,
    /// Nothing is tried again before this time.
    pub retry_at_ms: u64,
    /// The job whose end has been counted.
    pub counted_job: u64,
    /// A start was asked for and its end has not been counted.
    pub start_pending: bool,
    /// Actions in a row that could not be carried out, and when the last of them failed.
    #[serde(default)]
    pub failed_actions: u32,
    #[serde(default)]
    pub failed_action_at_ms: u64,
    /// Reloads in a row that have not brought about what they were for.
    #[serde(default)]
    pub reloads: u32,
    /// No reload is asked for before this time.
    #[serde(default)]
    pub reload_at_ms: u64,
    /// Where a standby that does not stream stands, and since when.
    pub stalled: Option<Stalled>,
    /// Where this standby stood when the WAL that it needs next was found to be gone.
    #[serde(default)]
    pub wal_gone_at: Option<Lsn>,
    /// Why the directory of this standby is to be replaced.
    pub condemned: Option<CloneReason>,
    /// Members whose slots exist though DNS does not list them, and since when.
    pub missing_since_ms: BTreeMap<Ordinal, u64>,
    #[serde(default)]
    pub lease: LeaseMemory,
}

/// What is remembered with `leadership=lease`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseMemory {
    /// The last record that was read, for when the Lease is deleted.
    pub record: Option<Arc<LeaseRecord>>,
    /// A primary that asks its peers: which beat it sent when, newest last.
    pub beats: Vec<(u64, u64)>,
    /// Until when the peers' confirmations carry the right, and in which term.
    pub confirmed_until_ms: u64,
    pub confirmed_term: u64,
    /// The last confirmation given to a primary, and when.
    pub confirmation_given: Option<(Office, u64)>,
    /// The last confirmation that each other member said it gave, and when it was first heard.
    #[serde(default)]
    pub confirmed_by_others: BTreeMap<Ordinal, (Office, u64)>,
    /// A peer has promised a newer term than the one in office, since when.
    pub overtaken_since_ms: Option<u64>,
    /// A planned move under way.
    pub handing_over: Option<HandingOver>,
    /// Since when this holder's PostgreSQL is seen to have stopped.
    #[serde(default)]
    pub stopped_since_ms: Option<u64>,
    /// When each standby was last seen to stream.
    pub streamed_at_ms: BTreeMap<Ordinal, u64>,
    /// Since when this member's server is seen to serve as the primary, without a break.
    #[serde(default)]
    pub opened_at_ms: Option<u64>,
    /// The primary's `synchronous_standby_names` that has been seen in force without a break, and since when.
    #[serde(default)]
    pub names_in_force: Option<(String, u64)>,
    /// The holder of this term has told that it has given up and cannot write that, and when this was first heard.
    #[serde(default)]
    pub given_up: Option<(u64, u64)>,
    /// Since when a holder's PostgreSQL does not serve.
    pub down_since_ms: Option<u64>,
    /// Since when a primary that has become ready answers no question: each postmaster's own time.
    #[serde(default)]
    pub unanswered_since_ms: Option<u64>,
    /// Since when this standby is detached: facts about an upstream from before do not count.
    pub detached: Option<(FinalPosition, u64)>,
    /// The time of the record's last change for which the API server was asked whether it has run out.
    #[serde(default)]
    pub asked_of: Option<u64>,
    /// Since when this standby runs without being ready: after `pg_rewind` it may need WAL before it can answer.
    #[serde(default)]
    pub starting_since_ms: Option<u64>,
    /// Since when the best candidate has been waited for.
    pub waiting_since_ms: Option<u64>,
}

impl LeaseMemory {
    /// For how long a holder's PostgreSQL has not served; 0 while it does.
    #[must_use]
    pub fn down_ms(&self, at_ms: u64) -> u64 {
        self.down_since_ms
            .map_or(0, |since_ms| at_ms.saturating_sub(since_ms))
    }
}

/// See [`LeaseMemory::handing_over`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandingOver {
    /// `None`: whoever fits best when PostgreSQL has stopped.
    pub to: Option<Ordinal>,
    pub since_ms: u64,
    /// The operator takes the loss of commits into account.
    pub forced: bool,
}

impl Memory {
    /// Whether `server` receives WAL. PostgreSQL says so of every receiver that has connected, also of one that is about to be refused what is
    /// gone: that one has streamed only when the standby stands elsewhere.
    #[must_use]
    pub fn believes_streaming(&self, server: &ServerStatus) -> bool {
        server.receiver_streaming && self.wal_gone_at != Some(server.flush_lsn)
    }
}

/// See [`Memory::stalled`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stalled {
    pub replay_lsn: Lsn,
    pub since_ms: u64,
}

/// The outcome of one turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    pub situation: Situation,
    /// The particulars: who, which, what was found and what was expected.
    pub detail: String,
    pub postgres: Option<PostgresAction>,
    /// At most one write to the Lease.
    #[serde(default)]
    pub lease: Option<LeaseWrite>,
    /// The Lease is read now: what is decided next needs an answer from after this.
    #[serde(default)]
    pub read_lease: bool,
    /// With `leadership=lease`: what the others are told.
    #[serde(default)]
    pub report: Option<LeadershipReport>,
    /// With `leadership=lease`: the member to look at as the upstream.
    #[serde(default)]
    pub upstream: Option<Ordinal>,
    /// The commit gate confirms WAL until this time on `CLOCK_BOOTTIME`; 0: not at all.
    #[serde(default)]
    pub gate_until_ms: u64,
    /// Boxed: a decision goes through many hands before it is made.
    pub memory: Box<Memory>,
    /// Look again after this long at the latest.
    pub recheck_after_ms: u64,
}
