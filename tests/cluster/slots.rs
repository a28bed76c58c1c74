//! With a Lease: whoever becomes the primary has kept the WAL that a standby needs which was away meanwhile.

use std::os::unix::fs::MetadataExt as _;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Demo, LIMIT, Start, member, members, wait_for};
use crate::hazards_wal::configured;
use crate::kit::signal;

/// Nothing but slots keeps WAL beyond a checkpoint.
const SLOTS_ALONE: &str = "wal_keep_size = 0\nmax_wal_size = 32MB\nmin_wal_size = 32MB\n";

/// A member whose PostgreSQL was killed and is not started again while this lives: process 1 of its container is stopped.
pub(crate) struct Away(u32);

impl Away {
    pub(crate) fn keep(demo: &Demo, name: &str) -> Self {
        let (supervisor, server) = (demo.pid(name, "supervisor"), demo.pid(name, "postgres"));
        signal(supervisor, Signal::STOP);
        signal(server, Signal::KILL);
        Self(supervisor)
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        signal(self.0, Signal::CONT);
    }
}

/// The standbys that a failover may choose from.
fn wait_recorded(demo: &Demo, names: &[&str]) {
    demo.wait(&format!("{names:?} as the recorded standbys"), |status| {
        let recorded = status["synchronous"]["members"].as_array();
        let recorded = recorded.map(Vec::as_slice).unwrap_or_default();
        let known = |name: &&str| recorded.iter().any(|found| found.as_str() == Some(*name));
        recorded.len() == names.len() && names.iter().all(known)
    });
}

fn wait_primary(demo: &Demo, name: &str) {
    demo.wait(&format!("{name} as the primary"), |status| {
        member(status, name)["role"] == "primary" && member(status, name)["writable"] == true
    });
}

/// The segment from which on `pod` needs WAL of the primary `ordinal`, by its slot there, without the timeline.
fn needed(demo: &Demo, ordinal: &str, pod: &str) -> String {
    let slot = format!("podgres_{}", pod.replace('-', "_"));
    let sql = format!(
        "SELECT substr(pg_walfile_name(restart_lsn), 9) FROM pg_replication_slots WHERE slot_name = '{slot}' AND restart_lsn IS NOT NULL"
    );
    demo.sql(&["--member", ordinal], &sql)
}

/// How many segments before this one are still there, on whatever timeline.
fn older_than(demo: &Demo, ordinal: &str, segment: &str) -> String {
    let sql = format!(
        "SELECT count(*) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{{24}}$' AND substr(name, 9) < '{segment}'"
    );
    demo.sql(&["--member", ordinal], &sql)
}

/// 96 MB, three times what checkpoints leave, with checkpoints between.
fn write_much(demo: &Demo, ordinal: &str) {
    let primary = ["--member", ordinal];
    for _ in 0..6 {
        let rows = "INSERT INTO bulk SELECT repeat('x', 1 << 20) FROM generate_series(1, 16)";
        demo.sql(&primary, &format!("{rows}; SELECT pg_switch_wal()"));
        demo.sql(&primary, "CHECKPOINT");
    }
}

/// The directory itself: a clone puts another one in its place.
fn directory(demo: &Demo, pod: &str) -> u64 {
    std::fs::metadata(demo.data_directory(pod)).expect("PGDATA").ino()
}

fn clones(status: &Value, pod: &str) -> Value {
    member(status, pod)["clones_total"].clone()
}

/// "demo-2" is away while the primary moves by `go`, and much is written before and after.
fn away_while_it_moves(demo: &Demo, (from, to): (&str, &str), go: impl FnOnce(&Demo)) {
    let before = demo.wait_streaming(2);
    let known = (directory(demo, "demo-2"), clones(&before, "demo-2"));
    let away = Away::keep(demo, "demo-2");
    wait_recorded(demo, &[&format!("demo-{to}")]);
    let segment = needed(demo, from, "demo-2");
    // Before the move as well: the successor, still a standby, removes what nobody there holds back.
    write_much(demo, from);
    demo.wait_replayed(from, to);
    demo.sql(&["--member", to], "CHECKPOINT");
    go(demo);
    wait_primary(demo, &format!("demo-{to}"));
    // The other one is back before the writing: commits wait for a standby.
    demo.wait("a standby of the new primary", |status| {
        members(status).iter().any(|found| found["state"] == "streaming")
    });
    write_much(demo, to);
    assert!(
        needed(demo, to, "demo-2") <= segment,
        "the new primary's slot is beyond what the standby has"
    );
    drop(away);
    let after = demo.wait_streaming(2);
    assert_eq!(
        (directory(demo, "demo-2"), clones(&after, "demo-2")),
        known,
        "it was cloned: {}",
        demo.log("demo-2", "sidecar")
    );
    let rows = demo.sql(&["--member", to], "SELECT count(*) FROM bulk");
    demo.wait_sql(&["--member", "2"], "SELECT count(*) FROM bulk", &rows);
    // Kept for it, and for nobody else: once it has come back that WAL goes.
    let gone = || {
        demo.sql(&["--member", to], "SELECT pg_switch_wal()");
        demo.sql(&["--member", to], "CHECKPOINT");
        let now = needed(demo, to, "demo-2");
        now > segment && older_than(demo, to, &now) == "0"
    };
    assert!(wait_for(LIMIT, gone), "WAL is kept although nobody needs it");
}

#[test]
fn a_standby_that_was_away_streams_on_from_whoever_has_become_the_primary() {
    let (_configuration, setting) = configured(SLOTS_ALONE);
    let demo = Start::lease(16).with(&["--set", &setting]).run();
    wait_recorded(&demo, &["demo-1", "demo-2"]);
    let table = "CREATE TABLE bulk (filler text); ALTER TABLE bulk ALTER filler SET STORAGE EXTERNAL";
    demo.sql(&["--member", "0"], table);
    // Slots have been in use, and moved on.
    write_much(&demo, "0");
    away_while_it_moves(&demo, ("0", "1"), |demo| {
        demo.done(&["switchover", "--to", "demo-1"]);
    });
    wait_recorded(&demo, &["demo-0", "demo-2"]);
    away_while_it_moves(&demo, ("1", "0"), |demo| {
        demo.ask(&["delete-pod", "1", "--force"]);
    });
}
