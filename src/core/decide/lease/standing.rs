//! An observation read in terms of right, quorum and position. Computes, and decides nothing.

use crate::core::cluster::PeerContact;
use crate::core::decision::{LeaseMemory, Memory};
use crate::core::lease::{FinalPosition, LeasePurpose, LeaseRecord, LeaseWrite};
use crate::core::member::Ordinal;
use crate::core::observation::{Observation, PeerView};
use crate::core::policy::Policy;
use crate::core::supervision::{Postmaster, ServerRole};

/// After a write that failed or whose outcome is unknown.
const WRITE_PAUSE_MS: u64 = 250;
/// After that long without an answer of the API server a member does not count as one that could claim.
const SEES_API_PERIODS: u64 = 3;

/// Who is what in this turn.
pub(super) struct Standing<'a> {
    pub(super) at_ms: u64,
    /// The newest record, even if the API server no longer answers.
    pub(super) record: Option<&'a LeaseRecord>,
    version: Option<&'a str>,
    pub(super) missing: bool,
    pub(super) is_holder: bool,
    /// The member whose pod the record names, unless it is this pod.
    pub(super) holder_elsewhere: Option<Ordinal>,
    /// Until when this holder may acknowledge, by renewal or by its peers; 0 if never.
    pub(super) renewed_until_ms: u64,
    pub(super) confirmed_until_ms: u64,
    /// The record has not changed for the Lease's whole duration, by what the API server has answered.
    pub(super) expired: bool,
    pub(super) unchanged_ms: u64,
    pub(super) duration_ms: u64,
    pub(super) may_write: bool,
    /// The API server has not answered since a request failed.
    pub(super) unanswered: bool,
    /// A write that was sent and not answered may have given the office away.
    pub(super) given_away: bool,
    pub(super) promised: u64,
    /// Set while this member is detached under its promise.
    pub(super) final_position: Option<FinalPosition>,
    pub(super) suspects: bool,
    /// Heard nothing more, it will suspect the primary so much later.
    pub(super) suspects_in_ms: Option<u64>,
}

impl<'a> Standing<'a> {
    pub(super) fn of(policy: &Policy, memory: &Memory, observation: &'a Observation) -> Self {
        let (lease, at_ms) = (&observation.lease, observation.at_ms);
        let record = lease.stored.as_ref().map(|stored| &*stored.record);
        let is_holder = record.is_some_and(|record| record.held_by(&policy.identity));
        let term = record.map_or(0, |record| record.term);
        let renewed = lease.renewal.filter(|renewal| is_holder && renewal.term == term);
        let confirmed = is_holder && memory.lease.confirmed_term == term;
        let duration_ms = record.map_or(0, |record| record.lease_duration_ms);
        let duration_ms = duration_ms.max(policy.times.lease_duration_ms);
        let failed_lately = lease
            .write_failed_at_ms
            .is_some_and(|failed| at_ms < failed + WRITE_PAUSE_MS);
        let holder = holder(policy, record);
        let patience_ms = patience_ms(policy, memory, observation, record, holder);
        Self {
            at_ms,
            version: lease
                .stored
                .as_ref()
                .map(|stored| stored.resource_version.as_str()),
            missing: lease.missing,
            is_holder,
            holder_elsewhere: holder.filter(|_| !is_holder),
            renewed_until_ms: renewed.map_or(0, |r| r.sent_at_ms + policy.times.renew_deadline_ms),
            confirmed_until_ms: if confirmed {
                memory.lease.confirmed_until_ms
            } else {
                0
            },
            // Who has had no answer since does not know whether it was renewed.
            expired: record.is_some() && lease.answered_at_ms >= Some(lease.changed_at_ms + duration_ms),
            unchanged_ms: at_ms.saturating_sub(lease.changed_at_ms),
            duration_ms,
            may_write: !lease.writing && !failed_lately,
            unanswered: lease.error.is_some(),
            given_away: lease
                .uncertain
                .as_ref()
                .is_some_and(|record| !record.held_by(&policy.identity)),
            promised: observation.supervisor.as_ref().map_or(0, |s| s.terms.promised),
            final_position: final_position(observation),
            suspects: patience_ms == Some(0),
            suspects_in_ms: patience_ms.filter(|left_ms| *left_ms > 0),
            record,
        }
    }

    /// The record, if this member is its holder.
    pub(super) fn held(&self) -> Option<&'a LeaseRecord> {
        self.record.filter(|_| self.is_holder)
    }

    pub(super) fn paused(&self) -> bool {
        self.record.is_some_and(|record| record.paused)
    }

    pub(super) fn term(&self) -> u64 {
        self.record.map_or(0, |record| record.term)
    }

    /// A holder that may acknowledge now.
    pub(super) fn in_right(&self) -> bool {
        self.at_ms < self.right_until_ms()
    }

    pub(super) fn right_until_ms(&self) -> u64 {
        if self.promised > self.term() || self.given_away {
            return 0;
        }
        self.renewed_until_ms.max(self.confirmed_until_ms)
    }

    /// A write over the newest known version, if one may be begun now.
    ///
    /// One that gives the office away leaves this member without a right until its outcome is known: not while the API server does not answer.
    pub(super) fn write(&self, purpose: LeasePurpose, record: LeaseRecord) -> Option<LeaseWrite> {
        let over = self.version.map(str::to_owned);
        let gives_away = matches!(purpose, LeasePurpose::HandOver | LeasePurpose::Release);
        let may = self.may_write && !(gives_away && self.unanswered);
        may.then_some(LeaseWrite {
            purpose,
            over,
            record: Box::new(record),
        })
    }

    /// True once for each record that has not changed for its whole duration by this member's clock, while no answer has said so.
    pub(super) fn asks_whether_expired(&self, memory: &mut LeaseMemory) -> bool {
        let due = self.record.is_some() && !self.expired && self.unchanged_ms >= self.duration_ms;
        let changed_at_ms = self.at_ms - self.unchanged_ms;
        due && memory.asked_of.replace(changed_at_ms) != Some(changed_at_ms)
    }

    /// For a sentence.
    pub(super) fn holder_name(&self) -> String {
        let holder = self.record.and_then(|record| record.holder.as_ref());
        holder.map_or_else(
            || "nobody holds the Lease".to_owned(),
            |holder| format!("\"{}\" holds the Lease in term {}", holder.pod, self.term()),
        )
    }
}

/// The ordinal of the pod that the record names.
fn holder(policy: &Policy, record: Option<&LeaseRecord>) -> Option<Ordinal> {
    policy.ordinal_of(&record?.holder.as_ref()?.pod)
}

/// Where this standby has come to rest: no upstream, no WAL receiver, all that is here replayed.
fn final_position(observation: &Observation) -> Option<FinalPosition> {
    let server = observation.server.as_ref()?;
    let postmaster = &observation.supervisor.as_ref()?.postmaster;
    let detached = matches!(
        postmaster,
        Postmaster::Running {
            role: ServerRole::Standby { upstream: None },
            ready: true,
            ..
        }
    );
    let rests = server.in_recovery && !server.receiver_present && server.replay_waiting;
    (detached && rests).then_some(FinalPosition {
        timeline: server.timeline,
        flush_lsn: server.end_of_wal(),
    })
}

/// For how much longer this member waits to hear of the primary before it takes it for lost: its sidecar is gone, and its WAL has
/// stopped as well. 0: it is lost now; `None`: it is heard, or is no other member's.
///
/// A sidecar that alone is away for a moment is no lost primary, nor is a WAL receiver that reconnects.
fn patience_ms(
    policy: &Policy,
    memory: &Memory,
    observation: &Observation,
    record: Option<&LeaseRecord>,
    holder: Option<Ordinal>,
) -> Option<u64> {
    let identity = record?.holder.as_ref()?;
    let ordinal = holder.filter(|ordinal| *ordinal != policy.ordinal)?;
    let receiver = observation
        .server
        .as_ref()
        .filter(|server| server.receiver_streaming);
    let Some(peer) = observation.peers.get(&ordinal) else {
        // DNS no longer knows it, and it was never heard.
        return (observation.peers_asked() && receiver.is_none()).then_some(0);
    };
    if peer.connected() {
        // Another pod under the holder's name: the one that held the Lease is gone.
        // One that serves without a Lease is the primary of a cluster that had fixed leadership meanwhile.
        let fixed = peer.writable && peer.leadership.is_none();
        let replaced = !peer.uid.is_empty() && peer.uid != identity.uid && !fixed;
        let given_up = || receiver.is_none() && given_up(memory, observation);
        return (replaced || given_up()).then_some(0);
    }
    let looking_ms = observation.at_ms
        - memory
            .began_at_ms
            .unwrap_or(observation.at_ms)
            .min(observation.at_ms);
    let left_ms = |silent_ms: u64| policy.times.peer_timeout_ms.saturating_sub(silent_ms);
    let sidecar_ms = left_ms(peer.heard_ms_ago.unwrap_or(looking_ms));
    match receiver {
        None if gone(peer) => Some(0),
        None => Some(sidecar_ms),
        Some(server) => Some(left_ms(server.receiver_silent_ms?).max(sidecar_ms)),
    }
}

/// The term that the holder's word is of, if it says that it wants to be rid of the Lease of that term.
pub(super) fn gives_up(policy: &Policy, observation: &Observation) -> Option<u64> {
    let record = &observation.lease.stored.as_ref()?.record;
    let peer = observation.peers.get(&holder(policy, Some(record))?)?;
    let said = peer.live_report()?.gives_up_term;
    said.filter(|term| *term == record.term)
}

/// The holder cannot write that it has given up, and somebody else could: the API server has answered since it was first heard, this
/// member or another that draws the same conclusion.
fn given_up(memory: &Memory, observation: &Observation) -> bool {
    let Some((term, heard_ms)) = memory.lease.given_up else {
        return false;
    };
    let answered = observation
        .lease
        .answered_at_ms
        .is_some_and(|at_ms| at_ms >= heard_ms);
    let concludes = |peer: &PeerView| {
        let report = peer.live_report();
        report.is_some_and(|report| report.suspects_term == Some(term))
    };
    answered || observation.peers.values().any(concludes)
}

/// The API server has answered lately.
pub(super) fn sees_api(policy: &Policy, observation: &Observation) -> bool {
    let lease = &observation.lease;
    let patience_ms = policy.times.retry_period_ms * SEES_API_PERIODS;
    lease
        .answered_at_ms
        .is_some_and(|answered| lease.error.is_none() || observation.at_ms < answered + patience_ms)
}

/// The network says that the peer's process is not there.
fn gone(peer: &PeerView) -> bool {
    matches!(peer.contact, PeerContact::Refused | PeerContact::Unreachable)
}
