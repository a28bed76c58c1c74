//! What a healthy cluster of three shows, without being disturbed: the tests share one demo.

use std::collections::{BTreeMap, BTreeSet};

use crate::harness::{LIMIT, member, members, wait_for};
use crate::kit::{answer, count, family, pid_in, program_of, psql, server_lines, shared, words};

const STANDBYS: [&str; 2] = ["1", "2"];

#[test]
fn row_01_the_role_follows_from_the_ordinal() {
    let demo = shared();
    let status = demo.wait_streaming(2);
    for (ordinal, role, recovery) in [
        ("0", "primary", "f"),
        ("1", "standby", "t"),
        ("2", "standby", "t"),
    ] {
        assert_eq!(member(&status, &format!("demo-{ordinal}"))["role"], role);
        assert_eq!(
            demo.sql(&["--member", ordinal], "SELECT pg_is_in_recovery()"),
            recovery
        );
    }
}

/// What tells one pod from another, as the downward API and the loopback addresses of the demo give it.
const IDENTITY: [&str; 7] = [
    "POD_NAME",
    "POD_UID",
    "POD_IP",
    "PODGRES_LISTEN_ADDRESS",
    "PODGRES_RUN_DIR",
    "PODGRES_SOCKET_DIRECTORIES",
    "PGDATA",
];

#[test]
fn row_09_all_pods_start_by_the_same_template_and_command() {
    let demo = shared();
    let status = demo.wait_streaming(2);
    for process in ["sidecar", "supervisor"] {
        let of = |ordinal: u32| {
            let pid = pid_in(&status, &format!("demo-{ordinal}"), process);
            let environment: BTreeMap<String, String> = words(pid, "environ")
                .iter()
                .filter_map(|word| word.split_once('='))
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect();
            (words(pid, "cmdline"), environment)
        };
        let (command, first) = of(0);
        for ordinal in [1, 2] {
            let (other_command, other) = of(ordinal);
            assert_eq!(command, other_command);
            let differing = first
                .iter()
                .filter(|(key, value)| other.get(*key) != Some(*value))
                .map(|(key, _)| key.as_str());
            let differing: BTreeSet<&str> = differing.collect();
            assert_eq!(differing, BTreeSet::from(IDENTITY));
            assert_eq!(first.len(), other.len());
        }
    }
}

#[test]
fn row_16_the_primarys_log_ends_with_ready_to_accept_connections() {
    let log = shared().log("demo-0", "postgres");
    let last = server_lines(&log).pop().unwrap_or_default().to_owned();
    assert!(
        last.ends_with("database system is ready to accept connections"),
        "{log}"
    );
}

#[test]
fn row_17_the_replication_role_may_log_in_and_replicate() {
    let sql =
        "SELECT rolcanlogin, rolreplication, rolsuper FROM pg_roles WHERE rolname = 'podgres_replication'";
    assert_eq!(shared().sql(&["--member", "0"], sql), "t|t|f");
}

#[test]
fn row_18_the_password_comes_from_a_file_that_only_its_owner_reads() {
    use std::os::unix::fs::PermissionsExt as _;
    let demo = shared();
    let pid = demo.pid("demo-1", "supervisor");
    let environment = words(pid, "environ");
    let file = environment
        .iter()
        .find_map(|word| word.strip_prefix("POSTGRES_PASSWORD_FILE="));
    let file = file.expect("a file");
    assert!(
        !environment
            .iter()
            .any(|word| word.starts_with("POSTGRES_PASSWORD="))
    );
    let mode = std::fs::metadata(file).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o400);
    let password = std::fs::read_to_string(file).expect("a password");
    let dsn = demo.ask(&["dsn", "--member", "1"]);
    assert!(dsn.contains(&password));
    let wrong = psql(&dsn.replace(&password, "wrong"), "SELECT 1");
    let message = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(message.contains("password authentication failed"), "{message}");
}

#[test]
fn row_21_an_empty_standby_is_cloned_from_the_primary() {
    let demo = shared();
    let identifier = |pod: &str| demo.control_data(pod)["Database system identifier"].clone();
    for pod in ["demo-1", "demo-2"] {
        let log = demo.log(pod, "init");
        assert_eq!(count(&log, "\"message\":\"cloning\""), 1, "{log}");
        assert_eq!(count(&log, "initialising"), 0, "{log}");
        assert_eq!(identifier(pod), identifier("demo-0"));
        assert!(demo.data_directory(pod).join("standby.signal").exists());
    }
    assert_eq!(
        count(&demo.log("demo-0", "init"), "initialising a new cluster"),
        1
    );
}

#[test]
fn row_22_a_standbys_log_ends_with_read_only_connections_and_streaming() {
    for pod in ["demo-1", "demo-2"] {
        let log = shared().log(pod, "postgres");
        crate::smoke::ends_as_a_standby(&log);
    }
}

#[test]
fn row_23_a_row_written_on_the_primary_is_read_on_the_standbys() {
    let demo = shared();
    demo.sql(&["--member", "0"], "CREATE TABLE row_23 AS SELECT 'seen' AS word");
    for standby in STANDBYS {
        demo.wait_replayed("0", standby);
        assert_eq!(
            demo.sql(&["--member", standby], "SELECT word FROM row_23"),
            "seen"
        );
    }
}

#[test]
fn row_24_a_standby_answers_reads_and_refuses_writes() {
    let demo = shared();
    for standby in STANDBYS {
        assert_eq!(demo.sql(&["--member", standby], "SELECT 1 + 1"), "2");
        let refused = demo.try_sql(&["--member", standby], "CREATE TABLE row_24 (i int)");
        let message = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && message.contains("25006"),
            "{message}"
        );
    }
}

#[test]
fn row_26_the_primary_streams_to_both_standbys() {
    let demo = shared();
    let status = demo.wait_streaming(2);
    assert_eq!(members(&status).len(), 3);
    let sql = "SELECT string_agg(application_name || ' ' || state, ', ' ORDER BY application_name) FROM pg_stat_replication";
    assert_eq!(
        demo.sql(&["--member", "0"], sql),
        "demo-1 streaming, demo-2 streaming"
    );
}

#[test]
fn row_37_by_default_clients_reach_the_primary_and_can_add_items() {
    let demo = shared();
    demo.sql(&[], "CREATE TABLE row_37 (item text)");
    for pod in ["demo-0", "demo-1", "demo-2"] {
        let dsn = demo.route(pod, "read_write_port");
        let insert = format!("INSERT INTO row_37 VALUES ('through {pod}') RETURNING pg_is_in_recovery()");
        assert_eq!(answer(&psql(&dsn, &insert)), "f");
    }
    assert_eq!(demo.sql(&[], "SELECT count(*) FROM row_37"), "3");
}

#[test]
fn row_43_the_read_endpoint_spreads_over_all_ready_standbys() {
    let demo = shared();
    let expected: BTreeSet<String> = STANDBYS
        .iter()
        .map(|standby| demo.sql(&["--member", standby], "SELECT inet_server_addr()"))
        .collect();
    for pod in ["demo-0", "demo-1", "demo-2"] {
        let dsn = demo.route(pod, "read_only_port");
        let served = |_| answer(&psql(&dsn, "SELECT inet_server_addr()"));
        // Both at random: that one of two is never met has a chance of 1 in 500,000. One that was held up for a moment comes back.
        let both = || (0..20).map(served).collect::<BTreeSet<String>>() == expected;
        assert!(wait_for(LIMIT, both), "through {pod}: not {expected:?}");
    }
}

#[test]
fn row_77_no_shell_runs_in_any_pod() {
    let demo = shared();
    let status = demo.wait_streaming(2);
    let own = std::fs::canonicalize(demo.directory.join("bin/podgres")).expect("podgres");
    let programs: String = demo.state()["program_directory"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let mut seen = 0;
    for pod in ["demo-0", "demo-1", "demo-2"] {
        for process in ["supervisor", "sidecar"] {
            for one in family(pid_in(&status, pod, process)) {
                // One that has just ended runs nothing.
                let Some(program) = program_of(one.pid) else {
                    continue;
                };
                seen += 1;
                let known = program == own || program.starts_with(&programs);
                assert!(known, "{pod} runs {} ({})", program.display(), one.name);
            }
        }
    }
    assert!(seen > 20, "only {seen} processes were looked at");
}
