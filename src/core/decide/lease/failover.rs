//! Standing for primary: suspect, detach, compare, claim. Each step is taken only with the proof for it.

use std::ops::ControlFlow::{self, Break, Continue};

use crate::core::data_directory::{ControlState, DataDirectoryFacts};
use crate::core::decision::Decision;
use crate::core::lease::{
    Durability, FinalPosition, HISTORY_LIMIT, HistoryEntry, LeadershipReport, LeasePurpose, LeaseRecord,
    LeaseWrite, Rank,
};
use crate::core::member::Ordinal;
use crate::core::situation::Situation;

use super::standing::Standing;
use super::{Turn, forced, office};

/// A standby that runs: what it does about a primary that is lost, if it is. `Continue` gives the turn back.
pub(super) fn consider<'a>(turn: Turn<'a>, standing: &Standing) -> ControlFlow<Decision, Turn<'a>> {
    let Some(record) = standing
        .record
        .filter(|record| record.system_identifier.is_some())
    else {
        return Continue(turn);
    };
    if record.paused {
        return Continue(turn);
    }
    if forced::is_asked(&turn, record) {
        return Break(forced::take_over(turn, standing, record));
    }
    let vacant = record.holder.is_none() || held_by_earlier_pod(&turn, record);
    match record.synchronous.proof() {
        _ if (record.holder.is_none() || (vacant && standing.expired)) && named_last(&turn, record) => {
            Break(claim_again(turn, standing, record))
        }
        Some(proof) => by_proof(turn, standing, record, proof, vacant),
        None if office::nothing_provable(record) && (vacant || standing.suspects) => {
            let detail = "no standby is known to have every commit".to_owned();
            Break(turn.row(Situation::NoCandidate, detail))
        }
        None if record.durability == Durability::Async => by_expiry(turn, standing, record, vacant),
        None => Continue(turn),
    }
}

/// The record names an earlier pod of this member.
fn held_by_earlier_pod(turn: &Turn<'_>, record: &LeaseRecord) -> bool {
    let holder = record.holder.as_ref();
    holder.is_some_and(|holder| holder.pod == turn.policy.identity.pod && *holder != turn.policy.identity)
}

/// With a synchronous set: n-k+1 detached members prove that the best of them has everything, whatever the old primary does.
fn by_proof<'a>(
    turn: Turn<'a>,
    standing: &Standing,
    record: &LeaseRecord,
    proof: u32,
    vacant: bool,
) -> ControlFlow<Decision, Turn<'a>> {
    if standing.promised > record.term {
        return Break(compare(turn, standing, record, proof));
    }
    if !vacant && !standing.suspects {
        return Continue(turn);
    }
    let detail = standing.holder_name();
    if !in_set(&turn, record) {
        return Break(turn.row(
            Situation::NoCandidate,
            "not in the recorded synchronous set".to_owned(),
        ));
    }
    let (lost, detached) = others(&turn, record);
    let enough = lost.max(detached) + 1 >= proof;
    if !enough {
        let detail = format!("{detail}; {} of {proof} members have lost it", lost + 1);
        return Break(turn.row(Situation::Suspecting, detail).soon());
    }
    let term = next_term(&turn, record);
    Break(turn.detach(Situation::Detaching, detail, term))
}

/// Under `async` nothing proves that a standby has everything: the old primary's right must be over.
fn by_expiry<'a>(
    turn: Turn<'a>,
    standing: &Standing,
    record: &LeaseRecord,
    vacant: bool,
) -> ControlFlow<Decision, Turn<'a>> {
    let over = right_over(&turn, standing, record);
    if standing.promised > record.term {
        if !over {
            return Break(
                turn.row(Situation::Comparing, "the Lease has not run out".to_owned())
                    .soon(),
            );
        }
        return Break(compare(turn, standing, record, 1));
    }
    if !over {
        if standing.suspects || vacant {
            return Break(turn.row(Situation::Suspecting, not_over(standing)));
        }
        return Continue(turn);
    }
    if !in_set(&turn, record) {
        return Break(turn.row(
            Situation::NoCandidate,
            "not among the recorded standbys".to_owned(),
        ));
    }
    let term = next_term(&turn, record);
    let detail = standing.holder_name();
    Break(turn.detach(Situation::Detaching, detail, term))
}

/// As far as this member can know: nobody holds the Lease, or it has run out by this clock, and so has what this member confirmed.
pub(super) fn right_over(turn: &Turn<'_>, standing: &Standing, record: &LeaseRecord) -> bool {
    let deadline_ms = turn.policy.times.renew_deadline_ms;
    let bound = turn
        .memory
        .lease
        .confirmation_given
        .is_some_and(|(office, given_ms)| {
            office.term == record.term && standing.at_ms < given_ms + deadline_ms
        });
    // What this process confirmed before it was started anew is not known any more.
    let young = turn
        .memory
        .began_at_ms
        .is_none_or(|began| standing.at_ms < began + deadline_ms);
    record.holder.is_none() || (standing.expired && !bound && !young)
}

pub(super) fn not_over(standing: &Standing) -> String {
    let holder = standing.holder_name();
    if standing.expired {
        format!("{holder}; what members may have confirmed of it must run out first")
    } else {
        format!("{holder}, which must run out first")
    }
}

/// Detached and bound: the best of those that are takes the Lease.
fn compare(mut turn: Turn<'_>, standing: &Standing, record: &LeaseRecord, proof: u32) -> Decision {
    let term = next_term(&turn, record);
    if standing.promised < term {
        // Somebody has promised more: all must stand for the same term.
        return turn.detach(Situation::Detaching, String::new(), term);
    }
    let Some(own) = standing.final_position else {
        if turn.upstream_in_use().is_some() {
            return turn.detach(Situation::Detaching, String::new(), term);
        }
        return turn
            .row(Situation::Comparing, "waiting for replay to end".to_owned())
            .soon();
    };
    if !in_set(&turn, record) || turn.policy.priority.is_none() {
        return turn.row(Situation::NoCandidate, "may not take over itself".to_owned());
    }
    let rivals = rivals(&turn, record, term, proof);
    if let Some(detail) = more_to_come(&turn, record, term, proof, &rivals) {
        return turn.row(Situation::Comparing, detail).soon();
    }
    if let Some(better) = better_candidate(&mut turn, standing, own, &rivals) {
        let detail = format!("{}-{better}", turn.policy.cluster);
        return turn.row(Situation::BetterCandidate, detail).soon();
    }
    let detail = format!("flushed up to {} on timeline {}", own.flush_lsn, own.timeline);
    let write = claim(&turn, standing, record, term, Some(own), "the primary was lost");
    turn.lease_row(Situation::Standing, detail, write)
}

/// Whom this member compares itself with: the others that are detached.
fn rivals(turn: &Turn<'_>, record: &LeaseRecord, term: u64, proof: u32) -> Vec<Rival> {
    let detached = detached(turn, record, term);
    let seeing: Vec<_> = detached.iter().filter(|rival| rival.sees_api).copied().collect();
    if seeing.len() + 1 >= proof as usize {
        // Who cannot reach the API cannot claim, and is not needed for the proof.
        seeing
    } else {
        detached
    }
}

/// Which members must or may detach yet, before positions are compared.
fn more_to_come(
    turn: &Turn<'_>,
    record: &LeaseRecord,
    term: u64,
    proof: u32,
    rivals: &[Rival],
) -> Option<String> {
    if rivals.len() + 1 < proof as usize {
        return Some(format!("{} of {proof} members are detached", rivals.len() + 1));
    }
    let nothing_proven = proof == 1 && record.synchronous.quorum == 0;
    (nothing_proven && still_streaming(turn, record, term))
        .then(|| "other standbys are about to detach".to_owned())
}

/// The rival that is to claim instead of this member, and is waited for.
fn better_candidate(
    turn: &mut Turn<'_>,
    standing: &Standing,
    own: FinalPosition,
    rivals: &[Rival],
) -> Option<Ordinal> {
    let mine = Rank::new(own, turn.policy.priority, turn.policy.ordinal);
    let best = rivals.iter().max_by_key(|rival| rival.rank());
    let waiting_since_ms = &mut turn.memory.lease.waiting_since_ms;
    let Some(best) = best.filter(|best| best.rank() > mine) else {
        *waiting_since_ms = None;
        return None;
    };
    let since_ms = *waiting_since_ms.get_or_insert(standing.at_ms);
    let equal = best.position == own && best.priority.is_some();
    // An equal that does not act is not waited for any longer.
    let patience_ms = turn.policy.times.peer_timeout_ms;
    (!(equal && standing.at_ms >= since_ms + patience_ms)).then_some(best.ordinal)
}

/// Another connected standby has not promised this term yet; under `async` its position may be the best one.
fn still_streaming(turn: &Turn<'_>, record: &LeaseRecord, term: u64) -> bool {
    let since_ms = turn.memory.lease.detached.map_or(0, |(_, since_ms)| since_ms);
    let patient = turn.observation.at_ms < since_ms + turn.policy.times.peer_timeout_ms;
    let members = record
        .synchronous
        .members
        .keys()
        .filter(|member| **member != turn.policy.ordinal);
    let pending = members
        .filter_map(|member| turn.observation.peers.get(member))
        .any(|peer| {
            let report = peer.leadership.as_ref();
            let final_position =
                report.is_some_and(|r| r.promised_term >= term && r.final_position.is_some());
            peer.connected() && peer.running && !final_position
        });
    patient && pending
}

/// Another member that is detached under the same term.
#[derive(Clone, Copy)]
struct Rival {
    ordinal: Ordinal,
    position: FinalPosition,
    priority: Option<u32>,
    sees_api: bool,
}

impl Rival {
    fn rank(&self) -> Rank {
        Rank::new(self.position, self.priority, self.ordinal)
    }
}

fn detached(turn: &Turn<'_>, record: &LeaseRecord, term: u64) -> Vec<Rival> {
    let mut rivals = Vec::new();
    for (ordinal, report) in recorded_peers(turn, record) {
        if report.promised_term < term {
            continue;
        }
        if let Some(position) = report.final_position {
            rivals.push(Rival {
                ordinal,
                position,
                priority: report.priority,
                sees_api: report.sees_api,
            });
        }
    }
    rivals
}

/// Connected members of the recorded set, with what they say of themselves.
fn recorded_peers<'a>(
    turn: &Turn<'a>,
    record: &'a LeaseRecord,
) -> impl Iterator<Item = (Ordinal, &'a LeadershipReport)> {
    let own = turn.policy.ordinal;
    turn.observation.peers.iter().filter_map(move |(ordinal, peer)| {
        let report = peer.live_report()?;
        let counts = *ordinal != own && record.synchronous.has(*ordinal, report.incarnation.as_ref());
        counts.then_some((*ordinal, report))
    })
}

/// How many other recorded members have lost the primary, and how many have bound themselves already.
fn others(turn: &Turn<'_>, record: &LeaseRecord) -> (u32, u32) {
    let (mut lost, mut bound) = (0, 0);
    for (_, report) in recorded_peers(turn, record) {
        let promised = report.promised_term > record.term;
        let suspects = report.suspects_term == Some(record.term);
        lost += u32::from(promised || suspects || record.holder.is_none());
        bound += u32::from(promised);
    }
    (lost, bound)
}

fn in_set(turn: &Turn<'_>, record: &LeaseRecord) -> bool {
    record
        .synchronous
        .has(turn.policy.ordinal, turn.supervisor.incarnation.as_ref())
}

/// The term to stand for: newer than the record's, and not older than what a member has promised already.
pub(super) fn next_term(turn: &Turn<'_>, record: &LeaseRecord) -> u64 {
    let promised = recorded_peers(turn, record)
        .map(|(_, report)| report.promised_term)
        .max();
    let own = turn.supervisor.terms.promised;
    (record.term + 1).max(promised.unwrap_or(0)).max(own)
}

/// The record with this member as its holder.
pub(super) fn claim(
    turn: &Turn<'_>,
    standing: &Standing,
    record: &LeaseRecord,
    term: u64,
    position: Option<FinalPosition>,
    reason: &str,
) -> Option<LeaseWrite> {
    let mut next = record.clone();
    next.holder = Some(turn.policy.identity.clone());
    next.term = term;
    next.lease_duration_ms = turn.policy.times.lease_duration_ms;
    next.renewals += 1;
    next.released_by = None;
    next.request = None;
    if let Some(position) = position {
        next.timeline = record.next_timeline(position.timeline);
    }
    next.remember(HistoryEntry {
        term,
        timeline: position.map(|position| position.timeline),
        lsn: position.map(|position| position.flush_lsn),
        reason: reason.to_owned(),
        at: String::new(),
        new_leader: turn.policy.identity.pod.clone(),
    });
    standing.write(LeasePurpose::Claim, next)
}

/// Nobody else has held the Lease since PostgreSQL last ran here as the primary: even if it was given back because of a
/// failure, this directory has everything.
fn nobody_since(turn: &Turn<'_>, record: &LeaseRecord) -> bool {
    let held = turn.supervisor.terms.held;
    let own = |entry: &HistoryEntry| entry.new_leader == turn.policy.identity.pod;
    let complete = record.history.len() < HISTORY_LIMIT
        || record.history.first().is_some_and(|entry| entry.term <= held);
    let mut later = record.history.iter().filter(|entry| entry.term > held);
    held > 0 && complete && later.all(own)
}

/// The last one to be named was this member, which has all that there was then, and nobody has been primary since.
fn named_last(turn: &Turn<'_>, record: &LeaseRecord) -> bool {
    let (Some(last), Some(server)) = (record.history.last(), &turn.observation.server) else {
        return false;
    };
    let then = last.timeline.zip(last.lsn);
    let here = (server.timeline, server.end_of_wal());
    last.new_leader == turn.policy.identity.pod && then.is_some_and(|then| here >= then)
}

/// It was named and has not come to be promoted: it claims again, without anybody's proof.
fn claim_again(turn: Turn<'_>, standing: &Standing, record: &LeaseRecord) -> Decision {
    let term = next_term(&turn, record);
    let bound = standing.promised >= term && turn.upstream_in_use().is_none();
    if !bound {
        let detail = standing.holder_name();
        return turn.detach(Situation::Detaching, detail, term);
    }
    let Some(own) = standing.final_position.filter(|_| turn.policy.priority.is_some()) else {
        let detail = "waiting for replay to end".to_owned();
        return turn.row(Situation::Comparing, detail).soon();
    };
    let detail = format!("flushed up to {} on timeline {}", own.flush_lsn, own.timeline);
    let write = claim(&turn, standing, record, term, Some(own), "it was named already");
    turn.lease_row(Situation::Standing, detail, write)
}

/// A stopped member whose directory was last written as the primary that the record still stands for.
///
/// Nobody has begun a newer term, so that nobody can have more.
pub(super) fn last_holder<'a>(
    mut turn: Turn<'a>,
    standing: &Standing,
    record: &LeaseRecord,
    facts: &DataDirectoryFacts,
) -> ControlFlow<Decision, Turn<'a>> {
    if facts.half_rewound || standing.promised > record.term {
        return Continue(turn);
    }
    let clean = facts.control_state == ControlState::ShutDown;
    let released = record.holder.is_none() && record.released_by == Some(turn.policy.ordinal) && clean;
    let mine = released || held_by_earlier_pod(&turn, record);
    let unclaimed = record.holder.is_none() && nobody_since(&turn, record) && !record.paused;
    if !(mine || unclaimed) {
        return Continue(turn);
    }
    if !released && !standing.expired {
        return Break(turn.row(Situation::AwaitingExpiry, standing.holder_name()).soon());
    }
    if let Some(failing_ms) = office::disk_lost_ms(turn.policy, turn.observation, record) {
        // It would only give it back.
        let detail = format!("the data volume has taken nothing for {failing_ms} ms");
        return Break(turn.row(Situation::NoCandidate, detail));
    }
    let write = claim(
        &turn,
        standing,
        record,
        record.term + 1,
        None,
        "the last primary came back",
    );
    // Nobody came after it: its PostgreSQL is given as many starts as before.
    turn.memory.failures = 0;
    Break(turn.lease_row(Situation::Claiming, format!("term {}", record.term + 1), write))
}
