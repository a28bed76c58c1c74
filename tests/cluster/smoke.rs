//! The main job on every supported major version that the tests have.

use crate::harness::Start;

fn three_servers_stream_and_route(version: u32) {
    let demo = Start::new(version).run();
    demo.wait_streaming(2);
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
