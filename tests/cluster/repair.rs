//! Processes that are killed or frozen: each is repaired, and nothing else is disturbed.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Demo, LIMIT, Start, member, wait_for};
use crate::kit::{answer, http_status, pid_in, psql, psql_command, signal};

const PODS: [&str; 3] = ["demo-0", "demo-1", "demo-2"];
const PROCESSES: [&str; 3] = ["supervisor", "postgres", "sidecar"];

fn three() -> Demo {
    let demo = Start::new(16).run();
    demo.wait_streaming(2);
    demo.sql(&[], "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS i");
    demo.wait_replayed("0", "1");
    demo.wait_replayed("0", "2");
    demo
}

fn pids(status: &Value) -> Vec<(&'static str, &'static str, u32)> {
    let pods = PODS.into_iter();
    pods.flat_map(|pod| PROCESSES.map(|process| (pod, process, pid_in(status, pod, process))))
        .collect()
}

/// Kills a process, waits until all is well again, and checks that of all processes only `replaced` of that pod
/// are new ones.
fn kill_one(demo: &Demo, pod: &str, process: &str, replaced: &[&str]) {
    let before = demo.wait_streaming(2);
    let victim = pid_in(&before, pod, process);
    signal(victim, Signal::KILL);
    demo.wait(&format!("{pod} without the killed {process}"), |status| {
        let pid = member(status, pod)["pids"][process].as_u64();
        pid.is_some_and(|pid| pid != u64::from(victim))
    });
    let after = demo.wait_streaming(2);
    for ((pod_of, name, old), (_, _, new)) in pids(&before).into_iter().zip(pids(&after)) {
        let expected_new = pod_of == pod && replaced.contains(&name);
        assert_eq!(
            old != new,
            expected_new,
            "{process} of {pod} killed: {name} of {pod_of}"
        );
    }
    assert_eq!(demo.sql(&["--member", "0"], "SELECT count(*) FROM kept"), "1000");
}

#[test]
fn a_killed_sidecar_comes_back_and_postgresql_does_not_notice() {
    let demo = three();
    let connected =
        "SELECT string_agg(pid || ' ' || backend_start, ',' ORDER BY pid) FROM pg_stat_replication";
    let before = demo.sql(&["--member", "0"], connected);
    for pod in PODS {
        kill_one(&demo, pod, "sidecar", &["sidecar"]);
    }
    assert_eq!(
        demo.sql(&["--member", "0"], connected),
        before,
        "replication was cut"
    );
}

#[test]
fn a_killed_postmaster_is_started_again_as_what_it_was() {
    let demo = three();
    for pod in ["demo-2", "demo-0"] {
        kill_one(&demo, pod, "postgres", &["postgres"]);
    }
    assert_eq!(
        demo.sql(
            &["--member", "0"],
            "SELECT timeline_id FROM pg_control_checkpoint()"
        ),
        "1"
    );
}

#[test]
fn a_killed_supervisor_takes_its_postgresql_along_and_both_come_back() {
    let demo = three();
    for pod in ["demo-1", "demo-0"] {
        kill_one(&demo, pod, "supervisor", &["supervisor", "postgres"]);
    }
}

#[test]
fn row_44_a_frozen_standby_leaves_the_read_route_within_seconds_and_comes_back() {
    let demo = three();
    let dsn = demo.route("demo-0", "read_only_port");
    let address = |ordinal: &str| demo.sql(&["--member", ordinal], "SELECT inet_server_addr()");
    let (frozen, other) = (address("1"), address("2"));
    let served = || {
        let begun = Instant::now();
        let output = psql(&dsn, "SELECT inet_server_addr()");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "after {:?}: {error}", begun.elapsed());
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert!(wait_for(LIMIT, || served() == frozen), "both serve at first");
    let mut held = held_on(&demo, &dsn, "1");

    demo.ask(&["freeze", "1"]);
    let begun = Instant::now();
    // Every new connection is served all the while, however late.
    let mut last_slow = Duration::ZERO;
    while begun.elapsed() < Duration::from_secs(8) {
        let asked = Instant::now();
        let server = served();
        assert_eq!(server, other, "a frozen server answered");
        if asked.elapsed() > Duration::from_secs(1) {
            last_slow = begun.elapsed();
        }
    }
    assert!(
        last_slow < Duration::from_secs(6),
        "still tried after {last_slow:?}"
    );
    // A session on it is cut, instead of left to wait for ever.
    assert!(wait_for(Duration::from_secs(5), || held
        .try_wait()
        .expect("wait")
        .is_some()));
    assert!(!held.wait().expect("wait").success());

    demo.ask(&["thaw", "1"]);
    let begun = Instant::now();
    assert!(wait_for(LIMIT, || served() == frozen), "it does not come back");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    demo.wait_streaming(2);
}

/// A session that lasts, on the standby of this ordinal, through a route.
fn held_on(demo: &Demo, dsn: &str, ordinal: &str) -> Child {
    let asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    let address = demo.sql(&["--member", ordinal], "SELECT inet_server_addr()");
    let sql = format!("SELECT pg_sleep(60) WHERE inet_server_addr() = '{address}'");
    for _ in 0..30 {
        let mut command = psql_command(dsn, &sql);
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = quiet.spawn().expect("psql");
        let mut ended = || child.try_wait().expect("wait").is_some();
        if wait_for(LIMIT, || {
            ended() || demo.sql(&["--member", ordinal], asleep) == "1"
        }) && !ended()
        {
            return child;
        }
    }
    panic!("no session came to demo-{ordinal} through {dsn}");
}

#[test]
fn row_44_a_standby_that_falls_behind_leaves_the_read_route_and_comes_back() {
    let demo = Start::new(16).with(&["--set", "PODGRES_MAX_LAG=100kB"]).run();
    demo.wait_streaming(2);
    demo.sql(&[], "CREATE TABLE t (i int)");
    let dsn = demo.route("demo-0", "read_only_port");
    let readiness = demo.address("demo-1", "http_port");
    let ready = || http_status(&readiness, "/readiness?lag=100kB");
    let [behind, other] = ["1", "2"].map(|o| demo.sql(&["--member", o], "SELECT inet_server_addr()"));
    let served = || answer(&psql(&dsn, "SELECT inet_server_addr()"));
    assert!(wait_for(LIMIT, || served() == behind), "both serve at first");
    assert_eq!(ready(), 200);

    // Frozen alone: PostgreSQL still says that it streams, and nothing arrives.
    let receiver = demo.sql(&["--member", "1"], "SELECT pid FROM pg_stat_wal_receiver");
    let receiver = receiver.parse().expect("a pid");
    signal(receiver, Signal::STOP);
    demo.sql(&[], "INSERT INTO t SELECT generate_series(1, 10000)");
    assert!(wait_for(Duration::from_secs(5), || ready() == 503), "still ready");
    // The route hears of it within a second; for a moment the other may seem behind too, and the primary serves.
    let other_alone = || (0..10).all(|_| served() == other);
    assert!(wait_for(Duration::from_secs(10), other_alone), "it still serves");
    for _ in 0..20 {
        assert_eq!(served(), other);
    }

    signal(receiver, Signal::CONT);
    assert!(
        wait_for(Duration::from_secs(15), || ready() == 200),
        "not ready again"
    );
    assert!(
        wait_for(Duration::from_secs(5), || served() == behind),
        "it does not come back"
    );
}
