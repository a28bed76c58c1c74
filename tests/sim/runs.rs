//! Schedules run: one with its trace, those that once failed, a fixed range, the commit's own range, or thousands.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use podgres::core::lease::Durability;

use crate::config::{Config, SECOND, Time};
use crate::world::World;

/// For each of the tests that run in CI.
const LIMIT: Duration = Duration::from_secs(20);

/// Schedules of each of those ranges; seconds where they are built optimised, as many as there is time for where not.
const RANGE: u64 = 1_000;

/// Too few schedules for an average.
const FEW: u64 = 20;

/// Seeds that have found something, and what. The names outlive the seeds: what a seed draws changes with the simulator.
const NAMED: &[(u64, &str)] = &[
    (14, "a timeline was begun twice, and pg_rewind saw no difference"),
    (20, "a rewound standby without an upstream was never ready"),
    (18, "a diverged standby was started again and again"),
    (16, "a diverged standby of an unclean directory"),
    (104, "nobody held the Lease after an unclean release"),
    (
        53,
        "the Lease was deleted, and a member without its supervisor knew of no later term",
    ),
    (117, "a primary in a new term had not written it down"),
    (140, "a successor that did not answer was named"),
    (159, "a volume lost while its standby was scaled away"),
    (193, "a copy that was to be replaced was the one that was needed"),
    (2184, "an old barrier stood for a new time of the same setting"),
    (2606, "an old barrier, under a Lease that had been deleted"),
    (816, "the one witness of a hand-over stayed down"),
    (
        6136,
        "a named member that was not yet promoted could not claim again",
    ),
    (
        7483,
        "members scaled away were waited for, since a new primary had no slots for them",
    ),
    (
        664,
        "a deposed primary that knew of the later term made the deleted Lease anew",
    ),
    (363, "a promise just before a connection"),
    (304, "a crashed primary comes up beside a later one"),
    (324, "a late acknowledgement of a commit that everybody has"),
    (
        20207,
        "a create from before the Lease was deleted arrived after it",
    ),
    (22621, "a lost renewal hid a lost hand-over"),
];

/// The same, of three members whatever the seed would draw.
const NAMED_OF_THREE: &[(u64, &str)] = &[
    (
        5_048_612,
        "a renewal that failed was taken for an earlier one that had landed",
    ),
    (
        5_116_206,
        "a successor was promoted onto the timeline of a later primary that its upstream had become",
    ),
    (
        10_046_513,
        "a successor that knew only an old Lease was promoted onto a later timeline",
    ),
    (
        5_063_536,
        "a primary that did not start resigned again and again, and forgot that nobody came after it",
    ),
    (
        6_059_190,
        "a deleted Lease was written again on a record that a lost write had overtaken",
    ),
    (
        8_128_077,
        "a rewound standby waited for ever for WAL that its upstream had left behind",
    ),
    (
        12_206_895,
        "an office that was given was taken for an earlier claim of it",
    ),
    (
        12_116_326,
        "a reload from before a promise attached the standby again after it",
    ),
    (
        14_334_619,
        "a member was forced into office beside a primary that another had just confirmed",
    ),
];

#[derive(Debug, Default)]
struct Tally {
    schedules: u64,
    events: u64,
    /// Simulated, and left out because nothing happened in them.
    seconds: u64,
    quiet_seconds: u64,
    promotions: u64,
    acknowledged: u64,
    /// Under `async`, or after the operator asked for it.
    lost: u64,
    slowest: Time,
    failed: Vec<u64>,
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn members_asked() -> Option<usize> {
    number("PODGRES_SIM_MEMBERS").and_then(|members| usize::try_from(members).ok())
}

fn config(seed: u64, members: Option<usize>) -> Config {
    let durability = match std::env::var("PODGRES_SIM_DURABILITY").as_deref() {
        Ok("async") => Some(Durability::Async),
        Ok("preferred") => Some(Durability::Preferred),
        Ok("majority") => Some(Durability::Majority),
        _ => None,
    };
    Config::draw(seed, members, durability)
}

/// The command that repeats a seed, with what was set for it.
fn command(seed: u64, members: Option<usize>) -> String {
    let members = members.map(|members| ("PODGRES_SIM_MEMBERS", members.to_string()));
    let durability = std::env::var("PODGRES_SIM_DURABILITY").ok();
    let durability = durability.map(|text| ("PODGRES_SIM_DURABILITY", text));
    let set = members.into_iter().chain(durability);
    let mut words: Vec<String> = set.map(|(name, value)| format!("{name}={value}")).collect();
    words.push(format!("make sim SEED={seed}"));
    words.join(" ")
}

fn run(seed: u64, members: Option<usize>, tally: &Mutex<Tally>) {
    let mut world = World::new(config(seed, members), false);
    let result = world.run();
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    tally.schedules += 1;
    tally.events += world.events;
    tally.seconds += world.now / SECOND;
    tally.quiet_seconds += world.skipped / SECOND;
    tally.promotions += world.oracle.promotions;
    tally.acknowledged += world.oracle.acknowledged;
    tally.lost += world.oracle.lost;
    if let Some(at) = world.oracle.converged_at {
        tally.slowest = tally.slowest.max(at.saturating_sub(world.heal_at));
    }
    if let Err(error) = result {
        println!(
            "seed {seed}: {error}\n  {}\n  repeat: {}",
            world.config.name(),
            command(seed, members)
        );
        tally.failed.push(seed);
    }
}

/// Runs seeds until they are through, or until the time is over; then says what came of it.
fn run_all(seeds: impl Iterator<Item = u64> + Send, members: Option<usize>, threads: usize, limit: Duration) {
    let (seeds, tally, began) = (
        Mutex::new(seeds.fuse()),
        Mutex::new(Tally::default()),
        Instant::now(),
    );
    let (seeds_left, stop) = (
        AtomicU64::new(number("PODGRES_SIM_FAILURES").unwrap_or(20)),
        AtomicBool::new(false),
    );
    // Only the numbers are shared; a world lives on one thread.
    let next = || {
        let over = began.elapsed() >= limit || stop.load(Ordering::Relaxed);
        let mut seeds = if over { None } else { seeds.lock().ok() }?;
        seeds.next()
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(seed) = next() {
                    run(seed, members, &tally);
                    let failed = tally.lock().map_or(0, |tally| tally.failed.len() as u64);
                    stop.fetch_or(failed >= seeds_left.load(Ordering::Relaxed), Ordering::Relaxed);
                }
            });
        }
    });
    let mut tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    tally.failed.sort_unstable();
    let ms = tally.slowest / 1_000;
    let tenths = u128::from(tally.schedules) * 10_000 / began.elapsed().as_millis().max(1);
    println!(
        "{} schedules, {}.{} a second; {} s simulated and {} s of quiet left out; {} events, {} openings, {} commits acknowledged, {} lost where that is allowed; \
         converged within {ms} ms; failed: {:?}",
        tally.schedules,
        tenths / 10,
        tenths % 10,
        tally.seconds,
        tally.quiet_seconds,
        tally.events,
        tally.promotions,
        tally.acknowledged,
        tally.lost,
        tally.failed
    );
    assert_eq!(tally.failed, Vec::<u64>::new());
    assert!(tally.schedules > 0, "no schedule was run");
    // A third of what there usually is; single schedules may have little.
    if tally.schedules >= FEW {
        assert!(
            tally.promotions >= 5 * tally.schedules,
            "hardly anything was opened"
        );
        assert!(
            tally.acknowledged >= 200 * tally.schedules,
            "hardly anything was acknowledged"
        );
    }
}

/// `PODGRES_SIM_SEED`, with the last `PODGRES_SIM_LAST` seconds of what was decided.
#[test]
fn one_seed() {
    let seed = number("PODGRES_SIM_SEED").unwrap_or(1);
    let config = config(seed, members_asked());
    println!("{}", config.name());
    let mut world = World::new(config, true);
    let result = world.run();
    let span = number("PODGRES_SIM_LAST").unwrap_or(30) * SECOND;
    println!("{}", world.trace.last(span));
    println!("{result:?}");
    assert_eq!(result, Ok(()));
}

#[test]
fn seeds_that_failed_once() {
    for (named, members) in [(NAMED, members_asked()), (NAMED_OF_THREE, Some(3))] {
        for (seed, what) in named {
            println!("seed {seed}: {what}");
        }
        run_all(named.iter().map(|(seed, _)| *seed), members, 1, Duration::MAX);
    }
}

/// `PODGRES_SIM_SCHEDULES` of them from `PODGRES_SIM_FIRST` on, on all cores; else [`RANGE`] on one.
#[test]
fn a_range() {
    let first = number("PODGRES_SIM_FIRST").unwrap_or(1_000_000);
    let members = members_asked();
    match number("PODGRES_SIM_SCHEDULES") {
        Some(count) => {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            let limit = number("PODGRES_SIM_SECONDS").map_or(Duration::MAX, Duration::from_secs);
            run_all(first..first + count, members, threads, limit);
        }
        None => run_all(first..first + RANGE, members, 1, LIMIT),
    }
}

/// Other seeds with each commit, and the same ones whenever it is tested again.
#[test]
fn the_range_of_this_commit() {
    let asked = || Command::new("git").args(["rev-parse", "HEAD"]).output().ok();
    let commit = std::env::var("PODGRES_SIM_COMMIT").ok().or_else(|| {
        asked()
            .filter(|output| output.status.success())
            .and_then(|output| String::from_utf8(output.stdout).ok())
    });
    let digits = commit.as_deref().and_then(|commit| commit.get(..10));
    let first = digits
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .unwrap_or(0xC0_FFEE);
    run_all(first..first + RANGE, members_asked(), 1, LIMIT);
}
