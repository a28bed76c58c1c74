//! Logical replication slots that PostgreSQL 17 synchronizes to standbys go on after a switchover, there and back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Demo, LIMIT, Start, member, members, podgres, programs, wait_for};
use crate::kit::{open_folder, psql_command, signal};
use crate::slots::Away;

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

/// Takes what the slot has: the numbers of the rows, from `pgoutput`'s message for an insert into a table of one column.
const NUMBERS: &str = "SELECT convert_from(substr(data, 14), 'UTF8') FROM pg_logical_slot_get_binary_changes('orders', \
                       NULL, NULL, 'proto_version', '1', 'publication_names', 'everything') WHERE get_byte(data, 0) = 73";

/// Three members, of which any two may be lost to the consumer, and a failover slot that has come to both standbys.
fn with_a_slot(folder: &tempfile::TempDir) -> Demo {
    std::fs::write(folder.path().join("logical.conf"), SETTINGS).expect("configuration");
    let setting = format!("PODGRES_CONFIGURATION_DIR={}", folder.path().display());
    let demo = Start::lease(18).with(&["--set", &setting]).run();
    demo.wait_streaming(2);
    demo.wait("two recorded standbys", |status| {
        status["synchronous"]["members"].as_array().map(Vec::len) == Some(2)
    });
    let there = ["--member", "0"];
    demo.sql(&there, "CREATE TABLE orders (number int)");
    demo.sql(&there, "CREATE PUBLICATION everything FOR ALL TABLES");
    let made =
        "SELECT slot_name FROM pg_create_logical_replication_slot('orders', 'pgoutput', false, false, true)";
    assert_eq!(demo.sql(&there, made), "orders");
    for standby in ["1", "2"] {
        consume_until_synchronized(&demo, "0", standby);
    }
    demo
}

fn taken(demo: &Demo, primary: &str) -> BTreeSet<i32> {
    let text = demo.sql(&["--member", primary], NUMBERS);
    text.lines().map(|line| line.parse().expect("a number")).collect()
}

#[test]
fn a_logical_consumer_goes_on_where_it_was_after_a_failover() {
    let folder = open_folder();
    let demo = with_a_slot(&folder);
    let there = ["--member", "0"];
    demo.sql(&there, "INSERT INTO orders SELECT generate_series(101, 200)");
    let mut all = taken(&demo, "0");
    // Acknowledged, and not yet taken from the primary when it is lost.
    demo.sql(&there, "INSERT INTO orders SELECT generate_series(201, 300)");
    demo.ask(&["delete-pod", "0", "--force"]);
    let status = demo.wait("another primary", |status| {
        members(status)
            .iter()
            .any(|m| m["role"] == "primary" && m["writable"] == true && m["name"] != "demo-0")
    });
    let found = members(&status)
        .iter()
        .find(|m| m["role"] == "primary" && m["name"] != "demo-0");
    let ordinal = found.expect("a primary")["ordinal"].to_string();
    demo.sql(&[], "INSERT INTO orders SELECT generate_series(301, 400)");
    all.extend(taken(&demo, &ordinal));
    let missed: Vec<i32> = (101..=400).filter(|number| !all.contains(number)).collect();
    assert!(missed.is_empty(), "the consumer missed {missed:?}");
    // And so on, with everybody back.
    demo.wait_streaming(2);
    let named = "SELECT current_setting('synchronized_standby_slots') LIKE '%podgres_demo_0%'";
    demo.wait_sql(&["--member", &ordinal], named, "t");
    demo.sql(&[], "INSERT INTO orders VALUES (401)");
    assert!(taken(&demo, &ordinal).contains(&401));
}

/// It asks the next primary for what comes after what it has: had the next primary not got that, what is written there in its place would
/// be left out.
#[test]
fn a_logical_consumer_was_ahead_of_who_might_take_over() {
    let folder = open_folder();
    let demo = with_a_slot(&folder);
    let there = ["--member", "0"];
    taken(&demo, "0");
    let receivers = ["1", "2"].map(|standby| {
        let pid = demo.sql(&["--member", standby], "SELECT pid FROM pg_stat_wal_receiver");
        pid.parse::<u32>().expect("a WAL receiver")
    });
    for pid in receivers {
        signal(pid, Signal::STOP);
    }
    let dsn = demo.ask(&["dsn", "--member", "0"]);
    let mut insert = psql_command(&dsn, "INSERT INTO orders VALUES (1000)");
    let mut insert = insert.spawn().expect("psql");
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE 'INSERT%'";
    demo.wait_sql(&there, waiting, "1");
    // PostgreSQL itself waits in it for the standbys' slots, and is told to give up.
    let limited = format!("SET statement_timeout = '1500ms'; {NUMBERS}");
    let early = demo.try_sql(&there, &limited);
    for pid in receivers {
        signal(pid, Signal::CONT);
    }
    let (given, error) = (
        String::from_utf8_lossy(&early.stdout),
        String::from_utf8_lossy(&early.stderr),
    );
    assert!(
        !early.status.success() && error.contains("57014"),
        "no standby has it, and the consumer was given: {given}{error}"
    );
    assert!(insert.wait().expect("psql").success());
    assert!(taken(&demo, "0").contains(&1000));
}

/// PostgreSQL gives up a consumer's WAL sender that waits for it, instead of keeping the last checkpoint waiting.
#[test]
fn a_planned_move_does_not_wait_for_a_standby_that_is_away_on_behalf_of_a_consumer() {
    let folder = open_folder();
    let demo = with_a_slot(&folder);
    let there = ["--member", "0"];
    let dsn = demo.ask(&["dsn", "--member", "0"]);
    let file = folder.path().join("taken");
    let mut consumer = std::process::Command::new(programs(18).join("pg_recvlogical"))
        .args([
            "-d",
            &dsn,
            "-S",
            "orders",
            "--start",
            "-n",
            "-o",
            "proto_version=1",
            "-o",
        ])
        .args(["publication_names=everything", "-f"])
        .arg(&file)
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("pg_recvlogical");
    let active = "SELECT active FROM pg_replication_slots WHERE slot_name = 'orders'";
    demo.wait_sql(&there, active, "t");
    let away = Away::keep(&demo, "demo-2");
    demo.sql(&there, "INSERT INTO orders SELECT generate_series(1, 1000)");
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'WaitForStandbyConfirmation'";
    demo.wait_sql(&there, waits, "1");
    let begun = Instant::now();
    let said = demo.done(&["switchover", "--to", "demo-1"]);
    let took = begun.elapsed();
    println!("moved in {took:?}");
    assert!(said.contains("\"demo-1\" is the primary now"), "{said}");
    assert!(took < Duration::from_secs(15), "{took:?}");
    drop(away);
    consumer.wait().expect("pg_recvlogical");
    demo.wait_streaming(2);
}
