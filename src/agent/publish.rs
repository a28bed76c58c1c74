//! From an observation and its decision to what others see: pure, but for the process id.

use std::collections::BTreeSet;

use crate::core::cluster::{ClusterView, PeerEntry};
use crate::core::data_directory::{DataDirectory, SystemIdentifier};
use crate::core::decision::{Decision, PostgresAction};
use crate::core::lease::{LeadershipReport, LeaseRecord};
use crate::core::observation::Observation;
use crate::core::policy::Leadership;
use crate::core::situation::Situation;
use crate::core::status::{HeldData, JobReport, MemberPids, MemberState, MemberStatus, Role, ServerStatus};
use crate::core::supervision::{JobKind, JobState, Postmaster, ServerRole, SupervisorStatus};

use crate::core::switch::SwitchPosition;

use super::Settings;

/// What earlier turns have left.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    /// What the server that still runs said last, if it has ever answered.
    pub(super) running: Option<&'a ServerStatus>,
    pub(super) clones_total: u64,
    pub(super) was_streaming: bool,
    pub(super) routes_left: Option<&'a BTreeSet<String>>,
    pub(super) routes_term: Option<u64>,
    pub(super) switch: &'a SwitchPosition,
}

/// This member's own status after a turn.
pub(super) fn member_status(
    settings: &Settings,
    observation: &Observation,
    decision: &Decision,
    known: Known<'_>,
) -> MemberStatus {
    let supervisor = observation.supervisor.as_ref();
    let server = observation.server.as_ref();
    let job = supervisor.and_then(running_job);
    let refused = observation.login_refused.is_some();
    // One that does not let podgres in goes on serving others, as what it was given to be.
    let accepting = (server.is_some() || refused) && supervisor.is_some_and(is_ready);
    let Known {
        running,
        clones_total,
        was_streaming,
        ..
    } = known;
    let own_role = role(settings, supervisor, decision.report.as_ref());
    let unseen_primary = refused && own_role == Role::Primary;
    let sentence = decision.situation.sentence();
    MemberStatus {
        name: settings.member.to_string(),
        cluster: settings.member.cluster.clone(),
        ordinal: settings.member.ordinal,
        uid: settings.uid.clone(),
        role: Some(own_role),
        state: state(observation, job.as_ref(), running.is_some()),
        situation: decision.situation.name().to_owned(),
        message: if decision.detail.is_empty() {
            sentence.to_owned()
        } else {
            format!("{sentence}: {}", decision.detail)
        },
        held_data: held_data(supervisor),
        system_identifier: system_identifier(observation),
        server: server.or(running).cloned(),
        accepting,
        was_streaming,
        writable: accepting && server.map_or(unseen_primary, |server| !server.in_recovery),
        job,
        host: settings.host,
        postgres_port: settings.postgres_port,
        http_port: settings.http_port,
        read_write_port: settings.read_write_port,
        read_only_port: settings.read_only_port,
        pids: settings.report_pids.then(|| pids(supervisor)),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        clones_total,
        no_reads: settings.no_reads,
        leadership: decision.report.clone(),
        leaving: leaving(decision),
        routes_left: known.routes_left.cloned(),
        routes_term: known.routes_term,
        switch: known.switch.clone(),
        read_only: false,
        read_only_default: supervisor.is_some_and(read_only_default),
    }
}

/// The routes are to leave this primary: its checkpoint is done, and it is about to stop.
fn leaving(decision: &Decision) -> bool {
    let moves = decision.situation == Situation::HandingOver
        || (decision.situation == Situation::Leaving && decision.memory.lease.handing_over.is_some());
    moves && decision.postgres != Some(PostgresAction::Checkpoint)
}

fn read_only_default(supervisor: &SupervisorStatus) -> bool {
    matches!(
        &supervisor.postmaster,
        Postmaster::Running {
            role: ServerRole::Primary { read_only: true, .. },
            ..
        }
    )
}

fn role(
    settings: &Settings,
    supervisor: Option<&SupervisorStatus>,
    report: Option<&LeadershipReport>,
) -> Role {
    if settings.policy.leadership == Leadership::Lease && report.is_none_or(|report| report.office.is_none())
    {
        // Whatever runs here: nobody but the holder is the primary.
        return Role::Standby;
    }
    match supervisor.map(|supervisor| &supervisor.postmaster) {
        Some(Postmaster::Running {
            role: ServerRole::Primary { .. },
            ..
        }) => Role::Primary,
        Some(Postmaster::Running {
            role: ServerRole::Standby { .. },
            ..
        }) => Role::Standby,
        _ if settings.policy.leadership == Leadership::Fixed && settings.policy.first() => Role::Primary,
        _ => Role::Standby,
    }
}

fn is_ready(supervisor: &SupervisorStatus) -> bool {
    matches!(supervisor.postmaster, Postmaster::Running { ready: true, .. })
}

fn running_job(supervisor: &SupervisorStatus) -> Option<JobReport> {
    let job = supervisor.job.as_ref()?;
    match job.state {
        JobState::Running { progress } => Some(JobReport {
            kind: job.kind,
            progress,
        }),
        JobState::Done | JobState::Failed { .. } => None,
    }
}

fn state(observation: &Observation, job: Option<&JobReport>, answered: bool) -> MemberState {
    let Some(supervisor) = &observation.supervisor else {
        return MemberState::Stopped;
    };
    match (
        job.map(|job| job.kind),
        &supervisor.postmaster,
        &observation.server,
    ) {
        (Some(JobKind::Clone), _, _) => MemberState::Cloning,
        (Some(JobKind::Rewind), _, _) => MemberState::Rewinding,
        (None, Postmaster::Running { ready: true, .. }, Some(server))
            if server.in_recovery && server.receiver_streaming =>
        {
            MemberState::Streaming
        }
        (None, Postmaster::Running { ready: true, .. }, Some(_)) => MemberState::Running,
        (None, Postmaster::Running { ready: true, .. }, None)
            if answered || observation.login_refused.is_some() =>
        {
            MemberState::Running
        }
        (Some(JobKind::Initdb), _, _) | (None, Postmaster::Running { .. }, _) => MemberState::Starting,
        (None, _, _) if supervisor.fenced => MemberState::Fenced,
        (None, _, _) => MemberState::Stopped,
    }
}

fn held_data(supervisor: Option<&SupervisorStatus>) -> HeldData {
    match supervisor.map(|supervisor| &supervisor.data_directory) {
        None => HeldData::Unknown,
        Some(DataDirectory::Empty) => HeldData::None,
        Some(DataDirectory::Unusable { .. } | DataDirectory::Complete(_)) => HeldData::Some,
    }
}

fn system_identifier(observation: &Observation) -> Option<SystemIdentifier> {
    let running = observation.server.as_ref().map(|server| server.system_identifier);
    let directory = observation
        .supervisor
        .as_ref()
        .and_then(|supervisor| supervisor.data_directory.facts());
    running.or_else(|| directory.map(|facts| facts.system_identifier))
}

fn pids(supervisor: Option<&SupervisorStatus>) -> MemberPids {
    let postgres = supervisor.and_then(|supervisor| match supervisor.postmaster {
        Postmaster::Running { pid, .. } | Postmaster::Stopping { pid, .. } => Some(pid),
        Postmaster::Stopped { .. } => None,
    });
    MemberPids {
        supervisor: supervisor.map(|supervisor| supervisor.pid),
        postgres,
        sidecar: Some(std::process::id()),
    }
}

/// What is shown before the first turn.
pub(super) fn first_view(settings: &Settings) -> ClusterView {
    let me = MemberStatus {
        name: settings.member.to_string(),
        ordinal: settings.member.ordinal,
        uid: settings.uid.clone(),
        role: Some(role(settings, None, None)),
        state: MemberState::Starting,
        situation: Situation::SupervisorUnreachable.name().to_owned(),
        message: Situation::SupervisorUnreachable.sentence().to_owned(),
        held_data: HeldData::Unknown,
        postgres_port: settings.postgres_port,
        http_port: settings.http_port,
        read_write_port: settings.read_write_port,
        read_only_port: settings.read_only_port,
        pids: settings.report_pids.then(|| pids(None)),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        no_reads: settings.no_reads,
        ..MemberStatus::outsider(settings.member.cluster.clone(), settings.host)
    };
    view(settings, None, me, Vec::new())
}

/// The cluster as this member sees it.
pub(super) fn view(
    settings: &Settings,
    record: Option<&LeaseRecord>,
    mut me: MemberStatus,
    peers: Vec<PeerEntry>,
) -> ClusterView {
    let read_only_switch = me.switch.on.clone();
    me.read_only = read_only_switch.is_some();
    ClusterView {
        cluster: settings.member.cluster.clone(),
        leadership: Some(settings.policy.leadership),
        durability: settings.policy.durability.as_str().to_owned(),
        term: record.map_or(0, |record| record.term),
        lease_holder: record
            .and_then(|record| record.holder.as_ref())
            .map(|holder| holder.pod.clone()),
        read_only: read_only_switch.is_some(),
        read_only_switch,
        paused: record.is_some_and(|record| record.paused),
        lease: record.cloned(),
        me,
        peers,
    }
}
