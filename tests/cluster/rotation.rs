//! Passwords that change in the mounted Secret while everything runs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;

use crate::harness::{Demo, LIMIT, Start, wait_for};
use crate::kit::{open_folder, psql, signal};
use crate::user::give_away;

const RECEIVER: &str = "SELECT pid FROM pg_stat_wal_receiver WHERE status = 'streaming'";

/// Replaces a Secret's file as a mount does: by another file of the same name.
fn rotate(file: &Path, password: &str) {
    let fresh = file.with_extension("fresh");
    fs::write(&fresh, format!("{password}\n")).expect("file");
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o400)).expect("mode");
    give_away(&fresh);
    fs::rename(&fresh, file).expect("rename");
}

/// A login straight to the primary, over the network as a standby does it.
fn log_in(demo: &Demo, user: &str, password: &str) -> Output {
    let state = demo.deployed();
    Command::new(crate::harness::programs(16).join("psql"))
        .args(["-X", "-A", "-t", "-c", "SELECT session_user"])
        .arg(format!(
            "host={} port={} user={user} dbname=postgres",
            state.pods[0].address, state.ports.postgres
        ))
        .env("LC_ALL", "C")
        .env("PGPASSWORD", password)
        .output()
        .expect("psql")
}

fn assert_refused(output: &Output) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("password authentication failed"),
        "{:?}: {text}",
        output.status
    );
}

fn wait_receiver_after(demo: &Demo, pod: &str, earlier: &str) {
    let streams = || {
        let output = demo.try_sql(&["--member", pod], RECEIVER);
        let now = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success() && !now.is_empty() && now != earlier
    };
    assert!(
        wait_for(LIMIT, streams),
        "no new receiver on {pod}:\n{}",
        demo.log(&format!("demo-{pod}"), "postgres")
    );
}

/// A new receiver must log in to the primary with what the passfile says now.
fn renew_receiver(demo: &Demo, pod: &str) {
    let earlier = demo.sql(&["--member", pod], RECEIVER);
    let end = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE application_name = 'demo-{pod}'"
    );
    assert_eq!(demo.sql(&["--member", "0"], &end), "t");
    wait_receiver_after(demo, pod, &earlier);
}

#[test]
fn a_rotated_password_reaches_clients_standbys_and_podgres_itself() {
    let demo = Start::new(16).run();
    demo.wait_streaming(2);
    let receivers = || ["1", "2"].map(|pod| demo.sql(&["--member", pod], RECEIVER));
    let earlier = receivers();
    let routes = [["--read-write"], ["--read-only"]];
    let old: Vec<String> = routes.iter().map(|route| demo.ask(&["dsn", route[0]])).collect();

    rotate(&demo.deployed().password_file, "n'eu: \\ \"2\" ü%41");
    for (route, old) in routes.iter().zip(&old) {
        // The connection string has the new one.
        let admitted = || demo.try_sql(route, "SELECT 1").status.success();
        assert!(wait_for(LIMIT, admitted), "{route:?}");
        assert_refused(&psql(old, "SELECT 1"));
    }
    let passfile = |pod: &str| {
        let file = demo.directory.join(format!("pods/demo-{pod}/run/passfile"));
        fs::read_to_string(file).expect("passfile")
    };
    for pod in ["1", "2"] {
        let expected = "*:*:*:podgres_replication:n'eu\\: \\\\ \"2\" ü%41\n";
        assert!(wait_for(LIMIT, || passfile(pod) == expected), "{}", passfile(pod));
    }
    assert_eq!(receivers(), earlier, "nobody was disturbed");

    renew_receiver(&demo, "1");
    demo.ask(&["delete-pod", "2"]);
    demo.wait_streaming(2);

    // podgres' own sessions log in anew: on a standby, and on the primary after a crash.
    let own = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'podgres'";
    for pod in ["0", "1", "2"] {
        let ended = demo.sql(&["--member", pod], own);
        assert!(
            !ended.is_empty() && ended.lines().all(|line| line == "t"),
            "{pod}: {ended}"
        );
    }
    let back = |pod: &str| {
        let own = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'podgres'";
        let output = demo.try_sql(&["--member", pod], own);
        !matches!(output.stdout.as_slice(), b"" | b"0\n")
    };
    for pod in ["0", "1", "2"] {
        assert!(
            wait_for(LIMIT, || back(pod)),
            "{}",
            demo.log(&format!("demo-{pod}"), "sidecar")
        );
    }
    signal(demo.pid("demo-0", "postgres"), Signal::KILL);
    let table = || {
        demo.try_sql(&["--read-write"], "CREATE TABLE t (i int)")
            .status
            .success()
    };
    assert!(wait_for(LIMIT, table), "{}", demo.log("demo-0", "sidecar"));
    demo.wait_streaming(2);
}

#[test]
fn the_replication_password_rotates_alone_and_a_bad_file_changes_nothing() {
    let folder = open_folder();
    let file = folder.path().join("replication");
    rotate(&file, "one");
    let setting = format!("PODGRES_REPLICATION_PASSWORD_FILE={}", file.display());
    let demo = Start::new(18).with(&["--replicas", "2", "--set", &setting]).run();
    demo.wait_streaming(1);
    let user = "podgres_replication";
    assert!(log_in(&demo, user, "one").status.success());

    // Not a password: who reads it keeps what there was.
    rotate(&file, "");
    let said = || {
        ["demo-0", "demo-1"].iter().all(|pod| {
            demo.log(pod, "sidecar")
                .contains("could not read the secrets again")
        })
    };
    assert!(wait_for(LIMIT, said), "{}", demo.log("demo-0", "sidecar"));
    assert!(log_in(&demo, user, "one").status.success());
    renew_receiver(&demo, "1");

    rotate(&file, "two");
    assert!(wait_for(LIMIT, || log_in(&demo, user, "two").status.success()));
    assert_refused(&log_in(&demo, user, "one"));
    renew_receiver(&demo, "1");
    demo.wait_streaming(1);
}

#[test]
fn a_password_that_is_in_no_file_is_named_once_with_its_remedy() {
    let demo = Start::new(16).with(&["--replicas", "1"]).run();
    demo.wait_streaming(0);
    demo.sql(&["--member", "0"], "ALTER ROLE postgres PASSWORD 'by hand'");
    signal(demo.pid("demo-0", "postgres"), Signal::KILL);
    let said = || demo.log("demo-0", "sidecar").matches("with ALTER ROLE").count();
    assert!(
        wait_for(LIMIT, || said() > 0),
        "{}",
        demo.log("demo-0", "sidecar")
    );
    let situation = "login_refused";
    demo.wait(situation, |status| {
        crate::harness::member(status, "demo-0")["situation"] == situation
    });
    // It serves others meanwhile.
    assert_eq!(demo.get(0, "/primary").map(|(code, _)| code), Some(200));
    // As the message says.
    let remedy = format!(
        "ALTER ROLE postgres PASSWORD '{}'",
        fs::read_to_string(&demo.deployed().password_file).expect("password")
    );
    let state = demo.deployed();
    let by_hand = Command::new(crate::harness::programs(16).join("psql"))
        .args(["-X", "-c", &remedy])
        .arg(format!(
            "host={} port={} user=postgres dbname=postgres",
            state.pods[0].address, state.ports.postgres
        ))
        .env("PGPASSWORD", "by hand")
        .status()
        .expect("psql");
    assert!(by_hand.success());
    demo.wait_streaming(0);
    assert_eq!(said(), 1, "{}", demo.log("demo-0", "sidecar"));
}

/// The primary was stopped every four seconds, and every successor after it: they all have the same password.
#[test]
fn a_password_changed_in_the_database_alone_ended_the_primary_again_and_again() {
    let demo = Start::lease(16).run();
    let status = demo.wait_streaming(2);
    let primary = status["lease_holder"].as_str().expect("a holder").to_owned();
    let ordinal = primary.rsplit_once('-').expect("a name").1.to_owned();
    demo.sql(
        &[],
        "CREATE TABLE t (i int); CREATE ROLE app LOGIN PASSWORD 'app'; GRANT INSERT ON t TO app",
    );
    demo.sql(&["--member", &ordinal], "ALTER ROLE postgres PASSWORD 'by hand'");
    let state = demo.deployed();
    let session = |port, user: &str, password: &str, sql: &str| {
        let address = state.pods[0].address;
        Command::new(crate::harness::programs(16).join("psql"))
            .args(["-X", "-A", "-t", "-c", sql])
            .arg(format!(
                "host={address} port={port} user={user} dbname=postgres connect_timeout=5"
            ))
            .env("PGPASSWORD", password)
            .output()
            .expect("psql")
    };
    let route = |user: &str, password: &str, sql: &str| session(state.ports.read_write, user, password, sql);
    let own = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'podgres'";
    assert!(route("postgres", "by hand", own).status.success());
    let situation = "login_refused";
    demo.wait(situation, |status| {
        crate::harness::member(status, &primary)["situation"] == situation
    });
    let pid = demo.pid(&primary, "postgres");

    // Three times as long as it was left alone.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(12);
    while std::time::Instant::now() < until {
        let written = route("app", "app", "INSERT INTO t VALUES (1)");
        assert!(
            written.status.success(),
            "{}",
            String::from_utf8_lossy(&written.stderr)
        );
    }
    assert_eq!(
        demo.pid(&primary, "postgres"),
        pid,
        "{}",
        demo.log(&primary, "sidecar")
    );
    let mut explain = crate::harness::podgres();
    explain.args(["explain", &primary, "--dir"]).arg(&demo.directory);
    let explained = String::from_utf8(explain.output().expect("podgres").stdout).expect("text");
    assert!(
        explained.contains("a password that is not the Secret's"),
        "{explained}"
    );
    assert!(
        explained.contains("password authentication failed"),
        "{explained}"
    );

    let password = fs::read_to_string(&state.password_file).expect("password");
    let remedy = format!("ALTER ROLE postgres PASSWORD '{password}'");
    assert!(route("postgres", "by hand", &remedy).status.success());
    let status = demo.wait_streaming(2);
    assert_eq!(
        (&status["term"], &status["lease_holder"]),
        (&1.into(), &primary.as_str().into())
    );
}
