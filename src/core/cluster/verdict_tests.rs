//! Tables: every check against every kind of member.

use super::super::check::CHECK_PATHS;
use super::super::fixtures::{cut_off, down, peer, primary, standby, view};
use super::*;
use crate::core::lease::LeadershipReport;
use crate::core::wal::{Lsn, TimelineId};

fn passes(check: Check, query: &[(&str, &str)], view: &ClusterView) -> bool {
    verdict(check, &CheckQuery::from_pairs(query.iter().copied()), view).passed
}

fn passing(view: &ClusterView) -> Vec<&'static str> {
    let mut names: Vec<_> = CHECK_PATHS
        .iter()
        .map(|(_, check)| *check)
        .filter(|c| passes(*c, &[], view))
        .map(Check::as_str)
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn lost(mut entry: PeerEntry, contact: PeerContact) -> PeerEntry {
    (entry.contact, entry.heard_ms_ago) = (contact, Some(9000));
    entry
}

#[test]
fn the_checks_that_each_kind_of_member_passes() {
    let healthy = vec![peer(primary(0))];
    let mut barred = primary(0);
    barred.writable = false;
    let mut empty = down(standby(1));
    empty.role = None;
    for (what, seen, expected) in [
        (
            "primary",
            view(primary(0), vec![peer(standby(1))]),
            "health leader liveness primary read-only read-only-quorum read-only-synchronous readiness startup",
        ),
        (
            "primary without the right",
            view(barred, vec![]),
            "health liveness startup",
        ),
        (
            "primary that is down",
            view(down(primary(0)), vec![]),
            "liveness startup",
        ),
        (
            "quorum standby",
            view(standby(1), healthy.clone()),
            "health liveness quorum read-only read-only-quorum readiness replica startup",
        ),
        (
            "asynchronous standby",
            view(standby(2), healthy.clone()),
            "asynchronous health liveness read-only readiness replica startup",
        ),
        (
            "standby that does not stream",
            view(cut_off(standby(1)), healthy.clone()),
            "liveness startup",
        ),
        (
            "standby that is down",
            view(down(standby(1)), healthy.clone()),
            "liveness startup",
        ),
        ("no data yet", view(empty, healthy), "liveness startup"),
    ] {
        assert_eq!(passing(&seen).join(" "), expected, "{what}");
    }
}

#[test]
fn a_synchronous_standby_passes_the_checks_named_so() {
    let mut upstream = primary(0);
    upstream.server.as_mut().expect("server").replication[0].sync_state = "sync".to_owned();
    let seen = view(standby(1), vec![peer(upstream)]);
    for (check, expected) in [
        (Check::Synchronous, true),
        (Check::ReadOnlySynchronous, true),
        (Check::Quorum, false),
        (Check::Asynchronous, false),
    ] {
        assert_eq!(passes(check, &[], &seen), expected, "{check:?}");
    }
}

#[test]
fn promise_5_a_standby_without_a_stream_is_healthy_under_no_name() {
    // The primary is positively gone, the best case there is: ready for reads, yet not healthy.
    let seen = view(cut_off(standby(1)), vec![peer(down(primary(0)))]);
    assert_eq!(
        passing(&seen).join(" "),
        "asynchronous liveness read-only readiness replica startup"
    );
    assert!(!passes(
        Check::Replica,
        &[("replication_state", "streaming")],
        &seen
    ));
}

#[test]
fn a_standby_stays_ready_only_if_the_primary_is_positively_gone() {
    use PeerContact::{Closed, Invalid, Refused, TimedOut, Unknown, Unreachable};
    let third = || peer(cut_off(standby(2)));
    let mut unknown_role = down(primary(0));
    unknown_role.role = None;
    for (what, peers, expected) in [
        ("primary lives", vec![peer(primary(0))], false),
        ("primary says that it is down", vec![peer(down(primary(0)))], true),
        ("its volume is new", vec![peer(unknown_role)], true),
        ("its process is gone", vec![lost(peer(primary(0)), Refused)], true),
        (
            "alone, and it is silent",
            vec![lost(peer(primary(0)), TimedOut)],
            false,
        ),
        (
            "alone, and no way to it",
            vec![lost(peer(primary(0)), Unreachable)],
            false,
        ),
        (
            "its stream just ended",
            vec![lost(peer(primary(0)), Closed)],
            false,
        ),
        (
            "another has its address",
            vec![lost(peer(primary(0)), Invalid)],
            false,
        ),
        (
            "silent, and a witness lost it too",
            vec![lost(peer(primary(0)), TimedOut), third()],
            true,
        ),
        (
            "silent, but a witness streams",
            vec![lost(peer(primary(0)), TimedOut), peer(standby(2))],
            false,
        ),
        (
            "gone, the other standby silent",
            vec![lost(peer(primary(0)), Refused), lost(third(), TimedOut)],
            true,
        ),
        ("nobody was ever the primary", vec![third()], true),
        (
            "nobody was, and one is not heard",
            vec![lost(third(), Unknown)],
            false,
        ),
        ("no peers at all", vec![], false),
    ] {
        let seen = view(cut_off(standby(1)), peers);
        for check in [Check::Readiness, Check::Replica, Check::ReadOnly] {
            assert_eq!(passes(check, &[], &seen), expected, "{what}: {check:?}");
        }
        assert!(!passes(Check::Health, &[], &seen), "{what}");
    }
}

/// With fixed leadership the primary's sidecar crashed, and the standby that still received from its PostgreSQL served reads of any age.
#[test]
fn a_primary_whose_sidecar_alone_was_gone_counted_as_down() {
    let gone = || vec![lost(peer(primary(0)), PeerContact::Refused)];
    assert!(primary_is_down(&view(cut_off(standby(1)), gone())));
    assert!(!primary_is_down(&view(standby(1), gone())), "it receives from it");
}

#[test]
fn a_silent_holder_of_the_lease_counts_as_the_primary() {
    let successor = lost(peer(standby(2)), PeerContact::TimedOut);
    let mut seen = view(
        cut_off(standby(1)),
        vec![lost(peer(primary(0)), PeerContact::Refused), successor],
    );
    assert!(passes(Check::Readiness, &[], &seen));
    seen.lease_holder = Some("pg-2".to_owned());
    assert!(!passes(Check::Readiness, &[], &seen));
}

#[test]
fn an_orphan_must_have_streamed_have_replayed_and_be_on_the_newest_timeline() {
    let base = view(
        cut_off(standby(1)),
        vec![peer(down(primary(0))), peer(cut_off(standby(2)))],
    );
    assert!(passes(Check::Readiness, &[], &base));

    let mut seen = base.clone();
    seen.me.was_streaming = false;
    assert!(!passes(Check::Readiness, &[], &seen), "row 68: WAL gone");

    let mut seen = base.clone();
    let server = seen.me.server.as_mut().expect("server");
    server.flush_lsn = Lsn(server.replay_lsn.0 + UNFINISHED_RECORD_BYTES);
    assert!(
        passes(Check::Readiness, &[], &seen),
        "a record that never came whole"
    );
    seen.me.server.as_mut().expect("server").flush_lsn.0 += 1;
    assert!(!passes(Check::Readiness, &[], &seen), "replay still runs");

    let mut seen = base.clone();
    let other = seen.peers[1]
        .status
        .as_mut()
        .and_then(|s| s.server.as_mut())
        .expect("server");
    other.timeline = TimelineId(2);
    assert!(!passes(Check::Readiness, &[], &seen), "behind a promotion");

    let mut seen = base;
    seen.me.state = MemberState::Starting;
    assert!(!passes(Check::Readiness, &[], &seen), "not running");
}

#[test]
fn the_lag_counts_from_replay_or_from_flush() {
    let mut me = standby(1);
    let server = me.server.as_mut().expect("server");
    (server.upstream_lsn, server.flush_lsn, server.replay_lsn) =
        (Some(Lsn(0x300_1000)), Lsn(0x300_0F00), Lsn(0x300_0800));
    let seen = view(me, vec![peer(primary(0))]);
    for (check, query, expected) in [
        (Check::Readiness, vec![("lag", "2kB")], true),
        (Check::Readiness, vec![("lag", "2047")], false),
        (Check::Readiness, vec![("lag", "256"), ("mode", "write")], true),
        (Check::Readiness, vec![("lag", "255"), ("mode", "write")], false),
        (Check::Readiness, vec![("lag", "1kB"), ("mode", "apply")], false),
        (Check::Readiness, vec![("lag", "1XB")], false),
        (Check::Readiness, vec![("mode", "sent")], false),
        (Check::Replica, vec![("lag", "2kB")], true),
        (
            Check::Replica,
            vec![("lag", "2kB"), ("replication_state", "streaming")],
            true,
        ),
        (
            Check::Replica,
            vec![("replication_state", "in archive recovery")],
            false,
        ),
        (Check::Replica, vec![("lag", "1kB")], false),
        (Check::Replica, vec![("tag_zone", "a")], false),
        (Check::ReadOnly, vec![("lag", "1kB")], false),
        (Check::Quorum, vec![("lag", "1kB")], false),
        (Check::Quorum, vec![("lag", "2kB")], true),
    ] {
        assert_eq!(passes(check, &query, &seen), expected, "{check:?} {query:?}");
    }
    let told = verdict(Check::Replica, &CheckQuery::from_pairs([("lag", "1kB")]), &seen);
    assert_eq!(
        told.reason,
        "standby, streaming, 2048 bytes behind 0/3001000, which was told 0 ms ago, limit 1024 bytes"
    );
}

#[test]
fn a_lag_limit_fails_while_the_primary_position_is_unknown() {
    let seen = view(cut_off(standby(1)), vec![peer(down(primary(0)))]);
    assert!(passes(Check::Readiness, &[], &seen));
    assert!(!passes(Check::Readiness, &[("lag", "1GB")], &seen));
}

#[test]
fn a_loop_that_stands_still_fails_everything_but_startup() {
    let seen = view(primary(0), vec![]);
    let overdue = LoopAge {
        age_ms: 1001,
        limit_ms: 1000,
    };
    for (_, check) in CHECK_PATHS {
        let verdict = answer(*check, &CheckQuery::default(), &seen, overdue);
        assert_eq!(
            verdict.status(),
            if *check == Check::Startup { 200 } else { 503 },
            "{check:?}"
        );
    }
    let in_time = LoopAge {
        age_ms: 1000,
        limit_ms: 1000,
    };
    assert!(answer(Check::Liveness, &CheckQuery::default(), &seen, in_time).passed);
}

#[test]
fn patronis_tags_are_those_that_members_have() {
    let member = |priority| {
        let mut me = standby(1);
        me.leadership = Some(LeadershipReport {
            priority,
            ..LeadershipReport::default()
        });
        view(me, vec![peer(primary(0))])
    };
    for (priority, query, expected) in [
        (Some(50), vec![("tag_failover_priority", "50")], true),
        (Some(50), vec![("tag_failover_priority", "51")], false),
        (Some(50), vec![("tag_nofailover", "true")], false),
        (None, vec![("tag_nofailover", "true")], true),
        (None, vec![("tag_nofailover", "true"), ("tag_zone", "a")], false),
        (Some(50), vec![("tag_zone", "a")], false),
    ] {
        assert_eq!(
            passes(Check::Replica, &query, &member(priority)),
            expected,
            "{priority:?} {query:?}"
        );
    }
    // As with Patroni, who asks for the primary asks for nothing else.
    assert!(passes(
        Check::Primary,
        &[("tag_zone", "a")],
        &view(primary(0), vec![])
    ));
}
