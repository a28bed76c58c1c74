//! Members that are spared, under `preferred` and without a gate: who is recorded, who serves reads, who takes over.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Demo, LIMIT, Start, member, members, podgres, wait_for};
use crate::kit::signal;

fn recorded(status: &Value) -> &Value {
    &status["synchronous"]["members"]
}

fn primary(status: &Value) -> Option<&str> {
    let mut found = members(status)
        .iter()
        .filter(|member| member["role"] == "primary" && member["writable"] == true);
    found.next()?["name"].as_str()
}

fn insert(demo: &Demo, number: u32) {
    let sql = format!("INSERT INTO numbers VALUES ({number}) ON CONFLICT DO NOTHING");
    let taken = wait_for(LIMIT, || demo.try_sql(&[], &sql).status.success());
    assert!(taken, "{number} was never taken");
}

#[test]
fn tags_are_kept_to_and_preferred_goes_on_alone() {
    let demo = Start::lease(15)
        .with(&[
            "--set",
            "PODGRES_DURABILITY=preferred",
            "--set",
            "PODGRES_GATE=off",
        ])
        .with(&["--set", "PODGRES_NEVER_PRIMARY=demo-2"])
        .with(&["--set", "PODGRES_NO_READS=demo-1"])
        .with(&["--set", "PODGRES_PRIORITY=demo-0=50,demo-1=70"])
        .run();
    demo.wait("the one recorded member", |status| {
        recorded(status) == &json!(["demo-1"])
    });
    demo.wait_streaming(2);
    demo.sql(&[], "CREATE TABLE numbers (number int PRIMARY KEY)");
    each_tag_is_shown_and_kept_to(&demo);
    slots_move_on_standbys_too(&demo);
    the_primary_goes_on_alone(&demo);

    // Only who may be primary takes over.
    demo.ask(&["delete-pod", "0", "--force"]);
    demo.wait("the other member that may be primary", |status| {
        primary(status) == Some("demo-1")
    });
    insert(&demo, 3);
    demo.wait_streaming(2);
    demo.wait_sql(&["--member", "2"], "SELECT count(*) FROM numbers", "3");
}

fn each_tag_is_shown_and_kept_to(demo: &Demo) {
    let status = demo.status().expect("a status");
    assert_eq!(member(&status, "demo-2")["tags"]["never_primary"], true);
    assert_eq!(member(&status, "demo-1")["tags"]["no_reads"], true);
    for (ordinal, code) in [(1, 503), (2, 200)] {
        let answered = wait_for(LIMIT, || {
            demo.get(ordinal, "/replica")
                .is_some_and(|(found, _)| found == code)
        });
        assert!(answered, "/replica of {ordinal} is not {code}");
    }
    let mut command = podgres();
    command
        .args(["switchover", "--to", "demo-2", "--dir"])
        .arg(&demo.directory);
    let output = command.output().expect("podgres");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(65), "{error}");
    assert!(error.contains("PODGRES_NEVER_PRIMARY"), "{error}");
    let names = demo.sql(&["--member", "0"], "SHOW synchronous_standby_names");
    assert!(
        names.contains("demo-1") && !names.contains("podgres_gate"),
        "{names}"
    );
}

/// A standby keeps slots for the others, and no more WAL than they need: whoever is promoted next has what they lack.
fn slots_move_on_standbys_too(demo: &Demo) {
    let written = demo.sql(&["--member", "0"], "SELECT pg_current_wal_insert_lsn()");
    demo.sql(&[], "SELECT pg_switch_wal()");
    insert(demo, 1);
    for member in ["1", "2"] {
        demo.wait_sql(
            &["--member", member],
            &format!("SELECT count(*) FILTER (WHERE restart_lsn > '{written}') = count(*) AND count(*) > 0 FROM pg_replication_slots"),
            "t",
        );
    }
}

/// Nobody recorded is there: the Lease says so before a commit waits for fewer, and as soon as one is back it counts again.
fn the_primary_goes_on_alone(demo: &Demo) {
    let standbys = ["demo-1", "demo-2"];
    let supervisors = standbys.map(|standby| demo.pid(standby, "supervisor"));
    let servers = standbys.map(|standby| demo.pid(standby, "postgres"));
    for supervisor in supervisors {
        signal(supervisor, Signal::STOP);
    }
    for server in servers {
        signal(server, Signal::KILL);
    }
    insert(demo, 2);
    let status = demo.status().expect("a status");
    assert_eq!(status["synchronous"]["quorum"], 0, "{status:#}");
    for supervisor in supervisors {
        signal(supervisor, Signal::CONT);
    }
    demo.wait("the recorded member again", |status| {
        recorded(status) == &json!(["demo-1"]) && status["synchronous"]["quorum"] == 1
    });
}
