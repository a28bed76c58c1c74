//! What must hold for every decision with fixed leadership, whatever is observed (docs/ARCHITECTURE.md, section 4).

use std::collections::BTreeSet;

use podgres::core::cluster::PeerContact;
use podgres::core::data_directory::{DataDirectory, DataDirectoryFacts};
use podgres::core::decide::decide;
use podgres::core::decision::{Decision, Memory, PostgresAction};
use podgres::core::observation::{MemberRequest, Observation, ProbeState};
use podgres::core::policy::Policy;
use podgres::core::situation::{Outlook, SITUATIONS, Situation};
use podgres::core::status::HeldData;
use podgres::core::supervision::{
    CloneReason, JobRequest, JobState, Licence, Postmaster, ServerRole, SupervisorStatus,
};

use podgres::core::wal::Relation;

use crate::enumeration;

/// The rules by name, so that a failure says which one was broken.
fn broken_rule(policy: &Policy, observation: &Observation, decision: &Decision) -> Option<&'static str> {
    let Some(action) = &decision.postgres else {
        return None;
    };
    let Some(supervisor) = &observation.supervisor else {
        return Some("nothing is done without a supervisor");
    };
    if supervisor.stopping {
        return Some("nothing is started while the pod ends");
    }
    let job_runs = matches!(
        supervisor.job.as_ref().map(|job| &job.state),
        Some(JobState::Running { .. })
    );
    if job_runs {
        return Some("never a second action beside a job");
    }
    if decision.situation.outlook() == Outlook::Refused
        && !matches!(
            action,
            PostgresAction::Stop { .. } | PostgresAction::Reload { .. }
        )
    {
        return Some("a refusal does nothing, stops, or takes over new secrets");
    }
    let switched = policy.read_only_default && observation.read_only;
    if gives_read_only(action) && !switched {
        return Some("nobody is kept from writing unless the switch is on and that is wanted");
    }
    let foreign = !policy.first() && is_foreign(observation, supervisor);
    match action {
        PostgresAction::Run { job } => {
            let broken = broken_by_job(policy, observation, supervisor, job);
            broken.or(foreign.then_some("a foreign directory is left alone"))
        }
        PostgresAction::Start { server } => {
            let broken = broken_by_start(policy, observation, supervisor, server);
            broken.or(foreign.then_some("a foreign directory is never started"))
        }
        PostgresAction::Stop { .. }
            if policy.first() && observation.request != Some(MemberRequest::Restart) =>
        {
            Some("a fixed primary is never stopped but for a restart that was asked for")
        }
        PostgresAction::Stop { .. } if policy.first() => {
            let running = matches!(supervisor.postmaster, Postmaster::Running { .. });
            (!running).then_some("only a running server is stopped")
        }
        PostgresAction::Stop { .. }
            if observation
                .server
                .as_ref()
                .is_some_and(|server| !server.in_recovery) =>
        {
            Some("a server that accepts writes is never stopped")
        }
        PostgresAction::Stop { .. } => {
            let running = matches!(supervisor.postmaster, Postmaster::Running { .. });
            (!running).then_some("only a running server is stopped")
        }
        PostgresAction::Reload { server } => broken_by_reload(supervisor, server),
        PostgresAction::GrantLicence { .. } if !policy.first() => Some("only the first ordinal is licensed"),
        PostgresAction::EnsureRoles | PostgresAction::ReconcileSlots { .. } => {
            let writable = observation
                .server
                .as_ref()
                .is_some_and(|server| !server.in_recovery);
            (!writable || !policy.first()).then_some("roles and slots are the running primary's")
        }
        PostgresAction::GrantLicence { .. } => None,
        PostgresAction::Promote { .. }
        | PostgresAction::Detach { .. }
        | PostgresAction::Hold { .. }
        | PostgresAction::Barrier { .. }
        | PostgresAction::Checkpoint
        | PostgresAction::DropSlots { .. }
        | PostgresAction::Cancel => Some("a fixed primary has no office to come by"),
    }
}

fn gives_read_only(action: &PostgresAction) -> bool {
    match action {
        PostgresAction::Promote { read_only, .. }
        | PostgresAction::Start {
            server: ServerRole::Primary { read_only, .. },
        }
        | PostgresAction::Reload {
            server: ServerRole::Primary { read_only, .. },
        } => *read_only,
        _ => false,
    }
}

fn is_foreign(observation: &Observation, supervisor: &SupervisorStatus) -> bool {
    match (&observation.upstream.probe, supervisor.data_directory.facts()) {
        (ProbeState::Ready { facts }, Some(own)) => facts.system_identifier != own.system_identifier,
        _ => false,
    }
}

fn was_standby(facts: &DataDirectoryFacts) -> bool {
    facts.standby_signal || facts.backup_label || facts.control_state.was_standby()
}

fn broken_by_job(
    policy: &Policy,
    observation: &Observation,
    supervisor: &SupervisorStatus,
    job: &JobRequest,
) -> Option<&'static str> {
    if !matches!(supervisor.postmaster, Postmaster::Stopped { .. }) {
        return Some("no job while PostgreSQL runs");
    }
    match job {
        JobRequest::Rewind { .. } => Some("nothing is rewound under a fixed primary"),
        JobRequest::Initdb => {
            let empty = supervisor.data_directory == DataDirectory::Empty;
            let holds = observation
                .peers
                .values()
                .any(|peer| peer.held_data == HeldData::Some);
            let silent = observation.peers.values().any(|peer| {
                peer.held_data == HeldData::Unknown && !matches!(peer.contact, PeerContact::Refused)
            });
            if !policy.first() {
                return Some("only the first ordinal reaches initdb");
            }
            if !empty {
                return Some("initdb only into an empty directory");
            }
            let unknown = holds || silent || !observation.dns_answered;
            (unknown && !policy.new_cluster).then_some("initdb only when nobody can know of data")
        }
        JobRequest::Clone { reason, .. } => {
            if policy.first() {
                return Some("a fixed primary is never cloned over");
            }
            let ProbeState::Ready { facts: upstream } = &observation.upstream.probe else {
                return Some("a clone needs a primary that accepts replication");
            };
            if upstream.in_recovery == Some(true) {
                return Some("the upstream of a clone is a primary");
            }
            match &supervisor.data_directory {
                DataDirectory::Empty => {
                    (*reason != CloneReason::Empty).then_some("an empty directory has nothing to replace")
                }
                DataDirectory::Complete(_)
                    if *reason == CloneReason::Requested
                        && observation.request != Some(MemberRequest::Reinit) =>
                {
                    Some("a clone on request needs the request")
                }
                DataDirectory::Complete(facts)
                    if !was_standby(facts) || !(policy.reclone || *reason == CloneReason::Requested) =>
                {
                    Some("only a standby's directory is replaced, and only if that is wanted")
                }
                DataDirectory::Complete(facts)
                    if upstream.history.relation(facts.position(), upstream.flush_lsn) == Relation::Ahead
                        && observation.upstream.looked_at_ms != 0
                        && *reason == CloneReason::Diverged =>
                {
                    Some("what the primary has lost is never cloned over")
                }
                DataDirectory::Complete(_)
                    if *reason == CloneReason::Diverged && observation.upstream.looked_at_ms == 0 =>
                {
                    Some("nothing is called diverged by facts that may be older than it")
                }
                DataDirectory::Complete(_) => {
                    (*reason == CloneReason::Empty).then_some("a clone says why it replaces")
                }
                DataDirectory::Unusable { .. } => Some("an unusable directory is left alone"),
            }
        }
    }
}

fn broken_by_reload(supervisor: &SupervisorStatus, server: &ServerRole) -> Option<&'static str> {
    let Postmaster::Running {
        role, ready: true, ..
    } = &supervisor.postmaster
    else {
        return Some("only a server that is ready is reloaded");
    };
    match (role, server) {
        (ServerRole::Standby { upstream: Some(_) }, ServerRole::Standby { upstream: None }) => {
            Some("a reload takes no standby's upstream away")
        }
        (ServerRole::Primary { .. }, ServerRole::Primary { .. })
        | (ServerRole::Standby { .. }, ServerRole::Standby { .. }) => None,
        _ => Some("a reload does not change the role"),
    }
}

fn broken_by_start(
    policy: &Policy,
    observation: &Observation,
    supervisor: &SupervisorStatus,
    server: &ServerRole,
) -> Option<&'static str> {
    let Some(facts) = supervisor.data_directory.facts() else {
        return Some("only a complete directory is started");
    };
    if facts.major_version != supervisor.major_version {
        return Some("only a directory of this major version is started");
    }
    if !matches!(supervisor.postmaster, Postmaster::Stopped { .. }) {
        return Some("only a stopped server is started");
    }
    match server {
        ServerRole::Standby { .. } if policy.first() => Some("the first ordinal is no standby"),
        ServerRole::Standby { .. } => {
            (!was_standby(facts)).then_some("a directory last written by a primary is left alone")
        }
        ServerRole::Primary { .. } if !policy.first() => Some("only the first ordinal opens for writes"),
        ServerRole::Primary { .. } => {
            let contested = observation.peers.values().any(|peer| {
                let later = peer.timeline.is_some_and(|timeline| timeline > facts.timeline);
                peer.writable || (later && peer.system_identifier == Some(facts.system_identifier))
            });
            if facts.standby_signal || contested {
                return Some("opens for writes only where nothing speaks against it");
            }
            (supervisor.licence == Licence::None).then_some("opens for writes only with a licence")
        }
    }
}

#[test]
fn every_observation_under_a_fixed_primary_leads_to_a_safe_decision() {
    let mut reached = BTreeSet::new();
    let mut count = 0_u64;
    let mut check = |policy: &Policy, memory: &Memory, observation: &Observation| {
        let decision = decide(policy, memory, observation);
        if let Some(rule) = broken_rule(policy, observation, &decision) {
            panic!("{rule}\n{policy:#?}\n{memory:#?}\n{observation:#?}\n{decision:#?}");
        }
        reached.insert(decision.situation);
        count += 1;
    };
    enumeration::each_stopped(&mut check);
    enumeration::each_running(&mut check);
    let lease_only = |s: &Situation| {
        (*s >= Situation::LeaseUnread && *s != Situation::Requested) || *s == Situation::Rewinding
    };
    let (unreached, strange): (Vec<_>, Vec<_>) = (
        SITUATIONS
            .iter()
            .map(|row| row.0)
            .filter(|s| !lease_only(s) && !reached.contains(s))
            .collect(),
        reached.iter().filter(|s| lease_only(s)).collect(),
    );
    assert_eq!(unreached, [], "of {count} observations none leads there");
    assert!(
        strange.is_empty(),
        "a fixed primary knows of no Lease: {strange:?}"
    );
    assert!(count > 1_000_000, "only {count} observations");
}
