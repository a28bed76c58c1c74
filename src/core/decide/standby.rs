//! Every ordinal but the first under fixed leadership, while PostgreSQL does not run.

use crate::core::data_directory::DataDirectoryFacts;
use crate::core::decision::{Decision, PostgresAction};
use crate::core::observation::{MemberRequest, NameState, ProbeState, UpstreamFacts};
use crate::core::situation::Situation;
use crate::core::supervision::{CloneReason, JobRequest};
use crate::core::wal::Relation;

use super::{Turn, shared};

/// Nothing here: cloned from the primary, and never anything else.
pub(super) fn empty(turn: Turn<'_>) -> Decision {
    if let Some((situation, message)) = turn.failed_job() {
        return turn.row(situation, message);
    }
    match turn.ready_upstream() {
        Err((situation, detail)) => turn.row(situation, detail),
        Ok(facts) => clone(turn, Situation::ReadyToClone, facts, CloneReason::Empty),
    }
}

/// A complete directory: started as standby if it belongs and can follow, replaced if it never can.
pub(super) fn complete(turn: Turn<'_>, facts: &DataDirectoryFacts) -> Decision {
    if let Some(detail) = foreign(&turn, facts) {
        return turn.row(Situation::ForeignDataDirectory, detail);
    }
    if facts.was_primary() {
        let detail = format!(
            "no standby.signal, database cluster state is {:?}, last position {} on timeline {}",
            facts.control_state, facts.control_lsn, facts.timeline
        );
        return turn.row(Situation::WasWritable, detail);
    }
    if turn.observation.request == Some(MemberRequest::Reinit) {
        return replace(turn, CloneReason::Requested);
    }
    if let Some(reason) = turn.memory.condemned {
        return replace(turn, reason);
    }
    if let ProbeState::Ready { facts: upstream } = &turn.observation.upstream.probe
        && !turn.upstream_outdated()
    {
        match upstream.history.relation(facts.position(), upstream.flush_lsn) {
            Relation::Contained => {}
            Relation::Ahead => {
                let detail = shared::ahead(facts.position(), upstream);
                return turn.row(Situation::AheadOfPrimary, detail);
            }
            Relation::Forked => return replace(turn, CloneReason::Diverged),
        }
    }
    if turn.upstream_pending() {
        let detail = format!("looking for {}", turn.observation.upstream.host);
        return turn.row(Situation::AskingPeers, detail).soon();
    }
    if let Some(detail) = turn.failed_start() {
        return turn.row(Situation::StartFailing, detail);
    }
    let server = turn.standby_role();
    let detail = shared::data_text(facts);
    turn.act(
        Situation::ReadyAsStandby,
        detail,
        PostgresAction::Start { server },
    )
}

/// How this directory's system identifier contradicts the primary's, if it does.
pub(super) fn foreign(turn: &Turn<'_>, facts: &DataDirectoryFacts) -> Option<String> {
    let own = facts.system_identifier;
    let probed = match &turn.observation.upstream.probe {
        ProbeState::Ready { facts } => Some(facts.system_identifier),
        ProbeState::Untried | ProbeState::Failed { .. } => None,
    };
    let first = turn.observation.peers.get(&turn.policy.first_ordinal);
    let told = first
        .filter(|peer| peer.writable)
        .and_then(|peer| peer.system_identifier);
    let theirs = probed.or(told).filter(|theirs| *theirs != own)?;
    let host = &turn.observation.upstream.host;
    Some(format!(
        "PGDATA has system identifier {own}, the primary \"{host}\" has {theirs}"
    ))
}

/// Clones over a directory that is known to be of no further use to this standby.
fn replace(turn: Turn<'_>, reason: CloneReason) -> Decision {
    let situation = shared::while_replacing(reason);
    if !turn.policy.reclone && reason != CloneReason::Requested {
        return turn.row(situation, "cloning afresh is switched off".to_owned());
    }
    if let Some((situation, message)) = turn.failed_job() {
        return turn.row(situation, message);
    }
    match turn.ready_upstream() {
        Err((_, detail)) => turn.row(situation, detail),
        Ok(facts) => clone(turn, situation, facts, reason),
    }
}

fn clone(turn: Turn<'_>, situation: Situation, facts: &UpstreamFacts, reason: CloneReason) -> Decision {
    let Some(upstream) = turn.upstream() else {
        return turn.row(Situation::WaitingForName, String::new());
    };
    let detail = format!(
        "from \"{}\" at {}, system identifier {}",
        upstream.host, upstream.address, facts.system_identifier
    );
    let job = JobRequest::Clone {
        upstream,
        system_identifier: facts.system_identifier,
        reason,
    };
    turn.act(situation, detail, PostgresAction::Run { job })
}

impl<'a> Turn<'a> {
    /// The primary, if it accepts replication; else what is being waited for.
    fn ready_upstream(&self) -> Result<&'a UpstreamFacts, (Situation, String)> {
        let upstream = &self.observation.upstream;
        let host = &upstream.host;
        match &upstream.name {
            NameState::Unasked => return Err((Situation::WaitingForName, format!("asking for \"{host}\""))),
            NameState::Missing => {
                return Err((
                    Situation::WaitingForName,
                    format!("host name \"{host}\" does not exist yet"),
                ));
            }
            NameState::Failed { message } => {
                return Err((Situation::WaitingForName, format!("\"{host}\": {message}")));
            }
            NameState::Resolved { .. } => {}
        }
        match &upstream.probe {
            ProbeState::Untried => Err((Situation::WaitingForPrimary, format!("connecting to \"{host}\""))),
            ProbeState::Failed { message } => {
                Err((Situation::WaitingForPrimary, format!("\"{host}\": {message}")))
            }
            ProbeState::Ready { facts } if facts.in_recovery == Some(true) => Err((
                Situation::WaitingForPrimary,
                format!("\"{host}\" is itself in recovery"),
            )),
            ProbeState::Ready { facts } => Ok(facts),
        }
    }

    /// The directory may have changed since the primary was looked at.
    fn upstream_outdated(&self) -> bool {
        self.observation.upstream.looked_at_ms <= self.memory.busy_at_ms
    }

    /// DNS or the first connection to the primary has not come to an end yet.
    fn upstream_pending(&self) -> bool {
        let upstream = &self.observation.upstream;
        match &upstream.name {
            NameState::Unasked => true,
            NameState::Missing | NameState::Failed { .. } => false,
            NameState::Resolved { .. } => upstream.probe == ProbeState::Untried,
        }
    }
}
