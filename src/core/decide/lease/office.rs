//! The right to be primary over time: renewals, the peers' confirmations, and what is remembered of both.

use std::sync::Arc;

use crate::core::decision::{LeaseMemory, Memory};
use crate::core::lease::{Durability, LeadershipReport, LeasePurpose, LeaseRecord, LeaseWrite, Office};
use crate::core::member::Ordinal;
use crate::core::observation::Observation;
use crate::core::policy::Policy;
use crate::core::status::HeldData;
use crate::core::supervision::{Postmaster, ServerRole};

use super::super::note::{since, unchanged_since};
use super::standing::{self, Standing};

/// How often a primary asks its peers while the API server is silent.
const BEAT_MS: u64 = 250;
/// For so long a position must not have moved before it is told as the final one: by then the startup process has read that it has no upstream
/// any more, and begins no receiver for the earlier one.
const REST_MS: u64 = 100;
/// Beats whose time is remembered: more than a confirmation may be under way.
const BEATS_KEPT: usize = 64;

/// The holder's next renewal, if it is due and nothing speaks against it.
pub(super) fn renewal(
    policy: &Policy,
    observation: &Observation,
    memory: &Memory,
    standing: &Standing,
) -> Option<LeaseWrite> {
    let record = standing.record?;
    if lets_others_in(policy, &memory.lease, observation, record) || standing.promised > record.term {
        return None;
    }
    let renewal = observation
        .lease
        .renewal
        .filter(|renewal| renewal.term == record.term);
    let due = renewal.is_none_or(|r| standing.at_ms >= r.sent_at_ms + policy.times.retry_period_ms);
    if !due || !standing.may_write {
        return None;
    }
    let mut next = record.clone();
    next.renewals += 1;
    next.lease_duration_ms = policy.times.lease_duration_ms;
    if let Some(server) = observation.writable_server() {
        next.timeline = next.timeline.max(server.timeline);
    }
    standing.write(LeasePurpose::Renew, next)
}

/// Nobody is to keep this holder in office, neither the Lease nor the peers: its disk takes nothing any more, or its PostgreSQL has been down for
/// longer than crash recovery may take.
fn lets_others_in(
    policy: &Policy,
    lease: &LeaseMemory,
    observation: &Observation,
    record: &LeaseRecord,
) -> bool {
    let down = lease.down_ms(observation.at_ms) > policy.times.recovery_timeout_ms
        && record.system_identifier.is_some()
        && !only_member(policy, record);
    down || disk_failing_ms(observation).is_some()
}

/// For how long the volume has taken no flush, if it takes none.
fn disk_failing_ms(observation: &Observation) -> Option<u64> {
    let since_ms = observation.supervisor.as_ref()?.disk_failing_since_ms?;
    Some(observation.at_ms.saturating_sub(since_ms))
}

/// The volume has taken no flush for so long that a standby which can prove that it has everything is the better primary.
pub(super) fn disk_lost_ms(policy: &Policy, observation: &Observation, record: &LeaseRecord) -> Option<u64> {
    let failing_ms = disk_failing_ms(observation)?;
    let long = failing_ms > 2 * policy.times.peer_timeout_ms;
    (long && !record.paused && provable_elsewhere(observation, record)).then_some(failing_ms)
}

/// Nobody else could take over.
fn only_member(policy: &Policy, record: &LeaseRecord) -> bool {
    record.members.iter().all(|member| *member == policy.ordinal)
}

/// Until when the gate may confirm: only while PostgreSQL runs here as the primary by right.
pub(super) fn gate_until_ms(observation: &Observation, standing: &Standing) -> u64 {
    let primary = observation.running_role().is_some_and(ServerRole::is_primary);
    if primary && standing.is_holder {
        standing.right_until_ms()
    } else {
        0
    }
}

/// Brings what is remembered up to date before any row is looked at; who is what with that.
pub(super) fn note<'a>(policy: &Policy, memory: &mut Memory, observation: &'a Observation) -> Standing<'a> {
    let given_up = standing::gives_up(policy, observation);
    memory.lease.given_up = unchanged_since(memory.lease.given_up, given_up, observation.at_ms);
    let mut standing = Standing::of(policy, memory, observation);
    let lease = &mut memory.lease;
    if let Some(stored) = &observation.lease.stored {
        lease.record = Some(Arc::clone(&stored.record));
    }
    note_confirmations(policy, lease, observation, &standing);
    note_others(lease, observation);
    standing.confirmed_until_ms = lease.confirmed_until_ms;
    note_streaming(policy, lease, observation);
    note_names_in_force(lease, observation);
    note_service(lease, observation, &standing);
    note_overtaken(lease, observation, &standing);
    let starting = matches!(
        observation.supervisor.as_ref().map(|s| &s.postmaster),
        Some(Postmaster::Running {
            role: ServerRole::Standby { .. },
            ready: false,
            ..
        })
    );
    lease.starting_since_ms = since(lease.starting_since_ms, starting, observation.at_ms);
    lease.detached = unchanged_since(lease.detached, standing.final_position, observation.at_ms);
    let rested_ms = lease
        .detached
        .map_or(0, |(_, since_ms)| standing.at_ms.saturating_sub(since_ms));
    standing.final_position = standing.final_position.filter(|_| rested_ms >= REST_MS);
    if standing.is_holder {
        // Whatever was wrong with this directory: now the others are measured by it.
        memory.condemned = None;
    } else {
        lease.handing_over = None;
    }
    standing
}

fn note_confirmations(
    policy: &Policy,
    lease: &mut LeaseMemory,
    observation: &Observation,
    standing: &Standing,
) {
    let Some(record) = standing.held() else {
        lease.beats.clear();
        lease.confirmed_until_ms = 0;
        return;
    };
    if lease.confirmed_term != record.term {
        lease.confirmed_term = record.term;
        lease.confirmed_until_ms = 0;
        lease.beats.clear();
    }
    let kept = !lets_others_in(policy, lease, observation, record);
    if kept && asks_peers(policy, observation, standing) {
        let last = lease.beats.last().copied().unwrap_or((observation.at_ms, 0));
        if observation.at_ms >= last.1 + BEAT_MS {
            // The time itself, so that a restarted sidecar never counts an old confirmation for a new beat.
            lease
                .beats
                .push((observation.at_ms.max(last.0 + 1), observation.at_ms));
            let surplus = lease.beats.len().saturating_sub(BEATS_KEPT);
            lease.beats.drain(..surplus);
        }
    } else {
        lease.beats.clear();
    }
    // Those who would stand under a record that may be there have to confirm as well.
    let records = std::iter::once(record).chain(&observation.lease.uncertain);
    let until_ms = records.map(|record| confirmed_until_ms(policy, lease, observation, record));
    let until_ms = until_ms.min().unwrap_or(0);
    lease.confirmed_until_ms = lease.confirmed_until_ms.max(until_ms);
}

/// What the others confirm.
fn note_others(lease: &mut LeaseMemory, observation: &Observation) {
    for (ordinal, peer) in &observation.peers {
        let Some(office) = peer.live_report().and_then(|report| report.confirms) else {
            continue;
        };
        let known = lease.confirmed_by_others.get(ordinal);
        if known.is_none_or(|(known, _)| *known != office) {
            lease
                .confirmed_by_others
                .insert(*ordinal, (office, observation.at_ms));
        }
    }
}

/// The last renewal is older than it should be.
fn asks_peers(policy: &Policy, observation: &Observation, standing: &Standing) -> bool {
    let times = policy.times;
    let patience_ms = times.retry_period_ms + times.retry_period_ms / 2;
    let renewed_ms = standing.renewed_until_ms.saturating_sub(times.renew_deadline_ms);
    renewed_ms > 0 && observation.at_ms >= renewed_ms + patience_ms
}

/// Each confirmation counts from when the beat that it answers was sent.
fn confirmed_until_ms(
    policy: &Policy,
    lease: &LeaseMemory,
    observation: &Observation,
    record: &LeaseRecord,
) -> u64 {
    let needed = confirmations_needed(policy, record);
    if needed == 0 {
        return observation.at_ms + policy.times.renew_deadline_ms;
    }
    if lease.beats.is_empty() {
        return 0;
    }
    let mut sent: Vec<u64> = record
        .synchronous
        .members
        .keys()
        .filter(|member| **member != policy.ordinal)
        .filter_map(|member| confirmed_beat(lease, observation, record, *member))
        .collect();
    sent.sort_unstable_by(|one, other| other.cmp(one));
    let last = needed.checked_sub(1).and_then(|at| sent.get(at));
    last.map_or(0, |sent_ms| sent_ms + policy.times.renew_deadline_ms)
}

/// When the beat was sent that `member` confirms.
fn confirmed_beat(
    lease: &LeaseMemory,
    observation: &Observation,
    record: &LeaseRecord,
    member: Ordinal,
) -> Option<u64> {
    let peer = observation.peers.get(&member)?;
    let report = peer.leadership.as_ref()?;
    let office = report.confirms.filter(|office| office.term == record.term)?;
    let known =
        record.synchronous.has(member, report.incarnation.as_ref()) && report.promised_term <= record.term;
    let beat = lease.beats.iter().find(|(beat, _)| *beat == office.beat)?;
    known.then_some(beat.1)
}

/// How many of the recorded standbys must confirm: so many that no candidate can do without one of them.
///
/// With a quorum k of n, n-k+1 and k always share a member. Where nobody needs a proof (`async`), every one that may
/// stand must confirm.
fn confirmations_needed(policy: &Policy, record: &LeaseRecord) -> usize {
    let others = record
        .synchronous
        .members
        .keys()
        .filter(|member| **member != policy.ordinal)
        .count();
    if only_member(policy, record) {
        return 0;
    }
    match record.synchronous.quorum {
        0 => others.max(1),
        quorum => quorum as usize,
    }
}

/// The beat that this standby confirms: it has promised nothing newer, and sees its primary.
pub(super) fn confirms(policy: &Policy, observation: &Observation, standing: &Standing) -> Option<Office> {
    let record = standing.record?;
    let holder = standing.holder_elsewhere?;
    let peer = observation.peers.get(&holder)?;
    let office = peer.live_report()?.office?;
    let same = office.term == record.term && record.holder.as_ref().is_some_and(|h| h.uid == peer.uid);
    let bound = standing.promised <= record.term && holder != policy.ordinal;
    (same && bound && office.beat > 0).then_some(office)
}

fn note_streaming(policy: &Policy, lease: &mut LeaseMemory, observation: &Observation) {
    let Some(server) = observation.writable_server() else {
        lease.streamed_at_ms.clear();
        lease.opened_at_ms = None;
        return;
    };
    lease.opened_at_ms.get_or_insert(observation.at_ms);
    for ordinal in &super::told::others(policy, observation, lease.record.as_deref()) {
        // A WAL sender whose standby has connected again may be there for a while.
        let mut rows = server.replication.iter();
        if rows.any(|row| {
            row.state == "streaming" && super::told::belongs(policy, &row.application_name, *ordinal)
        }) {
            lease.streamed_at_ms.insert(*ordinal, observation.at_ms);
        }
    }
}

/// Since when the setting is the one that it is: a barrier from before stands for an earlier time of the same setting.
fn note_names_in_force(lease: &mut LeaseMemory, observation: &Observation) {
    let server = observation.writable_server();
    let names = server.map(|server| server.synchronous_standby_names.clone());
    lease.names_in_force = unchanged_since(lease.names_in_force.take(), names, observation.at_ms);
}

/// Since when a holder's PostgreSQL does not serve as the primary.
fn note_service(lease: &mut LeaseMemory, observation: &Observation, standing: &Standing) {
    let serves = observation.writable_server().is_some();
    let down = standing.is_holder && !serves && !unseen(observation);
    // Nobody took the Lease that it let run out: it is this member's turn again.
    let unwanted = standing.unchanged_ms >= 2 * standing.duration_ms;
    let down_since_ms = lease.down_since_ms.filter(|_| !unwanted);
    lease.down_since_ms = since(down_since_ms, down, observation.at_ms);
    // A supervisor that has ended after its PostgreSQL leaves it stopped.
    let stopped = observation
        .supervisor
        .as_ref()
        .map_or(lease.stopped_since_ms.is_some(), |supervisor| {
            matches!(supervisor.postmaster, Postmaster::Stopped { .. })
        });
    let stopped = standing.is_holder && stopped;
    lease.stopped_since_ms = since(lease.stopped_since_ms, stopped, observation.at_ms);
    let unanswered = down && observation.server.is_none() && ready_primary(observation);
    lease.unanswered_since_ms = since(lease.unanswered_since_ms, unanswered, observation.at_ms);
}

fn ready_primary(observation: &Observation) -> bool {
    let supervisor = observation.supervisor.as_ref();
    supervisor.is_some_and(|supervisor| supervisor.postmaster.ready_primary())
}

/// PostgreSQL runs as the primary and does not let podgres in: it serves others, and a stop would not help, since every copy has the
/// same password. The synchronous set stays what it was last told, which the Lease has.
pub(super) fn unseen(observation: &Observation) -> bool {
    ready_primary(observation) && observation.server.is_none() && observation.login_refused.is_some()
}

fn note_overtaken(lease: &mut LeaseMemory, observation: &Observation, standing: &Standing) {
    let newer = observation.peers.values().any(|peer| {
        let report = peer.live_report();
        report.is_some_and(|report| report.promised_term > standing.term())
    });
    let overtaken = standing.is_holder && newer;
    lease.overtaken_since_ms = since(lease.overtaken_since_ms, overtaken, observation.at_ms);
}

/// Whether a commit may have been acknowledged that only the primary has.
pub(super) fn nothing_provable(record: &LeaseRecord) -> bool {
    record.synchronous.proof().is_none() && record.durability != Durability::Async
}

/// Enough recorded standbys are there to prove that nothing is lost without this member, and one of them would be primary.
pub(super) fn provable_elsewhere(observation: &Observation, record: &LeaseRecord) -> bool {
    let Some(proof) = record.synchronous.proof() else {
        return false;
    };
    let members = record.synchronous.members.keys();
    let there: Vec<&LeadershipReport> = members
        .filter_map(|member| {
            let peer = observation.peers.get(member)?;
            let report = peer.live_report()?;
            let has_it = peer.held_data == HeldData::Some
                && record.synchronous.has(*member, report.incarnation.as_ref());
            has_it.then_some(report)
        })
        .collect();
    there.len() >= proof as usize && there.iter().any(|report| report.priority.is_some())
}
