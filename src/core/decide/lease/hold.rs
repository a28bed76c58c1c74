//! Who holds the Lease: takes office, stays in it, and gives it back where it cannot serve.

use std::collections::BTreeMap;

use crate::core::data_directory::DataDirectoryFacts;
use crate::core::decision::{Decision, PostgresAction};
use crate::core::lease::{LeasePurpose, LeaseRecord, LeaseWrite, MoveRequest};
use crate::core::observation::MemberRequest;
use crate::core::situation::Situation;
use crate::core::status::ServerStatus;
use crate::core::supervision::{Licence, NextTimeline, Postmaster, ServerRole, StopMode};
use crate::core::sync::Told;

use super::super::{shared, slots};
use super::standing::Standing;
use super::told::{self, Next};
use super::{Turn, hand_over, office};

/// A licence is renewed when it would end earlier than the right by more than this.
const LICENCE_SLACK_MS: u64 = 200;
/// Starts that fail in a row before others are let in.
const FAILED_STARTS: u32 = 3;

/// PostgreSQL runs as the primary.
pub(super) fn primary(turn: Turn<'_>, standing: &Standing, record: &LeaseRecord, ready: bool) -> Decision {
    if let Some(until_ms) = licence_due(&turn, standing) {
        return turn.grant_licence(Situation::Primary, format!("term {}", record.term), until_ms);
    }
    let Some(server) = &turn.observation.server else {
        if office::unseen(turn.observation) {
            return shared::unseen(turn);
        }
        return unserved(turn, standing, record, ready);
    };
    if server.in_recovery {
        let detail = format!("replayed up to {}", server.replay_lsn);
        return turn.row(Situation::Recovering, detail).soon();
    }
    if !standing.in_right() {
        return turn.row(Situation::RightLapsed, String::new()).soon();
    }
    if let Some((detail, write)) = overtaken(&turn, standing, record) {
        return turn.lease_row(Situation::Claiming, detail, Some(write));
    }
    if turn.supervisor.terms.held < record.term {
        // It went on as primary in a term that it began itself.
        let detail = format!("term {}", record.term);
        return turn.act(
            Situation::Primary,
            detail,
            PostgresAction::Hold { term: record.term },
        );
    }
    in_office(turn, standing, record)
}

/// It serves by right: what was asked of it first, then its daily work.
fn in_office(turn: Turn<'_>, standing: &Standing, record: &LeaseRecord) -> Decision {
    if turn.observation.request == Some(MemberRequest::Restart) {
        let detail = "a restart".to_owned();
        return turn.stop(Situation::Requested, detail);
    }
    if turn.memory.lease.handing_over.is_some() || record.request.is_some() {
        return hand_over::while_running(turn, standing, record);
    }
    if !turn.observation.roles_current {
        return turn.act(
            Situation::Primary,
            format!("term {}", record.term),
            PostgresAction::EnsureRoles,
        );
    }
    daily_work(turn, standing, record)
}

/// The synchronous set, then the slots.
fn daily_work(mut turn: Turn<'_>, standing: &Standing, record: &LeaseRecord) -> Decision {
    let role = turn.supervisor.postmaster.running_role();
    let given = role.and_then(ServerRole::synchronous_standby_names).unwrap_or("");
    let changing = Situation::ChangingSynchronousSet;
    match told::next(&turn, standing, record, given) {
        Next::Nothing => {}
        Next::Wait(why) => return steady(turn, standing, why),
        Next::Record(next) => {
            let mut next = *next;
            next.renewals += 1;
            let write = standing.write(LeasePurpose::Record, next);
            return turn.lease_row(changing, "recorded in the Lease".to_owned(), write);
        }
        Next::TellAgain(told) => {
            // An ALTER SYSTEM by somebody: the reload takes it out. Counted from now on, so that it is no more than one a second.
            if let Some((_, since_ms)) = &mut turn.memory.lease.names_in_force {
                *since_ms = standing.at_ms;
            }
            let synchronous_standby_names = told::text(turn.policy, &told);
            let detail = format!("commits do not wait for {synchronous_standby_names}, and are to");
            let server = ServerRole::primary(synchronous_standby_names);
            return turn.act(changing, detail, PostgresAction::Reload { server });
        }
        Next::Tell(told) => {
            let synchronous_standby_names = told::text(turn.policy, &told);
            let detail = format!("commits are to wait for {synchronous_standby_names}");
            let server = ServerRole::primary(synchronous_standby_names);
            return turn.act(changing, detail, PostgresAction::Reload { server });
        }
        Next::Mark => {
            let action = PostgresAction::Barrier {
                synchronous_standby_names: given.to_owned(),
            };
            return turn.act(changing, "marked in the WAL".to_owned(), action);
        }
    }
    match slots::to_reconcile(turn.policy, &turn.memory, turn.observation) {
        Some(expected) => {
            let advance = BTreeMap::new();
            let action = PostgresAction::ReconcileSlots { expected, advance };
            turn.act(Situation::Primary, format!("term {}", record.term), action)
        }
        None => steady(turn, standing, ""),
    }
}

fn steady(turn: Turn<'_>, standing: &Standing, why: &str) -> Decision {
    let at_ms = standing.at_ms;
    let detail = format!("term {}", standing.term());
    if !why.is_empty() {
        return turn.row(Situation::ChangingSynchronousSet, why.to_owned()).soon();
    }
    if at_ms >= standing.renewed_until_ms {
        return turn.row(Situation::OnConfirmations, detail).soon();
    }
    let beating = !turn.memory.lease.beats.is_empty();
    let decision = turn.row(Situation::Primary, detail);
    // The peers' confirmations are asked for and counted in time.
    if beating { decision.soon() } else { decision }
}

/// The licence that the supervisor is to have, if it has less.
pub(super) fn licence_due(turn: &Turn<'_>, standing: &Standing) -> Option<u64> {
    let right_until_ms = standing.right_until_ms();
    if !standing.in_right() {
        return None;
    }
    let enough = match turn.supervisor.licence {
        Licence::Limited { until_ms } => until_ms + LICENCE_SLACK_MS >= right_until_ms,
        Licence::Unlimited | Licence::None => false,
    };
    (!enough).then_some(right_until_ms)
}

/// PostgreSQL does not answer: waited for while crash recovery may take, then others are let in. Where there are none, one that has become
/// ready is started anew, and not before it has had the time that a Lease lasts: on a machine that is only slow each start makes it slower.
fn unserved(turn: Turn<'_>, standing: &Standing, record: &LeaseRecord, ready: bool) -> Decision {
    let (lease, times) = (&turn.memory.lease, turn.policy.times);
    let (since_ms, limit_ms, situation) = if ready {
        let since_ms = lease.unanswered_since_ms;
        (since_ms, 2 * times.peer_timeout_ms, Situation::Unresponsive)
    } else {
        (
            lease.down_since_ms,
            times.recovery_timeout_ms,
            Situation::Reopening,
        )
    };
    let down_ms = since_ms.map_or(0, |since| standing.at_ms.saturating_sub(since));
    let detail = format!("PostgreSQL has not answered for {down_ms} ms");
    if down_ms <= limit_ms || record.paused {
        return turn.row(situation, String::new()).soon();
    }
    if office::provable_elsewhere(turn.observation, record) {
        return turn.give_back(standing, record, Situation::Resigning, detail);
    }
    let useless = ready && down_ms > limit_ms.max(standing.duration_ms);
    if useless || forced_away(&turn, standing, record) {
        let action = PostgresAction::Stop {
            mode: StopMode::Immediate,
        };
        return turn.act(situation, detail, action);
    }
    turn.row(situation, detail).soon()
}

/// A peer has promised a newer term and nobody has claimed it: this primary begins that term itself.
fn overtaken(turn: &Turn<'_>, standing: &Standing, record: &LeaseRecord) -> Option<(String, LeaseWrite)> {
    let since_ms = turn.memory.lease.overtaken_since_ms?;
    if standing.at_ms < since_ms + 2 * turn.policy.times.peer_timeout_ms {
        return None;
    }
    let promised = turn
        .observation
        .peers
        .values()
        .filter_map(|peer| peer.leadership.as_ref());
    let newest = promised.map(|report| report.promised_term).max()?;
    let mut next = record.clone();
    next.term = newest.max(record.term + 1);
    next.renewals += 1;
    let write = standing.write(LeasePurpose::Claim, next)?;
    Some((format!("a standby has promised term {newest}"), write))
}

/// The Lease names this member, whose PostgreSQL runs as a standby: it is promoted.
pub(super) fn standby(turn: Turn<'_>, standing: &Standing, record: &LeaseRecord, ready: bool) -> Decision {
    let detail = format!("term {}", record.term);
    let Some(server) = turn.observation.server.as_ref().filter(|_| ready) else {
        let down_ms = turn.memory.lease.down_ms(standing.at_ms);
        if down_ms > turn.policy.times.recovery_timeout_ms && !record.paused {
            // It has written nothing in this term.
            return turn.give_back(standing, record, Situation::Resigning, detail);
        }
        return turn
            .row(Situation::Promoting, "PostgreSQL does not answer yet".to_owned())
            .soon();
    };
    if standing.promised > record.term {
        // It has bound itself to a later term than the one in which it was named.
        return turn.give_back(standing, record, Situation::Resigning, detail);
    }
    // Also while nothing is received: an upstream that comes back as a later primary would hand on its timeline in between.
    if server.receiver_present || turn.upstream_in_use().is_some() {
        return turn.detach(Situation::Promoting, detail, record.term);
    }
    if server.timeline >= record.timeline {
        // WAL of a later primary has come since, which the record that is known here says nothing of.
        let detail = format!("timeline {} has been begun by another member", server.timeline);
        return turn.give_back(standing, record, Situation::Resigning, detail);
    }
    promote(turn, standing, record, server)
}

/// It receives nothing, and no member has begun a later timeline: with the right and a licence for it, it begins its own.
fn promote(turn: Turn<'_>, standing: &Standing, record: &LeaseRecord, server: &ServerStatus) -> Decision {
    if !standing.in_right() {
        return turn
            .row(Situation::Promoting, "the Lease is being renewed".to_owned())
            .soon();
    }
    let detail = format!("term {}", record.term);
    if let Some(until_ms) = licence_due(&turn, standing) {
        return turn.grant_licence(Situation::Promoting, detail, until_ms);
    }
    let names = told::text(turn.policy, &at_first(&turn, record));
    let action = PostgresAction::Promote {
        synchronous_standby_names: names,
        read_only: false,
        term: record.term,
        timeline: NextTimeline {
            own: server.timeline,
            next: record.timeline,
        },
    };
    turn.act(Situation::Promoting, detail, action)
}

/// PostgreSQL is on its way down, which may take as long as its checkpoint: its licence goes on, or the fence would make it a crash.
pub(super) fn stopping(turn: Turn<'_>, standing: &Standing, situation: Situation) -> Decision {
    let detail = match situation {
        Situation::Stopping => String::new(),
        _ => "PostgreSQL is stopping".to_owned(),
    };
    match licence_due(&turn, standing).filter(|_| standing.is_holder) {
        Some(until_ms) => turn.grant_licence(situation, detail, until_ms),
        None => turn.row(situation, detail).soon(),
    }
}

/// The Lease names this member, whose PostgreSQL does not run.
pub(super) fn stopped(
    turn: Turn<'_>,
    standing: &Standing,
    record: &LeaseRecord,
    facts: &DataDirectoryFacts,
) -> Decision {
    if turn.memory.lease.handing_over.is_some() {
        return hand_over::while_stopped(turn, standing, record, facts);
    }
    if record.system_identifier.is_none() {
        let mut next = record.clone();
        next.system_identifier = Some(facts.system_identifier);
        let write = standing.write(LeasePurpose::Record, next);
        let detail = "the system identifier is recorded".to_owned();
        return turn.lease_row(Situation::Claiming, detail, write);
    }
    if facts.half_rewound {
        let detail = "PGDATA is half rewound".to_owned();
        return turn.give_back(standing, record, Situation::HolderWithoutData, detail);
    }
    if record.paused && stopped_by_others(&turn) {
        return turn.row(Situation::Paused, "PostgreSQL is not started".to_owned());
    }
    let others =
        turn.memory.failures >= FAILED_STARTS && office::provable_elsewhere(turn.observation, record);
    if others || forced_away(&turn, standing, record) {
        let detail = "PostgreSQL does not start".to_owned();
        return turn.give_back(standing, record, Situation::Resigning, detail);
    }
    if let Some(detail) = turn.failed_start() {
        return turn.row(Situation::StartFailing, detail);
    }
    if !standing.in_right() {
        return turn
            .row(Situation::Reopening, "the Lease is being renewed".to_owned())
            .soon();
    }
    open(turn, standing, record, facts)
}

/// The operator wants another whatever is lost, and PostgreSQL does not come up here to be stopped for it.
fn forced_away(turn: &Turn<'_>, standing: &Standing, record: &LeaseRecord) -> bool {
    let asked = matches!(record.request, Some(MoveRequest::Failover { to, .. }) if to != turn.policy.ordinal);
    asked && turn.memory.lease.down_ms(standing.at_ms) >= 2 * turn.policy.times.peer_timeout_ms
}

/// PostgreSQL ran here and ended, and not because podgres stopped it: while paused that is somebody's work.
fn stopped_by_others(turn: &Turn<'_>) -> bool {
    matches!(
        &turn.supervisor.postmaster,
        Postmaster::Stopped { last_exit: Some(exit) } if !exit.requested
    )
}

fn open(turn: Turn<'_>, standing: &Standing, record: &LeaseRecord, facts: &DataDirectoryFacts) -> Decision {
    let detail = format!("term {}, timeline {}", record.term, facts.timeline);
    if !facts.was_primary() {
        let server = ServerRole::Standby { upstream: None };
        return turn.act(Situation::Promoting, detail, PostgresAction::Start { server });
    }
    if turn.supervisor.terms.held != record.term {
        return turn.act(
            Situation::Reopening,
            detail,
            PostgresAction::Hold { term: record.term },
        );
    }
    if let Some(until_ms) = licence_due(&turn, standing) {
        return turn.grant_licence(Situation::Reopening, detail, until_ms);
    }
    let told = at_first(&turn, record);
    let server = ServerRole::primary(told::text(turn.policy, &told));
    turn.act(Situation::Reopening, detail, PostgresAction::Start { server })
}

fn at_first(turn: &Turn<'_>, record: &LeaseRecord) -> Told {
    told::at_first(turn.policy, record, turn.observation.lease.uncertain.as_ref())
}
