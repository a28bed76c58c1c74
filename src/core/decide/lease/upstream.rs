//! The holder as the server to follow: what a look at it has found, and how this member's WAL stands to its history.

use crate::core::data_directory::DataDirectoryFacts;
use crate::core::member::Ordinal;
use crate::core::observation::{ProbeState, UpstreamFacts};
use crate::core::status::ServerStatus;
use crate::core::supervision::Upstream;
use crate::core::wal::{Relation, WalPosition};

use super::Turn;
use super::standing::Standing;
use super::told::JOINING;

/// What a look at `holder` found that began after `since_ms`: a server that is primary.
pub(super) fn primary_seen_since<'a>(
    turn: &Turn<'a>,
    holder: Ordinal,
    since_ms: u64,
) -> Option<&'a UpstreamFacts> {
    let upstream = &turn.observation.upstream;
    match &upstream.probe {
        ProbeState::Ready { facts } if upstream.of == Some(holder) && upstream.looked_at_ms > since_ms => {
            (facts.in_recovery == Some(false)).then_some(facts)
        }
        _ => None,
    }
}

/// What a look at `holder` found that began after `since_ms`: a server in recovery that is about to be promoted, and has all
/// that `position` has.
///
/// Bound to its term it takes WAL from no earlier primary any more, so that a standby that follows it already is where it will be when
/// the promotion is done: PostgreSQL's cascading walsender and WAL receiver go over to the new timeline by themselves.
pub(super) fn about_to_be_promoted<'a>(
    turn: &Turn<'a>,
    standing: &Standing,
    holder: Ordinal,
    since_ms: u64,
    position: WalPosition,
) -> Option<&'a UpstreamFacts> {
    let report = turn.observation.peers.get(&holder)?.leadership.as_ref()?;
    let upstream = &turn.observation.upstream;
    let ProbeState::Ready { facts } = &upstream.probe else {
        return None;
    };
    let bound = report.promised_term == standing.term();
    let looked = upstream.of == Some(holder) && upstream.looked_at_ms > since_ms;
    let behind_it = position.timeline == facts.history.timeline && position.lsn <= facts.flush_lsn;
    (bound && looked && behind_it && facts.in_recovery == Some(true)).then_some(facts)
}

pub(super) fn probe_text(turn: &Turn<'_>) -> String {
    match &turn.observation.upstream.probe {
        ProbeState::Failed { message } => format!("\"{}\": {message}", turn.observation.upstream.host),
        ProbeState::Untried => format!("looking for \"{}\"", turn.observation.upstream.host),
        ProbeState::Ready { facts } if facts.in_recovery == Some(false) => {
            format!("looking at \"{}\" again", turn.observation.upstream.host)
        }
        ProbeState::Ready { .. } => format!("\"{}\" is itself in recovery", turn.observation.upstream.host),
    }
}

/// The holder as an upstream of this member.
pub(super) fn holder_as_upstream(turn: &Turn<'_>, standing: &Standing, holder: Ordinal) -> Option<Upstream> {
    let mut upstream = turn
        .upstream()
        .filter(|_| turn.observation.upstream.of == Some(holder))?;
    upstream.application_name = joining_name(turn, standing);
    Some(upstream)
}

/// The name under which a member confirms whose recorded incarnation is another one.
pub(super) fn joining_name(turn: &Turn<'_>, standing: &Standing) -> Option<String> {
    let recorded = standing.record?.synchronous.members.get(&turn.policy.ordinal)?;
    let other = turn.supervisor.incarnation.as_ref() != Some(recorded);
    other.then(|| name_that_confirms_nothing(turn))
}

pub(super) fn name_that_confirms_nothing(turn: &Turn<'_>) -> String {
    format!("{}-{}{JOINING}", turn.policy.cluster, turn.policy.ordinal)
}

/// A former primary that was shut down has its last record where the control file says: it must lie before the fork.
pub(super) fn relation(facts: &DataDirectoryFacts, upstream: &UpstreamFacts) -> Relation {
    let mut position = facts.position();
    if facts.was_primary() {
        position.lsn.0 += 1;
    }
    upstream.history.relation(position, upstream.flush_lsn)
}

pub(super) fn position(server: &ServerStatus) -> WalPosition {
    WalPosition {
        timeline: server.timeline,
        lsn: server.end_of_wal(),
    }
}
