//! Every combination of the values that decisions rest on.

use std::collections::BTreeMap;

use podgres::core::cluster::PeerContact;
use podgres::core::data_directory::{ControlState, DataDirectory, DataDirectoryFacts};
use podgres::core::decision::{Memory, Stalled};
use podgres::core::member::{Ordinal, slot_name};
use podgres::core::observation::{
    MemberRequest, NameState, Observation, PeerView, ProbeState, UpstreamFacts, UpstreamView,
};
use podgres::core::policy::Policy;
use podgres::core::status::{HeldData, ServerStatus, SlotStatus};
use podgres::core::supervision::{
    CloneReason, FailureKind, JobKind, JobProgress, JobState, JobStatus, Licence, Postmaster, PostmasterExit,
    ServerRole, StopMode, SupervisorStatus,
};
use podgres::core::wal::{Lsn, TimelineId};

use crate::worlds::*;

fn directories() -> Vec<DataDirectory> {
    let mut directories = vec![
        DataDirectory::Empty,
        DataDirectory::Unusable {
            detail: "no pg_control".to_owned(),
        },
    ];
    for control_state in [
        ControlState::ShutDown,
        ControlState::ShutDownInRecovery,
        ControlState::InProduction,
    ] {
        for bits in 0..8_u32 {
            directories.push(DataDirectory::Complete(DataDirectoryFacts {
                control_state,
                standby_signal: bits & 1 != 0,
                backup_label: bits & 2 != 0,
                half_rewound: false,
                major_version: if bits & 4 != 0 { 16 } else { 15 },
                ..facts()
            }));
        }
    }
    directories
}

fn job(kind: JobKind, state: JobState) -> JobStatus {
    JobStatus {
        id: 1,
        kind,
        upstream: None,
        state,
    }
}

fn jobs() -> Vec<Option<JobStatus>> {
    let progress = JobProgress::default();
    let failed = |refused| JobState::Failed {
        kind: FailureKind::default(),
        refused,
        message: "it failed".to_owned(),
    };
    vec![
        None,
        Some(job(JobKind::Clone, JobState::Done)),
        Some(job(JobKind::Clone, failed(true))),
        Some(job(JobKind::Clone, failed(false))),
        Some(job(JobKind::Initdb, JobState::Running { progress })),
        Some(job(JobKind::Clone, JobState::Running { progress })),
    ]
}

fn peers() -> Vec<BTreeMap<Ordinal, PeerView>> {
    let peers = [
        PeerView::untried(),
        peer(PeerContact::Refused, HeldData::Unknown),
        peer(PeerContact::Unreachable, HeldData::Unknown),
        peer(PeerContact::Connected, HeldData::None),
        holder(),
        PeerView {
            writable: true,
            ..holder()
        },
        PeerView {
            timeline: Some(TimelineId(2)),
            ..holder()
        },
        PeerView {
            system_identifier: Some(FOREIGN),
            ..holder()
        },
    ];
    let alone = std::iter::once(BTreeMap::new());
    alone
        .chain(peers.into_iter().map(|peer| BTreeMap::from([(Ordinal(2), peer)])))
        .collect()
}

pub(crate) fn upstreams() -> Vec<UpstreamView> {
    let failed = || "refused".to_owned();
    vec![
        upstream(NameState::Unasked, ProbeState::Untried),
        upstream(NameState::Missing, ProbeState::Untried),
        upstream(NameState::Failed { message: failed() }, ProbeState::Untried),
        resolved(ProbeState::Untried),
        resolved(ProbeState::Failed { message: failed() }),
        ready(upstream_facts()),
        ready(UpstreamFacts {
            system_identifier: FOREIGN,
            ..upstream_facts()
        }),
        ready(UpstreamFacts {
            in_recovery: Some(true),
            ..upstream_facts()
        }),
        ready(behind()),
        ready(forked()),
        UpstreamView {
            looked_at_ms: 0,
            ..ready(forked())
        },
    ]
}

fn policies() -> Vec<Policy> {
    let mut policies = Vec::new();
    for ordinal in [0, 1] {
        for (new_cluster, reclone) in [(false, true), (false, false), (true, true)] {
            policies.push(Policy {
                new_cluster,
                reclone,
                ..policy(ordinal)
            });
        }
    }
    policies
}

fn memories() -> Vec<Memory> {
    let mut memories = Vec::new();
    for condemned in [None, Some(CloneReason::WalGone)] {
        for retry_at_ms in [0, u64::MAX] {
            memories.push(Memory {
                began_at_ms: Some(0),
                counted_job: 1,
                failures: 1,
                retry_at_ms,
                condemned,
                ..Memory::default()
            });
        }
    }
    memories
}

/// Every world in which PostgreSQL does not run.
pub(crate) fn each_stopped(mut visit: impl FnMut(&Policy, &Memory, &Observation)) {
    let crash = PostmasterExit {
        requested: false,
        description: "exited with code 1".to_owned(),
        was_ready: false,
    };
    let (policies, jobs, peers, upstreams, memories) = (policies(), jobs(), peers(), upstreams(), memories());
    for data_directory in directories() {
        for job in &jobs {
            for bits in 0..16_u32 {
                let last_exit = (bits & 1 != 0).then(|| crash.clone());
                let status = SupervisorStatus {
                    job: job.clone(),
                    postmaster: Postmaster::Stopped { last_exit },
                    licence: if bits & 2 != 0 {
                        Licence::Unlimited
                    } else {
                        Licence::None
                    },
                    ..supervisor(data_directory.clone())
                };
                let mut observation = observation(1, status);
                observation.dns_answered = bits & 4 != 0;
                observation.at_ms = if bits & 8 != 0 { LATE_MS } else { 1_000 };
                for peers in &peers {
                    observation.peers.clone_from(peers);
                    for upstream in &upstreams {
                        observation.upstream.clone_from(upstream);
                        for policy in &policies {
                            for memory in &memories {
                                visit(policy, memory, &observation);
                            }
                            observation.request = Some(MemberRequest::Reinit);
                            visit(policy, &memories[0], &observation);
                            observation.request = None;
                        }
                    }
                }
            }
        }
    }
}

/// Every world in which PostgreSQL runs, stops, or cannot be seen.
pub(crate) fn each_running(mut visit: impl FnMut(&Policy, &Memory, &Observation)) {
    let slot = |lost, active| SlotStatus {
        slot_name: slot_name("pg", Ordinal(2)),
        active,
        restart_lsn: None,
        lost,
        safe_wal_size_bytes: None,
    };
    let servers = [
        None,
        Some(server(false, false)),
        Some(ServerStatus {
            slots: vec![slot(false, true)],
            ..server(false, false)
        }),
        Some(ServerStatus {
            slots: vec![slot(true, false)],
            ..server(false, false)
        }),
        Some(server(true, false)),
        Some(server(true, true)),
    ];
    let postmasters = [
        running(ServerRole::alone(), true),
        running(read_only_by_default(), true),
        running(ServerRole::alone(), false),
        running_standby(),
        running(standby_of(Some(ADDRESS)), false),
        running(standby_of(Some(OLD_ADDRESS)), true),
        running(standby_of(None), true),
        Postmaster::Stopping {
            pid: 9,
            mode: StopMode::Fast,
            shut_down: false,
        },
    ];
    for postmaster in postmasters {
        for bits in 0..128_u32 {
            let status = SupervisorStatus {
                postmaster: postmaster.clone(),
                licence: if bits & 1 != 0 {
                    Licence::Unlimited
                } else {
                    Licence::None
                },
                stopping: bits & 2 != 0,
                outdated: bits & 64 != 0,
                ..supervisor(DataDirectory::Complete(standby_facts()))
            };
            let mut observation = observation(1, status);
            observation.roles_current = bits & 4 != 0;
            observation.at_ms = LATE_MS;
            if bits & 8 != 0 && bits & 16 != 0 && bits & 32 != 0 {
                observation.supervisor = None;
            }
            let stalled = (bits & 8 != 0).then_some(Stalled {
                replay_lsn: HERE,
                since_ms: 0,
            });
            let memory = Memory {
                stalled,
                ..Memory::default()
            };
            let lost = slot_name("pg", Ordinal(1));
            let primary = PeerView {
                writable: bits & 16 != 0,
                slot: (bits & 32 != 0).then(|| SlotStatus {
                    slot_name: lost,
                    ..slot(true, false)
                }),
                oldest_wal_lsn: (bits & 32 == 0).then_some(Lsn(HERE.0 + (32 << 20))),
                ..holder()
            };
            let refused = Some("a wrong password".to_owned());
            let unseen = std::iter::once((&None, &refused));
            for (server, refused) in servers.iter().map(|server| (server, &None)).chain(unseen) {
                observation.server.clone_from(server);
                observation.login_refused.clone_from(refused);
                for peers in [
                    BTreeMap::new(),
                    BTreeMap::from([(Ordinal(0), primary.clone())]),
                    BTreeMap::from([(Ordinal(2), primary.clone())]),
                ] {
                    observation.peers = peers;
                    for upstream in upstreams() {
                        observation.upstream = upstream;
                        for policy in &policies() {
                            for request in [None, Some(MemberRequest::Restart), Some(MemberRequest::Reinit)] {
                                observation.request = request;
                                visit(policy, &memory, &observation);
                            }
                        }
                    }
                }
            }
        }
    }
}
