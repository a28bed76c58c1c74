//! Planned moves, pauses, changes of the set, beginnings.

use podgres::core::cluster::PeerContact;
use podgres::core::observation::PeerView;
use podgres::core::wal::TimelineId;

use super::*;

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
    for (preferred, other) in [(0, 2), (2, 0)] {
        let choice = leaving.with(HolderPeer, 6);
        let decision = told(&choice, |_, observation| {
            let flushed = observation.peers.values().filter_map(|peer| peer.flush_lsn).max();
            for (ordinal, peer) in &mut observation.peers {
                peer.flush_lsn = flushed;
                let wanted = if ordinal.0 == preferred { 1 } else { 5 };
                peer.leadership.as_mut().expect("its report").priority = Some(wanted);
            }
        });
        let to = format!("pg-{preferred}");
        let record = written(&decision, LeasePurpose::HandOver);
        assert_eq!(
            holder(record),
            Some(to.as_str()),
            "and not pg-{other}, which has as much"
        );
    }
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

/// It has less than the standbys that confirmed commits, and its timeline's number may be given to another one: neither primary nor standby.
#[test]
fn a_directory_from_a_backup_was_taken_for_the_last_primarys_or_a_standbys() {
    let restored = all(usual(STOPPED), &[(Directory, 2), (Age, 1)]);
    for holder in [1, 2, 3, 4, 7] {
        let restored = restored.with(Holder, holder);
        let decision = decided(&restored);
        assert_eq!(decision.situation, Situation::Restored, "{holder}");
        assert_eq!((decision.postgres, decision.lease), (None, None), "{holder}");
    }
    let never_confirmed = decided(&restored.with(Holder, 1).with(Set, 0));
    assert_eq!(written(&never_confirmed, LeasePurpose::Claim).term, 6);
    // Beside a primary that nobody confirmed for it was started as a standby of other WAL.
    let beside = decided(&restored.with(Holder, 2).with(Set, 0));
    assert_eq!((beside.situation, beside.postgres), (Situation::Restored, None));
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
        memory.lease.record = Some(mine.into());
        observation.lease.stored = None;
    });
    assert_eq!(decision.situation, Situation::LeaseMissing);
    let unread = decided(&primary(&[(Holder, 6)]));
    assert_eq!((unread.lease, unread.postgres), (None, None));
}

/// The last primary, stopped: any member that is silent, or hears nothing of its own supervisor, may have promised a later term.
#[test]
fn a_deleted_lease_is_made_anew_once_every_member_has_been_heard() {
    let deleted = all(
        usual(STOPPED),
        &[(Holder, 5), (Directory, 3), (Held, 2), (Promised, 1)],
    );
    let made = |change: fn(&mut PeerView)| {
        let decision = told(&deleted, |memory, observation| {
            memory.lease.record = None;
            for peer in observation.peers.values_mut() {
                peer.contact = PeerContact::Connected;
                peer.held_data = HeldData::Some;
            }
            observation
                .peers
                .get_mut(&Ordinal(2))
                .map(change)
                .expect("the third");
        });
        (decision.lease.is_some(), decision.situation)
    };
    assert!(made(|_| {}).0, "{:?}", made(|_| {}).1);
    assert_eq!(
        made(|peer| peer.leadership = None),
        (false, Situation::LeaseMissing)
    );
    assert_eq!(
        made(|peer| peer.contact = PeerContact::TimedOut),
        (false, Situation::LeaseMissing)
    );
    // A former primary that was up first, with a later one's standby beside it.
    let later = |peer: &mut PeerView| {
        (peer.system_identifier, peer.timeline) = (Some(crate::worlds::OWN), Some(TimelineId(99)));
    };
    assert_eq!(made(later), (false, Situation::LeaseMissing));
}

#[test]
fn a_deleted_lease_was_written_again_though_a_lost_write_had_let_another_claim() {
    let silent = &[(HolderPeer, 5), (ThirdPeer, 1)][..];
    // Of the same two, whom the known record asks for none (10) or one (6); commits wait for one of them (1) or for nobody (3).
    for (set, told_to, peers, written) in [
        (6, 1, &[][..], true),
        (6, 1, silent, false),
        (10, 1, &[], true),
        (10, 1, silent, false),
        (10, 3, silent, true),
    ] {
        let deleted = all(primary(&[(Holder, 5), (Set, set), (Told, told_to)]), peers);
        let decision = told(&deleted, |memory, observation| {
            let mine = crate::lease_worlds::record(&deleted.with(Holder, 0));
            memory.lease.record = Some(mine.into());
            observation.lease.stored = None;
        });
        assert_eq!(
            decision.lease.is_some(),
            written,
            "{set} {told_to}: {decision:#?}"
        );
    }
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
    let just_told = told(&after_takeover, |memory, observation| {
        observation.barrier = None;
        memory.lease.names_in_force = None;
    });
    assert_eq!(
        just_told.postgres, None,
        "a WAL sender may not know the setting yet"
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
    assert_eq!(waits_for(&loosened), "ANY 2 (podgres_gate, \"pg-0\", \"pg-2\")");
    let settled = decided(&primary(&[(Set, 6), (Told, 0)]));
    assert_eq!((settled.situation, settled.lease), (Situation::Primary, None));
}

/// For as long as its slot was kept, ten minutes, each restart of a standby cost writes.
#[test]
fn a_member_that_was_scaled_away_had_two_others_waited_for_in_its_place() {
    let of_four = primary(&[(Set, 8), (Told, 2)]);
    let missing_for = |missing_ms: u64, members: &[u32]| {
        told(&of_four, |memory, observation| {
            let stored = observation.lease.stored.as_mut().expect("a record");
            let record = std::sync::Arc::make_mut(&mut stored.record);
            record.members = members.iter().copied().map(Ordinal).collect();
            let since_ms = observation.at_ms - missing_ms;
            memory.missing_since_ms.insert(Ordinal(3), since_ms);
        })
    };
    let moved = missing_for(59_999, &[0, 1, 2, 3]);
    assert_eq!((moved.situation, moved.lease), (Situation::Primary, None));
    let away = missing_for(60_000, &[0, 1, 2, 3]);
    let record = written(&away, LeasePurpose::Record);
    assert_eq!(record.synchronous, set(&[0, 2], 1));
    // It may come back, and know of a later term.
    assert_eq!(record.members, [0, 1, 2, 3].map(Ordinal));
    let of_five = missing_for(60_000, &[0, 1, 2, 3, 4]);
    assert_eq!(of_five.lease, None, "two of the four that are left");
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

/// The Lease was made, or emptied, by hand before the members were there, and the first ordinal heard nobody yet.
#[test]
fn a_lease_made_by_hand_let_a_second_cluster_be_made() {
    let held = all(
        usual(STOPPED),
        &[
            (Directory, 0),
            (Peers, 1),
            (Me, 1),
            (Holder, 0),
            (Identifier, 1),
            (Renewal, 0),
        ],
    );
    let silent = told(&held, |_, observation| observation.dns_answered = false);
    assert_eq!(silent.postgres, None, "{:?}", silent.situation);
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

#[test]
fn a_primary_that_is_being_stopped_keeps_its_licence_and_only_in_its_right() {
    let stops = [0, 1].map(|stopping| primary(&[(Postmaster, 8), (Server, 0), (Stopping, stopping)]));
    // A checkpoint and the sessions that took longer than one licence ended in the fence.
    let serves_until_told = primary(&[(Stopping, 1)]);
    for under_way in stops.into_iter().chain([serves_until_told]) {
        let under_way = under_way.with(Licence, 1);
        let granted =
            |decision: &Decision| matches!(decision.postgres, Some(PostgresAction::GrantLicence { .. }));
        let decision = decided(&under_way);
        assert!(granted(&decision), "{decision:?}");
        let lapsed = decided(&all(under_way, LAPSED));
        assert!(!granted(&lapsed), "{lapsed:?}");
    }
}

#[test]
fn a_planned_move_does_not_wait_for_the_archive_and_a_standby_that_lacks_wal_is_waited_for() {
    let shut_down = all(
        primary(&[(Postmaster, 9), (Server, 0)]),
        &[(Directory, 2), (HolderPeer, 5)],
    );
    let handed_over = |choice: &Choice| {
        let write = decided(choice).lease;
        let write = write.filter(|write| write.purpose == LeasePurpose::HandOver);
        write.and_then(|write| holder(&write.record).map(str::to_owned))
    };
    for how in [
        &[(HandingOver, 1), (Request, 2)][..],
        &[(HandingOver, 2), (Request, 2)],
        &[(Stopping, 1)],
    ] {
        let moving = all(shut_down, how);
        assert_eq!(handed_over(&moving), Some("pg-2".to_owned()));
        // Even a forced one: it is still being sent.
        assert_eq!(handed_over(&moving.with(ThirdPeer, 4)), None);
        let checkpoint_to_come = moving.with(Directory, 3);
        assert_eq!(handed_over(&checkpoint_to_come), None);
    }
    let behind = all(shut_down, &[(Stopping, 1), (ThirdPeer, 4)]);
    assert_eq!(
        decided(&behind).lease.map(|write| write.purpose),
        None,
        "given back once it has ended"
    );
}

#[test]
fn a_primary_whose_pod_ends_makes_a_checkpoint_first() {
    let told = primary(&[(Stopping, 1)]);
    let first = decided(&told);
    assert_eq!(
        (first.situation, first.postgres),
        (Situation::Leaving, Some(PostgresAction::Checkpoint))
    );
    let done = super::told(&told, |memory, observation| {
        let moving = memory
            .lease
            .handing_over
            .get_or_insert(podgres::core::decision::HandingOver {
                to: None,
                since_ms: observation.at_ms - 100,
                forced: false,
            });
        observation.checkpointed_at_ms = Some(moving.since_ms + 50);
        observation.drained = true;
    });
    assert!(
        matches!(done.postgres, Some(PostgresAction::Stop { .. })),
        "{done:?}"
    );
    // Without a right there is nothing to wait for.
    let lapsed = decided(&all(told, LAPSED));
    assert!(
        matches!(lapsed.postgres, Some(PostgresAction::Stop { .. })),
        "{lapsed:?}"
    );
}

/// Whether its hand-over was written it could not learn, and nobody else was told that it had stopped.
#[test]
fn a_primary_whose_hand_over_was_not_answered_kept_its_silence() {
    let says = |for_ms: u64, change: fn(&mut Observation)| {
        let stopped = all(
            primary(STOPPED),
            &[(Directory, 2), (HandingOver, 1), (Request, 2), (Renewal, 2)],
        );
        told(&stopped, |memory, observation| {
            memory.lease.stopped_since_ms = Some(observation.at_ms - for_ms);
            let stored = observation.lease.stored.as_ref().expect("a Lease");
            let mut away = (*stored.record).clone();
            away.holder = Some(lease::Identity::parse("pg-0/elsewhere"));
            observation.lease.uncertain = Some(away);
            observation.lease.error = Some("no answer".to_owned());
            change(observation);
        })
        .report
        .expect("a report")
        .gives_up_term
    };
    assert_eq!(says(1_000, |_| {}), Some(TERM));
    assert_eq!(says(999, |_| {}), None, "an answer may come");
    assert_eq!(says(1_000, |observation| observation.lease.error = None), None);
    assert_eq!(
        says(1_000, |observation| observation.lease.uncertain = None),
        None
    );
}

/// A pause was for everything but the end of a container, whose hand-over was gone through with by the next one.
#[test]
fn a_paused_cluster_was_moved_by_the_end_of_a_container() {
    let stopped = |values: &[(Of, u8)]| {
        let world = all(
            primary(STOPPED),
            &[(Directory, 2), (HandingOver, 1), (HolderPeer, 5)],
        );
        decided(&all(world, values))
    };
    assert_eq!(
        stopped(&[]).lease.map(|write| write.purpose),
        Some(LeasePurpose::HandOver)
    );
    let paused = stopped(&[(Paused, 1)]);
    assert_eq!(paused.situation, Situation::Reopening, "{paused:#?}");
    assert_eq!(paused.memory.lease.handing_over, None);
    let asked = stopped(&[(Paused, 1), (Request, 2)]);
    assert_eq!(
        asked.lease.map(|write| write.purpose),
        Some(LeasePurpose::HandOver),
        "the operator may"
    );
}
