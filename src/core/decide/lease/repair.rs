//! A directory that cannot follow as it is: rewound, or replaced by a clone, never by anything else.

use crate::core::decision::{Decision, PostgresAction};
use crate::core::observation::{NameState, UpstreamFacts};
use crate::core::situation::Situation;
use crate::core::supervision::{CloneReason, JobRequest};

use super::super::shared;
use super::Turn;
use super::standing::Standing;
use super::upstream::{holder_as_upstream, probe_text};

/// A former primary's directory, or one that has gone another way: rewound, and cloned if that fails.
pub(super) fn rewind(turn: Turn<'_>, standing: &Standing, facts: Option<&UpstreamFacts>) -> Decision {
    if standing.paused() {
        return turn.row(Situation::Paused, "PGDATA is left as it is".to_owned());
    }
    let Some((facts, upstream)) = facts.zip(
        standing
            .holder_elsewhere
            .and_then(|h| holder_as_upstream(&turn, standing, h)),
    ) else {
        let detail = probe_text(&turn);
        return turn.row(Situation::AwaitingPrimary, detail).soon();
    };
    let detail = format!(
        "from \"{}\" on timeline {}",
        upstream.host, facts.history.timeline
    );
    let job = JobRequest::Rewind {
        upstream,
        system_identifier: facts.system_identifier,
    };
    turn.act(Situation::ReadyToRewind, detail, PostgresAction::Run { job })
}

pub(super) fn replace(
    turn: Turn<'_>,
    standing: &Standing,
    facts: Option<&UpstreamFacts>,
    reason: CloneReason,
) -> Decision {
    let situation = shared::while_replacing(reason);
    if !turn.policy.reclone && reason != CloneReason::Requested {
        return turn.row(situation, "cloning afresh is switched off".to_owned());
    }
    if standing.paused() && reason != CloneReason::Requested {
        return turn.row(Situation::Paused, "PGDATA is left as it is".to_owned());
    }
    clone(turn, standing, facts, situation, reason)
}

pub(super) fn clone(
    turn: Turn<'_>,
    standing: &Standing,
    facts: Option<&UpstreamFacts>,
    situation: Situation,
    reason: CloneReason,
) -> Decision {
    let wanted = standing.record.and_then(|record| record.system_identifier);
    let upstream = standing
        .holder_elsewhere
        .and_then(|holder| holder_as_upstream(&turn, standing, holder));
    let Some((facts, upstream)) = facts
        .zip(upstream)
        .filter(|_| standing.promised <= standing.term())
    else {
        let (situation, detail) = match &turn.observation.upstream.name {
            _ if standing.holder_elsewhere.is_none() => (Situation::AwaitingPrimary, standing.holder_name()),
            NameState::Resolved { .. } => (Situation::WaitingForPrimary, probe_text(&turn)),
            _ => (
                Situation::WaitingForName,
                format!("\"{}\"", turn.observation.upstream.host),
            ),
        };
        return turn.row(situation, detail).soon();
    };
    if wanted.is_some_and(|wanted| wanted != facts.system_identifier) {
        let detail = format!(
            "\"{}\" has system identifier {}",
            upstream.host, facts.system_identifier
        );
        return turn.row(Situation::WaitingForPrimary, detail);
    }
    let detail = format!("from \"{}\" at {}", upstream.host, upstream.address);
    let job = JobRequest::Clone {
        upstream,
        system_identifier: facts.system_identifier,
        reason,
    };
    turn.act(situation, detail, PostgresAction::Run { job })
}

/// Marks the directory and stops the server; the next turns do the rest.
pub(super) fn condemn(
    mut turn: Turn<'_>,
    situation: Situation,
    detail: String,
    reason: CloneReason,
) -> Decision {
    if !turn.policy.reclone && reason == CloneReason::WalGone {
        return turn.row(situation, detail);
    }
    turn.memory.condemned = Some(reason);
    turn.stop(situation, detail)
}
