use proptest::prelude::*;

use super::*;

fn primary(lsn: u64) -> Position {
    Position {
        timeline: TimelineId(1),
        lsn: Lsn(lsn),
        primary: true,
        streaming: false,
        measured: None,
    }
}

fn standby(lsn: u64) -> Position {
    Position {
        primary: false,
        streaming: true,
        ..primary(lsn)
    }
}

#[test]
fn an_idle_pair_is_fresh_and_one_that_is_cut_off_grows_old() {
    let mut seen = Freshness::default();
    assert_eq!(seen.staleness_ms("s", 0), None);
    seen.heard("s", standby(100), 900);
    assert_eq!(
        seen.staleness_ms("s", 1_000),
        None,
        "nobody has told what there is"
    );
    seen.heard("p", primary(100), 1_000);
    assert_eq!(seen.staleness_ms("s", 1_050), Some(50));
    // Idle: the position stays, the knowledge is renewed though the standby says nothing.
    seen.heard("p", primary(100), 2_000);
    assert_eq!(seen.staleness_ms("s", 2_050), Some(50));
    // Something is written, and does not come here.
    for at_ms in [3_000, 4_000, 9_000] {
        seen.heard("p", primary(at_ms), at_ms);
        seen.heard("s", standby(100), at_ms);
        assert_eq!(seen.staleness_ms("s", at_ms), Some(at_ms - 2_000));
    }
    assert_eq!(seen.lag_bytes("s"), Some(8_900));
    // It catches up to somewhere in between.
    seen.heard("s", standby(4_500), 9_100);
    assert_eq!(seen.staleness_ms("s", 9_100), Some(5_100));
    seen.heard("s", standby(9_000), 9_200);
    assert_eq!(
        (seen.staleness_ms("s", 9_200), seen.lag_bytes("s")),
        (Some(200), Some(0))
    );
}

#[test]
fn another_timeline_says_nothing_of_this_one() {
    let mut seen = Freshness::default();
    seen.heard("p", primary(100), 1_000);
    seen.heard("s", standby(100), 1_000);
    let promoted = Position {
        timeline: TimelineId(2),
        ..primary(90)
    };
    seen.heard("q", promoted, 2_000);
    assert_eq!(seen.lag_bytes("s"), None);
    assert_eq!(seen.staleness_ms("s", 2_000), Some(1_000), "what it has, it has");
    assert!(!seen.has_reached("s", Lsn(50)));
    // The old primary, thawed, is not believed any more.
    seen.heard("p", primary(500), 2_100);
    let followed = Position {
        timeline: TimelineId(2),
        ..standby(95)
    };
    seen.heard("s", followed, 2_200);
    assert_eq!(
        (seen.staleness_ms("s", 2_200), seen.lag_bytes("s")),
        (Some(200), Some(0))
    );
}

#[test]
fn what_another_standby_has_is_known_to_be_written() {
    let mut seen = Freshness::default();
    seen.heard("p", primary(100), 1_000);
    seen.heard("s", standby(90), 1_010);
    assert_eq!(seen.lag_bytes("s"), Some(10));
    // Of a primary that is not heard any more.
    seen.heard("t", standby(150), 2_000);
    assert_eq!((seen.lag_bytes("s"), seen.lag_bytes("t")), (Some(60), Some(0)));
}

#[test]
fn a_route_cut_off_from_the_primary_alone_took_every_standby_for_stale() {
    let (mut near, mut far) = (Freshness::default(), Freshness::default());
    for seen in [&mut near, &mut far] {
        seen.heard("p", primary(100), 1_000);
        seen.heard("s", standby(100), 1_000);
    }
    // Other machines, other clocks: the near one is 50 s ahead.
    near.heard("p", primary(500), 60_000);
    near.heard("s", standby(500), 60_100);
    assert_eq!(near.measured("p", TimelineId(1), 60_200), None, "no standby");
    let told = Position {
        measured: near.measured("s", TimelineId(1), 60_200),
        ..standby(500)
    };
    assert_eq!(far.staleness_ms("s", 10_300), Some(9_300));
    far.heard("s", told, 10_150);
    assert_eq!(far.staleness_ms("s", 10_300), Some(350));
    // It has heard of more than it has replayed.
    near.heard("p", primary(900), 60_300);
    let told = Position {
        measured: near.measured("s", TimelineId(1), 60_400),
        ..standby(500)
    };
    far.heard("s", told, 10_400);
    assert_eq!(
        (far.staleness_ms("s", 10_400), far.lag_bytes("s")),
        (Some(400), Some(400))
    );
    // What is said of one standby says nothing of another.
    far.heard("t", standby(100), 10_400);
    assert_eq!(far.staleness_ms("t", 10_400), Some(9_400));
}

/// It has heard no primary itself: a standby has, and tells what it knows.
#[test]
fn a_route_that_began_while_cut_off_from_the_primary_knew_no_fresh_standby() {
    let measured = Some(Measured {
        staleness_ms: 40,
        newest_lsn: Lsn(900),
    });
    let mut seen = Freshness::default();
    seen.heard("t", standby(850), 1_000);
    assert_eq!((seen.staleness_ms("t", 1_000), seen.lag_bytes("t")), (None, None));
    seen.heard(
        "s",
        Position {
            measured,
            ..standby(800)
        },
        1_000,
    );
    assert_eq!(seen.staleness_ms("s", 1_010), Some(50));
    assert_eq!((seen.lag_bytes("s"), seen.lag_bytes("t")), (Some(100), Some(50)));
    assert_eq!(
        seen.staleness_ms("t", 1_010),
        None,
        "its own podgres has said nothing"
    );
    // A later primary, known to another standby alone.
    let later = Position {
        timeline: TimelineId(2),
        measured,
        ..standby(950)
    };
    seen.heard("t", later, 1_100);
    assert_eq!(seen.timeline(), TimelineId(2));
    assert_eq!(
        (seen.lag_bytes("s"), seen.staleness_ms("t", 1_100)),
        (None, Some(40))
    );
}

/// Of a timeline that had ended: every standby then looked as far behind as the old primary had been ahead of the branch.
#[test]
fn what_a_standby_knew_of_the_timeline_before_was_told_with_its_new_one() {
    let mut seen = Freshness::default();
    seen.heard("p", primary(500), 900);
    seen.heard("p", primary(900), 1_000);
    seen.heard("s", standby(500), 1_000);
    let measured = Measured {
        staleness_ms: 200,
        newest_lsn: Lsn(900),
    };
    assert_eq!(seen.measured("s", TimelineId(1), 1_100), Some(measured));
    assert_eq!(seen.measured("s", TimelineId(2), 1_100), None);
}

#[test]
fn tokens_at_the_start_of_a_page_are_met() {
    for (token, end) in [
        (0x300_0060, 0x300_0060),
        (0x300_2018, 0x300_2000),
        (0x300_2030, 0x300_2030),
        (0x300_0028, 0x300_0000),
        // The first page of a segment of 1 MB.
        (0x310_0028, 0x310_0000),
        (0x310_0040, 0x310_0040),
    ] {
        assert_eq!(written_end(Lsn(token)), Lsn(end), "{token:x}");
    }
    let of = |flush, insert| Position::of_primary(TimelineId(1), Lsn(flush), Lsn(insert)).lsn;
    assert_eq!(of(0x300_2000, 0x300_2018), Lsn(0x300_2000));
    assert_eq!(of(0x400_0000, 0x400_0028), Lsn(0x400_0000));
    assert_eq!(of(0x300_2000, 0x300_2100), Lsn(0x300_2100));
    assert_eq!(of(0x300_2200, 0x300_2100), Lsn(0x300_2200));
}

/// Its record takes 40 bytes, as the header of a segment's first page does.
#[test]
fn a_commit_alone_behind_the_flush_position_was_taken_for_none() {
    let of = |flush, insert| Position::of_primary(TimelineId(1), Lsn(flush), Lsn(insert)).lsn;
    assert_eq!(of(0x300_0100, 0x300_0128), Lsn(0x300_0128));
    // It ends with its page: the insert position is behind the next one's header.
    assert_eq!(of(0x300_1fd8, 0x300_2018), Lsn(0x300_2000));
}

#[test]
fn members_that_are_gone_are_forgotten() {
    let mut seen = Freshness::default();
    seen.heard("p", primary(1), 1);
    seen.heard("s", standby(1), 1);
    seen.forget_others(&["t"]);
    assert_eq!(seen.staleness_ms("s", 1), None);
}

proptest! {
    /// The promise itself: whatever is asked when and answered late, a standby is never called fresher than it is.
    #[test]
    fn nobody_is_called_fresher_than_he_is(steps in proptest::collection::vec((0u64..5, 0u64..50, 0u64..40), 1..200)) {
        let mut seen = Freshness::default();
        // Hears the standby's own podgres only, by a clock that is behind.
        let (mut far, behind) = (Freshness::default(), 1_000_000);
        far.heard("p", primary(0), 0);
        // The world: positions by time, and what the standby has.
        let (mut now, mut written, mut replayed) = (behind + 1, 0u64, 0u64);
        let mut history = vec![(behind, 0u64)];
        for (kind, amount, delay) in steps {
            now += amount;
            match kind {
                0 => {
                    written += amount;
                    history.push((now, written));
                }
                1 => replayed = written.min(replayed + amount),
                2 => {
                    // Asked now, answered after `delay` in which more is written.
                    let asked = now;
                    now += delay;
                    written += delay;
                    history.push((now, written));
                    seen.heard("p", primary(written), asked);
                }
                3 => seen.heard("s", standby(replayed), now),
                _ => {
                    let asked = now;
                    now += delay;
                    let measured = seen.measured("s", TimelineId(1), now);
                    far.heard("s", Position { measured, ..standby(replayed) }, asked - behind);
                }
            }
            for staleness in [seen.staleness_ms("s", now), far.staleness_ms("s", now - behind)].into_iter().flatten() {
                let fresh_at = now - staleness;
                let acknowledged = history.iter().filter(|(at, _)| *at <= fresh_at).map(|(_, lsn)| *lsn).max();
                prop_assert!(Some(replayed) >= acknowledged);
            }
        }
    }
}
