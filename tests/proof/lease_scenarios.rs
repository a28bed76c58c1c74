//! The story of each decision under a Lease, told once: what is seen, and what is done about it.

use podgres::core::decide::decide;
use podgres::core::decision::{Decision, Memory, PostgresAction};
use podgres::core::lease::{LeasePurpose, LeaseRecord, ReadOnlySwitch};
use podgres::core::member::Ordinal;
use podgres::core::observation::{Observation, ProbeState};
use podgres::core::policy::Policy;
use podgres::core::situation::Situation;
use podgres::core::status::HeldData;
use podgres::core::supervision::{CloneReason, JobRequest, ServerRole, StopMode};
use podgres::core::wal::Lsn;

use crate::lease_worlds::{
    Choice,
    Of::{self, *},
    TERM, lease_policy, observed, remembered, set,
};

fn decided(choice: &Choice) -> Decision {
    told(choice, |_, _| {})
}

/// With something that no choice says.
fn told(choice: &Choice, change: impl FnOnce(&mut Memory, &mut Observation)) -> Decision {
    let (mut memory, mut observation) = (remembered(choice), observed(choice));
    change(&mut memory, &mut observation);
    decide(&lease_policy(choice), &memory, &observation)
}

fn all(choice: Choice, values: &[(Of, u8)]) -> Choice {
    values
        .iter()
        .fold(choice, |choice, (of, value)| choice.with(*of, *value))
}

fn usual(values: &[(Of, u8)]) -> Choice {
    all(Choice::usual(), values)
}

fn primary(values: &[(Of, u8)]) -> Choice {
    all(Choice::primary(), values)
}

/// The primary's sidecar is silent and its WAL has stopped.
const LOST: &[(Of, u8)] = &[(HolderPeer, 4), (Server, 3)];
/// Lost, promised term 6, at rest.
const AT_REST: &[(Of, u8)] = &[(HolderPeer, 4), (Postmaster, 6), (Server, 4), (Promised, 2)];
const STOPPED: &[(Of, u8)] = &[(Postmaster, 0), (Server, 0)];

/// The last renewal is too old, and no peer confirms.
const LAPSED: &[(Of, u8)] = &[(Renewal, 2), (HolderPeer, 5), (ThirdPeer, 3)];

fn written(decision: &Decision, purpose: LeasePurpose) -> &LeaseRecord {
    let write = decision
        .lease
        .as_ref()
        .unwrap_or_else(|| panic!("no write: {decision:#?}"));
    assert_eq!(write.purpose, purpose, "{decision:#?}");
    &write.record
}

fn holder(record: &LeaseRecord) -> Option<&str> {
    record.holder.as_ref().map(|holder| holder.pod.as_str())
}

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
fn one_silent_sidecar_is_suspected_and_not_more() {
    let decision = decided(&usual(LOST));
    assert_eq!(decision.situation, Situation::Suspecting);
    assert_eq!(decision.postgres, None);
    let report = decision.report.expect("a report");
    assert_eq!((report.suspects_term, report.confirms), (Some(TERM), None));
    let streams = decided(&usual(&[(HolderPeer, 4)]));
    assert_eq!(streams.situation, Situation::Streaming, "the WAL still comes");
}

/// The primary's sidecar has said nothing for so long; its WAL as well, if the receiver still runs.
fn silent(sidecar_ms: u64, receiver_ms: Option<u64>) -> Decision {
    told(&usual(LOST), |_, observation| {
        let holder = observation
            .peers
            .get_mut(&usual(LOST).other())
            .expect("the holder");
        holder.heard_ms_ago = Some(sidecar_ms);
        let server = observation.server.as_mut().expect("a server");
        server.receiver_streaming = receiver_ms.is_some();
        server.receiver_silent_ms = receiver_ms;
    })
}

#[test]
fn a_frozen_primary_was_suspected_only_when_the_next_regular_turn_came() {
    let timeout_ms = lease_policy(&usual(LOST)).times.peer_timeout_ms;
    assert_eq!(timeout_ms, 2_000);
    for (sidecar_ms, receiver_ms, after_ms) in [
        (1_700, None, 300),
        (1_990, Some(1_700), 300),
        (2_300, Some(1_999), 1),
        (1_999, Some(2_300), 1),
        // The regular turn comes first.
        (100, Some(100), 1_000),
    ] {
        let decision = silent(sidecar_ms, receiver_ms);
        let case = (sidecar_ms, receiver_ms);
        assert_ne!(decision.situation, Situation::Suspecting, "{case:?}");
        assert_eq!(
            decision.recheck_after_ms, after_ms,
            "{case:?}: {:?}",
            decision.situation
        );
    }
    assert_eq!(silent(2_000, Some(2_000)).situation, Situation::Suspecting);
    assert_eq!(silent(2_000, Some(1_999)).postgres, None);
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
fn enough_that_suspect_detach_under_the_next_term() {
    let decision = decided(&usual(LOST).with(ThirdPeer, 3));
    assert_eq!(decision.situation, Situation::Detaching);
    assert_eq!(decision.postgres, Some(PostgresAction::Detach { term: 6 }));
}

#[test]
fn a_pledge_to_a_later_term_is_followed_by_the_others() {
    let decision = decided(&usual(AT_REST).with(ThirdPeer, 8));
    assert_eq!(decision.postgres, Some(PostgresAction::Detach { term: 7 }));
}

#[test]
fn the_one_with_less_leaves_it_to_the_one_with_more() {
    let decision = decided(&usual(AT_REST).with(ThirdPeer, 6));
    assert_eq!(decision.situation, Situation::BetterCandidate);
    assert_eq!(decision.lease, None);
}

#[test]
fn the_best_of_enough_claims_before_the_lease_has_run_out() {
    for third in [4, 5] {
        let decision = decided(&usual(AT_REST).with(ThirdPeer, third));
        assert_eq!(decision.situation, Situation::Standing);
        let record = written(&decision, LeasePurpose::Claim);
        assert_eq!((holder(record), record.term), (Some("pg-1"), 6));
        assert_eq!(
            record.synchronous,
            set(&[1, 2], 1),
            "the set stays as it was recorded"
        );
    }
}

#[test]
fn nobody_claims_alone_with_another_directory_or_without_the_will_to() {
    for values in [
        (ThirdPeer, 2),
        (ThirdPeer, 9),
        (Incarnation, 1),
        (Wishes, 1),
        (Paused, 1),
    ] {
        let decision = decided(&usual(AT_REST).with(ThirdPeer, 5).with(values.0, values.1));
        assert_eq!(decision.lease, None, "{values:?}: {:?}", decision.situation);
    }
}

#[test]
fn under_async_the_lease_must_have_run_out_and_ones_own_confirmation_too() {
    let detached = usual(AT_REST).with(Set, 9).with(Durability, 0).with(ThirdPeer, 5);
    assert_eq!(decided(&detached).lease, None, "not expired");
    let expired = detached.with(Age, 1);
    assert_eq!(
        decided(&expired.with(Bound, 1)).lease,
        None,
        "confirmed a moment ago"
    );
    assert_eq!(decided(&expired.with(Bound, 2)).lease, None, "began a moment ago");
    let decision = decided(&expired);
    assert_eq!(written(&decision, LeasePurpose::Claim).term, 6);
}

#[test]
fn a_forced_failover_waits_for_the_end_of_the_lease_and_needs_no_proof() {
    let forced = usual(AT_REST).with(Request, 3).with(Set, 6).with(ThirdPeer, 0);
    assert_eq!(decided(&forced).lease, None);
    let decision = decided(&forced.with(Age, 1));
    let record = written(&decision, LeasePurpose::Claim);
    assert_eq!((record.term, record.request.clone()), (6, None));
}

#[test]
fn who_was_named_is_licensed_first_and_then_promoted() {
    let named = usual(AT_REST).with(Promised, 1).with(Holder, 0).with(Renewal, 0);
    let until_ms = Some(1_009_000);
    assert_eq!(
        decided(&named).postgres,
        Some(PostgresAction::GrantLicence { until_ms })
    );
    let decision = decided(&named.with(Licence, 2));
    assert_eq!(decision.situation, Situation::Promoting);
    assert!(matches!(
        decision.postgres,
        Some(PostgresAction::Promote { term: TERM, .. })
    ));
    let unrenewed = decided(&all(named, LAPSED).with(Licence, 2));
    assert_eq!(unrenewed.postgres, None, "no right, no promotion");
}

/// Decided with the option, while the Lease says that the cluster is read-only.
fn decided_read_only(choice: &Choice) -> Decision {
    let (memory, mut observation) = (remembered(choice), observed(choice));
    let stored = observation.lease.stored.as_mut().expect("a record");
    stored.record.read_only = Some(ReadOnlySwitch {
        by: "alice".to_owned(),
        at: String::new(),
        reason: String::new(),
    });
    let policy = Policy {
        read_only_default: true,
        ..lease_policy(choice)
    };
    decide(&policy, &memory, &observation)
}

#[test]
fn a_failover_while_switched_to_read_only_keeps_direct_sessions_from_writing() {
    let named = usual(AT_REST).with(Promised, 1).with(Holder, 0).with(Renewal, 0);
    let promoted = decided_read_only(&named.with(Licence, 2)).postgres;
    assert!(
        matches!(promoted, Some(PostgresAction::Promote { read_only: true, .. })),
        "{promoted:?}"
    );
    let in_office = decided_read_only(&primary(&[])).postgres;
    let Some(PostgresAction::Reload {
        server:
            ServerRole::Primary {
                synchronous_standby_names,
                read_only: true,
            },
    }) = in_office
    else {
        panic!("{in_office:?}");
    };
    let given = observed(&primary(&[]))
        .server
        .expect("a server")
        .synchronous_standby_names;
    assert_eq!(
        synchronous_standby_names, given,
        "commits wait for the same as before"
    );
    let leaving = decided_read_only(&primary(&[(Request, 1)])).postgres;
    assert_eq!(
        leaving,
        Some(PostgresAction::Checkpoint),
        "a planned move goes first"
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
    let fallen = all(usual(STOPPED), &[(Directory, 3), (Upstream, 3), (Condemned, 1)]);
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
            stored.record.synchronous = set(&[0], 0);
            let both = LeaseRecord {
                synchronous: set(&[0, 2], 0),
                ..stored.record.clone()
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
            ..stored.record.clone()
        });
    });
    let Some(PostgresAction::Start {
        server: ServerRole::Primary {
            synchronous_standby_names,
            ..
        },
    }) = decision.postgres
    else {
        panic!("{decision:#?}");
    };
    assert_eq!(
        synchronous_standby_names,
        "ANY 3 (podgres_gate, \"pg-0\", \"pg-2\")"
    );
}

#[test]
fn a_switchover_makes_a_checkpoint_stops_and_names_the_successor() {
    let asked = decided(&primary(&[(Request, 1)]));
    assert_eq!(asked.situation, Situation::HandingOver);
    assert_eq!(asked.postgres, Some(PostgresAction::Checkpoint));
    let stopped = all(
        primary(STOPPED),
        &[(Directory, 2), (HandingOver, 1), (Request, 2), (HolderPeer, 5)],
    );
    let decision = decided(&stopped);
    let record = written(&decision, LeasePurpose::HandOver);
    assert_eq!((holder(record), record.term), (Some("pg-2"), 6));
    let behind = decided(&stopped.with(ThirdPeer, 4));
    assert_eq!(
        behind
            .lease
            .map(|write| write.purpose)
            .filter(|p| *p == LeasePurpose::HandOver),
        None
    );
}

#[test]
fn a_pod_that_ends_hands_over_or_gives_the_lease_back() {
    let leaving = all(primary(STOPPED), &[(Directory, 2), (Stopping, 1)]);
    assert!(
        written(&decided(&leaving), LeasePurpose::HandOver)
            .holder
            .is_some()
    );
    let alone = decided(&all(leaving, &[(HolderPeer, 5), (ThirdPeer, 0)]));
    let record = written(&alone, LeasePurpose::Release);
    assert_eq!((holder(record), record.released_by), (None, Some(Ordinal(1))));
    let crashed = decided(&all(leaving, &[(HolderPeer, 5), (ThirdPeer, 0), (Directory, 3)]));
    assert_eq!(
        written(&crashed, LeasePurpose::Release).released_by,
        None,
        "not cleanly"
    );
}

#[test]
fn paused_nobody_takes_over_and_what_others_stopped_stays_stopped() {
    let lost = decided(&usual(LOST).with(ThirdPeer, 3).with(Paused, 1));
    assert_eq!(lost.postgres, None);
    let closed = all(primary(STOPPED), &[(Postmaster, 1), (Paused, 1), (Licence, 2)]);
    assert_eq!(decided(&closed).situation, Situation::Paused);
}

#[test]
fn an_earlier_pod_of_this_name_is_waited_for() {
    let back = all(usual(STOPPED), &[(Holder, 1), (Directory, 3), (Held, 2)]);
    assert_eq!(decided(&back).situation, Situation::AwaitingExpiry);
    let decision = decided(&back.with(Age, 1));
    assert_eq!(written(&decision, LeasePurpose::Claim).term, 6);
}

#[test]
fn a_volume_lost_while_it_held_the_lease_gives_the_lease_back() {
    let decision = decided(&all(primary(STOPPED), &[(Directory, 0)]));
    assert_eq!(decision.situation, Situation::HolderWithoutData);
    assert_eq!(holder(written(&decision, LeasePurpose::Release)), None);
}

#[test]
fn a_deleted_lease_is_written_again_by_the_primary_in_office() {
    let deleted = primary(&[(Holder, 5), (HolderPeer, 6)]);
    let decision = told(&deleted, |memory, observation| {
        let mine = crate::lease_worlds::record(&deleted.with(Holder, 0));
        memory.lease.record = Some(mine);
        observation.lease.stored = None;
    });
    assert_eq!(decision.situation, Situation::LeaseMissing);
    let unread = decided(&primary(&[(Holder, 6)]));
    assert_eq!((unread.lease, unread.postgres), (None, None));
}

/// Recorded are pg-1 itself and pg-2, as after a takeover; pg-0 streams as well.
#[test]
fn a_synchronous_set_changes_in_steps() {
    let after_takeover = primary(&[(Set, 5), (Told, 0)]);
    let unmarked = told(&after_takeover, |_, observation| observation.barrier = None);
    assert!(
        matches!(&unmarked.postgres, Some(PostgresAction::Barrier { .. })),
        "{unmarked:#?}"
    );
    let behind = told(&after_takeover, |_, observation| {
        let barrier = observation.barrier.as_mut().expect("a barrier");
        barrier.lsn.0 += 1 << 20;
    });
    assert_eq!(behind.situation, Situation::ChangingSynchronousSet);
    // They have yet to catch up: until then everybody that is told or recorded counts.
    assert_eq!(
        written(&behind, LeasePurpose::Record).synchronous,
        set(&[0, 1, 2], 1)
    );
    let recorded = decided(&after_takeover);
    assert_eq!(
        written(&recorded, LeasePurpose::Record).synchronous,
        set(&[0, 2], 1)
    );
    let loosened = decided(&primary(&[(Set, 6), (Told, 2)]));
    let Some(PostgresAction::Reload {
        server: ServerRole::Primary {
            synchronous_standby_names,
            ..
        },
    }) = loosened.postgres
    else {
        panic!("{loosened:#?}");
    };
    assert_eq!(
        synchronous_standby_names,
        "ANY 2 (podgres_gate, \"pg-0\", \"pg-2\")"
    );
    let settled = decided(&primary(&[(Set, 6), (Told, 0)]));
    assert_eq!((settled.situation, settled.lease), (Situation::Primary, None));
}

#[test]
fn a_new_cluster_begins_with_the_lease_and_only_in_the_first_ordinal() {
    let empty = all(usual(STOPPED), &[(Directory, 0), (Holder, 5), (Peers, 1)]);
    assert_eq!(decided(&empty).lease, None, "pg-1 waits");
    let decision = decided(&empty.with(Me, 1));
    assert_eq!(holder(written(&decision, LeasePurpose::Claim)), Some("pg-0"));
    let held = all(empty.with(Me, 1), &[(Holder, 0), (Identifier, 1), (Renewal, 0)]);
    let decision = decided(&held);
    assert_eq!(
        decision.postgres,
        Some(PostgresAction::Run {
            job: JobRequest::Initdb
        })
    );
}

#[test]
fn changed_files_reached_no_server_under_a_lease() {
    let outdated = |_: &mut Memory, observation: &mut Observation| {
        observation.supervisor.as_mut().expect("there is one").outdated = true;
    };
    for choice in [usual(&[]), primary(&[])] {
        let quiet = decided(&choice);
        let decision = told(&choice, outdated);
        assert_eq!(decision.situation, quiet.situation);
        let Some(PostgresAction::Reload { server }) = decision.postgres else {
            panic!("{decision:#?}");
        };
        let observation = observed(&choice);
        let supervisor = observation.supervisor.expect("there is one");
        let podgres::core::supervision::Postmaster::Running { role, .. } = supervisor.postmaster else {
            panic!("it runs");
        };
        assert_eq!(
            server, role,
            "as it runs, its synchronous set and upstream included"
        );
    }
    let lost = usual(LOST).with(ThirdPeer, 3);
    let quiet = decided(&lost);
    assert!(quiet.postgres.is_some(), "{quiet:#?}");
    assert_eq!(
        told(&lost, outdated).postgres,
        quiet.postgres,
        "what has to be done comes first"
    );
}
