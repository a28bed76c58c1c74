//! Faults drawn at random on a whole cluster, while clients write and read; afterwards everything must be there.
//!
//! `PODGRES_CHAOS_SEED` repeats the order of faults, `PODGRES_CHAOS_MINUTES` (0.75) says how long they go on. The
//! moments at which they hit are the machine's, so a seed repeats a run roughly, not exactly.
//! `PODGRES_CHAOS_DIR` keeps the demo with its logs, `PODGRES_CHAOS_VERSION` is PostgreSQL's major version (16).

pub(crate) mod checks;
mod clients;
pub(crate) mod faults;

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Demo, Start, wait_for};
use checks::Watch;
use clients::{Clients, Seen};
use faults::Fault;

/// Faults without a rest, after which all must be well again.
const ACT: Duration = Duration::from_secs(25);
/// Within this time after the last fault all stream again.
const HEALED: Duration = Duration::from_mins(1);
const DEFAULT_MINUTES: f64 = 0.75;

fn setting<T: std::str::FromStr>(key: &str) -> Option<T> {
    let value = std::env::var(key).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{key}: \"{value}\"")))
}

/// Past the test harness, which shows what a test prints only if it fails.
fn say(line: &str) {
    writeln!(std::io::stderr(), "chaos: {line}").expect("standard error");
}

#[test]
fn row_61_chaos_loses_no_acknowledged_row_and_everything_heals() {
    let seed = setting("PODGRES_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let minutes = setting("PODGRES_CHAOS_MINUTES").unwrap_or(DEFAULT_MINUTES);
    let version = setting("PODGRES_CHAOS_VERSION").unwrap_or(16);
    say(&format!(
        "PODGRES_CHAOS_SEED={seed}, {minutes} minutes, PostgreSQL {version}"
    ));
    let mut random = fastrand::Rng::with_seed(seed);
    let demo = start(version);
    demo.wait_streaming(2);
    demo.sql(
        &[],
        "CREATE TABLE chaos (writer int, number bigint, PRIMARY KEY (writer, number))",
    );
    let identifier = demo.status().expect("a status")["system_identifier"].clone();
    let seen = Arc::new(Seen::default());
    let end = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let (mut faults, mut slowest) = (0, Duration::ZERO);
    while Instant::now() < end {
        let watch = Watch::start(&demo, identifier.as_str().expect("an identifier"));
        let clients = Clients::start(&demo.directory, &seen);
        faults += act(&demo, &mut random, end.min(Instant::now() + ACT));
        let healed = heal(&demo);
        slowest = slowest.max(healed);
        clients.stop();
        watch.stop();
        checks::all(&demo, &seen);
        say(&format!(
            "{} after {faults} faults, healed in {healed:.1?}",
            seen.summary()
        ));
    }
    say(&format!(
        "seed {seed}: {faults} faults, {}, slowest healing {slowest:.1?}",
        seen.summary()
    ));
}

/// In a folder that is kept if `PODGRES_CHAOS_DIR` names one, which must be new.
fn start(version: u32) -> Demo {
    // A slot of a member that is scaled away goes while a check waits for that, and not while a pod is replaced.
    let retention = "PODGRES_SLOT_RETENTION=10s";
    let start = Start::new(version).with(&["--grace", "10s", "--set", retention]);
    match std::env::var_os("PODGRES_CHAOS_DIR") {
        Some(directory) => start.run_in(Path::new(&directory)),
        None => start.run(),
    }
}

/// Rounds of one or two faults at a time; how many there were.
fn act(demo: &Demo, random: &mut fastrand::Rng, end: Instant) -> usize {
    let mut count = 0;
    while Instant::now() < end {
        let together = random.usize(1..=2);
        let drawn: Vec<Fault> = (0..together).map(|_| Fault::draw(random)).collect();
        let pause = Duration::from_millis(random.u64(0..4000));
        count += together;
        std::thread::scope(|scope| {
            for fault in &drawn {
                scope.spawn(move || {
                    let started = Instant::now();
                    let what = fault.happen(demo);
                    say(&format!("{fault:?}: {what} ({:.1?})", started.elapsed()));
                });
            }
        });
        std::thread::sleep(pause);
    }
    count
}

/// Takes back what faults may have left, and waits until all stream; how long that took.
fn heal(demo: &Demo) -> Duration {
    let started = Instant::now();
    demo.ask(&["scale", "3"]);
    for ordinal in ["0", "1", "2"] {
        // A pod that is just being replaced cannot be thawed, and its successor is not frozen.
        drop(demo.try_ask(&["thaw", ordinal]));
    }
    let all = || demo.status().is_some_and(|status| checks::all_stream(&status));
    if !wait_for(HEALED, all) {
        // Its panic shows the status and the logs.
        demo.wait_streaming(2);
        panic!("all streamed again only after {:.1?}", started.elapsed());
    }
    started.elapsed()
}

/// A flag that ends a loop in another thread.
#[derive(Clone, Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn asked(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn ask(&self) {
        self.0.store(true, Ordering::Release);
    }
}
