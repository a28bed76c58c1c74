//! Whose WAL is taken, and what becomes of a directory that does not fit.

use podgres::core::data_directory::{ControlState, DataDirectory, DataDirectoryFacts};
use podgres::core::decision::PostgresAction;
use podgres::core::supervision::{
    CloneReason, JobRequest, Postmaster, ServerRole, SupervisorStatus, Upstream,
};
use podgres::core::wal::{Relation, WalPosition};

use super::case::{Case, was_primary};
use super::claims::nobody_has_data;

/// Where this member stands, as far as is known: its server, or its directory before the server answers.
fn position(case: &Case<'_>) -> Option<WalPosition> {
    let ready = matches!(
        case.supervisor().map(|supervisor| &supervisor.postmaster),
        Some(Postmaster::Running { ready: true, .. })
    );
    match case.observation.server.as_ref().filter(|_| ready) {
        Some(server) => Some(WalPosition {
            timeline: server.timeline,
            lsn: server.flush_lsn.max(server.replay_lsn),
        }),
        None => case.facts().map(DataDirectoryFacts::position),
    }
}

pub(super) fn follows(case: &Case<'_>) -> bool {
    let given: &Upstream = match &case.decision.postgres {
        Some(
            PostgresAction::Start {
                server: ServerRole::Standby {
                    upstream: Some(upstream),
                },
            }
            | PostgresAction::Reload {
                server: ServerRole::Standby {
                    upstream: Some(upstream),
                },
            },
        ) => upstream,
        _ => return true,
    };
    // A receiver that is still there may bring WAL of the former upstream after the look.
    let attached = matches!(
        case.running_role(),
        Some(ServerRole::Standby { upstream: Some(_) })
    );
    let relation = position(case).and_then(|position| case.relation(position));
    let contained = relation == Some(Relation::Contained);
    let own_name = case.record().is_some_and(|record| {
        let recorded = record.synchronous.members.get(&case.policy.ordinal);
        let own = case
            .supervisor()
            .and_then(|supervisor| supervisor.incarnation.as_ref());
        recorded.is_none() || recorded == own || given.application_name.is_some()
    });
    // Before it can be asked, a server of which there may be more than its files say confirms nothing.
    let known = match case.supervisor().map(|supervisor| &supervisor.postmaster) {
        Some(Postmaster::Running { ready: true, .. }) => true,
        Some(Postmaster::Running { .. }) => given.application_name.is_some(),
        _ => case.facts().is_some_and(|facts| facts.backup_label),
    };
    !attached && contained && case.promised() <= case.term() && own_name && known
}

pub(super) fn former_primary(case: &Case<'_>) -> bool {
    let Some(PostgresAction::Start {
        server: ServerRole::Standby { upstream },
    }) = &case.decision.postgres
    else {
        return true;
    };
    let Some(facts) = case.facts() else { return false };
    let recorded = case.record().is_some_and(|record| {
        let known = record.synchronous.members.get(&case.policy.ordinal);
        let own = case
            .supervisor()
            .and_then(|supervisor| supervisor.incarnation.as_ref());
        known.is_some() && known == own
    });
    let mut position = facts.position();
    position.lsn.0 += 1;
    let contained = case.relation(position) == Some(Relation::Contained);
    let clean = facts.control_state == ControlState::ShutDown;
    // It handed over, stopped cleanly, and is recorded as one that has everything: detached it may prove so.
    let witness = clean && recorded && upstream.is_none();
    !facts.half_rewound && !case.restored() && (!was_primary(facts) || (contained && clean) || witness)
}

pub(super) fn jobs(case: &Case<'_>) -> bool {
    let Some(PostgresAction::Run { job }) = &case.decision.postgres else {
        return true;
    };
    let Some((supervisor, record)) = case.supervisor().zip(case.record()) else {
        return false;
    };
    match job {
        JobRequest::Initdb => {
            let empty = supervisor.data_directory == DataDirectory::Empty;
            let unmade = record.system_identifier.is_none() && nobody_has_data(case);
            empty && case.policy.first() && case.in_right() && unmade
        }
        JobRequest::Clone {
            system_identifier,
            reason,
            ..
        } => {
            let same = record
                .system_identifier
                .is_none_or(|known| known == *system_identifier);
            let anything = WalPosition::default();
            let primary = case.relation(anything).is_some() && case.promised() <= case.term();
            same && primary && replaceable(case, supervisor, *reason)
        }
        JobRequest::Rewind {
            system_identifier, ..
        } => {
            let Some(facts) = case.facts() else { return false };
            let relation = case.relation(facts.position());
            let same = facts.system_identifier == *system_identifier;
            let condemned = case.decision.memory.condemned == Some(CloneReason::Diverged);
            let gone_another_way = was_primary(facts) || condemned || relation == Some(Relation::Forked);
            same && relation.is_some() && gone_another_way && !facts.half_rewound && !case.restored()
        }
    }
}

fn replaceable(case: &Case<'_>, supervisor: &SupervisorStatus, reason: CloneReason) -> bool {
    match &supervisor.data_directory {
        DataDirectory::Empty => reason == CloneReason::Empty,
        DataDirectory::Unusable { .. } => false,
        DataDirectory::Complete(facts) => {
            let refused = case.decision.memory.condemned == Some(CloneReason::NotRewound);
            let asked = reason == CloneReason::Requested;
            let rewound_first = !was_primary(facts) || facts.half_rewound || refused || asked;
            let wanted = case.policy.reclone || reason == CloneReason::Requested;
            let vacant = case.record().is_some_and(|record| record.holder.is_none());
            reason != CloneReason::Empty && wanted && rewound_first && !vacant
        }
    }
}

pub(super) fn foreign(case: &Case<'_>) -> bool {
    let recorded = case.record().and_then(|record| record.system_identifier);
    let is_foreign = case
        .facts()
        .is_some_and(|facts| recorded.is_some_and(|known| known != facts.system_identifier));
    let untouched = !matches!(
        case.decision.postgres,
        Some(PostgresAction::Start { .. } | PostgresAction::Run { .. })
    );
    let own = case.facts().map(|facts| facts.system_identifier);
    let follows = matches!(
        &case.decision.postgres,
        Some(
            PostgresAction::Start {
                server: ServerRole::Standby { upstream: Some(_) }
            } | PostgresAction::Reload {
                server: ServerRole::Standby { upstream: Some(_) }
            }
        )
    );
    let server = case
        .observation
        .server
        .as_ref()
        .filter(|_| case.running_role().is_some())
        .map(|server| server.system_identifier);
    let same = case.upstream_facts().map(|facts| facts.system_identifier) == server.or(own);
    (!is_foreign || untouched) && (!follows || same)
}
