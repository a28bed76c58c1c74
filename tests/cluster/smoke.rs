//! The main job on every supported major version that the tests have.

use crate::harness::Start;
use crate::kit::server_lines;

/// Rows 16 and 22: the last lines of a log, but for checkpoints.
pub(crate) fn ends_as_a_standby(log: &str) {
    let lines = server_lines(log);
    let expected = "database system is ready to accept read-only connections";
    // After a restart a line about the end of the WAL may come between the two.
    let last = &lines[lines.len().saturating_sub(3)..];
    assert!(last.iter().any(|line| line.ends_with(expected)), "{log}");
    let streaming = last.last().expect("lines");
    assert!(
        streaming.contains("started streaming WAL from primary at "),
        "{log}"
    );
}

fn three_servers_stream_and_route(version: u32) {
    let demo = Start::new(version).run();
    demo.wait_streaming(2);
    let log = demo.log("demo-0", "postgres");
    let ready = server_lines(&log).pop().unwrap_or_default();
    assert!(
        ready.ends_with("database system is ready to accept connections"),
        "{log}"
    );
    ends_as_a_standby(&demo.log("demo-2", "postgres"));
    demo.sql(&[], "CREATE TABLE t AS SELECT generate_series(1, 100) AS i");
    let standby_has_it = || {
        demo.sql(
            &["--member", "2"],
            "SELECT count(*) FROM pg_class WHERE relname = 't'",
        ) == "1"
    };
    assert!(crate::harness::wait_for(crate::harness::LIMIT, standby_has_it));
    assert_eq!(demo.sql(&["--read-only"], "SELECT pg_is_in_recovery()"), "t");
    assert_eq!(demo.sql(&["--read-write"], "SELECT pg_is_in_recovery()"), "f");
}

#[test]
fn three_servers_stream_and_route_on_15() {
    three_servers_stream_and_route(15);
}

#[test]
fn three_servers_stream_and_route_on_16() {
    three_servers_stream_and_route(16);
}

#[test]
fn three_servers_stream_and_route_on_18() {
    three_servers_stream_and_route(18);
}
