//! A planned move: the holder stops PostgreSQL, sees that the successor has everything, and writes its name into the Lease.

use crate::core::cluster::moves::MAX_LAG_BYTES;
use crate::core::data_directory::{ControlState, DataDirectory, DataDirectoryFacts};
use crate::core::decision::{Decision, HandingOver, Memory, PostgresAction};
use crate::core::lease::{
    HistoryEntry, Identity, Incarnation, LeasePurpose, LeaseRecord, LeaseWrite, MoveRequest, SynchronousSet,
};
use crate::core::member::Ordinal;
use crate::core::observation::{Observation, PeerView};
use crate::core::policy::Policy;
use crate::core::situation::Situation;
use crate::core::supervision::Postmaster;
use crate::core::wal::{Lsn, WalPosition};

use super::standing::Standing;
use super::{Turn, hold, release};

/// How long the checkpoint before a planned move is waited for: for less time than the operator is waited with.
const CHECKPOINT_TIMEOUT_MS: u64 = 25_000;
const DRAINING: &str = "clients' sessions end between transactions";

/// PostgreSQL still serves: a checkpoint, then the stop.
pub(super) fn while_running(mut turn: Turn<'_>, standing: &Standing, record: &LeaseRecord) -> Decision {
    let asked = asked_to_move(record, standing.at_ms);
    let handing_over = turn.memory.lease.handing_over.or(asked);
    let Some(handing_over) = handing_over.filter(|_| asked.is_some()) else {
        turn.memory.lease.handing_over = None;
        return turn
            .row(Situation::Primary, format!("term {}", record.term))
            .soon();
    };
    if handing_over.to == Some(turn.policy.ordinal) || successor_now(&turn, handing_over).is_none() {
        return refused(turn, standing, record, "no successor fits");
    }
    let waited_ms = standing.at_ms.saturating_sub(handing_over.since_ms);
    let done = checkpointed(&turn, handing_over);
    if !done && waited_ms >= CHECKPOINT_TIMEOUT_MS && !handing_over.forced {
        // It goes on by itself: asked again, the move finds little left to write.
        return refused(turn, standing, record, "a checkpoint takes too long");
    }
    turn.memory.lease.handing_over = Some(handing_over);
    if !done && !handing_over.forced {
        let detail = "a checkpoint first".to_owned();
        return turn.act(Situation::HandingOver, detail, PostgresAction::Checkpoint);
    }
    let drained = turn.observation.drained || waited_ms >= drain_limit_ms(&turn);
    if !drained && !handing_over.forced {
        return turn.row(Situation::HandingOver, DRAINING.to_owned()).soon();
    }
    turn.stop(Situation::HandingOver, "PostgreSQL is stopped".to_owned())
}

/// The move that the operator asks for, begun now.
fn asked_to_move(record: &LeaseRecord, at_ms: u64) -> Option<HandingOver> {
    let (to, forced) = match record.request.as_ref()? {
        MoveRequest::Switchover { to, .. } => (*to, false),
        MoveRequest::Failover { to, .. } => (Some(*to), true),
    };
    Some(HandingOver {
        to,
        since_ms: at_ms,
        forced,
    })
}

/// The operator's request is answered without a move.
fn refused(mut turn: Turn<'_>, standing: &Standing, record: &LeaseRecord, why: &str) -> Decision {
    turn.memory.lease.handing_over = None;
    let mut next = record.clone();
    next.request = None;
    let write = standing.write(LeasePurpose::Answer, next);
    turn.lease_row(Situation::Primary, why.to_owned(), write)
}

/// How long after the request sessions are waited for, the checkpoint's time included.
fn drain_limit_ms(turn: &Turn<'_>) -> u64 {
    let since_ms = turn
        .memory
        .lease
        .handing_over
        .map_or(0, |handing_over| handing_over.since_ms);
    let checkpoint_ms = turn
        .observation
        .checkpointed_at_ms
        .unwrap_or(0)
        .saturating_sub(since_ms);
    checkpoint_ms.saturating_add(turn.policy.times.drain_timeout_ms)
}

/// The one that would take over now, from a server that runs.
fn successor_now(turn: &Turn<'_>, handing_over: HandingOver) -> Option<Ordinal> {
    let server = turn.observation.server.as_ref()?;
    let near = Lsn(server.flush_lsn.0.saturating_sub(MAX_LAG_BYTES));
    let position = WalPosition {
        timeline: server.timeline,
        lsn: near,
    };
    successor(turn, handing_over, position).map(|successor| successor.ordinal)
}

/// PostgreSQL is on its way down for a planned move.
pub(super) fn while_stopping(turn: Turn<'_>, standing: &Standing) -> Decision {
    match turn.memory.lease.handing_over {
        Some(handing_over) => once_written(turn, standing, Situation::HandingOver, handing_over),
        None => hold::stopping(turn, standing, Situation::HandingOver),
    }
}

/// Once the last checkpoint is written, and the successor has it, the archiver may go on without anybody waiting for it. Only what has
/// ended is given up: until then WAL is still sent.
fn once_written(
    turn: Turn<'_>,
    standing: &Standing,
    situation: Situation,
    handing_over: HandingOver,
) -> Decision {
    let facts = turn.supervisor.data_directory.facts();
    let written = facts.filter(|_| turn.supervisor.postmaster.writes_no_more());
    let Some((record, facts)) = standing.held().zip(written) else {
        return hold::stopping(turn, standing, situation);
    };
    match handed_over(&turn, standing, record, facts, situation, handing_over) {
        Some((detail, write)) => turn.lease_row(situation, detail, write),
        None => hold::stopping(turn, standing, situation),
    }
}

/// While the cluster is paused only the operator moves the primary, and the end of a pod or container does not.
fn may_move(record: &LeaseRecord) -> bool {
    !record.paused || record.request.is_some()
}

/// The write that gives the Lease to the successor in the next term, and what to say of it; `None` while nobody can have it.
///
/// Until the process has ended WAL is still sent: nothing is lost then for want of a moment, not even where the move is forced, and whoever is
/// preferred may have everything in a moment too.
fn handed_over(
    turn: &Turn<'_>,
    standing: &Standing,
    record: &LeaseRecord,
    facts: &DataDirectoryFacts,
    situation: Situation,
    handing_over: HandingOver,
) -> Option<(String, Option<LeaseWrite>)> {
    if !may_move(record) {
        return None;
    }
    let ended = matches!(turn.supervisor.postmaster, Postmaster::Stopped { .. });
    let asked = HandingOver {
        forced: handing_over.forced && ended,
        ..handing_over
    };
    let clean = facts.control_state == ControlState::ShutDown;
    let to = successor(turn, asked, facts.position()).filter(|_| clean)?;
    if !(ended || preferred(turn, asked, to.peer)) {
        return None;
    }
    let reason = match situation {
        Situation::Leaving => "the primary's pod ended",
        _ if handing_over.forced => "forced by the operator",
        _ => "switchover",
    };
    let detail = format!("to {}-{}", turn.policy.cluster, to.ordinal);
    Some((detail, named(turn, standing, record, facts, &to, reason)))
}

/// Whether nobody who is to come before `peer` may have everything in a moment too.
fn preferred(turn: &Turn<'_>, handing_over: HandingOver, peer: &PeerView) -> bool {
    let peers = turn.observation.peers.iter();
    let others = peers.filter(|(ordinal, other)| may_succeed(handing_over, **ordinal, other));
    let first = others.filter_map(|(_, other)| priority(other)).min();
    first.is_none_or(|first| priority(peer) <= Some(first))
}

/// PostgreSQL has stopped for a planned move.
pub(super) fn while_stopped(
    mut turn: Turn<'_>,
    standing: &Standing,
    record: &LeaseRecord,
    facts: &DataDirectoryFacts,
) -> Decision {
    let Some(handing_over) = turn.memory.lease.handing_over else {
        return turn.row(Situation::HandingOver, String::new()).soon();
    };
    let situation = Situation::HandingOver;
    let waited_ms = stopped_for_ms(&turn, standing);
    // Then nobody else can be told either: the peers may confirm it as the primary that it was.
    let in_vain = standing.unanswered && waited_ms >= turn.policy.times.peer_timeout_ms;
    let handed_over = handed_over(&turn, standing, record, facts, situation, handing_over);
    if let Some((detail, write)) = handed_over.filter(|_| !in_vain) {
        return turn.lease_row(situation, detail, write);
    }
    let clean = facts.control_state == ControlState::ShutDown && !in_vain && may_move(record);
    // What is being written may name the successor.
    let undecided = turn.observation.lease.writing;
    if clean && (undecided || waited_ms < 2 * turn.policy.times.stop_timeout_ms) {
        return turn
            .row(
                Situation::HandingOver,
                "the successor does not have everything yet".to_owned(),
            )
            .soon();
    }
    // Nobody came: it goes on as the primary that it was, and the request is answered.
    turn.memory.lease.handing_over = None;
    let mut next = record.clone();
    next.request = None;
    let write = standing.write(LeasePurpose::Answer, next);
    turn.lease_row(
        Situation::Reopening,
        "no successor has everything".to_owned(),
        write,
    )
}

/// The pod is ending, and its supervisor leaves PostgreSQL running for a while, so that it stops with little left to write.
fn before_stop(mut turn: Turn<'_>, standing: &Standing) -> Decision {
    let begun = turn.memory.lease.handing_over;
    let handing_over = begun.unwrap_or(to_whoever_fits(standing.at_ms));
    turn.memory.lease.handing_over = Some(handing_over);
    if let Some(until_ms) = hold::licence_due(&turn, standing) {
        // A checkpoint and the sessions may take longer than one licence, and the fence would make the stop a crash.
        return turn.grant_licence(Situation::Leaving, "PostgreSQL still serves".to_owned(), until_ms);
    }
    if standing.in_right() && turn.observation.writable_server().is_some() {
        if !checkpointed(&turn, handing_over) {
            let detail = "a checkpoint first".to_owned();
            return turn.act(Situation::Leaving, detail, PostgresAction::Checkpoint);
        }
        let waited_ms = standing.at_ms.saturating_sub(handing_over.since_ms);
        let nobody = successor_now(&turn, handing_over).is_none();
        if !(turn.observation.drained || nobody || waited_ms >= drain_limit_ms(&turn)) {
            return turn.row(Situation::Leaving, DRAINING.to_owned()).soon();
        }
    }
    turn.stop(Situation::Leaving, "PostgreSQL is stopped".to_owned())
}

fn checkpointed(turn: &Turn<'_>, handing_over: HandingOver) -> bool {
    let done = turn.observation.checkpointed_at_ms;
    done.is_some_and(|done| done >= handing_over.since_ms)
}

/// The pod is ending.
pub(super) fn leaving(turn: Turn<'_>, standing: &Standing) -> Decision {
    let Some(record) = standing.held() else {
        if turn.supervisor.postmaster.ready_primary() {
            return turn.stop(Situation::Leaving, standing.holder_name());
        }
        return turn.row(Situation::Leaving, String::new());
    };
    let stopped = matches!(turn.supervisor.postmaster, Postmaster::Stopped { .. });
    match &turn.supervisor.data_directory {
        DataDirectory::Complete(facts) if stopped => after_stop(turn, standing, record, facts),
        _ if stopped => {
            let detail = "the Lease is given back".to_owned();
            turn.give_back(standing, record, Situation::Leaving, detail)
        }
        _ if turn.supervisor.postmaster.ready_primary() => before_stop(turn, standing),
        _ if record.paused => hold::stopping(turn, standing, Situation::Leaving),
        _ => {
            let handing_over = to_whoever_fits(standing.at_ms);
            once_written(turn, standing, Situation::Leaving, handing_over)
        }
    }
}

/// A move that nobody asked for.
fn to_whoever_fits(at_ms: u64) -> HandingOver {
    HandingOver {
        to: None,
        since_ms: at_ms,
        forced: false,
    }
}

/// The pod is ending and PostgreSQL has: to the successor, else back, with the word that this member has everything if it stopped cleanly.
fn after_stop(
    turn: Turn<'_>,
    standing: &Standing,
    record: &LeaseRecord,
    facts: &DataDirectoryFacts,
) -> Decision {
    let situation = Situation::Leaving;
    let clean = facts.control_state == ControlState::ShutDown;
    if clean && !record.paused {
        let handing_over = to_whoever_fits(standing.at_ms);
        if let Some((detail, write)) = handed_over(&turn, standing, record, facts, situation, handing_over) {
            return turn.lease_row(situation, detail, write);
        }
        let waited_ms = stopped_for_ms(&turn, standing);
        let somebody = turn.observation.peers.values().any(|peer| peer.running);
        if somebody && waited_ms < turn.policy.times.peer_timeout_ms / 4 {
            let detail = "the successor does not have everything yet".to_owned();
            return turn.row(situation, detail).soon();
        }
    }
    let by = clean.then_some(turn.policy.ordinal);
    let write = release(record, standing, by);
    turn.lease_row(situation, "the Lease is given back".to_owned(), write)
}

/// Whether this holder has left, with or without its supervisor, or has given its office away, and cannot learn that it was written: the others need
/// not wait until its Lease has run out.
pub(super) fn left_untold(
    policy: &Policy,
    observation: &Observation,
    memory: &Memory,
    standing: &Standing,
) -> bool {
    // Of what it has written last it does not know whether it is the primary still.
    let unsure = standing.given_away && standing.unanswered;
    let leaving = unsure || observation.supervisor.as_ref().is_none_or(|s| s.stopping);
    let since_ms = memory.lease.stopped_since_ms.filter(|_| standing.is_holder);
    let long = since_ms.is_some_and(|since_ms| standing.at_ms >= since_ms + policy.times.peer_timeout_ms / 2);
    leaving && !standing.paused() && long
}

/// How long the successor has had to receive the end of the WAL.
fn stopped_for_ms(turn: &Turn<'_>, standing: &Standing) -> u64 {
    let since_ms = turn.memory.lease.stopped_since_ms;
    since_ms.map_or(0, |since_ms| standing.at_ms.saturating_sub(since_ms))
}

/// The member that takes over.
struct Successor<'a> {
    ordinal: Ordinal,
    peer: &'a PeerView,
}

/// A connected member that may be primary and has flushed up to `position`: the named one, else the one with the most.
fn successor<'a>(turn: &Turn<'a>, handing_over: HandingOver, position: WalPosition) -> Option<Successor<'a>> {
    let fits = |ordinal: Ordinal, peer: &PeerView| {
        let same_timeline = peer.timeline == Some(position.timeline);
        // The position is where the last checkpoint's record begins: one that has not got it would leave the old primary with WAL of its own.
        let has_it = same_timeline && peer.flush_lsn.is_some_and(|flushed| flushed > position.lsn);
        // One that does not answer cannot be promoted, whatever is to be lost.
        let has_it = has_it || (handing_over.forced && peer.flush_lsn.is_some());
        may_succeed(handing_over, ordinal, peer) && has_it
    };
    let candidates = turn
        .observation
        .peers
        .iter()
        .filter(|(ordinal, peer)| fits(**ordinal, peer));
    let best = candidates
        .min_by_key(|(ordinal, peer)| (std::cmp::Reverse(peer.flush_lsn), priority(peer), **ordinal));
    best.map(|(ordinal, peer)| Successor {
        ordinal: *ordinal,
        peer,
    })
}

/// A connected member that may be primary, and is asked for if one is.
fn may_succeed(handing_over: HandingOver, ordinal: Ordinal, peer: &PeerView) -> bool {
    let report = peer.leadership.as_ref();
    let willing = report.is_some_and(|report| report.priority.is_some() && report.incarnation.is_some());
    let named = handing_over.to.is_none_or(|to| to == ordinal);
    peer.connected() && willing && named && !peer.writable
}

fn priority(peer: &PeerView) -> Option<u32> {
    peer.leadership.as_ref().and_then(|report| report.priority)
}

/// The record in which `to` is the holder, in the next term.
fn named(
    turn: &Turn<'_>,
    standing: &Standing,
    record: &LeaseRecord,
    facts: &DataDirectoryFacts,
    to: &Successor<'_>,
    reason: &str,
) -> Option<LeaseWrite> {
    let pod = format!("{}-{}", turn.policy.cluster, to.ordinal);
    let mut next = record.clone();
    next.holder = Some(Identity {
        pod: pod.clone(),
        uid: to.peer.uid.clone(),
    });
    next.term += 1;
    next.renewals = 0;
    next.request = None;
    next.released_by = None;
    next.timeline = record.next_timeline(facts.timeline);
    next.synchronous = witnesses(turn, record, facts.position(), to.ordinal);
    next.remember(HistoryEntry {
        term: next.term,
        timeline: Some(facts.timeline),
        lsn: Some(facts.control_lsn),
        reason: reason.to_owned(),
        at: String::new(),
        new_leader: pod,
    });
    standing.write(LeasePurpose::HandOver, next)
}

/// The recorded standbys and the old primary in the successor's place, if enough of them have everything; else the recorded set as it is.
fn witnesses(
    turn: &Turn<'_>,
    record: &LeaseRecord,
    position: WalPosition,
    successor: Ordinal,
) -> SynchronousSet {
    let own = turn
        .supervisor
        .incarnation
        .clone()
        .map(|own| (turn.policy.ordinal, own));
    let known = record.synchronous.members.iter();
    let known = known.filter(|(member, _)| **member != successor && **member != turn.policy.ordinal);
    let has_all = |member: &Ordinal, incarnation: &Incarnation| {
        let peer = turn.observation.peers.get(member);
        peer.is_some_and(|peer| {
            let report = peer.leadership.as_ref();
            report.and_then(|report| report.incarnation.as_ref()) == Some(incarnation)
                && peer.connected()
                && peer.timeline == Some(position.timeline)
                && peer.flush_lsn.is_some_and(|flushed| flushed >= position.lsn)
        })
    };
    let holders = known
        .clone()
        .filter(|(member, incarnation)| has_all(member, incarnation));
    let holders = holders.count() + usize::from(own.is_some());
    let quorum = record.synchronous.quorum;
    if holders < quorum as usize {
        return record.synchronous.clone();
    }
    SynchronousSet {
        members: known.map(|(m, i)| (*m, i.clone())).chain(own).collect(),
        quorum,
    }
}
