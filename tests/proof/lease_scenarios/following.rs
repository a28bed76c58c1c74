//! Standbys: whom they follow, and what becomes of WAL that their primary lacks.

use super::*;

#[test]
fn a_standby_that_streams_stays_where_it_is() {
    let decision = decided(&usual(&[]));
    assert_eq!(decision.situation, Situation::Streaming);
    assert_eq!((decision.postgres, decision.lease), (None, None));
}

#[test]
fn a_former_primarys_failover_slots_make_room_for_the_primarys_once_it_streams() {
    let with_slot = |observation: &mut Observation| {
        let server = observation.server.as_mut().expect("a server");
        server.superseded_slots = vec!["orders".to_owned()];
    };
    let streaming = told(&usual(&[]), |_, observation| with_slot(observation));
    let names = vec!["orders".to_owned()];
    assert_eq!(streaming.postgres, Some(PostgresAction::DropSlots { names }));
    let lost = told(&usual(&[(HolderPeer, 4), (Server, 2)]), |_, observation| {
        with_slot(observation);
    });
    assert!(
        !matches!(lost.postgres, Some(PostgresAction::DropSlots { .. })),
        "{lost:#?}"
    );
}

#[test]
fn a_detached_standby_follows_the_new_primary_that_contains_it() {
    let detached = usual(&[(Postmaster, 6), (Server, 4)]);
    let decision = decided(&detached);
    assert!(
        matches!(
            &decision.postgres,
            Some(PostgresAction::Reload {
                server: ServerRole::Standby { upstream: Some(_) }
            })
        ),
        "{decision:#?}"
    );
    for (upstream, why) in [
        (3, "forked"),
        (4, "ahead"),
        (5, "looked at before"),
        (7, "foreign"),
    ] {
        let decision = decided(&detached.with(Upstream, upstream));
        assert!(
            !matches!(decision.postgres, Some(PostgresAction::Reload { .. })),
            "{why}"
        );
    }
    let bound = decided(&detached.with(Promised, 2));
    assert_eq!(bound.postgres, None, "a promise binds");
}

#[test]
fn a_holder_that_is_about_to_be_promoted_is_followed_once_it_is_bound_to_its_term() {
    let choice = usual(&[(Postmaster, 6), (Server, 4), (Upstream, 6)]);
    let follows = |decision: &Decision| matches!(decision.postgres, Some(PostgresAction::Reload { .. }));
    assert!(follows(&decided(&choice)));
    let unbound = told(&choice, |_, observation| {
        for peer in observation.peers.values_mut() {
            if let Some(report) = &mut peer.leadership {
                report.promised_term = TERM - 1;
            }
        }
    });
    assert!(!follows(&unbound), "WAL of an earlier term may still reach it");
    let behind = told(&choice, |_, observation| {
        if let ProbeState::Ready { facts } = &mut observation.upstream.probe {
            facts.flush_lsn = Lsn(1);
        }
    });
    assert!(!follows(&behind), "it has less than this standby");
}

#[test]
fn a_former_primary_is_rewound_and_cloned_only_when_that_was_refused() {
    let fallen = all(usual(STOPPED), &[(Directory, 3), (Held, 1), (Upstream, 3)]);
    let rewound = decided(&fallen);
    assert_eq!(rewound.situation, Situation::ReadyToRewind);
    assert!(matches!(
        rewound.postgres,
        Some(PostgresAction::Run {
            job: JobRequest::Rewind { .. }
        })
    ));
    let refused = told(&fallen, |memory, _| {
        memory.condemned = Some(CloneReason::NotRewound);
    });
    assert!(matches!(
        refused.postgres,
        Some(PostgresAction::Run {
            job: JobRequest::Clone { .. }
        })
    ));
    let paused = decided(&fallen.with(Paused, 1));
    assert_eq!((paused.situation, paused.postgres), (Situation::Paused, None));
}

/// It was judged as a standby; since then it has been primary and may have what nobody else has.
#[test]
fn a_former_primary_is_not_cloned_over_for_an_old_judgement() {
    let fallen = all(
        usual(STOPPED),
        &[(Directory, 3), (Held, 1), (Upstream, 3), (Condemned, 1)],
    );
    let decision = decided(&fallen);
    assert!(matches!(
        decision.postgres,
        Some(PostgresAction::Run {
            job: JobRequest::Rewind { .. }
        })
    ));
}

#[test]
fn what_a_standby_has_more_than_its_primary_is_kept() {
    let decision = decided(&usual(&[(Postmaster, 6), (Server, 4), (Upstream, 4)]));
    assert_eq!(
        (decision.situation, decision.postgres),
        (Situation::AheadOfPrimary, None)
    );
}

/// It was rewound to a primary that lost office before its WAL had come, and that is primary again, on a timeline that branched off before.
#[test]
fn a_rewound_standby_waited_for_ever_for_wal_that_its_upstream_no_longer_had() {
    let attached = usual(&[(Postmaster, 5), (Server, 0)]);
    let waiting = decided(&attached);
    assert_eq!((waiting.situation, waiting.postgres), (Situation::Starting, None));
    let decision = decided(&attached.with(Upstream, 3));
    assert_eq!(decision.situation, Situation::Diverged, "{decision:#?}");
    let mode = StopMode::Fast;
    assert_eq!(decision.postgres, Some(PostgresAction::Stop { mode }));
}

fn upstream_given(decision: &Decision) -> Option<&podgres::core::supervision::Upstream> {
    match &decision.postgres {
        Some(PostgresAction::Start { server } | PostgresAction::Reload { server }) => match server {
            ServerRole::Standby { upstream } => upstream.as_ref(),
            ServerRole::Primary { .. } => None,
        },
        _ => None,
    }
}

/// Its control file vouched for less than it had, and what it had more was another primary's: the new one took its word for a confirmation.
#[test]
fn a_stopped_standby_was_started_attached_though_its_wal_had_not_been_looked_into() {
    let stopped = decided(&all(usual(STOPPED), &[(Directory, 4)]));
    assert_eq!(stopped.situation, Situation::ReadyAsStandby, "{stopped:#?}");
    assert_eq!(upstream_given(&stopped), None);
    let copy = decided(&all(usual(STOPPED), &[(Directory, 5)]));
    assert_eq!(copy.situation, Situation::ReadyAsStandby, "{copy:#?}");
    assert!(upstream_given(&copy).is_some(), "its files need its source's WAL");
}

#[test]
fn a_starting_standby_was_given_an_upstream_that_counted_its_word_before_it_could_be_asked() {
    let starting = usual(&[(Postmaster, 7), (Server, 0)]);
    let for_ms = |waited_ms: u64| {
        told(&starting, |memory, observation| {
            memory.lease.starting_since_ms = Some(observation.at_ms - waited_ms);
            observation.upstream.looked_at_ms = observation.at_ms;
        })
    };
    let replaying = for_ms(4_999);
    assert_eq!(
        (replaying.situation, upstream_given(&replaying)),
        (Situation::Starting, None)
    );
    let waiting = for_ms(5_000);
    let name = upstream_given(&waiting).and_then(|upstream| upstream.application_name.clone());
    assert_eq!(
        name,
        Some(format!("pg-{}_joining", starting.me())),
        "{waiting:#?}"
    );
}

/// It had handed over and stopped, and the one that it had handed over to was lost: nobody else could say what the cluster had.
#[test]
fn the_one_witness_of_a_hand_over_stayed_down() {
    let witness = all(
        usual(STOPPED),
        &[
            (Directory, 2),
            (Held, 1),
            (Set, 4),
            (HolderPeer, 4),
            (Upstream, 0),
        ],
    );
    let decision = decided(&witness);
    assert_eq!(decision.situation, Situation::ReadyAsStandby, "{decision:#?}");
    assert_eq!(upstream_given(&decision), None);
    assert!(matches!(decision.postgres, Some(PostgresAction::Start { .. })));
    for (of, value, why) in [
        (HolderPeer, 0, "the other is there"),
        (Incarnation, 1, "it is another directory than the one recorded"),
        (Directory, 3, "it did not stop cleanly"),
    ] {
        let decision = decided(&witness.with(of, value));
        assert_eq!(
            decision.situation,
            Situation::AwaitingPrimary,
            "{why}: {decision:#?}"
        );
    }
}
