//! Logical replication slots that PostgreSQL 17 synchronizes to standbys go on after a switchover, there and back.

use crate::harness::{Demo, LIMIT, Start, member, members, podgres, wait_for};
use crate::kit::open_folder;

const SETTINGS: &str = "wal_level = logical\nsync_replication_slots = on\nhot_standby_feedback = on\n";
const READ: &str = "SELECT count(*) > 0 FROM pg_logical_slot_get_binary_changes('orders', NULL, NULL, \
                    'proto_version', '1', 'publication_names', 'everything')";
const SYNCHRONIZED: &str =
    "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'orders' AND synced AND NOT temporary";

/// Commits, and reads that from the slot; the note of running transactions lets the slot move on.
fn consume(demo: &Demo, primary: &str) {
    let there = ["--member", primary];
    demo.sql(&there, "INSERT INTO orders VALUES (1)");
    demo.sql(&there, "SELECT pg_log_standby_snapshot()");
    assert_eq!(
        demo.sql(&there, READ),
        "t",
        "nothing came from the slot on {primary}"
    );
}

/// A slot arrives on a standby once its consumer has come past what the standby has.
fn consume_until_synchronized(demo: &Demo, primary: &str, standby: &str) {
    let arrived = wait_for(LIMIT, || {
        consume(demo, primary);
        demo.sql(&["--member", standby], SYNCHRONIZED) == "1"
    });
    assert!(arrived, "the slot of {primary} never came to {standby}");
}

fn switchover(demo: &Demo, to: &str) {
    let output = podgres()
        .args(["switchover", "--to", &format!("demo-{to}"), "--dir"])
        .arg(&demo.directory)
        .output()
        .expect("podgres switchover");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    demo.wait("the new primary", |status| {
        let name = format!("demo-{to}");
        let streaming = members(status).iter().filter(|m| m["state"] == "streaming");
        member(status, &name)["role"] == "primary" && streaming.count() == 1
    });
}

/// The former primary kept its own slot, beside which the new primary's could not be synchronized: one more switchover lost it.
#[test]
fn a_logical_slot_was_lost_with_the_second_switchover() {
    let folder = open_folder();
    std::fs::write(folder.path().join("logical.conf"), SETTINGS).expect("configuration");
    let setting = format!("PODGRES_CONFIGURATION_DIR={}", folder.path().display());
    let demo = Start::lease(18)
        .with(&["--replicas", "2", "--set", &setting])
        .run();
    demo.wait_streaming(1);
    demo.sql(&["--member", "0"], "CREATE TABLE orders (number int)");
    demo.sql(&["--member", "0"], "CREATE PUBLICATION everything FOR ALL TABLES");
    let made =
        "SELECT slot_name FROM pg_create_logical_replication_slot('orders', 'pgoutput', false, false, true)";
    assert_eq!(demo.sql(&["--member", "0"], made), "orders");
    consume_until_synchronized(&demo, "0", "1");
    switchover(&demo, "1");
    consume_until_synchronized(&demo, "1", "0");
    switchover(&demo, "0");
    consume(&demo, "0");
}
