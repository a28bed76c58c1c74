//! Pods that go and come back: nothing is set up anew, data stay, the others are not disturbed.

use std::time::{Duration, Instant};

use crate::harness::{Demo, LIMIT, Start, member, wait_for};
use crate::kit::{count, pid_in, server_lines};

const CLONED: &str = "\"message\":\"cloning\"";
const INITIALISED: &str = "initialising a new cluster";

fn two() -> Demo {
    let demo = Start::new(16).with(&["--replicas", "2"]).run();
    demo.wait_streaming(1);
    demo
}

/// What must not change on a pod that is left alone.
fn identity(demo: &Demo, pod: &str) -> (String, [u32; 3], String) {
    let status = demo.status().expect("a status");
    let pids = ["supervisor", "postgres", "sidecar"].map(|process| pid_in(&status, pod, process));
    let uid = member(&status, pod)["uid"].as_str().expect("uid").to_owned();
    let ordinal = pod.rsplit_once('-').expect("an ordinal").1;
    let started = demo.sql(&["--member", ordinal], "SELECT pg_postmaster_start_time()");
    (uid, pids, started)
}

#[test]
fn row_07_and_32_a_deleted_primary_returns_with_its_data_and_disturbs_no_standby() {
    let demo = two();
    demo.sql(&[], "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS i");
    let role = "SELECT oid FROM pg_roles WHERE rolname = 'podgres_replication'";
    let role_before = demo.sql(&["--member", "0"], role);
    let (uid, ..) = identity(&demo, "demo-0");
    let standby = identity(&demo, "demo-1");
    let identifier = demo.status().expect("a status")["system_identifier"].clone();
    for how in [&["delete-pod", "0"][..], &["delete-pod", "0", "--force"]] {
        demo.ask(how);
        let status = demo.wait_streaming(1);
        assert_ne!(
            member(&status, "demo-0")["uid"],
            uid.as_str(),
            "the old pod answers"
        );
        assert_eq!(identity(&demo, "demo-1"), standby, "{how:?}");
        assert_eq!(status["system_identifier"], identifier);
        assert_eq!(demo.sql(&["--member", "0"], "SELECT count(*) FROM kept"), "1000");
    }
    // Row 17: made once. Row 19: not initialised again.
    assert_eq!(demo.sql(&["--member", "0"], role), role_before);
    assert_eq!(count(&demo.log("demo-0", "init"), INITIALISED), 1);
    assert_eq!(count(&demo.log("demo-1", "init"), CLONED), 1);
    demo.sql(&[], "INSERT INTO kept VALUES (1001)");
    demo.wait_sql(&["--member", "1"], "SELECT count(*) FROM kept", "1001");
}

#[test]
fn row_12_init_on_pod_0_with_data_does_not_wait_for_anybody() {
    let demo = two();
    demo.ask(&["scale", "1"]);
    demo.wait_streaming(0);
    demo.ask(&["delete-pod", "0"]);
    let begun = Instant::now();
    let ready = || count(&demo.log("demo-0", "init"), "\"message\":\"init is done\"") == 2;
    assert!(wait_for(LIMIT, ready));
    // Starting a process and reading a directory; no time limit of anybody is waited for.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let log = demo.log("demo-0", "init");
    assert_eq!(count(&log, "ready to start as primary"), 2, "{log}");
}

#[test]
fn row_15_a_standby_finds_the_primary_at_its_new_address() {
    let demo = two();
    let before = identity(&demo, "demo-1");
    // The address is given beside the name: no cache that still knows the old one is asked.
    let sender = "SELECT substring(conninfo from 'hostaddr=([^ ]*)') FROM pg_stat_wal_receiver WHERE status = 'streaming'";
    let old = demo.sql(&["--member", "1"], sender);
    demo.ask(&["delete-pod", "0", "--move-address"]);
    let status = demo.wait("a primary elsewhere", |status| {
        let primary = member(status, "demo-0");
        primary["host"] != old.as_str() && primary["state"] == "running"
    });
    let new = member(&status, "demo-0")["host"]
        .as_str()
        .expect("host")
        .to_owned();
    demo.wait_streaming(1);
    demo.wait_sql(&["--member", "1"], sender, &new);
    assert_eq!(identity(&demo, "demo-1"), before, "the standby need not restart");
    demo.sql(&[], "CREATE TABLE after_move AS SELECT 1 AS i");
    demo.wait_sql(&["--read-only"], "SELECT count(*) FROM after_move", "1");
}

#[test]
fn row_19_20_and_70_everything_off_at_once_is_a_clean_stop_and_keeps_all() {
    let folder = crate::kit::open_folder();
    let directory = folder.path().join("demo");
    let start = || Start::new(16).with(&["--replicas", "3"]).run_in(&directory);
    let mut demo = start();
    let identifier = demo.wait_streaming(2)["system_identifier"].clone();
    demo.sql(&[], "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS i");
    let begun = Instant::now();
    assert_eq!(demo.stop(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    for (pod, state) in [
        ("demo-0", "shut down"),
        ("demo-1", "shut down in recovery"),
        ("demo-2", "shut down in recovery"),
    ] {
        let found = demo.control_data(pod);
        assert_eq!(found["Database cluster state"], state, "{pod}");
        assert_eq!(identifier, found["Database system identifier"].as_str());
    }
    let again = start();
    assert_eq!(again.wait_streaming(2)["system_identifier"], identifier);
    for ordinal in ["0", "1", "2"] {
        assert_eq!(
            again.sql(&["--member", ordinal], "SELECT count(*) FROM kept"),
            "1000"
        );
    }
    assert_eq!(count(&again.log("demo-0", "init"), INITIALISED), 1);
    for pod in ["demo-1", "demo-2"] {
        assert_eq!(count(&again.log(pod, "init"), CLONED), 1);
        crate::smoke::ends_as_a_standby(&again.log(pod, "postgres"));
    }
}

#[test]
fn row_70_a_frozen_standby_does_not_use_up_the_grace_time_of_the_primary() {
    let demo = two();
    demo.ask(&["freeze", "1"]);
    // WAL that a fast stop wants to see on the standby.
    demo.sql(
        &["--member", "0"],
        "CREATE TABLE t AS SELECT generate_series(1, 1000)",
    );
    let begun = Instant::now();
    demo.ask(&["delete-pod", "0"]);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let log = demo.log("demo-0", "postgres");
    assert_eq!(count(&log, "database system is shut down"), 1, "{log}");
    demo.ask(&["thaw", "1"]);
    demo.wait_streaming(1);
}

#[test]
fn row_70_a_second_term_is_faster() {
    let demo = two();
    // A fast stop waits for a standby that does not take the last WAL.
    demo.ask(&["freeze", "1"]);
    demo.sql(
        &["--member", "0"],
        "CREATE TABLE t AS SELECT generate_series(1, 1000)",
    );
    let status = demo.status().expect("a status");
    let supervisor = pid_in(&status, "demo-0", "supervisor");
    let term = || crate::kit::signal(supervisor, rustix::process::Signal::TERM);
    term();
    let log = || demo.log("demo-0", "postgres");
    assert!(wait_for(LIMIT, || log().contains("received fast shutdown request")));
    assert!(!log().contains("received immediate shutdown request"));
    let begun = Instant::now();
    term();
    assert!(wait_for(LIMIT, || log().contains("received immediate shutdown request")));
    let gone = || !std::path::Path::new(&format!("/proc/{supervisor}")).exists();
    assert!(wait_for(LIMIT, gone));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    demo.ask(&["thaw", "1"]);
    demo.wait_streaming(1);
    assert_eq!(demo.sql(&["--member", "0"], "SELECT count(*) FROM t"), "1000");
}

#[test]
fn a_standby_that_lost_its_volume_is_cloned_again() {
    let demo = two();
    demo.sql(&[], "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS i");
    demo.ask(&["delete-pod", "1", "--force", "--wipe-volume"]);
    demo.wait_streaming(1);
    assert_eq!(count(&demo.log("demo-1", "init"), CLONED), 2);
    assert_eq!(demo.sql(&["--member", "1"], "SELECT count(*) FROM kept"), "1000");
    let log = demo.log("demo-1", "postgres");
    assert!(server_lines(&log).len() > 8, "{log}");
}
