//! Schedules run, alone or by the thousand.

use std::time::Instant;

use crate::config::{Config, SECOND};
use crate::world::World;

/// What one schedule came to.
struct Outcome {
    result: Result<(), String>,
    world: World,
}

fn run(config: Config, traced: bool) -> Outcome {
    let mut world = World::new(config, traced);
    let result = world.run();
    Outcome { result, world }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn one_seed() {
    let Some(seed) = number("PODGRES_SIM_SEED") else {
        return;
    };
    let config = Config::draw(seed, None, None);
    println!("{}", config.name());
    let Outcome { result, world } = run(config, true);
    let span = number("PODGRES_SIM_LAST").unwrap_or(30) * SECOND;
    println!("{}", world.trace.last(span));
    println!("{result:?}");
    assert_eq!(result, Ok(()));
}

#[test]
fn many() {
    let first = number("PODGRES_SIM_FIRST").unwrap_or(1);
    let count = number("PODGRES_SIM_SCHEDULES").unwrap_or(50);
    let began = Instant::now();
    let mut failed = Vec::new();
    let (mut events, mut slowest, mut lost, mut promotions, mut acked) = (0, 0, 0, 0, 0);
    for seed in first..first + count {
        let Outcome { result, world } = run(Config::draw(seed, None, None), false);
        events += world.events;
        lost += world.oracle.lost;
        promotions += world.oracle.promotions;
        acked += world.oracle.acknowledged;
        if let Some(at) = world.oracle.converged_at {
            slowest = slowest.max(at.saturating_sub(world.config.faults_until));
        }
        if let Err(error) = result {
            println!("seed {seed}: {error} ({})", world.config.name());
            failed.push(seed);
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{count} schedules, {:.1} a second, {events} events, {promotions} promotions, {acked} acknowledged, {lost} lost, slowest convergence {} ms; failed: {failed:?}",
        count as f64 / seconds,
        slowest / 1000
    );
    assert_eq!(failed, Vec::<u64>::new());
}
