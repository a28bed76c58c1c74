//! Tables: each order against clusters that are well, broken, paused or fixed.

use super::super::fixtures::{cut_off, down, led, peer, primary, standby, view};
use super::*;
use crate::core::cluster::{PeerContact, PeerEntry};
use crate::core::lease::{LeadershipReport, MoveRequest};
use crate::core::operate::Outcome;
use crate::core::wal::Lsn;

fn willing_standby(ordinal: u32) -> MemberStatus {
    let mut status = standby(ordinal);
    status.leadership = Some(LeadershipReport {
        priority: Some(100),
        ..LeadershipReport::default()
    });
    status
}

/// pg-0 is the primary and looks; pg-1 is as given, pg-2 lost.
fn seen(first: MemberStatus) -> ClusterView {
    let lost = PeerEntry {
        contact: PeerContact::TimedOut,
        ..peer(willing_standby(2))
    };
    led(view(primary(0), vec![peer(first), lost]), "pg-0", &[0, 1, 2])
}

fn never() -> MemberStatus {
    let mut status = willing_standby(1);
    status.leadership = Some(LeadershipReport::default());
    status
}

fn behind() -> MemberStatus {
    let mut status = willing_standby(1);
    let server = status.server.as_mut().expect("server");
    (server.flush_lsn, server.replay_lsn) = (Lsn(0x100), Lsn(0x100));
    status
}

#[test]
fn a_switchover_is_refused_with_the_reason() {
    let said = |view: &ClusterView, leader: Option<&str>, candidate: Option<&str>| {
        switchover(view, leader, candidate).map_or_else(|why| why.to_string(), |to| format!("{to:?}"))
    };
    let well = seen(willing_standby(1));
    for (leader, candidate, expected) in [
        (None, None, "None"),
        (Some("pg-0"), Some("pg-1"), "Some(Ordinal(1))"),
        (Some("pg-1"), None, "\"pg-1\" is not the primary, \"pg-0\" is"),
        (None, Some("pg-0"), "\"pg-0\" is the primary already"),
        (None, Some("pg-7"), "the cluster has no member \"pg-7\""),
        (None, Some("other-1"), "the cluster has no member \"other-1\""),
        (None, Some("pg-2"), "\"pg-2\" is not heard"),
    ] {
        assert_eq!(
            said(&well, leader, candidate),
            expected,
            "{leader:?} {candidate:?}"
        );
    }
    for (first, expected) in [
        (never(), "\"pg-1\" is never to be primary"),
        (
            cut_off(willing_standby(1)),
            "\"pg-1\" does not stream: standby_streaming",
        ),
        (behind(), "\"pg-1\" is 48 MB behind"),
    ] {
        let seen = seen(first);
        assert_eq!(said(&seen, None, Some("pg-1")), expected);
        let all = format!("nobody can take over: {expected}; \"pg-2\" is not heard");
        assert_eq!(said(&seen, None, None), all);
    }
}

#[test]
fn a_cluster_that_cannot_be_moved() {
    let mut paused = seen(willing_standby(1));
    paused.lease.as_mut().expect("record").paused = true;
    let mut fixed = seen(willing_standby(1));
    fixed.leadership = Some(Leadership::Fixed);
    let mut unread = seen(willing_standby(1));
    unread.lease = None;
    for (view, expected) in [
        (&fixed, Impossible::FixedLeadership),
        (&unread, Impossible::NoLease),
    ] {
        assert_eq!(switchover(view, None, None), Err(expected.clone()));
        assert_eq!(failover(view, "pg-1"), Err(expected));
    }
    // A planned move is the primary's own work; a forced one is that of members who do nothing now.
    assert_eq!(switchover(&paused, None, None), Ok(None));
    assert_eq!(failover(&paused, "pg-1"), Err(Impossible::Paused));
    let mut dead = seen(willing_standby(1));
    dead.me = down(dead.me);
    let holder = Some("pg-0".to_owned());
    assert_eq!(
        switchover(&dead, None, None),
        Err(Impossible::NoPrimary { holder })
    );
    assert_eq!(failover(&dead, "pg-1"), Ok(Ordinal(1)));
}

#[test]
fn a_failover_needs_no_more_than_a_willing_server() {
    for (first, expected) in [
        (behind(), Ok(Ordinal(1))),
        (cut_off(willing_standby(1)), Ok(Ordinal(1))),
        (never(), Err("\"pg-1\" is never to be primary".to_owned())),
        (
            down(willing_standby(1)),
            Err("PostgreSQL of \"pg-1\" does not run: standby_streaming".to_owned()),
        ),
    ] {
        assert_eq!(
            failover(&seen(first), "pg-1").map_err(|why| why.to_string()),
            expected
        );
    }
    assert!(failover(&seen(willing_standby(1)), "pg-0").is_err());
    let told = loss(&seen(behind()), "pg-1");
    assert_eq!(
        told,
        "\"pg-1\" lacks 48 MB of what the primary had written 0 ms ago; that would be lost"
    );
    assert!(loss(&seen(willing_standby(1)), "pg-1").contains("has everything"));
    assert!(loss(&seen(willing_standby(1)), "pg-2").contains("not known"));
}

#[test]
fn the_primary_is_restarted_and_never_cloned() {
    let seen = seen(willing_standby(1));
    assert_eq!(restart(&seen, "pg-0"), Ok(()));
    assert_eq!(restart(&seen, "pg-1"), Ok(()));
    assert!(restart(&seen, "pg-2").is_err() && restart(&seen, "pg-9").is_err());
    assert_eq!(reinitialise(&seen, "pg-1"), Ok(()));
    let refused = reinitialise(&seen, "pg-0").expect_err("the primary").to_string();
    assert_eq!(
        refused,
        "cannot clone \"pg-0\" afresh: it holds the primary's data"
    );
}

#[test]
fn an_order_waits_for_those_who_are_on_the_way_and_for_nobody_else() {
    let with = |situation: &str| {
        let mut standby = willing_standby(1);
        situation.clone_into(&mut standby.situation);
        seen(standby)
    };
    for (situation, waits) in [
        ("starting", true),
        ("rewinding", true),
        ("streaming", false),
        ("login_refused", false),
        ("primary", false),
        ("not one of ours", false),
    ] {
        assert_eq!(settling(&with(situation)), waits, "{situation}");
    }
    let mut asked = with("streaming");
    asked.lease.as_mut().expect("record").request = Some(MoveRequest::Switchover {
        to: None,
        id: "i".to_owned(),
    });
    assert!(settling(&asked));
    let dead = Impossible::NotHeard {
        name: "pg-1".to_owned(),
    };
    let unknown = Impossible::UnknownMember {
        name: "pg-9".to_owned(),
    };
    assert!(dead.may_pass() && !unknown.may_pass() && !Impossible::Paused.may_pass());
    assert_eq!(
        (unknown.answer().outcome, dead.answer().outcome),
        (Outcome::Invalid, Outcome::NotPossible)
    );
}
