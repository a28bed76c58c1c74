//! A primary that is lost: who suspects, detaches, compares, claims and is promoted.

use super::*;

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

/// The primary says that it has given up: who has had an answer of the API server since believes it, and who hears of one that has.
#[test]
fn a_primary_that_left_unseen_by_the_api_server_is_believed_by_those_who_see_it() {
    type Change = fn(&mut Memory, &mut Observation);
    let unanswered: Change = |memory, observation| {
        observation.lease.answered_at_ms = memory.lease.given_up.map(|(_, heard_ms)| heard_ms - 1);
    };
    // The read that is asked for when it is heard may be sent in the same millisecond.
    let at_once: Change = |memory, observation| {
        observation.lease.answered_at_ms = memory.lease.given_up.map(|(_, heard_ms)| heard_ms);
    };
    let told_by_third: Change = |memory, observation| {
        observation.lease.answered_at_ms = memory.lease.given_up.map(|(_, heard_ms)| heard_ms - 1);
        let third = observation.peers.get_mut(&Ordinal(2)).expect("the third");
        third.leadership.as_mut().expect("its report").suspects_term = Some(TERM);
    };
    let of_before: Change = |_, observation| {
        let holder = observation.peers.get_mut(&Ordinal(0)).expect("the holder");
        holder.leadership.as_mut().expect("its report").gives_up_term = Some(TERM - 1);
    };
    let receives: Change = |_, observation| {
        observation.server.as_mut().expect("a server").receiver_streaming = true;
    };
    let cases: [(Change, bool); 6] = [
        (|_, _| {}, true),
        (unanswered, false),
        (at_once, true),
        (told_by_third, true),
        (of_before, false),
        (receives, false),
    ];
    for (number, (change, believed)) in cases.into_iter().enumerate() {
        let decision = told(&usual(&[(HolderPeer, 7), (Server, 3)]), change);
        let suspects = decision.report.expect("a report").suspects_term;
        assert_eq!(
            suspects.is_some(),
            believed,
            "case {number}: {:?}",
            decision.situation
        );
    }
    // First heard in this turn: the Lease is read.
    let first = told(&usual(&[(HolderPeer, 7), (Server, 3)]), |memory, _| {
        memory.lease.given_up = None;
    });
    assert!(first.read_lease && first.report.is_some_and(|report| report.suspects_term.is_none()));
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

/// Among equals; whoever has more comes first all the same.
#[test]
fn the_preferred_of_equals_claims() {
    for (third, own_priority, its_priority, situation) in [
        (5, 10, 0, Situation::BetterCandidate),
        (5, 10, 20, Situation::Standing),
        (6, 10, 99, Situation::BetterCandidate),
        (4, 10, 0, Situation::Standing),
    ] {
        let choice = usual(AT_REST).with(ThirdPeer, third);
        let (memory, mut observation) = (remembered(&choice), observed(&choice));
        let peer = observation.peers.get_mut(&Ordinal(2)).expect("the third");
        peer.leadership.as_mut().expect("its report").priority = Some(its_priority);
        let mut policy = lease_policy(&choice);
        policy.priority = Some(own_priority);
        let decision = decide(&policy, &memory, &observation);
        assert_eq!(
            decision.situation, situation,
            "{third}, {own_priority} and {its_priority}"
        );
    }
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
fn a_forced_failover_claimed_beside_a_primary_that_it_had_just_confirmed() {
    let forced = usual(AT_REST)
        .with(Request, 3)
        .with(Set, 6)
        .with(ThirdPeer, 0)
        .with(Age, 1);
    assert!(decided(&forced).lease.is_some());
    // It confirmed two seconds ago, or began three seconds ago and does not know what it confirmed before.
    for bound in [1, 2] {
        assert_eq!(decided(&forced.with(Bound, bound)).lease, None);
    }
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

#[test]
fn a_successor_was_promoted_onto_the_timeline_of_a_later_primary_that_its_upstream_had_become() {
    // Its upstream is stopped: nothing is received, but would be again.
    let named = usual(AT_REST).with(Promised, 1).with(Holder, 0).with(Renewal, 0);
    let decision = decided(&named.with(Licence, 2).with(Postmaster, 4));
    assert_eq!(decision.situation, Situation::Promoting);
    assert_eq!(
        decision.postgres,
        Some(PostgresAction::Detach { term: TERM }),
        "{decision:#?}"
    );
}

#[test]
fn a_successor_that_knew_only_an_old_lease_was_promoted_onto_a_later_timeline() {
    let named = usual(AT_REST).with(Promised, 1).with(Holder, 0).with(Renewal, 0);
    let decision = told(&named.with(Licence, 2), |_, observation| {
        let stored = observation.lease.stored.as_ref().expect("a record");
        observation.server.as_mut().expect("a server").timeline = stored.record.timeline;
    });
    assert_eq!(decision.situation, Situation::Resigning);
    assert_eq!(decision.postgres, None);
    assert_eq!(holder(written(&decision, LeasePurpose::Release)), None);
}

/// Decided with the option, while the cluster is read-only.
fn decided_read_only(choice: &Choice) -> Decision {
    let (memory, mut observation) = (remembered(choice), observed(choice));
    observation.read_only = true;
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

/// A standby that alone did not reach the API server took the record, which it could not see renewed, for one that had run out.
#[test]
fn under_async_a_standby_without_the_api_server_left_a_healthy_primary() {
    let old = usual(&[(Age, 1), (Set, 9), (Durability, 0)]);
    let answered = |ago_ms: u64| {
        told(&old, |_, observation| {
            observation.lease.answered_at_ms = Some(observation.at_ms - ago_ms);
        })
    };
    assert_eq!(answered(10_000).situation, Situation::Streaming);
    assert!(
        answered(10_000).read_lease,
        "it is asked whether it has been renewed"
    );
    assert_eq!(answered(100).situation, Situation::Detaching);
    let again = told(&old, |memory, observation| {
        observation.lease.answered_at_ms = Some(observation.at_ms - 10_000);
        memory.lease.asked_of = Some(observation.lease.changed_at_ms);
    });
    assert!(!again.read_lease, "and once");
}

/// The cluster was under a Lease, had a fixed primary for a while, and its members come back to the Lease one after another.
#[test]
fn a_primary_with_fixed_leadership_was_taken_for_the_replaced_holder() {
    let suspects = |fixed: bool| {
        let decision = told(&usual(&[(HolderPeer, 6)]), |_, observation| {
            let holder = observation.peers.get_mut(&Ordinal(0)).expect("the holder");
            holder.contact = podgres::core::cluster::PeerContact::Connected;
            holder.uid = "another".to_owned();
            holder.writable = true;
            if fixed {
                holder.leadership = None;
            }
        });
        decision.report.expect("a report").suspects_term
    };
    assert_eq!((suspects(false), suspects(true)), (Some(TERM), None));
}

/// A receiver for the earlier primary could begin after the position was told, as long as the startup process had not read its configuration again.
#[test]
fn a_position_was_told_as_final_before_postgresql_had_let_go_of_its_upstream() {
    let at_rest = |change: fn(&mut Memory, &Observation)| {
        let decision = told(&usual(AT_REST), |memory, observation| change(memory, observation));
        decision.report.expect("a report").final_position
    };
    assert!(at_rest(|_, _| {}).is_some());
    assert_eq!(
        at_rest(|memory, _| memory.lease.detached = None),
        None,
        "first seen"
    );
    assert_eq!(
        at_rest(
            |memory, observation| memory.lease.detached.as_mut().expect("at rest").1 = observation.at_ms - 99
        ),
        None
    );
    assert_eq!(
        at_rest(|memory, _| memory.lease.detached.as_mut().expect("at rest").0.flush_lsn.0 -= 1),
        None,
        "it has moved"
    );
}
