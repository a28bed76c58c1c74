//! Mounted files that cannot be used are told to the operator, and cost no failover, switchover or restart.

use rustix::process::Signal;
use serde_json::Value;

use crate::authority::Authority;
use crate::harness::{Demo, LIMIT, Start, members, wait_for};
use crate::kit::signal;
use crate::mounted::Mounted;

const PODS: [&str; 3] = ["0", "1", "2"];
const KEPT: &str = "the configuration files that were accepted last are used";

/// Three members under a Lease whose commits wait for standbys.
fn lease(version: u32, settings: &[String]) -> Demo {
    let mut start = Start::lease(version);
    for setting in settings {
        start = start.with(&["--set", setting]);
    }
    let demo = start.run();
    demo.wait_streaming(2);
    demo.wait("a quorum", |status| {
        status["synchronous"]["quorum"].as_u64() > Some(0)
    });
    demo.sql(&[], "CREATE TABLE numbers (number bigint PRIMARY KEY)");
    demo
}

fn primary(status: &Value) -> String {
    let found = members(status).iter().find(|member| member["role"] == "primary");
    let name = found.and_then(|member| member["name"].as_str());
    name.expect("a primary").to_owned()
}

fn insert_soon(demo: &Demo, number: i64) {
    let sql = format!("INSERT INTO numbers VALUES ({number}) ON CONFLICT DO NOTHING");
    let taken = wait_for(LIMIT, || demo.try_sql(&[], &sql).status.success());
    assert!(taken, "{number} was never taken");
}

fn everywhere(demo: &Demo, setting: &str, value: &str) {
    for pod in PODS {
        demo.wait_sql(&["--member", pod], &format!("SHOW {setting}"), value);
    }
}

/// Every member has tried the files, and has said what is wrong with them.
fn wait_refused(demo: &Demo, reason: &str) {
    for pod in PODS {
        let name = format!("demo-{pod}");
        let said = || demo.log(&name, "sidecar").contains(reason);
        assert!(wait_for(LIMIT, said), "{}", demo.log(&name, "sidecar"));
    }
}

/// Kills the primary's server, moves its office, and deletes the pod of the next one: at last somebody else is primary, and writes.
fn goes_on(demo: &Demo) -> String {
    let first = primary(&demo.wait_streaming(2));
    signal(demo.pid(&first, "postgres"), Signal::KILL);
    insert_soon(demo, 1);
    assert_eq!(
        primary(&demo.wait_streaming(2)),
        first,
        "it was not started again"
    );
    demo.done(&["switchover"]);
    insert_soon(demo, 2);
    let second = primary(&demo.wait_streaming(2));
    assert_ne!(second, first);
    let ordinal = second.rsplit('-').next().expect("an ordinal");
    demo.ask(&["delete-pod", ordinal, "--force"]);
    insert_soon(demo, 3);
    let third = demo.wait("another primary", |status| {
        members(status).iter().any(|member| {
            member["role"] == "primary" && member["state"] == "running" && member["name"] != second.as_str()
        })
    });
    primary(&third)
}

#[test]
fn a_typo_in_a_mounted_file_took_failover_switchover_and_restart_from_all_members() {
    let mounted = Mounted::new();
    mounted.put(&[
        ("a.conf", b"work_mem = 5MB\n"),
        ("b.conf", b"maintenance_work_mem = 33MB\n"),
    ]);
    let demo = lease(
        16,
        &[format!("PODGRES_CONFIGURATION_DIR={}", mounted.path().display())],
    );
    everywhere(&demo, "work_mem", "5MB");
    mounted.put(&[
        ("a.conf", b"wrok_mem = 6MB\n"),
        ("b.conf", b"maintenance_work_mem = 34MB\n"),
    ]);
    wait_refused(&demo, "wrok_mem");

    let last = goes_on(&demo);
    let log = demo.log(&last, "postgres");
    let told = log.lines().find(|line| line.contains(KEPT));
    let file = mounted.file("a.conf").display().to_string();
    assert!(
        told.is_some_and(|line| line.contains("wrok_mem") && line.contains(&file)),
        "{log}"
    );
    let pod = last.rsplit('-').next().expect("an ordinal");
    for (setting, value) in [("work_mem", "5MB"), ("maintenance_work_mem", "33MB")] {
        assert_eq!(demo.sql(&["--member", pod], &format!("SHOW {setting}")), value);
    }

    // What is right is taken up, and what is no longer there is no longer in force.
    mounted.put(&[("a.conf", b"work_mem = 7MB\n")]);
    std::fs::remove_file(mounted.file("b.conf")).expect("a link to nothing");
    demo.wait_streaming(2);
    everywhere(&demo, "work_mem", "7MB");
    everywhere(&demo, "maintenance_work_mem", "64MB");
}

#[test]
fn a_missing_certificate_file_took_failover_switchover_and_restart_from_all_members() {
    let (ours, mounted) = (Authority::new("ours"), Mounted::new());
    mounted.put_tls(&ours, &ours);
    let demo = lease(15, &[format!("PODGRES_TLS_DIR={}", mounted.path().display())]);
    let content = |name: &str| std::fs::read(mounted.file(name)).expect("mounted");
    let [certificate, key, authority] = ["tls.crt", "tls.key", "ca.crt"].map(content);
    mounted.put(&[("tls.crt", &certificate), ("tls.key", &key)]);

    let last = goes_on(&demo);
    let log = demo.log(&last, "postgres");
    assert!(
        log.lines()
            .any(|line| line.contains(KEPT) && line.contains("ca.crt")),
        "{log}"
    );

    mounted.put(&[
        ("tls.crt", &certificate),
        ("tls.key", &key),
        ("ca.crt", &authority),
    ]);
    demo.wait_streaming(2);
    everywhere(&demo, "ssl", "on");
}

/// Nothing tells of it: the server takes it, and no file that is looked at has changed.
#[test]
fn an_altered_setting_that_fills_the_volume_took_failover_switchover_and_restart_from_all_members() {
    let demo = lease(16, &[]);
    for pod in PODS {
        demo.sql(&["--member", pod], "ALTER SYSTEM SET max_slot_wal_keep_size = -1");
    }
    let last = goes_on(&demo);
    let log = demo.log(&last, "postgres");
    let told = |line: &str| line.contains(KEPT) && line.contains("max_slot_wal_keep_size");
    assert!(log.lines().any(told), "{log}");
}
