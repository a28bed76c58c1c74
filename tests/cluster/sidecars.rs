//! Under `async`, where a commit waits for the gate alone: a sidecar that is killed, and one that gets the processor by fits and
//! starts, as clients with open sessions at the servers see it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use podgres::clock::boottime_ms;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::chaos_lease::checks::two_at_once;
use crate::chaos_lease::ledger::{OFFICE, Office};
use crate::harness::{Demo, LIMIT, Start, members, wait_for};
use crate::kit::signal;
use crate::reviewed::sidecar;

/// Between two attempts of a client to find a server that takes writes.
const RETRY: Duration = Duration::from_millis(20);

fn asynchronous(more: &[&str]) -> (Demo, String) {
    let settings = [&["DURABILITY=async"], more].concat();
    let settings: Vec<String> = settings.iter().map(|word| format!("PODGRES_{word}")).collect();
    let words: Vec<&str> = settings.iter().flat_map(|word| ["--set", word]).collect();
    let demo = Start::lease(16).with(&words).run();
    let name = primary(&demo.wait_streaming(2)).expect("a primary");
    let table = "CREATE TABLE numbers (number bigint GENERATED ALWAYS AS IDENTITY)";
    demo.sql(&[], table);
    (demo, name)
}

fn primary(status: &Value) -> Option<String> {
    let mut found = members(status)
        .iter()
        .filter(|member| member["role"] == "primary");
    found.next()?["name"].as_str().map(str::to_owned)
}

/// A commit that a client was told of, in microseconds since the run began.
struct Commit {
    number: i64,
    office: Office,
    asked_us: u64,
    told_us: u64,
}

/// Commits one row after the other at one member without a pause; a session that has ended is opened again.
struct Writer {
    stop: Arc<AtomicBool>,
    commits: Arc<Mutex<Vec<Commit>>>,
    running: JoinHandle<()>,
}

impl Writer {
    fn start(demo: &Demo, member: &str, began: Instant) -> Self {
        let ordinal = member.rsplit('-').next().expect("an ordinal");
        let dsn = demo.ask(&["dsn", "--member", ordinal]);
        let (stop, commits) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (asked, written) = (Arc::clone(&stop), Arc::clone(&commits));
        let running = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime");
            while !asked.load(Ordering::Relaxed) {
                runtime.block_on(session(&dsn, began, &asked, &written));
            }
        });
        Self {
            stop,
            commits,
            running,
        }
    }

    fn commits(&self) -> MutexGuard<'_, Vec<Commit>> {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for so many more.
    fn wait_for_more(&self, count: usize) {
        let before = self.commits().len();
        let more = || self.commits().len() >= before + count;
        assert!(wait_for(LIMIT, more), "commits ended after {before}");
    }

    /// All of its commits.
    fn end(self) -> Vec<Commit> {
        self.stop.store(true, Ordering::Relaxed);
        self.running.join().expect("a writer");
        std::mem::take(&mut *self.commits.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One session, until it ends or is to end.
async fn session(dsn: &str, began: Instant, stop: &AtomicBool, commits: &Mutex<Vec<Commit>>) {
    let insert = format!("INSERT INTO numbers DEFAULT VALUES RETURNING number, {OFFICE}");
    let now = || u64::try_from(began.elapsed().as_micros()).expect("a short run");
    let Ok((client, connection)) = tokio_postgres::connect(dsn, tokio_postgres::NoTls).await else {
        return tokio::time::sleep(RETRY).await;
    };
    let driver = tokio::spawn(connection);
    while !stop.load(Ordering::Relaxed) {
        let asked_us = now();
        let Ok(Ok(row)) = tokio::time::timeout(LIMIT, client.query_one(&insert, &[])).await else {
            tokio::time::sleep(RETRY).await;
            break;
        };
        commits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Commit {
                number: row.get(0),
                office: Office::parse(row.get(1)),
                asked_us,
                told_us: now(),
            });
    }
    driver.abort();
}

/// When a process began, on this machine's `CLOCK_BOOTTIME`, to a hundredth of a second.
fn began_at_ms(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let (_, rest) = stat.rsplit_once(')').expect("a name");
    let ticks = rest.split_whitespace().nth(19).expect("a start time");
    ticks.parse::<u64>().expect("a number") * 10
}

/// When the gate's session at the primary began, in milliseconds since 1970.
fn gate_began_at_ms(demo: &Demo, member: &str) -> u64 {
    let ordinal = member.rsplit('-').next().expect("an ordinal");
    let sql = "SELECT (extract(epoch FROM backend_start) * 1000)::bigint FROM pg_stat_replication \
               WHERE application_name = 'podgres_gate'";
    demo.sql(&["--member", ordinal], sql).parse().expect("one gate")
}

/// The demo starts a container again after 200 ms, the next time after 400 ms and so on, as a kubelet's back-off does with longer times. What
/// podgres does for it is the rest: its process begins, reads the Lease, renews it, and the gate attaches.
#[test]
fn a_killed_sidecar_confirms_commits_again_within_a_second() {
    let (demo, name) = asynchronous(&[]);
    let began = Instant::now();
    let writer = Writer::start(&demo, &name, began);
    writer.wait_for_more(200);
    let mut own_ms = Vec::new();
    for pause_ms in [200, 400, 800] {
        let old = sidecar(&demo, &name).expect("a sidecar");
        let (killed_ms, killed_wall) = (boottime_ms(), SystemTime::now());
        let killed_us = u64::try_from(began.elapsed().as_micros()).expect("a short run");
        signal(old, Signal::KILL);
        let confirmed = || {
            writer
                .commits()
                .last()
                .is_some_and(|last| last.asked_us > killed_us)
        };
        assert!(wait_for(LIMIT, confirmed), "nothing was confirmed any more");
        writer.wait_for_more(100);
        let new = sidecar(&demo, &name).expect("a sidecar");
        assert_ne!(new, old);
        let process_ms = began_at_ms(new).saturating_sub(killed_ms);
        let wall = killed_wall.duration_since(UNIX_EPOCH).expect("after 1970");
        let wall_ms = u64::try_from(wall.as_millis()).expect("a time");
        let gate_ms = gate_began_at_ms(&demo, &name).saturating_sub(wall_ms);
        let commits = writer.commits();
        let pairs = commits.windows(2);
        let after = pairs.filter(|pair| pair[1].told_us >= killed_us);
        let gap_us = after.map(|pair| pair[1].told_us - pair[0].told_us).max();
        drop(commits);
        let gap_ms = gap_us.expect("commits") / 1000;
        println!(
            "nothing was acknowledged for {gap_ms} ms: after {process_ms} ms the next process began (the demo waits {pause_ms} ms), \
             after {gate_ms} ms its gate was in the server"
        );
        own_ms.push(gap_ms.saturating_sub(process_ms));
    }
    // The machine may be busy with other things meanwhile.
    assert!(
        own_ms.iter().any(|own_ms| *own_ms < 700),
        "podgres took {own_ms:?} ms"
    );
    let commits = writer.end();
    let offices: std::collections::BTreeSet<&Office> = commits.iter().map(|commit| &commit.office).collect();
    assert_eq!(
        offices.len(),
        1,
        "no failover, no restart of PostgreSQL: {offices:?}"
    );
}

/// Stops and continues a process so often; gives up as soon as it is gone.
fn by_fits_and_starts(pid: u32, stopped: Duration, running: Duration, times: u32) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a pid");
    for _ in 0..times {
        if kill_process(pid, Signal::STOP).is_err() {
            return;
        }
        std::thread::sleep(stopped);
        if kill_process(pid, Signal::CONT).is_err() {
            return;
        }
        std::thread::sleep(running);
    }
}

/// From a processor that is merely busy to one that comes once in longer than the Lease lasts.
#[test]
fn a_sidecar_by_fits_and_starts_keeps_its_right_or_is_taken_over_and_two_never_acknowledge() {
    let times = ["LEASE_DURATION=6s", "RENEW_DEADLINE=2500ms", "RETRY_PERIOD=500ms"];
    let (demo, mut name) = asynchronous(&times);
    let began = Instant::now();
    let writers = ["demo-0", "demo-1", "demo-2"].map(|member| Writer::start(&demo, member, began));
    let total = || writers.iter().map(|writer| writer.commits().len()).sum::<usize>();
    for (stopped_ms, running_ms, times) in [(200, 100, 30), (1500, 60, 4), (2600, 60, 3), (7000, 60, 1)] {
        let before = (demo.wait_streaming(2)["term"].clone(), total());
        let starved = sidecar(&demo, &name).expect("a sidecar");
        let [stopped, running] = [stopped_ms, running_ms].map(Duration::from_millis);
        by_fits_and_starts(starved, stopped, running, times);
        let meanwhile = total() - before.1;
        // Somebody is primary, all stream, and what is written is acknowledged again.
        let after = demo.wait_streaming(2);
        let found = primary(&after).expect("a primary");
        let last = total();
        assert!(wait_for(LIMIT, || total() > last + 20), "nobody acknowledges");
        println!(
            "{stopped_ms} ms of {} ms without the processor, {times} times: term {} of {name}, then {} of {found}; \
             {meanwhile} commits meanwhile",
            stopped_ms + running_ms,
            before.0,
            after["term"]
        );
        // The right lasts for 2.5 s from its renewal, and one is asked for every half a second.
        assert!(
            stopped_ms > 1000 || after["term"] == before.0,
            "an office was lost that could be kept"
        );
        name = found;
    }
    let commits: Vec<Commit> = writers.into_iter().flat_map(Writer::end).collect();
    let offices = commits
        .iter()
        .map(|commit| (commit.office.clone(), commit.asked_us, commit.told_us));
    let wrong = two_at_once(offices);
    assert!(wrong.is_empty(), "{wrong:?}");
    let last = commits.iter().map(|commit| commit.office.timeline).max();
    let numbers: Vec<String> = commits
        .iter()
        .filter(|commit| Some(commit.office.timeline) == last)
        .map(|commit| commit.number.to_string())
        .collect();
    let lost = format!(
        "SELECT count(*) FROM unnest('{{{}}}'::bigint[]) AS a(n) WHERE n NOT IN (SELECT number FROM numbers)",
        numbers.join(",")
    );
    assert_eq!(
        demo.sql(&[], &lost),
        "0",
        "the last primary lost what it acknowledged"
    );
}
