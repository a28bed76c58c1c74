//! PostgreSQL runs: it is left alone unless it runs in a way that it must not.

use std::collections::BTreeMap;

use crate::core::decision::{Decision, PostgresAction};
use crate::core::observation::{MemberRequest, ProbeState, UpstreamFacts};
use crate::core::situation::Situation;
use crate::core::status::ServerStatus;
use crate::core::supervision::{CloneReason, Licence, ServerRole};
use crate::core::wal::{Relation, WalPosition};

use super::{Turn, shared, slots, standby};

pub(super) fn decide(turn: Turn<'_>, role: &ServerRole, ready: bool) -> Decision {
    let server = turn.observation.server.as_ref();
    if !turn.policy.first() {
        if turn.observation.writable_server().is_some() {
            // Somebody promoted it, perhaps for a good reason: an alarm, and no harm done.
            return turn.row(Situation::WritableStandby, String::new());
        }
        if let Some(detail) = turn.facts().and_then(|facts| standby::foreign(&turn, facts)) {
            return turn.stop(Situation::ForeignDataDirectory, detail);
        }
    }
    match server {
        _ if !ready => turn.row(Situation::Starting, String::new()).soon(),
        None => shared::unseen(turn),
        Some(_) if turn.observation.request.is_some() => requested(turn),
        Some(server) if turn.policy.first() => primary(turn, server),
        Some(server) => running_standby(turn, role, server),
    }
}

/// The operator's request to this member: PostgreSQL stops, and the rows for a stopped one do the rest.
fn requested(mut turn: Turn<'_>) -> Decision {
    let reinit = turn.observation.request == Some(MemberRequest::Reinit);
    if reinit && turn.policy.first() {
        return turn.row(Situation::Primary, "the primary is not cloned".to_owned());
    }
    if reinit {
        turn.memory.condemned = Some(CloneReason::Requested);
    }
    let detail = if reinit { "a fresh clone" } else { "a restart" };
    turn.stop(Situation::Requested, detail.to_owned())
}

fn primary(turn: Turn<'_>, server: &ServerStatus) -> Decision {
    if server.in_recovery {
        return turn.row(
            Situation::Recovering,
            format!("replayed up to {}", server.replay_lsn),
        );
    }
    let other = turn.observation.peers.iter().find(|(_, peer)| peer.writable);
    let (situation, detail) = match other {
        Some((ordinal, _)) => (
            Situation::TwoWritable,
            format!("{}-{ordinal} accepts writes", turn.policy.cluster),
        ),
        None => (Situation::Primary, format!("timeline {}", server.timeline)),
    };
    if turn.supervisor.licence == Licence::None {
        return turn.act(situation, detail, PostgresAction::GrantLicence { until_ms: None });
    }
    if !turn.observation.roles_current {
        return turn.act(situation, detail, PostgresAction::EnsureRoles);
    }
    match slots::to_reconcile(turn.policy, &turn.memory, turn.observation) {
        Some(expected) => turn.act(
            situation,
            detail,
            PostgresAction::ReconcileSlots {
                expected,
                advance: BTreeMap::new(),
            },
        ),
        None => turn.row(situation, detail),
    }
}

fn running_standby(turn: Turn<'_>, role: &ServerRole, server: &ServerStatus) -> Decision {
    if server.receiver_streaming {
        return turn.row(Situation::Streaming, format!("timeline {}", server.timeline));
    }
    let ProbeState::Ready { facts: upstream } = &turn.observation.upstream.probe else {
        let detail = match &turn.observation.upstream.probe {
            ProbeState::Failed { message } => message.clone(),
            ProbeState::Untried | ProbeState::Ready { .. } => String::new(),
        };
        return turn.row(Situation::PrimaryUnreachable, detail);
    };
    // A server in the primary's role could not take an upstream by a reload.
    let moved = match role.upstream() {
        Some(known) => known.address != upstream.address,
        None => !role.is_primary(),
    };
    if moved {
        let detail = format!(
            "\"{}\" is now {}",
            turn.observation.upstream.host, upstream.address
        );
        let (at_ms, server) = (turn.observation.at_ms, turn.standby_role());
        return turn.row(Situation::UpstreamMoved, detail).reload(at_ms, server);
    }
    not_streaming(turn, server, upstream)
}

/// The primary is there and the WAL receiver does not stream: judged once it has stood still.
fn not_streaming(turn: Turn<'_>, server: &ServerStatus, upstream: &UpstreamFacts) -> Decision {
    let stood_still = shared::stood_still(&turn);
    let position = WalPosition {
        timeline: server.timeline,
        lsn: server.flush_lsn,
    };
    match upstream.history.relation(position, upstream.flush_lsn) {
        Relation::Ahead if stood_still => {
            return turn.row(Situation::AheadOfPrimary, shared::ahead(position, upstream));
        }
        Relation::Forked if stood_still => {
            let detail = shared::ahead(position, upstream);
            return condemn(turn, Situation::Diverged, detail, CloneReason::Diverged);
        }
        Relation::Contained | Relation::Ahead | Relation::Forked => {}
    }
    if let Some(detail) = shared::wal_gone(&turn, server, turn.policy.first_ordinal).filter(|_| stood_still) {
        return condemn(turn, Situation::WalGone, detail, CloneReason::WalGone);
    }
    let detail = format!("replayed up to {}", server.replay_lsn);
    let decision = turn.row(Situation::NotStreaming, detail);
    // It connects within moments of its start, and its readiness is waited for.
    if stood_still { decision } else { decision.soon() }
}

/// Marks the directory for a fresh clone and stops the server; the next turns do the rest.
fn condemn(mut turn: Turn<'_>, situation: Situation, detail: String, reason: CloneReason) -> Decision {
    if !turn.policy.reclone {
        return turn.row(situation, detail);
    }
    turn.memory.condemned = Some(reason);
    turn.stop(situation, detail)
}
