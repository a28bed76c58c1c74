//! The Lease that says who may be primary, as plain data.
//!
//! Sources: Kubernetes API, `coordination.k8s.io/v1` Lease; client-go's `leaderelection`, whose rule is kept
//! that a record is aged by one's own clock from when it was last seen to change, never by its time stamps.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::data_directory::SystemIdentifier;
use super::member::Ordinal;
use super::observation::MemberRequest;
use super::operate::Answer;
use super::switch::SwitchPosition;
use super::wal::{Lsn, TimelineId};

/// Who holds the Lease: a pod's name and its UID, so that a pod that came after under the same name is another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    pub pod: String,
    pub uid: String,
}

impl Identity {
    /// Reads `<pod>/<uid>`; a text without a slash is a pod with an empty UID.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (pod, uid) = text.split_once('/').unwrap_or((text, ""));
        Self {
            pod: pod.to_owned(),
            uid: uid.to_owned(),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pod, self.uid)
    }
}

/// A data directory's own name: drawn when it is made or cloned, so that a member whose volume was lost is not
/// taken for the one that confirmed commits under the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub Arc<str>);

/// Standbys of which `quorum` hold every acknowledged commit, besides the primary.
///
/// The holder itself may be in it just after it took over: it holds everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SynchronousSet {
    pub members: BTreeMap<Ordinal, Incarnation>,
    /// "k": 0 promises nothing.
    pub quorum: u32,
}

/// What an acknowledged commit has survived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Flushed on the primary.
    #[default]
    Async,
    /// As `Majority` while enough standbys are there; goes on without them, recorded in the Lease first.
    Preferred,
    /// Flushed on half of the members, rounded down, besides the primary.
    Majority,
}

impl Durability {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Async => "async",
            Self::Preferred => "preferred",
            Self::Majority => "majority",
        }
    }
}

/// The operator's read-only switch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReadOnlySwitch {
    pub by: String,
    pub at: String,
    pub reason: String,
}

/// What the operator has asked the cluster for, until it is done or refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "move", rename_all = "snake_case")]
pub enum MoveRequest {
    /// A planned move, to a member or to whoever fits best; the primary acts.
    Switchover { to: Option<Ordinal>, id: String },
    /// A forced one: the named member takes over though commits may be lost.
    Failover { to: Ordinal, id: String },
}

/// What the operator has asked of one member, from where no member can be reached, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberOrder {
    /// The pod.
    pub member: String,
    pub what: MemberRequest,
    pub id: String,
    /// The member is at it: it does nothing a second time.
    #[serde(default)]
    pub taken_up: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
}

/// One change of the primary, kept in the Lease, newest last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    pub term: u64,
    /// The timeline that ended and where, if the one who wrote this knew.
    pub timeline: Option<TimelineId>,
    pub lsn: Option<Lsn>,
    pub reason: String,
    /// RFC 3339, of the writer's clock: for people only.
    pub at: String,
    pub new_leader: String,
}

/// Entries that are kept; the record must stay small.
pub const HISTORY_LIMIT: usize = 20;

/// The Lease's contents, as far as podgres has a say in them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// `spec.holderIdentity`; `None` when released.
    pub holder: Option<Identity>,
    /// `spec.leaseTransitions`: grows with every change of the holder, and when a holder begins anew.
    pub term: u64,
    /// `spec.leaseDurationSeconds`, in milliseconds.
    pub lease_duration_ms: u64,
    /// Counts the holder's own writes, so that what others see has changed; 0 in an office that another member gave it, which
    /// no claim of its own is taken for.
    pub renewals: u64,
    pub system_identifier: Option<SystemIdentifier>,
    pub durability: Durability,
    /// Every member that has joined and has not been scaled away, the primary included.
    pub members: Vec<Ordinal>,
    pub synchronous: SynchronousSet,
    /// The member that stopped cleanly as the last primary and gave the Lease back: it alone knows that it has everything.
    pub released_by: Option<Ordinal>,
    pub paused: bool,
    pub read_only: Option<ReadOnlySwitch>,
    /// How often the switch was turned, so that members can tell whose word of it is newer.
    #[serde(default)]
    pub read_only_turns: u64,
    pub request: Option<MoveRequest>,
    /// The newest one takes the place of any before it.
    pub order: Option<MemberOrder>,
    /// Shared by all the records until the next change of the primary.
    pub history: Arc<Vec<HistoryEntry>>,
    /// The highest number of a timeline that a holder has begun, or was given the office to begin. PostgreSQL numbers by what it
    /// knows itself, and a member may not have heard of a promotion that failed half-way: without this, two members could
    /// begin different timelines of one number, which neither a WAL receiver nor `pg_rewind` can tell apart.
    pub timeline: TimelineId,
}

impl LeaseRecord {
    /// The number for the timeline that a member on `own` begins when it is promoted: later than any in use.
    #[must_use]
    pub fn next_timeline(&self, own: TimelineId) -> TimelineId {
        TimelineId(self.timeline.max(own).0.saturating_add(1))
    }

    /// Whether this pod is the holder.
    #[must_use]
    pub fn held_by(&self, identity: &Identity) -> bool {
        self.holder.as_ref() == Some(identity)
    }

    /// Turns the read-only switch.
    pub fn turn_read_only(&mut self, on: Option<ReadOnlySwitch>) {
        let next = self.switch().turned(on);
        (self.read_only_turns, self.read_only) = (next.version, next.on);
    }

    /// Where the read-only switch stands by this record.
    #[must_use]
    pub fn switch(&self) -> SwitchPosition {
        SwitchPosition {
            term: self.term,
            version: self.read_only_turns,
            on: self.read_only.clone(),
        }
    }

    /// Adds an entry and forgets the oldest beyond [`HISTORY_LIMIT`]. Of a member that comes back again and again the first and the
    /// newest entry stay: the others would push out those that tell whether anybody came in between.
    pub fn remember(&mut self, entry: HistoryEntry) {
        let history = Arc::make_mut(&mut self.history);
        let its_own = history.iter().rev().take(2);
        if its_own
            .filter(|known| known.new_leader == entry.new_leader)
            .count()
            == 2
        {
            history.pop();
        }
        history.push(entry);
        let surplus = history.len().saturating_sub(HISTORY_LIMIT);
        history.drain(..surplus);
    }
}

/// A record as the API server gave it, with the version that a change must name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredLease {
    /// Shared: it is kept and handed on at every turn, and never changed in place.
    pub record: Arc<LeaseRecord>,
    /// `metadata.resourceVersion`: opaque, only compared for equality by the server.
    pub resource_version: String,
}

/// What is known of the Lease. All times are this machine's `CLOCK_BOOTTIME` in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseView {
    /// The newest record; kept when the API no longer answers. `None` with `missing`: there is no such Lease.
    pub stored: Option<StoredLease>,
    /// The API server said that there is no such Lease.
    pub missing: bool,
    /// When the record was last seen to change, or first seen.
    pub changed_at_ms: u64,
    /// When a request that the API server answered was *sent*, or a watch event came; `None`: never yet.
    pub answered_at_ms: Option<u64>,
    /// Why the last request failed; `None` since one succeeded.
    pub error: Option<String>,
    /// Of this process's last write that succeeded and left it the holder: when it was sent, and the term.
    pub renewal: Option<Renewal>,
    /// A write is under way.
    pub writing: bool,
    /// When the last write ended without success, so that it is not tried again at once.
    pub write_failed_at_ms: Option<u64>,
    /// A write's outcome is not known, or not yet: the record that may have been stored instead of `stored`.
    /// One that is under way, and keeps the holder and the synchronous set, is left out.
    pub uncertain: Option<LeaseRecord>,
}

/// See [`LeaseView::renewal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    pub term: u64,
    pub sent_at_ms: u64,
}

/// One write to the Lease: compare-and-swap on the version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseWrite {
    /// For the log and the metrics: `claim`, `renew`, `release`, …
    pub purpose: LeasePurpose,
    /// The version that it replaces; `None`: the Lease is created, and must not exist.
    pub over: Option<String>,
    pub record: Box<LeaseRecord>,
}

/// Why the Lease is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeasePurpose {
    /// The holder says that it is still there; what else it records goes with it.
    Renew,
    /// A new holder, or the old one in a new term.
    Claim,
    /// The holder names its successor.
    HandOver,
    /// The holder gives it back.
    Release,
    /// The holder records another synchronous set, or the cluster's identifier.
    Record,
    /// An answered request is taken out.
    Answer,
}

impl LeasePurpose {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Renew => "renew",
            Self::Claim => "claim",
            Self::HandOver => "hand_over",
            Self::Release => "release",
            Self::Record => "record",
            Self::Answer => "answer",
        }
    }
}

/// What a member says of its part in the leadership; streamed to the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeadershipReport {
    /// The newest term that it knows of.
    pub term: u64,
    /// It takes no WAL from a primary of an earlier term; on disk before it is said.
    pub promised_term: u64,
    pub incarnation: Option<Incarnation>,
    /// It is primary by right, and since when it counts its beats.
    pub office: Option<Office>,
    /// The primary's beat up to which it confirms that it has promised no newer term.
    pub confirms: Option<Office>,
    /// A standby's word: it takes the primary of this term for lost.
    pub suspects_term: Option<u64>,
    /// The holder's own word: it holds the Lease in this term and wants to be rid of it.
    pub gives_up_term: Option<u64>,
    /// Set while it is detached under `promised_term`: nothing more can reach it, and all it has is replayed.
    pub final_position: Option<FinalPosition>,
    /// Lower is preferred among equals; `None`: never primary.
    pub priority: Option<u32>,
    /// The API server has answered it lately.
    pub sees_api: bool,
}

impl LeadershipReport {
    /// The newest term that it knows of or has promised.
    #[must_use]
    pub fn newest_term(&self) -> u64 {
        self.term.max(self.promised_term)
    }
}

/// A primary in office, and a number that it counts up while it asks for confirmations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Office {
    pub term: u64,
    pub beat: u64,
}

/// See [`LeadershipReport::final_position`]; compares by timeline, then position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FinalPosition {
    pub timeline: TimelineId,
    pub flush_lsn: Lsn,
}

/// What decides who takes over, the greatest first: the further one; among equals the preferred one, then the lower ordinal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    position: FinalPosition,
    priority: Reverse<u32>,
    ordinal: Reverse<Ordinal>,
}

impl Rank {
    /// `priority` as in [`LeadershipReport::priority`].
    #[must_use]
    pub fn new(position: FinalPosition, priority: Option<u32>, ordinal: Ordinal) -> Self {
        Self {
            position,
            priority: Reverse(priority.unwrap_or(u32::MAX)),
            ordinal: Reverse(ordinal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_that_could_not_start_for_minutes_pushed_out_whom_it_came_after() {
        let mut record = LeaseRecord::default();
        let mut named = |term: u64, leader: &str| {
            record.remember(HistoryEntry {
                term,
                timeline: None,
                lsn: None,
                reason: String::new(),
                at: String::new(),
                new_leader: leader.to_owned(),
            });
            let terms = record.history.iter().map(|entry| entry.term);
            terms.collect::<Vec<_>>()
        };
        named(1, "pg-1");
        for term in 2..100 {
            named(term, "pg-0");
        }
        assert_eq!(named(100, "pg-0"), [1, 2, 100]);
        assert_eq!(named(101, "pg-1"), [1, 2, 100, 101]);
        for term in 102..200 {
            named(term, ["pg-0", "pg-1"][usize::from(term % 2 == 1)]);
        }
        let terms = named(200, "pg-0");
        assert_eq!((terms.len(), terms[0], terms[19]), (HISTORY_LIMIT, 181, 200));
    }
}
