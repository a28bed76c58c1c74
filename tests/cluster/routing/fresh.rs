//! Freshness and causal reads on real standbys.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use podgres::core::member::Ordinal;
use podgres::demo::Target;
use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::{Config, NoTls};

use super::clients::{answered, config, config_of, on_standby, written};
use crate::harness::{Demo, Start, member, members, wait_for};

/// Two pods, one of them a standby.
fn pair() -> Demo {
    let demo = Start::new(16).with(&["--replicas", "2"]).run();
    demo.wait_streaming(1);
    demo.sql(&[], "CREATE TABLE work (n int)");
    demo
}

/// The standby's WAL receiver, stopped: nothing tells anybody that it is.
pub(super) struct Frozen(Pid);

impl Frozen {
    pub(super) fn receiver(demo: &Demo, member: &str) -> Self {
        let pid = demo.sql(&["--member", member], "SELECT pid FROM pg_stat_wal_receiver");
        let pid = Pid::from_raw(pid.parse().expect("a process id")).expect("a process id");
        kill_process(pid, Signal::STOP).expect("SIGSTOP");
        Self(pid)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).expect("SIGCONT");
    }
}

fn standby_serves(mut config: Config, options: &str) -> Option<bool> {
    on_standby(config.options(options))
}

/// Where a session with these options ends up: `t` on the standby.
fn served_by_standby(demo: &Demo, options: &str) -> Option<bool> {
    standby_serves(config(&demo.directory, Target::ReadOnly), options)
}

/// Each had the other as a witness that the primary was gone, while it went on behind a cut cable.
#[test]
fn standbys_that_have_lost_a_silent_primary_served_reads_of_any_age() {
    let demo = Start::new(16)
        .with(&["--replicas", "3", "--set", "PODGRES_MAX_STALENESS=2s"])
        .with(&["--set", "PODGRES_DEGRADE=read-only"])
        .run();
    demo.wait_streaming(2);
    let on_read_write =
        || [1, 2].map(|ordinal| standby_serves(config_of(&demo, ordinal, Target::ReadWrite), ""));
    assert_eq!(on_read_write(), [Some(false); 2], "there is a primary");
    let none = "-c podgres.fallback=none -c podgres.wait=1s";
    let served = |options: &str| {
        let pods = [1, 2].map(|ordinal| config_of(&demo, ordinal, Target::ReadOnly));
        pods.map(|pod| standby_serves(pod, &format!("{none} {options}")))
    };
    let all = [Some(true); 2];
    assert!(wait_for(Duration::from_secs(10), || served("") == all));
    demo.ask(&["freeze", "0"]);
    demo.wait("the standbys to have lost the primary", |status| {
        let lost = |name| member(status, name)["state"] == "running";
        lost("demo-1") && lost("demo-2")
    });
    for _ in 0..3 {
        assert_eq!(served(""), [None; 2], "older than 2 s");
        assert_eq!(
            served("-c podgres.max_staleness=1h"),
            all,
            "who takes it old has it"
        );
    }
    assert_eq!(on_read_write(), all, "--degrade promises no age, but to go on");
    demo.ask(&["thaw", "0"]);
    assert!(wait_for(Duration::from_secs(20), || served("") == all));
    let back = || on_read_write() == [Some(false); 2];
    assert!(wait_for(Duration::from_secs(20), back), "{:?}", on_read_write());
}

#[test]
fn a_standby_that_falls_silent_is_left_within_the_bound_and_comes_back_by_itself() {
    let demo = pair();
    let strict = "-c podgres.max_staleness=2s";
    let fresh = wait_for(Duration::from_secs(10), || {
        served_by_standby(&demo, strict) == Some(true)
    });
    assert!(fresh, "an idle standby is fresh");
    strict_clients_missed_an_idle_standby_half_of_the_time(&demo);

    let frozen = Frozen::receiver(&demo, "1");
    demo.sql(&["--member", "0"], "INSERT INTO work VALUES (1)");
    let began = Instant::now();
    let left = wait_for(Duration::from_secs(10), || {
        served_by_standby(&demo, strict) == Some(false)
    });
    assert!(
        left && began.elapsed() < Duration::from_secs(6),
        "{:?}",
        began.elapsed()
    );
    let state = demo.sql(&["--member", "1"], "SELECT status FROM pg_stat_wal_receiver");
    assert_eq!(state, "streaming", "PostgreSQL itself does not see it");
    // The routes of the other pod have asked at other instants.
    let nobody = wait_for(Duration::from_secs(10), || {
        served_by_standby(&demo, "-c podgres.max_staleness=2s -c podgres.fallback=none").is_none()
    });
    assert!(nobody, "without a fallback there is nobody");
    assert_eq!(
        served_by_standby(&demo, "-c podgres.max_staleness=1h"),
        Some(true)
    );

    drop(frozen);
    let back = wait_for(Duration::from_secs(10), || {
        served_by_standby(&demo, strict) == Some(true)
    });
    assert!(back, "it comes back by itself");
}

/// Members are asked every 500 ms, for the endpoints' own limits: by chance the last answer was older than a client's.
fn strict_clients_missed_an_idle_standby_half_of_the_time(demo: &Demo) {
    // A machine that is busy for a moment may take longer for the proof than a client is kept waiting for it.
    let served = |options: &str| {
        wait_for(Duration::from_secs(20), || {
            (0..25).all(|_| served_by_standby(demo, options) == Some(true))
        })
    };
    assert!(served("-c podgres.max_staleness=500ms"), "never 25 of 25");
    let strict = "-c podgres.max_staleness=100ms -c podgres.fallback=none";
    assert!(served(strict), "never 25 of 25");
}

#[test]
fn a_token_finds_every_own_write_on_a_slow_standby() {
    let demo = pair();
    demo.sql(
        &["--member", "1"],
        "ALTER SYSTEM SET recovery_min_apply_delay = '500ms'",
    );
    demo.sql(&["--member", "1"], "SELECT pg_reload_conf()");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let tries = 15;
    let (missed_without, missed_with) = runtime.expect("runtime").block_on(async {
        let write = config(&demo.directory, Target::ReadWrite);
        let read = config(&demo.directory, Target::ReadOnly);
        let (writer, connection) = write.connect(NoTls).await.expect("read-write");
        tokio::spawn(connection);
        let mut missed = (0, 0);
        for n in 0..tries {
            let token = written(&writer, n).await;
            for with in [false, true] {
                let min_lsn = if with {
                    format!("-c podgres.min_lsn={token}")
                } else {
                    String::new()
                };
                let options = format!("-c podgres.fallback=none {min_lsn}");
                let sql = format!("SELECT pg_is_in_recovery(), exists (SELECT FROM work WHERE n = {n})");
                let row = answered(&read, &options, &sql).await;
                assert!(row.get::<_, bool>(0), "a standby answers");
                let found: bool = row.get(1);
                if with {
                    missed.1 += u32::from(!found);
                } else {
                    missed.0 += u32::from(!found);
                }
            }
        }
        missed
    });
    assert_eq!(missed_with, 0, "of {tries}");
    assert!(missed_without > 0, "the standby is not slow enough for this test");

    // The same for pooled clients, over HTTP.
    let token = demo.sql(&["--member", "0"], "SELECT pg_current_wal_insert_lsn()");
    let (code, body) = demo
        .get(1, &format!("/wait?lsn={token}&timeout=5s"))
        .expect("an answer");
    assert_eq!(code, 200, "{body}");
    let (code, body) = demo.get(1, "/wait?lsn=FF/0&timeout=100ms").expect("an answer");
    assert_eq!(code, 503, "{body}");
    assert_eq!(demo.get(1, "/wait?lsn=now").expect("an answer").0, 400);
}

/// What one session reads on the first pod's route, by these options: the newest row, and whose data it was.
async fn newest(read: &Config, options: &str) -> (i32, IpAddr) {
    let options = format!("-c podgres.max_staleness=1h -c podgres.max_lag=1TB {options}");
    let sql = "SELECT coalesce(max(n), 0), inet_server_addr() FROM work";
    let row = answered(read, &options, sql).await;
    (row.get(0), row.get(1))
}

#[test]
fn a_client_never_goes_back_in_time_if_it_does_not_want_to() {
    let demo = Start::new(16).with(&["--replicas", "3"]).run();
    demo.wait_streaming(2);
    demo.sql(&[], "CREATE TABLE work (n int)");
    demo.wait("the standbys to have the table", |status| {
        let standbys = members(status)
            .iter()
            .filter(|member| member["role"] == "standby");
        standbys.filter(|member| member["lag_bytes"] == 0).count() == 2
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(async {
        let write = config(&demo.directory, Target::ReadWrite);
        let (writer, connection) = write.connect(NoTls).await.expect("read-write");
        tokio::spawn(connection);
        // Each route remembers its own clients.
        let read = config_of(&demo, 0, Target::ReadOnly);
        // A standby that has just come gets its share slowly; without this the paused one was not read on a fast machine.
        let (mut both, began) = (BTreeSet::new(), Instant::now());
        while both.len() < 2 {
            assert!(
                began.elapsed() < crate::harness::LIMIT,
                "only {both:?} served reads"
            );
            both.insert(newest(&read, "").await.1);
        }
        demo.sql(&["--member", "2"], "SELECT pg_wal_replay_pause()");
        let (mut seen, mut back) = ((0, 0), 0);
        let mut servers = BTreeSet::new();
        for n in 1..=400 {
            if n > 40 && back > 0 {
                break;
            }
            let insert = format!("INSERT INTO work VALUES ({n})");
            writer.batch_execute(&insert).await.expect("insert");
            let (found, _) = newest(&read, "").await;
            back += u32::from(found < seen.0);
            seen.0 = seen.0.max(found);
            let (found, server) = newest(&read, "-c podgres.monotonic=on").await;
            assert!(found >= seen.1, "{found} after {}, at the {n}th try", seen.1);
            seen.1 = found;
            servers.insert(server);
        }
        assert!(back > 0, "the paused standby was never read");
        assert!(servers.len() < 3, "{servers:?}: the primary is not needed");
        demo.sql(&["--member", "2"], "SELECT pg_wal_replay_resume()");
        let paused = demo.deployed().pod(Ordinal(2)).expect("a pod").address;
        let began = Instant::now();
        while newest(&read, "-c podgres.monotonic=on").await.1 != paused {
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "it serves again once it has caught up"
            );
        }
    });
}

/// For as many reads of own writes as fit.
const TIME_FOR_TRIES: Duration = Duration::from_secs(15);
const TRIES: u32 = 10_000;

#[test]
fn many_reads_of_own_writes_miss_none() {
    let demo = pair();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (mut waits, missed) = runtime.expect("runtime").block_on(async {
        let began = Instant::now();
        let lanes = (0..8).map(|lane| own_reads(&demo, lane, began));
        let lanes = futures_util::future::join_all(lanes).await;
        lanes
            .into_iter()
            .fold((Vec::new(), 0), |(mut all, missed), (waits, more)| {
                all.extend(waits);
                (all, missed + more)
            })
    });
    assert_eq!(missed, 0, "of {}", waits.len());
    assert!(waits.len() >= 40, "only {} tries", waits.len());
    waits.sort();
    println!("{} tries, median {:?}", waits.len(), waits[waits.len() / 2]);
}

/// Writes a row, asks for its token, and reads it from a standby on a new connection, over and over: how long each
/// connection took, and how many rows were missed.
async fn own_reads(demo: &Demo, lane: u32, began: Instant) -> (Vec<Duration>, u32) {
    let write = config(&demo.directory, Target::ReadWrite);
    let read = config(&demo.directory, Target::ReadOnly);
    let (writer, connection) = write.connect(NoTls).await.expect("read-write");
    tokio::spawn(connection);
    let (mut waits, mut missed) = (Vec::new(), 0);
    for n in 0..TRIES / 8 {
        if began.elapsed() > TIME_FOR_TRIES {
            break;
        }
        let n = lane * TRIES + n;
        let token = written(&writer, n).await;
        let mut read = read.clone();
        read.options(format!(
            "-c podgres.min_lsn={token} -c podgres.fallback=none -c podgres.wait=10s"
        ));
        let connecting = Instant::now();
        let (reader, connection) = read.connect(NoTls).await.expect("read-only");
        waits.push(connecting.elapsed());
        tokio::spawn(connection);
        let sql = format!("SELECT pg_is_in_recovery() AND exists (SELECT FROM work WHERE n = {n})");
        let row = reader.query_one(&sql, &[]).await.expect("row");
        missed += u32::from(!row.get::<_, bool>(0));
    }
    (waits, missed)
}
