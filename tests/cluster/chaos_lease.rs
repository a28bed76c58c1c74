//! Faults drawn at random on a cluster whose primary is the holder of a Lease, while clients write and read.
//!
//! `PODGRES_CHAOS_SEED` repeats the order of faults, `PODGRES_CHAOS_MINUTES` (2.5) says how long they go on; the
//! moments at which they hit are the machine's. `PODGRES_CHAOS_VERSION` is PostgreSQL's major version (16),
//! `PODGRES_CHAOS_DURABILITY` is `majority`, or `async`, which may lose rows and must not let two acknowledge;
//! `PODGRES_CHAOS_SET` gives the pods a setting, e.g. `PODGRES_GATE=off`, to see that a check notices;
//! `PODGRES_CHAOS_FAULTS` draws only kinds whose names contain one of these words. The Lease's times are drawn
//! too. A run that fails keeps its folder: logs, volumes, the Lease, the last decisions; `PODGRES_CHAOS_DIR` names
//! one that is kept in any case.

mod anomalies;
pub(crate) mod checks;
mod disk;
mod faults;
mod hardware;
pub(crate) mod ledger;
mod lists;
mod network;
mod report;
mod rows;
mod session;

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::harness::{Demo, Start, wait_for};
use crate::namespaces;
use faults::{Draw, Fault};
use hardware::Hardware;
use ledger::Ledger;

/// Faults without a rest, after which all must be well again.
const ACT: Duration = Duration::from_secs(40);
/// Within this time after the last fault all stream again.
const HEALED: Duration = Duration::from_mins(1);
const NAME: &str = "chaos_lease::chaos_with_a_lease_loses_no_acknowledged_row_and_everything_heals";
const DEFAULT_MINUTES: f64 = 2.5;
/// The Lease's times: PostgreSQL's user gets the first ones.
const TIMES: [&[&str]; 3] = [
    &[],
    &[
        "LEASE_DURATION=8s",
        "RENEW_DEADLINE=4s",
        "RETRY_PERIOD=1s",
        "PEER_TIMEOUT=1s",
    ],
    &[
        "LEASE_DURATION=7s",
        "RENEW_DEADLINE=3500ms",
        "RETRY_PERIOD=500ms",
        "PEER_TIMEOUT=3s",
    ],
];

fn setting<T: std::str::FromStr>(key: &str) -> Option<T> {
    let value = std::env::var(key).ok().filter(|value| !value.is_empty())?;
    Some(value.parse().unwrap_or_else(|_| panic!("{key}: \"{value}\"")))
}

/// Past the test harness, which shows what a test prints only if it fails.
fn say(line: &str) {
    writeln!(std::io::stderr(), "chaos: {line}").expect("standard error");
}

#[test]
fn chaos_with_a_lease_loses_no_acknowledged_row_and_everything_heals() {
    if namespaces::has_run_inside(NAME) {
        return;
    }
    if !namespaces::inside() {
        say("not root: no partitions, no full disks");
    }
    let seed = setting("PODGRES_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let minutes: f64 = setting("PODGRES_CHAOS_MINUTES").unwrap_or(DEFAULT_MINUTES);
    let version = setting("PODGRES_CHAOS_VERSION").unwrap_or(16);
    let durability: String = setting("PODGRES_CHAOS_DURABILITY").unwrap_or_else(|| "majority".to_owned());
    let folder = crate::kit::open_folder();
    let named = std::env::var_os("PODGRES_CHAOS_DIR").map(PathBuf::from);
    let keep = named.is_some();
    let directory = named.unwrap_or_else(|| folder.path().join("demo"));
    let hardware = Hardware::new(folder.path(), &directory);
    let start = Start {
        version,
        arguments: [arguments(seed, &durability), hardware.preloaded.words()].concat(),
    };
    say(&format!(
        "PODGRES_CHAOS_SEED={seed}, {minutes} minutes, PostgreSQL {version}, {:?}",
        start.arguments
    ));
    say(&format!("in {}", directory.display()));
    let demo = start.run_in(&directory);
    let ledger = Arc::new(Ledger::new(durability != "async"));
    let whole = catch_unwind(AssertUnwindSafe(|| run(&demo, &hardware, &ledger, seed, minutes)));
    if let Err(panic) = whole {
        report::failure(&demo, &ledger, seed);
        drop(demo);
        hardware.keep(&directory);
        say(&format!("kept in {}", directory.display()));
        let _kept = folder.keep();
        resume_unwind(panic);
    }
    if keep {
        drop(demo);
        hardware.keep(&directory);
    }
}

/// What the demo is started with; the times are drawn by a generator of their own.
fn arguments(seed: u64, durability: &str) -> Vec<String> {
    let times = TIMES[fastrand::Rng::with_seed(seed).usize(0..TIMES.len())];
    let mut settings = vec![format!("PODGRES_DURABILITY={durability}")];
    settings.extend(times.iter().map(|time| format!("PODGRES_{time}")));
    // A slot of a member that is scaled away goes while a check waits for that, and not while a pod is replaced.
    settings.push("PODGRES_SLOT_RETENTION=10s".to_owned());
    settings.extend(setting("PODGRES_CHAOS_SET"));
    let fixed = ["--leadership", "lease", "--grace", "15s"].map(str::to_owned);
    let set = settings
        .into_iter()
        .flat_map(|setting| ["--set".to_owned(), setting]);
    fixed.into_iter().chain(set).collect()
}

fn run(demo: &Demo, hardware: &Hardware, ledger: &Arc<Ledger>, seed: u64, minutes: f64) {
    let mut draw = Draw::new(seed, setting("PODGRES_CHAOS_FAULTS"));
    let status = demo.wait_streaming(2);
    if ledger.durable {
        checks::wait_synchronous(demo);
    }
    let primary = checks::primary(&status).expect("a primary");
    demo.sql(&["--member", &primary], rows::TABLE);
    demo.sql(&["--member", &primary], lists::TABLE);
    hardware.check_that_it_bites(demo, &primary);
    let identifier = status["system_identifier"].clone();
    let end = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let mut slowest = Duration::ZERO;
    while Instant::now() < end {
        let clients = Clients::start(demo, ledger);
        act(demo, hardware, &mut draw, ledger, end.min(Instant::now() + ACT));
        let healed = heal(demo, hardware);
        slowest = slowest.max(healed);
        let now_us = ledger.now_us();
        ledger.book().rests.push(now_us);
        clients.stop();
        checks::all(demo, ledger, &identifier);
        say(&format!("{}, healed in {healed:.1?}", ledger.summary()));
    }
    report::gaps(ledger);
    say(&format!(
        "seed {seed}: {}, slowest healing {slowest:.1?}",
        ledger.summary()
    ));
}

/// Rounds of one or two faults at a time.
fn act(demo: &Demo, hardware: &Hardware, draw: &mut Draw, ledger: &Ledger, end: Instant) {
    while Instant::now() < end {
        let drawn = draw.round();
        let pause = Duration::from_millis(draw.random.u64(200..4500));
        std::thread::scope(|scope| {
            for fault in &drawn {
                scope.spawn(move || one(demo, hardware, ledger, fault));
            }
        });
        std::thread::sleep(pause);
    }
}

fn one(demo: &Demo, hardware: &Hardware, ledger: &Ledger, fault: &Fault) {
    let at = ledger.now_us();
    let came = fault.happen(demo, hardware, &|what| {
        ledger.fault_begins(at, format!("{fault:?}"), fault.kind(), what);
    });
    say(&format!(
        "{:7.2} s to {:7.2} s {fault:?}: {came}",
        seconds(at),
        seconds(ledger.now_us())
    ));
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// Takes back what faults may have left, and waits until all stream; how long that took.
fn heal(demo: &Demo, hardware: &Hardware) -> Duration {
    let started = Instant::now();
    hardware.heal();
    demo.ask(&["api", "up"]);
    demo.ask(&["scale", "3"]);
    for ordinal in ["0", "1", "2"] {
        // A pod that is just being replaced cannot be thawed, and its successor is not frozen.
        drop(demo.try_ask(&["thaw", ordinal]));
    }
    let all = || demo.status().is_some_and(|status| checks::all_stream(&status));
    if !wait_for(HEALED, all) {
        let status = demo.status();
        let came = wait_for(HEALED, all);
        panic!(
            "not all streamed after {HEALED:?} (after {:.1?}: {came}); then: {status:#?}",
            started.elapsed()
        );
    }
    started.elapsed()
}

/// A flag that ends a loop in another task.
#[derive(Clone, Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn asked(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Running clients of both kinds.
struct Clients {
    runtime: Runtime,
    tasks: JoinSet<()>,
    stop: Stop,
}

impl Clients {
    fn start(demo: &Demo, ledger: &Arc<Ledger>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("runtime");
        let (mut tasks, stop) = (JoinSet::new(), Stop::default());
        let directory = demo.directory.clone();
        for writer in 0..rows::WRITERS {
            let (directory, ledger, stop) = (directory.clone(), ledger.clone(), stop.clone());
            let work = async move { rows::write(writer, directory, &ledger, &stop).await };
            tasks.spawn_on(work, runtime.handle());
        }
        for client in 0..lists::CLIENTS {
            let (directory, ledger, stop) = (directory.clone(), ledger.clone(), stop.clone());
            let work = async move { lists::transact(client, directory, &ledger, &stop).await };
            tasks.spawn_on(work, runtime.handle());
        }
        Self { runtime, tasks, stop }
    }

    fn stop(mut self) {
        self.stop.0.store(true, Ordering::Release);
        self.runtime.block_on(async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.expect("client");
            }
        });
    }
}
