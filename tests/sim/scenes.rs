//! One fault each, told and not drawn: what has to go on, or to come about, while it lasts.

use podgres::core::lease::Durability;
use podgres::core::policy::LeaseTimes;

use crate::config::{Config, Kind, MS, SECOND, Time};
use crate::world::World;

const HOUR: Time = 3_600 * SECOND;

/// Three members that are well, and no fault but those of the scene.
fn scene(durability: Durability) -> World {
    scene_with(durability, LeaseTimes::default())
}

fn scene_with(durability: Durability, times: LeaseTimes) -> World {
    let config = Config {
        times,
        faults: Vec::new(),
        write_pause: (200 * MS, SECOND),
        recovery: (50 * MS, 200 * MS),
        faults_from: 10 * HOUR,
        faults_until: 10 * HOUR,
        ..Config::draw(1, Some(3), Some(durability))
    };
    let mut world = World::new(config, true);
    // No time is left out.
    world.lasting += 1;
    let up = world.run_until(30 * SECOND);
    assert_eq!(
        up.and_then(|()| world.is_settled().map_err(|why| why.to_string())),
        Ok(()),
        "{}",
        world.trace.last(HOUR)
    );
    world
}

fn pass(world: &mut World, time: Time) {
    let result = world.run_until(world.now + time);
    assert_eq!(result, Ok(()), "{}", world.trace.last(time));
}

fn term(world: &World) -> Option<u64> {
    Some(world.api.stored.as_ref()?.record.term)
}

#[test]
fn a_hung_disk_kept_its_primary_in_office() {
    // Of the second the licence runs out before the disk counts as lost.
    let short = LeaseTimes {
        lease_duration_ms: 7_000,
        renew_deadline_ms: 3_500,
        retry_period_ms: 500,
        peer_timeout_ms: 3_000,
        ..LeaseTimes::default()
    };
    let all = [Durability::Majority, Durability::Preferred, Durability::Async];
    let cases = [LeaseTimes::default(), short].map(|times| all.map(|durability| (durability, times)));
    for (durability, times) in cases.into_iter().flatten() {
        let mut world = scene_with(durability, times);
        let before = world.primary();
        world.inflict(Kind::DiskFailing, before.unwrap_or(0), 120 * SECOND);
        pass(&mut world, 30 * SECOND);
        let trace = world.trace.last(30 * SECOND);
        assert_ne!(world.primary(), before, "{durability:?}\n{trace}");
        let acknowledged = world.oracle.acknowledged;
        pass(&mut world, 10 * SECOND);
        assert!(
            world.oracle.acknowledged > acknowledged + 5,
            "{durability:?}: nobody takes commits\n{trace}"
        );
    }
}

#[test]
fn an_hour_without_the_api_server_stops_no_write() {
    let mut world = scene(Durability::Majority);
    let before = (world.primary(), term(&world));
    let primary = before.0.unwrap_or(0);
    let standby = (primary + 1) % 3;
    world.inflict(Kind::ApiAway, primary, HOUR);
    pass(&mut world, 60 * SECOND);
    world.inflict(Kind::CrashPod, standby, 20 * SECOND);
    pass(&mut world, 300 * SECOND);
    world.inflict(Kind::CrashSidecar, primary, 2 * SECOND);
    for minute in 0..54 {
        let acknowledged = world.oracle.acknowledged;
        pass(&mut world, 60 * SECOND);
        let more = world.oracle.acknowledged - acknowledged;
        assert!(
            more > 40,
            "{more} commits in minute {minute}\n{}",
            world.trace.last(60 * SECOND)
        );
    }
    assert_eq!((world.primary(), term(&world)), before);
}

#[test]
fn a_primary_that_left_unseen_by_the_api_server_kept_its_office() {
    for durability in [Durability::Majority, Durability::Preferred] {
        let mut world = scene(durability);
        let before = world.primary();
        let primary = before.unwrap_or(0);
        world.inflict(Kind::ApiAwayForOne, primary, 120 * SECOND);
        pass(&mut world, 5 * SECOND);
        world.inflict(Kind::EndPod, primary, 120 * SECOND);
        pass(&mut world, 4 * SECOND);
        let trace = world.trace.last(5 * SECOND);
        let after = world.primary();
        assert!(world.members[primary].exists, "its sidecar has ended");
        assert!(
            after.is_some() && after != before,
            "{durability:?}: {after:?}\n{trace}"
        );
    }
}

#[test]
fn a_container_that_began_anew_while_nobody_reached_the_api_server_cost_the_primary() {
    let mut world = scene(Durability::Majority);
    let before = (world.primary(), term(&world));
    let primary = before.0.unwrap_or(0);
    world.inflict(Kind::ApiAway, primary, HOUR);
    // By then everybody knows.
    pass(&mut world, 10 * SECOND);
    world.inflict(Kind::EndContainer, primary, 3 * SECOND);
    pass(&mut world, 30 * SECOND);
    let acknowledged = world.oracle.acknowledged;
    pass(&mut world, 60 * SECOND);
    let more = world.oracle.acknowledged - acknowledged;
    assert!(more > 40, "{more} commits\n{}", world.trace.last(90 * SECOND));
    assert_eq!((world.primary(), term(&world)), before);
}

#[test]
fn a_primary_that_did_not_start_was_kept_in_office_by_its_peers() {
    for durability in [Durability::Majority, Durability::Preferred, Durability::Async] {
        let mut world = scene(durability);
        let before = world.primary();
        world.inflict(Kind::StartFailing, before.unwrap_or(0), 300 * SECOND);
        // Of the longest, crash recovery's time and then the Lease's.
        pass(&mut world, 60 * SECOND);
        let trace = world.trace.last(60 * SECOND);
        let after = world.primary();
        assert!(
            after.is_some() && after != before,
            "{durability:?}: {after:?}\n{trace}"
        );
    }
}

#[test]
fn a_forced_failover_and_a_primary_that_did_not_start_waited_for_each_other() {
    for durability in [Durability::Majority, Durability::Async] {
        let mut world = scene(durability);
        let primary = world.primary().unwrap_or(0);
        let (gone, last) = ((primary + 1) % 3, (primary + 2) % 3);
        world.inflict(Kind::CrashPod, gone, 300 * SECOND);
        world.inflict(Kind::StartFailing, primary, 300 * SECOND);
        pass(&mut world, 6 * SECOND);
        assert_eq!(world.primary(), None, "two of three are needed");
        world.force(last, "by the operator".to_owned());
        pass(&mut world, 10 * SECOND);
        let trace = world.trace.last(20 * SECOND);
        assert_eq!(world.primary(), Some(last), "{durability:?}\n{trace}");
    }
}
