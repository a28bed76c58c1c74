//! Writes where none may be: a standby that somebody promotes, and the read-only route.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{Demo, LIMIT, Start, member, wait_for};

fn metric(demo: &Demo, ordinal: u32, name: &str) -> Option<u64> {
    let (_, page) = demo.get(ordinal, "/metrics")?;
    let value = page
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.parse().ok()
}

#[test]
fn row_69_a_second_writable_server_is_an_alarm_that_harms_nobody() {
    let demo = Start::new(15).run();
    demo.wait_streaming(2);
    demo.sql(&[], "CREATE TABLE t (i int)");
    let born = "SELECT pg_postmaster_start_time(), timeline_id FROM pg_control_checkpoint()";
    let before = demo.sql(&["--member", "0"], born);
    let alarm = "podgres_other_writable_members";
    assert_eq!(metric(&demo, 0, alarm), Some(0));

    let (alarmed, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let (reads, writes) = std::thread::scope(|scope| {
        let repeat = |target: &'static str, sql: &'static str| {
            let (demo, alarmed, done) = (&demo, &alarmed, &done);
            scope.spawn(move || {
                let mut count = 0;
                while !done.load(Ordering::Relaxed) {
                    let sure = alarmed.load(Ordering::Relaxed);
                    // Each one, and once it is known not on the promoted server.
                    let output = demo.try_sql(&[target], sql);
                    let error = String::from_utf8_lossy(&output.stderr);
                    if !sure && target == "--read-only" && error.contains("closed the connection") {
                        // It was on the standby that has just stopped to be one.
                        continue;
                    }
                    assert!(output.status.success(), "{target}: {error}");
                    let timeline = String::from_utf8_lossy(&output.stdout);
                    assert!(
                        !sure || timeline.trim_end() != "2",
                        "{target} leads to the promoted server"
                    );
                    count += 1;
                }
                count
            })
        };
        let timeline =
            "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)::int WHERE NOT pg_is_in_recovery()";
        let reads = repeat("--read-only", timeline);
        let writes = repeat(
            "--read-write",
            "INSERT INTO t SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)::int RETURNING i",
        );
        demo.sql(&["--member", "1"], "SELECT pg_promote()");
        demo.wait("the alarm on both sides", |status| {
            member(status, "demo-0")["situation"] == "two_writable"
                && member(status, "demo-1")["situation"] == "writable_standby"
        });
        for ordinal in 0..3 {
            assert!(
                wait_for(LIMIT, || metric(&demo, ordinal, alarm) == Some(1)),
                "no alarm in {ordinal}"
            );
        }
        alarmed.store(true, Ordering::Relaxed);
        std::thread::sleep(Duration::from_secs(1));
        done.store(true, Ordering::Relaxed);
        (reads.join().expect("reads"), writes.join().expect("writes"))
    });
    assert!(reads > 0 && writes > 0);

    for (pod, situation) in [("demo-0", "two_writable"), ("demo-1", "writable_standby")] {
        let log = demo.log(pod, "sidecar");
        let mut errors = log.lines().filter(|line| line.contains("\"level\":\"ERROR\""));
        assert!(
            errors.any(|line| line.contains(situation)),
            "no alarm about {situation} in {pod}:\n{log}"
        );
    }
    assert_eq!(
        demo.sql(&["--member", "0"], born),
        before,
        "the primary was harmed"
    );
    assert_eq!(
        demo.sql(&["--member", "0"], "SELECT count(*) FROM t"),
        writes.to_string()
    );
    assert_eq!(
        demo.sql(&["--member", "1"], "SELECT pg_is_in_recovery()"),
        "f",
        "it was harmed"
    );
    assert_eq!(demo.get(1, "/readiness").expect("an answer").0, 503);

    // Once stopped it is not started again, and what it alone has is kept.
    demo.ask(&["delete-pod", "1"]);
    let refused = || demo.log("demo-1", "init").contains("last used by a primary");
    assert!(wait_for(LIMIT, refused), "{}", demo.log("demo-1", "init"));
    assert!(demo.data_directory("demo-1").join("global/pg_control").exists());
    assert!(wait_for(LIMIT, || metric(&demo, 0, alarm) == Some(0)));
    demo.ask(&["delete-pod", "1", "--wipe-volume"]);
    demo.wait_streaming(2);
}

#[test]
fn row_78_a_write_on_the_read_only_route_fails_as_read_only() {
    let demo = Start::new(16).with(&["--replicas", "2"]).run();
    demo.wait_streaming(1);
    demo.sql(&[], "CREATE TABLE items (name text)");
    // Until a standby is known to be fresh, the primary answers.
    let there = || {
        let output = demo.try_sql(
            &["--read-only"],
            "SELECT pg_is_in_recovery() AND to_regclass('items') IS NOT NULL",
        );
        output.stdout == b"t\n"
    };
    assert!(wait_for(LIMIT, there));
    for sql in [
        "INSERT INTO items VALUES ('x')",
        "CREATE TABLE more ()",
        "SELECT nextval('s')",
    ] {
        let output = demo.try_sql(&["--read-only"], sql);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        if sql.contains("nextval") {
            // No sequence there: the server's own answer comes through untouched.
            assert!(errors.contains("ERROR:  42P01"), "{errors}");
        } else {
            assert!(errors.contains("ERROR:  25006"), "{sql}: {errors}");
        }
    }
    // The session outlives its error.
    let words = "INSERT INTO items VALUES ('x')";
    let output = demo.try_sql(
        &["--read-only"],
        &format!(
            "DO $$ BEGIN {words}; EXCEPTION WHEN read_only_sql_transaction THEN NULL; END $$; SELECT 'alive'"
        ),
    );
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("alive"),
        "{output:?}"
    );
}
