//! What the member knows of itself: its directory, its PostgreSQL, its supervisor.

use podgres::core::data_directory::{ControlState, DataDirectory, DataDirectoryFacts};
use podgres::core::lease::{FinalPosition, Incarnation};
use podgres::core::member::{Ordinal, slot_name};
use podgres::core::status::{ReplicationStatus, ServerStatus, SlotStatus};
use podgres::core::supervision::{
    FailureKind, JobKind, JobProgress, JobState, JobStatus, Licence, Postmaster, PostmasterExit, ServerRole,
    StopMode, SupervisorStatus, Terms,
};
use podgres::core::sync::Told;
use podgres::core::synchronous_names::standby_names;
use podgres::core::wal::Lsn;

use super::{Choice, NOW_MS, Of, incarnation, sets};
use crate::worlds::*;

/// The directory; what it was last used for decides much.
fn directory(choice: &Choice) -> DataDirectory {
    let complete = DataDirectory::Complete;
    let control = |control_state| DataDirectoryFacts {
        control_state,
        ..facts()
    };
    match choice.get(Of::Directory) {
        0 => DataDirectory::Empty,
        1 => DataDirectory::Unusable {
            detail: "no pg_control".to_owned(),
        },
        // Where the last checkpoint's record begins, which who has everything has too.
        2 => complete(DataDirectoryFacts {
            control_lsn: Lsn(HERE.0 - 1),
            ..control(ControlState::ShutDown)
        }),
        3 => complete(control(ControlState::InProduction)),
        4 => complete(standby_facts()),
        5 => complete(DataDirectoryFacts {
            backup_label: true,
            ..control(ControlState::InProduction)
        }),
        6 => complete(DataDirectoryFacts {
            half_rewound: true,
            ..control(ControlState::InProduction)
        }),
        7 => complete(DataDirectoryFacts {
            system_identifier: FOREIGN,
            ..standby_facts()
        }),
        _ => complete(DataDirectoryFacts {
            major_version: 16,
            ..standby_facts()
        }),
    }
}

pub(super) fn told(choice: &Choice) -> String {
    let name = |members: &[u32], quorum| {
        let names: Vec<String> = members.iter().map(|m| format!("pg-{m}")).collect();
        standby_names(true, &names, quorum)
    };
    let plain = Told::plain(&sets()[usize::from(choice.get(Of::Set))], choice.me());
    let plain_members: Vec<u32> = plain.members.iter().map(|m| m.0).collect();
    match choice.get(Of::Told) {
        0 => name(&plain_members, plain.quorum),
        1 => name(&[choice.other().0, 2], 1),
        2 => name(&[choice.other().0, 2], 2),
        3 => name(&[], 0),
        _ => "somebody_elses".to_owned(),
    }
}

fn postmaster(choice: &Choice) -> Postmaster {
    let primary = || ServerRole::primary(told(choice));
    match choice.get(Of::Postmaster) {
        0 => Postmaster::Stopped { last_exit: None },
        1 => Postmaster::Stopped {
            last_exit: Some(PostmasterExit {
                requested: false,
                description: "exited with code 1".to_owned(),
                was_ready: false,
            }),
        },
        2 => running(primary(), true),
        3 => running(primary(), false),
        4 => running(attached(choice), true),
        5 => running(attached(choice), false),
        6 => running(standby_of(None), true),
        7 => running(standby_of(None), false),
        last => Postmaster::Stopping {
            pid: 9,
            mode: StopMode::Fast,
            shut_down: last == 9,
        },
    }
}

/// A standby's role as this member would be given it.
fn attached(choice: &Choice) -> ServerRole {
    let mut role = standby_of(Some(ADDRESS));
    if let ServerRole::Standby {
        upstream: Some(upstream),
    } = &mut role
    {
        let known = sets()[usize::from(choice.get(Of::Set))]
            .members
            .contains_key(&choice.me());
        let joining = known && choice.get(Of::Incarnation) != 0;
        upstream.application_name = joining.then(|| format!("pg-{}_joining", choice.me()));
    }
    role
}

pub(super) const REFUSED: u8 = 6;

pub(super) fn server_status(choice: &Choice) -> Option<ServerStatus> {
    let status = match choice.get(Of::Server) {
        0 | REFUSED => return None,
        1 => server(true, true),
        2 => ServerStatus {
            receiver_present: true,
            ..server(true, false)
        },
        3 => server(true, false),
        4 => ServerStatus {
            replay_waiting: true,
            ..server(true, false)
        },
        _ => ServerStatus {
            replication: vec![streaming(choice.other()), streaming(Ordinal(2))],
            synchronous_standby_names: told(choice),
            ..server(false, false)
        },
    };
    let slots = vec![slot(choice.other()), slot(Ordinal(2))];
    Some(ServerStatus { slots, ..status })
}

/// Where the server stands.
pub(super) fn position(choice: &Choice) -> Option<FinalPosition> {
    server_status(choice).map(|server| FinalPosition {
        timeline: server.timeline,
        flush_lsn: server.flush_lsn.max(server.replay_lsn),
    })
}

/// What the primary sees of a standby that has everything.
pub(crate) fn streaming(member: Ordinal) -> ReplicationStatus {
    ReplicationStatus {
        application_name: format!("pg-{member}"),
        client_addr: None,
        state: "streaming".to_owned(),
        sent_lsn: Some(HERE),
        flush_lsn: Some(HERE),
        replay_lsn: Some(HERE),
        sync_state: "quorum".to_owned(),
        sync_priority: 1,
        usename: "podgres_replication".to_owned(),
        pid: 1,
    }
}

/// The slot of a member that uses it.
pub(crate) fn slot(member: Ordinal) -> SlotStatus {
    SlotStatus {
        slot_name: slot_name("pg", member),
        active: true,
        restart_lsn: Some(HERE),
        lost: false,
        safe_wal_size_bytes: None,
    }
}

fn job(choice: &Choice) -> Option<JobStatus> {
    // A rewind from the other holder, a clone from the third member.
    let of = |kind, state| {
        let from = match kind {
            JobKind::Initdb => None,
            JobKind::Rewind => Some(choice.other()),
            JobKind::Clone => Some(Ordinal(2)),
        };
        Some(JobStatus {
            id: 1,
            kind,
            upstream: from.map(|ordinal| format!("pg-{ordinal}.pg.default.svc.cluster.local")),
            state,
        })
    };
    let failed = |refused| JobState::Failed {
        kind: FailureKind::default(),
        refused,
        message: "it failed".to_owned(),
    };
    let progress = JobProgress::default();
    match choice.get(Of::Job) {
        0 => None,
        1 => of(JobKind::Rewind, JobState::Running { progress }),
        2 => of(JobKind::Rewind, failed(true)),
        3 => of(JobKind::Clone, failed(false)),
        4 => of(JobKind::Clone, JobState::Running { progress }),
        5 => of(JobKind::Initdb, JobState::Running { progress }),
        6 => of(JobKind::Clone, failed(true)),
        _ => of(JobKind::Rewind, JobState::Done),
    }
}

pub(super) fn supervised(choice: &Choice) -> SupervisorStatus {
    SupervisorStatus {
        postmaster: postmaster(choice),
        job: job(choice),
        licence: match choice.get(Of::Licence) {
            0 => Licence::None,
            1 => Licence::Limited { until_ms: NOW_MS - 1 },
            2 => Licence::Limited {
                until_ms: NOW_MS + 60_000,
            },
            _ => Licence::Unlimited,
        },
        stopping: choice.get(Of::Stopping) == 1,
        terms: Terms {
            promised: [0, 5, 6, 7][usize::from(choice.get(Of::Promised))],
            held: [0, 4, 5][usize::from(choice.get(Of::Held))],
        },
        incarnation: match choice.get(Of::Incarnation) {
            0 => Some(incarnation(choice.me())),
            1 => Some(Incarnation("new".into())),
            _ => None,
        },
        disk_failing_since_ms: (choice.get(Of::DiskFails) == 1).then_some(NOW_MS - 9_000),
        ..supervisor(directory(choice))
    }
}
