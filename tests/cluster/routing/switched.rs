//! The read-only switch, rows 37 to 42 and 78 of ACCEPTANCE.

use std::time::{Duration, Instant};

use podgres::demo::Target;

use super::clients::{Clients, Counts, Work};
use super::{leased, ordinal_of, primary, verb};
use crate::harness::{Demo, Start, member, wait_for};

/// What a new session on the read-write routes is told.
fn insert(demo: &Demo) -> Result<(), String> {
    let output = demo.try_sql(&[], "INSERT INTO work VALUES (7)");
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Sessions of clients on the primary, but for the one that asks and podgres' own.
fn clients_on(demo: &Demo, member: &str) -> String {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datid > 0 AND pid <> pg_backend_pid() \
               AND application_name NOT LIKE 'podgres%'";
    demo.sql(&["--member", &ordinal_of(member)], sql)
}

fn there_and_back(demo: &Demo) {
    let status = demo.wait_streaming(2);
    let first = primary(&status);
    demo.sql(&[], "CREATE TABLE work (n int)");
    insert(demo).expect("row 37: by default clients can add items");
    let writers = Clients::start(&demo.directory, Target::ReadWrite, Work::Write, 4);
    let readers = Clients::start(&demo.directory, Target::ReadWrite, Work::Read, 4);
    writers.wait_for_more(20);
    assert_ne!(clients_on(demo, &first), "0");

    verb(demo, &["read-only", "on", "--reason", "a migration"]);
    let began = Instant::now();
    let left = wait_for(Duration::from_secs(5), || clients_on(demo, &first) == "0");
    assert!(
        left,
        "row 39: {} clients are on the primary",
        clients_on(demo, &first)
    );
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let refused = insert(demo).expect_err("row 38: writing is disabled");
    assert!(refused.contains("25006"), "row 78: {refused}");
    assert!(
        demo.sql(&[], "SELECT count(*) FROM work WHERE n = 7") == "1",
        "row 38: old items"
    );
    assert_eq!(demo.sql(&[], "SELECT pg_is_in_recovery()"), "t");
    readers.wait_for_more(50);
    let status = demo.wait("the switch in the status", |status| status["read_only"] == true);
    assert_eq!(status["read_only_switch"]["reason"], "a migration");
    assert!(
        status["read_only_switch"]["by"]
            .as_str()
            .is_some_and(|by| by.contains('@'))
    );
    let standbys = ["demo-0", "demo-1", "demo-2"]
        .into_iter()
        .filter(|name| *name != first);
    let seen = standbys
        .map(|name| clients_on(demo, name))
        .filter(|count| count != "0");
    assert!(seen.count() > 0, "row 40: client sessions are on the standbys");

    verb(demo, &["read-only", "off"]);
    let writable = wait_for(Duration::from_secs(5), || insert(demo).is_ok());
    assert!(writable, "row 42: {:?}", insert(demo));
    writers.wait_for_more(20);
    let (writers, readers) = (writers.stop(), readers.stop());
    assert!(Counts::get(&writers.read_only) > 0, "{writers:?}");
    for counts in [&writers, &readers] {
        assert_eq!(Counts::get(&counts.broken), 0, "{counts:?}");
        assert_eq!(Counts::get(&counts.refused), 0, "row 41: {counts:?}");
    }
    assert_eq!(Counts::get(&readers.read_only), 0, "row 41: {readers:?}");
}

#[test]
fn row_37_to_42_the_switch_with_a_fixed_primary() {
    let demo = Start::new(16).with(&["--replicas", "3"]).run();
    there_and_back(&demo);
    // It outlives the pod that was asked, and the primary.
    verb(&demo, &["read-only", "on"]);
    demo.ask(&["delete-pod", "1", "--force"]);
    demo.wait("pod 1 again, and read-only", |status| {
        member(status, "demo-1")["state"] == "streaming" && status["read_only"] == true
    });
    demo.ask(&["freeze", "0"]);
    assert_eq!(demo.sql(&["--read-only"], "SELECT pg_is_in_recovery()"), "t");
    let turned = wait_for(Duration::from_secs(10), || {
        let output = demo.try_sql(&[], "SELECT pg_is_in_recovery()");
        output.status.success()
    });
    assert!(
        turned,
        "the switch serves reads while the primary does not answer"
    );
    demo.ask(&["thaw", "0"]);
    verb(&demo, &["read-only", "off"]);
    let writable = wait_for(Duration::from_secs(10), || insert(&demo).is_ok());
    assert!(writable, "{:?}", insert(&demo));
}

#[test]
fn row_37_to_42_the_switch_with_a_lease() {
    let demo = leased(&[]);
    there_and_back(&demo);
}

/// Its client was cut, and the server went on, and committed half a minute after the switch.
#[test]
fn a_long_write_outlived_the_switch_and_its_drain() {
    let demo = leased(&["--set", "PODGRES_DRAIN_TIMEOUT=1s"]);
    let first = primary(&demo.wait_streaming(2));
    demo.sql(&[], "CREATE TABLE work (n int)");
    let long = std::thread::scope(|scope| {
        let writer = scope.spawn(|| demo.try_sql(&[], "INSERT INTO work SELECT 4242 FROM pg_sleep(20)"));
        let begun = wait_for(Duration::from_secs(10), || clients_on(&demo, &first) == "1");
        assert!(begun, "{}", clients_on(&demo, &first));
        verb(&demo, &["read-only", "on"]);
        let left = wait_for(Duration::from_secs(5), || clients_on(&demo, &first) == "0");
        assert!(left, "{} clients are on the primary", clients_on(&demo, &first));
        writer.join().expect("the writer")
    });
    assert!(!long.status.success(), "{long:?}");
    let rows = demo.sql(
        &["--member", &ordinal_of(&first)],
        "SELECT count(*) FROM work WHERE n = 4242",
    );
    assert_eq!(rows, "0");
}
