//! Single decisions, each named after what it stands for.

use std::collections::BTreeMap;

use podgres::core::cluster::PeerContact;
use podgres::core::data_directory::DataDirectory;
use podgres::core::decide::decide;
use podgres::core::decision::{Memory, PostgresAction};
use podgres::core::member::Ordinal;
use podgres::core::observation::{FailedAction, NameState, PeerView, ProbeState, UpstreamFacts};
use podgres::core::policy::Policy;
use podgres::core::situation::Situation;
use podgres::core::status::{HeldData, ServerStatus, SlotStatus};
use podgres::core::supervision::{
    CloneReason, JobKind, JobRequest, JobState, JobStatus, Licence, ServerRole, SupervisorStatus,
};
use podgres::core::wal::Lsn;

use crate::worlds::{
    ADDRESS, LATE_MS, facts, forked, holder, observation, peer, policy, read_only_by_default, ready,
    resolved, running, running_standby, server, standby_facts, supervisor, upstream, upstream_facts,
};

#[test]
fn row_62_an_empty_standby_waits_and_never_runs_initdb() {
    for view in [
        upstream(NameState::Missing, ProbeState::Untried),
        resolved(ProbeState::Failed {
            message: "connection refused".to_owned(),
        }),
    ] {
        let mut observation = observation(1, supervisor(DataDirectory::Empty));
        observation.upstream = view;
        observation.at_ms = LATE_MS;
        let decision = decide(&policy(1), &Memory::default(), &observation);
        assert_eq!(decision.postgres, None);
        assert!(matches!(
            decision.situation,
            Situation::WaitingForName | Situation::WaitingForPrimary
        ));
    }
}

#[test]
fn row_63_an_empty_first_ordinal_refuses_while_a_peer_holds_data() {
    let mut observation = observation(0, supervisor(DataDirectory::Empty));
    observation.peers = BTreeMap::from([(Ordinal(2), holder())]);
    let refused = decide(&policy(0), &Memory::default(), &observation);
    assert_eq!(refused.situation, Situation::PeerHoldsData);
    assert!(
        refused.detail.contains("pg-2") && refused.detail.contains("7000000000000000001"),
        "{}",
        refused.detail
    );
    let mut overridden = policy(0);
    overridden.new_cluster = true;
    let decision = decide(&overridden, &Memory::default(), &observation);
    assert_eq!(
        decision.postgres,
        Some(PostgresAction::Run {
            job: JobRequest::Initdb
        })
    );
}

#[test]
fn a_silent_peer_holds_a_new_cluster_back_and_a_refusing_one_only_for_a_while() {
    for (contact, late) in [
        (PeerContact::Refused, Situation::NewCluster),
        (PeerContact::Unreachable, Situation::PeersUnreachable),
    ] {
        let mut observation = observation(0, supervisor(DataDirectory::Empty));
        observation.peers = BTreeMap::from([(Ordinal(1), peer(contact, HeldData::Unknown))]);
        let early = decide(&policy(0), &Memory::default(), &observation);
        assert_eq!(early.situation, Situation::AskingPeers);
        observation.at_ms += LATE_MS;
        assert_eq!(decide(&policy(0), &early.memory, &observation).situation, late);
    }
}

#[test]
fn row_67_a_directory_without_signal_file_is_not_started_writable_by_a_standby() {
    let mut observation = observation(1, supervisor(DataDirectory::Complete(facts())));
    observation.upstream = ready(upstream_facts());
    let decision = decide(&policy(1), &Memory::default(), &observation);
    assert_eq!(
        (decision.situation, decision.postgres),
        (Situation::WasWritable, None)
    );
}

/// A standby that does not stream, beside a primary that no longer has what it needs.
fn without_its_wal() -> podgres::core::observation::Observation {
    let status = SupervisorStatus {
        postmaster: running_standby(),
        ..supervisor(DataDirectory::Complete(standby_facts()))
    };
    let mut seen = observation(1, status);
    seen.upstream = ready(upstream_facts());
    seen.server = Some(server(true, false));
    let primary = PeerView {
        writable: true,
        oldest_wal_lsn: Some(Lsn(0x900_0000)),
        ..holder()
    };
    seen.peers = BTreeMap::from([(Ordinal(0), primary)]);
    seen
}

#[test]
fn row_68_wal_gone_is_judged_only_after_standing_still_then_stopped_and_cloned() {
    let mut observation = without_its_wal();
    let first = decide(&policy(1), &Memory::default(), &observation);
    assert_eq!(
        first.situation,
        Situation::NotStreaming,
        "it may still be replaying"
    );
    observation.at_ms += 5_000;
    let second = decide(&policy(1), &first.memory, &observation);
    assert_eq!(second.situation, Situation::WalGone);
    assert!(matches!(second.postgres, Some(PostgresAction::Stop { .. })));
    observation.server = None;
    observation.supervisor = Some(supervisor(DataDirectory::Complete(standby_facts())));
    let third = decide(&policy(1), &second.memory, &observation);
    let Some(PostgresAction::Run {
        job: JobRequest::Clone { reason, .. },
    }) = third.postgres
    else {
        panic!("{third:#?}");
    };
    assert_eq!(reason, CloneReason::WalGone);
}

/// Each of its receivers counted as one that streams for as long as the primary took to refuse the WAL.
#[test]
fn a_standby_whose_wal_is_gone_was_called_streaming_whenever_it_tried_again() {
    let mut observation = without_its_wal();
    let policy = Policy {
        reclone: false,
        ..policy(1)
    };
    let first = decide(&policy, &Memory::default(), &observation);
    let tries = server(true, true);
    assert!(first.memory.believes_streaming(&tries), "nothing is known yet");
    observation.at_ms += 5_000;
    let gone = decide(&policy, &first.memory, &observation);
    assert_eq!(gone.situation, Situation::WalGone);
    assert!(!gone.memory.believes_streaming(&tries));

    let mut moved = tries;
    moved.flush_lsn = Lsn(moved.flush_lsn.0 + 1);
    assert!(
        gone.memory.believes_streaming(&moved),
        "it has received something"
    );
    observation.server = Some(moved);
    let streams = decide(&policy, &gone.memory, &observation);
    assert_eq!(
        (streams.situation, streams.memory.wal_gone_at),
        (Situation::Streaming, None)
    );
}

#[test]
fn a_killed_primary_is_started_again_at_once() {
    let status = SupervisorStatus {
        licence: Licence::Unlimited,
        ..supervisor(DataDirectory::Complete(facts()))
    };
    let decision = decide(&policy(0), &Memory::default(), &observation(0, status));
    let server = ServerRole::alone();
    assert_eq!(decision.postgres, Some(PostgresAction::Start { server }));
}

/// What a fixed primary is told, by what it was given last, the switch and the option.
#[test]
fn the_switch_is_made_known_to_those_who_connect_directly() {
    for (given, switched, wanted, told) in [
        (false, false, true, None),
        (false, true, true, Some(true)),
        (true, true, true, None),
        (true, false, true, Some(false)),
        (false, true, false, None),
        (true, true, false, Some(false)),
    ] {
        let role = if given {
            read_only_by_default()
        } else {
            ServerRole::alone()
        };
        let mut observation = primary_with_slot(1);
        observation.server = Some(server(false, false));
        let supervisor = observation.supervisor.as_mut().expect("a supervisor");
        supervisor.postmaster = running(role, true);
        observation.read_only = switched;
        let policy = Policy {
            read_only_default: wanted,
            ..policy(0)
        };
        let decision = decide(&policy, &Memory::default(), &observation);
        let expected = told.map(|read_only| PostgresAction::Reload {
            server: if read_only {
                read_only_by_default()
            } else {
                ServerRole::alone()
            },
        });
        assert_eq!(
            decision.postgres, expected,
            "given {given}, switched {switched}, wanted {wanted}"
        );
    }
}

#[test]
fn a_primary_starts_with_what_the_switch_says_and_a_failed_reload_is_not_hurried() {
    let status = SupervisorStatus {
        licence: Licence::Unlimited,
        ..supervisor(DataDirectory::Complete(facts()))
    };
    let policy = Policy {
        read_only_default: true,
        ..policy(0)
    };
    let mut observation = observation(0, status);
    observation.read_only = true;
    let server = read_only_by_default();
    let decision = decide(&policy, &Memory::default(), &observation);
    assert_eq!(
        decision.postgres,
        Some(PostgresAction::Start {
            server: server.clone()
        })
    );
    let mut observation = primary_with_slot(1);
    observation.server = Some(crate::worlds::server(false, false));
    observation.read_only = true;
    let action = PostgresAction::Reload { server };
    observation.failed_action = Some(FailedAction {
        action: action.clone(),
        message: "no space left on device".to_owned(),
        at_ms: observation.at_ms,
    });
    let failed = decide(&policy, &Memory::default(), &observation);
    assert_eq!(failed.postgres, None);
    assert!(failed.detail.contains("no space left"), "{}", failed.detail);
    observation.at_ms += 60_000;
    let again = decide(&policy, &failed.memory, &observation);
    assert_eq!(again.postgres, Some(action));
}

fn primary_with_slot(ordinal: u32) -> podgres::core::observation::Observation {
    let status = SupervisorStatus {
        licence: Licence::Unlimited,
        postmaster: running(ServerRole::alone(), true),
        ..supervisor(DataDirectory::Complete(facts()))
    };
    let mut observation = observation(0, status);
    let slot = SlotStatus {
        slot_name: format!("podgres_pg_{ordinal}"),
        active: false,
        restart_lsn: None,
        lost: false,
        safe_wal_size_bytes: None,
    };
    observation.server = Some(ServerStatus {
        slots: vec![slot],
        ..server(false, false)
    });
    observation
}

#[test]
fn row_73_the_slot_of_a_scaled_away_pod_goes_after_its_retention() {
    let mut observation = primary_with_slot(2);
    let kept = decide(&policy(0), &Memory::default(), &observation);
    assert_eq!(kept.postgres, None, "a pod may be away for a moment");
    observation.at_ms += 600_000;
    let dropped = decide(&policy(0), &kept.memory, &observation);
    assert_eq!(
        dropped.postgres,
        Some(PostgresAction::ReconcileSlots {
            expected: Vec::new(),
            advance: BTreeMap::new()
        })
    );
}

#[test]
fn a_member_that_dns_names_gets_its_slot() {
    let mut observation = primary_with_slot(1);
    observation.peers = BTreeMap::from([(Ordinal(1), holder()), (Ordinal(2), PeerView::untried())]);
    let decision = decide(&policy(0), &Memory::default(), &observation);
    let expected = vec!["podgres_pg_1".to_owned(), "podgres_pg_2".to_owned()];
    assert_eq!(
        decision.postgres,
        Some(PostgresAction::ReconcileSlots {
            expected,
            advance: BTreeMap::new()
        })
    );
}

#[test]
fn row_69_two_writable_servers_are_an_alarm_and_nothing_is_harmed() {
    let mut observation = primary_with_slot(1);
    let writable = PeerView {
        writable: true,
        ..holder()
    };
    observation.peers = BTreeMap::from([(Ordinal(1), writable)]);
    let decision = decide(&policy(0), &Memory::default(), &observation);
    assert_eq!(
        (decision.situation, decision.postgres),
        (Situation::TwoWritable, None)
    );
}

#[test]
fn changed_files_are_given_to_a_streaming_standby_and_its_upstream_stays() {
    let status = SupervisorStatus {
        postmaster: running_standby(),
        outdated: true,
        ..supervisor(DataDirectory::Complete(standby_facts()))
    };
    let mut observation = observation(1, status);
    observation.server = Some(server(true, true));
    let first = decide(&policy(1), &Memory::default(), &observation);
    assert_eq!(first.situation, Situation::Streaming);
    assert!(
        first.detail.contains("the mounted files have changed"),
        "{}",
        first.detail
    );
    let Some(PostgresAction::Reload {
        server: ServerRole::Standby {
            upstream: Some(upstream),
        },
    }) = &first.postgres
    else {
        panic!("{first:#?}");
    };
    assert_eq!(upstream.address, ADDRESS, "nobody has looked for it meanwhile");
    let asked_again = |observation: &podgres::core::observation::Observation, memory: &Memory| {
        let decision = decide(&policy(1), memory, observation);
        (decision.postgres.is_some(), decision.memory)
    };
    let (again, memory) = asked_again(&observation, &first.memory);
    assert!(!again, "a reload that changes nothing is not repeated at once");
    observation.at_ms += 500;
    let (again, memory) = asked_again(&observation, &memory);
    assert!(again, "it may have failed");
    observation.at_ms += 500;
    let (again, memory) = asked_again(&observation, &memory);
    assert!(!again, "the pauses grow");
    observation.supervisor.as_mut().expect("there is one").outdated = false;
    let (again, memory) = asked_again(&observation, &memory);
    assert!(!again && memory.reloads == 0);
    observation.supervisor.as_mut().expect("there is one").outdated = true;
    assert!(
        asked_again(&observation, &memory).0,
        "the next change has no pause before it"
    );
}

#[test]
fn a_server_that_cannot_be_asked_gets_changed_files_too() {
    for (ordinal, postmaster) in [(0, running(ServerRole::alone(), true)), (1, running_standby())] {
        let status = SupervisorStatus {
            postmaster,
            outdated: true,
            ..supervisor(DataDirectory::Complete(standby_facts()))
        };
        let decision = decide(
            &policy(ordinal),
            &Memory::default(),
            &observation(ordinal, status),
        );
        assert_eq!(decision.situation, Situation::Unresponsive);
        assert!(
            matches!(decision.postgres, Some(PostgresAction::Reload { .. })),
            "{decision:#?}"
        );
    }
}

#[test]
fn a_fresh_clone_was_called_diverged_by_facts_from_before_it() {
    let done = JobStatus {
        id: 1,
        kind: JobKind::Clone,
        upstream: None,
        state: JobState::Done,
    };
    let status = SupervisorStatus {
        job: Some(done),
        ..supervisor(DataDirectory::Complete(standby_facts()))
    };
    let mut observation = observation(1, status);
    observation.upstream = ready(forked());
    observation.upstream.looked_at_ms = observation.at_ms - 500;
    let decision = decide(&policy(1), &Memory::default(), &observation);
    assert_eq!(decision.situation, Situation::ReadyAsStandby);
    observation.upstream.looked_at_ms = observation.at_ms + 500;
    let decision = decide(&policy(1), &decision.memory, &observation);
    assert_eq!(
        decision.situation,
        Situation::Diverged,
        "and by newer facts it is"
    );
}

#[test]
fn a_standby_ahead_of_a_primary_set_back_was_cloned_over() {
    let mut observation = observation(1, supervisor(DataDirectory::Complete(standby_facts())));
    observation.upstream = ready(UpstreamFacts {
        flush_lsn: Lsn(0x100_0000),
        ..upstream_facts()
    });
    let decision = decide(&policy(1), &Memory::default(), &observation);
    assert_eq!(
        (decision.situation, decision.postgres),
        (Situation::AheadOfPrimary, None)
    );
}

#[test]
fn facts_from_while_the_supervisor_was_away_judged_a_directory() {
    let mut unseen = observation(1, supervisor(DataDirectory::Complete(standby_facts())));
    unseen.supervisor = None;
    let memory = decide(&policy(1), &Memory::default(), &unseen).memory;
    let mut seen = observation(1, supervisor(DataDirectory::Complete(standby_facts())));
    seen.upstream = ready(forked());
    seen.upstream.looked_at_ms = unseen.at_ms;
    assert_eq!(
        decide(&policy(1), &memory, &seen).situation,
        Situation::ReadyAsStandby
    );
}

#[test]
fn an_action_that_failed_was_tried_twenty_times_a_second() {
    let status = SupervisorStatus {
        licence: Licence::Unlimited,
        ..supervisor(DataDirectory::Complete(facts()))
    };
    let mut observation = observation(0, status);
    let first = decide(&policy(0), &Memory::default(), &observation);
    let action = first.postgres.expect("a start");
    observation.failed_action = Some(FailedAction {
        action: action.clone(),
        message: "invalid line".to_owned(),
        at_ms: observation.at_ms,
    });
    let second = decide(&policy(0), &first.memory, &observation);
    assert_eq!(second.postgres, None, "not at once");
    assert!(second.detail.contains("invalid line"), "{}", second.detail);
    observation.at_ms += 30_000;
    assert_eq!(
        decide(&policy(0), &second.memory, &observation).postgres,
        Some(action)
    );
}
