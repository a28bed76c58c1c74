//! The primary in office: its right, and what ends it.

use super::*;

#[test]
fn a_holder_renews_in_time_and_not_before() {
    let early = decided(&primary(&[]));
    assert_eq!(
        early
            .lease
            .map(|write| write.purpose)
            .filter(|p| *p == LeasePurpose::Renew),
        None
    );
    let due = decided(&primary(&[
        (Renewal, 1),
        (Set, 8),
        (Durability, 0),
        (Paused, 1),
        (Server, 0),
    ]));
    assert_eq!(holder(written(&due, LeasePurpose::Renew)), Some("pg-1"));
}

#[test]
fn a_primary_whose_disk_hangs_leaves_as_soon_as_others_can_prove_everything() {
    let failing = |for_ms: u64, values: &[(Of, u8)]| {
        told(&primary(values).with(Set, 6), |_, observation| {
            let supervisor = observation.supervisor.as_mut().expect("a supervisor");
            supervisor.disk_failing_since_ms = Some(observation.at_ms - for_ms);
            for peer in observation.peers.values_mut() {
                peer.held_data = HeldData::Some;
            }
        })
    };
    let lost = failing(4_100, &[]);
    assert_eq!(lost.situation, Situation::Resigning);
    let record = written(&lost, LeasePurpose::Release);
    assert_eq!((holder(record), record.released_by), (None, None));
    let moment = failing(3_900, &[]);
    assert_eq!(moment.lease, None, "a moment is waited, and nothing is renewed");
    let alone = failing(9_000, &[(HolderPeer, 5), (ThirdPeer, 3)]);
    assert_eq!(alone.lease, None, "nobody could take over, and it is not renewed");
}

/// Else a sidecar that finds the Lease deleted would not know that it was primary in this term.
#[test]
fn a_primary_writes_the_term_down_that_it_began_itself() {
    let behind = decided(&primary(&[(Held, 1)]));
    assert_eq!(behind.postgres, Some(PostgresAction::Hold { term: TERM }));
    assert_ne!(decided(&primary(&[])).postgres, behind.postgres);
}

/// It claimed, gave back, and claimed again once that had expired.
#[test]
fn a_last_primary_whose_disk_hangs_claimed_the_lease_again_and_again() {
    let back = |for_ms: u64| {
        let world = all(
            usual(STOPPED),
            &[(Holder, 1), (Age, 1), (Directory, 3), (Held, 2), (Set, 6)],
        );
        told(&world, |_, observation| {
            let supervisor = observation.supervisor.as_mut().expect("a supervisor");
            supervisor.disk_failing_since_ms = Some(observation.at_ms - for_ms);
            for peer in observation.peers.values_mut() {
                peer.held_data = HeldData::Some;
            }
        })
    };
    assert_eq!(
        back(100).lease.map(|write| write.purpose),
        Some(LeasePurpose::Claim)
    );
    let lost = back(4_100);
    assert_eq!((lost.situation, lost.lease), (Situation::NoCandidate, None));
}

/// Simulator (seed 640674956728): it resigned after three failed starts, nobody could take over, and each time it claimed again it resigned at once.
#[test]
fn a_last_primary_that_claimed_again_was_given_no_start() {
    let world = all(
        usual(STOPPED),
        &[(Holder, 1), (Age, 1), (Directory, 3), (Held, 2), (Set, 6)],
    );
    let back = told(&world, |memory, _| memory.failures = 3);
    assert_eq!(holder(written(&back, LeasePurpose::Claim)), Some("pg-1"));
    assert_eq!(back.memory.failures, 0);
}

/// Chaos (seed 4150611631675991154): with a short right the licence had run out before the disk counted as lost. PostgreSQL was stopped, and its
/// sidecar kept the Lease, which nobody takes from one that answers, until the disk came back.
#[test]
fn a_primary_that_was_stopped_before_its_disk_counted_as_lost_kept_the_lease() {
    let failing = |for_ms: u64, values: &[(Of, u8)]| {
        told(
            &all(primary(values), &[(Set, 6), (Renewal, 2)]),
            |_, observation| {
                let supervisor = observation.supervisor.as_mut().expect("a supervisor");
                supervisor.disk_failing_since_ms = Some(observation.at_ms - for_ms);
                for peer in observation.peers.values_mut() {
                    peer.held_data = HeldData::Some;
                }
            },
        )
    };
    for state in [
        STOPPED,
        &[(Postmaster, 3), (Server, 0)],
        // A planned move or the end of the pod, with the last checkpoint to come; and what can no longer be read.
        &[(Postmaster, 8), (Server, 0), (HandingOver, 1)],
        &[(Postmaster, 8), (Server, 0), (Stopping, 1)],
        &[(Stopping, 1)],
        &[(Postmaster, 0), (Server, 0), (Directory, 1)],
    ] {
        let lost = failing(4_100, state);
        assert_eq!(lost.situation, Situation::Resigning);
        assert_eq!(holder(written(&lost, LeasePurpose::Release)), None);
        let waiting = failing(3_900, state).lease.map(|write| write.purpose);
        assert_ne!(waiting, Some(LeasePurpose::Release), "a moment is waited");
    }
}

/// A directory that could not be read, or only by programs of another version: nobody else stood while the sidecar answered.
#[test]
fn a_holder_that_could_not_open_what_it_had_kept_the_lease() {
    let closed = all(primary(STOPPED), &[(Set, 6), (Renewal, 2)]);
    for directory in [1, 8] {
        let decide = |down: u8| {
            let choice = closed.with(Directory, directory).with(Down, down);
            told(&choice, |_, observation| {
                for peer in observation.peers.values_mut() {
                    peer.held_data = HeldData::Some;
                }
            })
        };
        let purpose = |down: u8| decide(down).lease.map(|write| write.purpose);
        assert_eq!(purpose(1), Some(LeasePurpose::Release), "{:#?}", decide(1));
        assert_ne!(purpose(0), Some(LeasePurpose::Release));
    }
}

/// Under `async` nobody took over from a primary whose PostgreSQL failed every start: the Lease was let run out, and the peers' confirmations
/// took its place.
#[test]
fn a_primary_that_did_not_start_was_kept_in_office_by_its_peers() {
    let down = |for_ms: u64| {
        let stopped = all(primary(STOPPED), &[(Set, 0), (Durability, 2), (Renewal, 2)]);
        told(&stopped, |memory, observation| {
            memory.lease.down_since_ms = Some(observation.at_ms - for_ms);
        })
    };
    let limit_ms = lease_policy(&primary(STOPPED)).times.recovery_timeout_ms;
    let (while_it_may, after) = (down(limit_ms), down(limit_ms + 1));
    assert!(!while_it_may.memory.lease.beats.is_empty(), "{while_it_may:#?}");
    assert!(after.memory.lease.beats.is_empty());
    assert_eq!(after.report.expect("a report").office, None);
}

/// It waited for the primary to hand over, which did not run, and the primary for its PostgreSQL: until the request was withdrawn.
#[test]
fn a_forced_failover_and_a_primary_that_did_not_start_waited_for_each_other() {
    let asked = |for_ms: u64, values: &[(Of, u8)]| {
        let stopped = all(primary(STOPPED), &[(Directory, 3), (Set, 0), (Durability, 2)]);
        told(&all(stopped, values), |memory, observation| {
            memory.lease.down_since_ms = Some(observation.at_ms - for_ms);
        })
    };
    let forced = &[(Request, 4)];
    let resigned = asked(4_000, forced);
    assert_eq!(resigned.situation, Situation::Resigning);
    let record = written(&resigned, LeasePurpose::Release);
    assert_eq!((holder(record), record.released_by), (None, None));
    assert!(record.request.is_some(), "the other still has to be told");
    // A moment is given to a start; a switchover waits for a primary that runs; without a request it stays in office.
    for other in [
        asked(3_999, forced),
        asked(4_000, &[(Request, 2)]),
        asked(4_000, &[]),
    ] {
        assert_ne!(other.situation, Situation::Resigning, "{other:#?}");
    }
    let starting = |for_ms: u64, values: &[(Of, u8)]| {
        let world = all(primary(&[(Postmaster, 3), (Server, 0), (Set, 0)]), values);
        told(&world, |memory, observation| {
            memory.lease.down_since_ms = Some(observation.at_ms - for_ms);
        })
    };
    let limit_ms = lease_policy(&primary(STOPPED)).times.recovery_timeout_ms;
    let stop = Some(PostgresAction::Stop {
        mode: StopMode::Immediate,
    });
    assert_eq!(starting(limit_ms + 1, forced).postgres, stop);
    assert_eq!(
        starting(limit_ms, forced).postgres,
        None,
        "recovery may take so long"
    );
    assert_eq!(starting(limit_ms + 1, &[]).postgres, None);
}

/// Chaos under `preferred` (seed 12581071783132505159): on a busy machine a primary that nobody could replace was stopped as soon as it
/// was ready, since the time was counted from the first failure on.
#[test]
fn a_slow_primary_was_stopped_again_as_soon_as_it_was_ready() {
    let unanswered = |for_ms: u64, values: &[(Of, u8)]| {
        told(
            &primary(values).with(Set, 0).with(Server, 0),
            |memory, observation| {
                memory.lease.down_since_ms = Some(observation.at_ms - 60_000);
                memory.lease.unanswered_since_ms = Some(observation.at_ms - for_ms);
            },
        )
    };
    let just = unanswered(1_000, &[]);
    assert_eq!((just.situation, just.postgres), (Situation::Unresponsive, None));
    let slow = unanswered(9_000, &[]);
    assert_eq!((slow.situation, slow.postgres), (Situation::Unresponsive, None));
    let mode = StopMode::Immediate;
    assert_eq!(
        unanswered(16_000, &[]).postgres,
        Some(PostgresAction::Stop { mode })
    );
    // Each postmaster has its own time.
    let starting = unanswered(16_000, &[(Postmaster, 1)]);
    assert_eq!(starting.memory.lease.unanswered_since_ms, None);
}

#[test]
fn a_killed_primary_is_opened_again_while_its_right_lasts() {
    let closed = all(primary(STOPPED), &[(Licence, 2)]);
    let decision = decided(&closed);
    assert_eq!(decision.situation, Situation::Reopening);
    assert!(matches!(
        &decision.postgres,
        Some(PostgresAction::Start {
            server: ServerRole::Primary { .. }
        })
    ));
    assert_eq!(decided(&all(closed, LAPSED)).postgres, None);
}

/// Its PostgreSQL has failed to start three times. Recorded are pg-0 and pg-2, of which two are needed for a proof.
#[test]
fn a_primary_that_did_not_start_resigned_again_and_again_where_nobody_could_take_over() {
    fn report(observation: &mut Observation, of: u32) -> &mut LeadershipReport {
        let peer = observation.peers.get_mut(&Ordinal(of)).expect("a peer");
        peer.leadership.as_mut().expect("a report")
    }
    let closed = all(primary(STOPPED), &[(Licence, 2), (Set, 6)]);
    let situation = |change: fn(&mut Observation)| {
        let decision = told(&closed, |memory, observation| {
            memory.failures = 3;
            change(observation);
        });
        decision.situation
    };
    assert_eq!(situation(|_| ()), Situation::Resigning);
    let cloned = situation(|observation| {
        report(observation, 2).incarnation = Some(lease::Incarnation("new".into()));
    });
    assert_ne!(cloned, Situation::Resigning, "it is not the one that is recorded");
    let unwilling = situation(|observation| {
        report(observation, 0).priority = None;
        report(observation, 2).priority = None;
    });
    assert_ne!(unwilling, Situation::Resigning, "no candidate");
}

#[test]
fn a_primary_without_a_right_closes_the_gate() {
    let decision = decided(&all(primary(LAPSED), &[(Set, 6)]));
    assert_eq!(decision.situation, Situation::RightLapsed);
    assert_eq!(decision.postgres, None);
    assert_eq!(decision.gate_until_ms, 999_000, "since a second ago");
    let deposed = decided(&primary(&[(Holder, 2)]));
    assert_eq!(deposed.situation, Situation::LostOffice);
    assert_eq!(deposed.gate_until_ms, 0);
    assert_eq!(
        deposed.postgres,
        Some(PostgresAction::Stop { mode: StopMode::Fast })
    );
}

#[test]
fn a_primary_stays_on_its_peers_confirmations_while_the_api_is_away() {
    let away = primary(&[(Set, 6), (Renewal, 2), (Confirmed, 1)]);
    let decision = decided(&away);
    assert_eq!(decision.situation, Situation::OnConfirmations, "{decision:#?}");
    assert!(decision.gate_until_ms > 1_000_000);
}

/// The second standby would stand under the record that may be there: its confirmation is needed as well.
#[test]
fn confirmations_count_under_every_record_that_may_be_there() {
    let away = primary(&[(Set, 6), (Durability, 0), (Renewal, 2), (ThirdPeer, 3)]);
    let until = |uncertain: bool| {
        let decision = told(&away, |_, observation| {
            let stored = observation.lease.stored.as_mut().expect("a record");
            std::sync::Arc::make_mut(&mut stored.record).synchronous = set(&[0], 0);
            let both = LeaseRecord {
                synchronous: set(&[0, 2], 0),
                ..(*stored.record).clone()
            };
            observation.lease.uncertain = uncertain.then_some(both);
        });
        decision.gate_until_ms
    };
    assert!(until(false) > 1_000_000, "the only one confirms");
    assert_eq!(until(true), 1_000_000 - 1_000, "only what is left of the renewal");
}

/// The answer to a hand-over was lost: the successor may be in office already.
#[test]
fn a_hand_over_without_an_answer_ends_the_right() {
    let closed = all(primary(STOPPED), &[(Directory, 2), (Licence, 2)]);
    assert!(decided(&closed).postgres.is_some());
    let lost = decided(&closed.with(Write, 3));
    assert_eq!(lost.postgres, None);
    assert_eq!(decided(&primary(&[(Write, 3)])).gate_until_ms, 0);
}

#[test]
fn a_hand_over_under_way_is_not_given_up() {
    let moving = all(
        primary(STOPPED),
        &[
            (Directory, 2),
            (HandingOver, 1),
            (Down, 1),
            (HolderPeer, 5),
            (ThirdPeer, 1),
        ],
    );
    let given_up = decided(&moving);
    assert_eq!(given_up.memory.lease.handing_over, None);
    let writing = decided(&moving.with(Write, 1));
    assert!(writing.memory.lease.handing_over.is_some());
}

#[test]
fn a_restarted_primary_waits_for_those_that_an_unanswered_record_names_too() {
    let closed = all(primary(STOPPED), &[(Licence, 2), (Set, 1)]);
    let decision = told(&closed, |_, observation| {
        let stored = observation.lease.stored.as_ref().expect("a record");
        observation.lease.uncertain = Some(LeaseRecord {
            synchronous: set(&[2], 1),
            ..(*stored.record).clone()
        });
    });
    assert_eq!(waits_for(&decision), "ANY 3 (podgres_gate, \"pg-0\", \"pg-2\")");
}

#[test]
fn a_standby_that_had_connected_again_was_judged_by_the_wal_sender_that_it_had_left() {
    let decision = told(&primary(&[(Set, 6)]), |_, observation| {
        let rows = &mut observation.server.as_mut().expect("a server").replication;
        let mut left = rows[0].clone();
        left.state = "catchup".to_owned();
        rows.insert(0, left);
    });
    let streamed = decision.memory.lease.streamed_at_ms;
    assert_eq!(
        streamed.keys().copied().collect::<Vec<_>>(),
        [Ordinal(0), Ordinal(2)]
    );
}

/// `ALTER SYSTEM SET synchronous_standby_names` and a reload: commits waited for nobody, for good.
#[test]
fn a_primary_that_was_told_otherwise_is_told_again() {
    let otherwise = |for_ms: u64| {
        told(&primary(&[]), |memory, observation| {
            let server = observation.server.as_mut().expect("a server");
            server.synchronous_standby_names = String::new();
            memory.lease.names_in_force = Some((String::new(), observation.at_ms - for_ms));
        })
    };
    let (moment, again) = (otherwise(999), otherwise(1_000));
    assert_eq!(moment.postgres, None, "a reload takes a moment");
    assert!(!waits_for(&again).is_empty());
    let (_, since_ms) = again.memory.lease.names_in_force.expect("what is in force");
    assert!(
        since_ms > moment.memory.lease.names_in_force.expect("the same").1,
        "once a second"
    );
}

/// An answer of DNS that named nobody took every standby from the record at once, although they streamed.
#[test]
fn dns_that_named_nobody_for_a_moment_emptied_the_synchronous_set() {
    for durability in [1, 2] {
        let decision = told(&primary(&[(Durability, durability)]), |_, observation| {
            observation.peers.clear();
        });
        let recorded = decision.lease.map(|write| write.record.synchronous);
        let emptied = recorded.is_some_and(|set| set.members.is_empty() || set.quorum == 0);
        assert!(!emptied, "{durability}");
        assert_eq!(decision.postgres, None, "{durability}: nothing is told");
    }
}
