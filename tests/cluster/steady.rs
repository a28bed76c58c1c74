//! What a healthy cluster of three shows, without being disturbed: the tests share one demo.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::harness::{member, members, podgres};
use crate::kit::{answer, count, family, http_get, pid_in, program_of, psql, server_lines, shared, words};

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
        // Both at random: that one of two is never met has a chance of 1 in 500,000.
        let served: BTreeSet<String> = (0..20).map(served).collect();
        assert_eq!(served, expected, "through {pod}");
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

#[test]
fn the_connection_strings_of_a_demo_work_with_psql_as_they_are() {
    let demo = shared();
    let recovery = |words: &[&str]| {
        answer(&psql(
            &demo.ask(words),
            "SELECT pg_is_in_recovery(), current_user",
        ))
    };
    assert_eq!(recovery(&["dsn"]), "f|postgres");
    assert_eq!(recovery(&["dsn", "--read-write"]), "f|postgres");
    assert_eq!(recovery(&["dsn", "--read-only"]), "t|postgres");
    assert_eq!(recovery(&["dsn", "--member", "0"]), "f|postgres");
    assert_eq!(recovery(&["dsn", "--member", "2"]), "t|postgres");
    for wrong in [
        &["dsn", "--member", "3"][..],
        &["dsn", "--member", "0", "--read-only"],
    ] {
        let output = demo.try_ask(wrong);
        assert_eq!(output.status.code(), Some(64), "{wrong:?}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn status_shows_a_table() {
    let demo = shared();
    demo.wait_streaming(2);
    let output = podgres().args(["status", "--dir"]).arg(&demo.directory).output();
    let text = answer(&output.expect("status"));
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines[0][..4],
        ["cluster", "demo,", "system", "identifier"],
        "{text}"
    );
    assert_eq!(lines[3][..4], ["MEMBER", "ROLE", "STATE", "TL"], "{text}");
    assert_eq!(lines[4][..4], ["demo-0", "primary", "running", "1"], "{text}");
    assert_eq!(lines[5][..4], ["demo-1", "standby", "streaming", "1"], "{text}");
    assert_eq!(lines[6][..4], ["demo-2", "standby", "streaming", "1"], "{text}");
    // The same by one member's address, and from the environment.
    let url = format!("http://{}", demo.address("demo-1", "http_port"));
    let by_url = podgres().args(["status", "--url", &url]).output();
    assert!(answer(&by_url.expect("status")).contains("demo-2"));
    let by_environment = podgres()
        .arg("status")
        .env("PODGRES_DEMO_DIR", &demo.directory)
        .output();
    assert!(answer(&by_environment.expect("status")).contains("demo-2"));
    let nobody = podgres().args(["status", "--url", "http://127.0.0.9:9"]).output();
    assert_eq!(nobody.expect("status").status.code(), Some(69));
}

#[test]
fn status_watch_shows_it_again_until_it_is_ended() {
    let demo = shared();
    let mut watch = podgres()
        .args(["status", "--watch", "--dir"])
        .arg(&demo.directory)
        .stdout(Stdio::piped())
        .spawn()
        .expect("status");
    let lines = BufReader::new(watch.stdout.take().expect("stdout")).lines();
    let headings = lines
        .map_while(Result::ok)
        .filter(|line| line.starts_with("cluster demo"));
    assert_eq!(headings.take(3).count(), 3);
    crate::kit::signal(watch.id(), rustix::process::Signal::INT);
    assert_eq!(watch.wait().expect("wait").code(), Some(0));
}

#[test]
fn replay_decides_what_was_decided() {
    let demo = shared();
    demo.wait_streaming(2);
    let folder = crate::kit::open_folder();
    let file = folder.path().join("decisions.json");
    let replay = |text: &str| {
        std::fs::write(&file, text).expect("write");
        podgres().arg("replay").arg(&file).output().expect("replay")
    };
    for pod in ["demo-0", "demo-1", "demo-2"] {
        let recorded = http_get(&demo.address(pod, "http_port"), "/debug/decisions");
        let lines = answer(&replay(&recorded));
        let decisions: Vec<Value> = lines
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        assert!(decisions.len() > 2, "{lines}");
        assert!(
            decisions.iter().all(|one| one["same_as_recorded"] == true),
            "{lines}"
        );
        // One entry alone, of another pod in every respect but its ordinal.
        let entries: Vec<Value> = serde_json::from_str(&recorded).expect("JSON");
        let mut entry = entries.last().expect("an entry").clone();
        assert_eq!(
            count(&answer(&replay(&entry.to_string())), "\"same_as_recorded\":true"),
            1
        );
        entry["observation"]["supervisor"] = Value::Null;
        let line = answer(&replay(&entry.to_string()));
        assert!(line.contains("\"same_as_recorded\":false"), "{line}");
        assert!(line.contains("supervisor_unreachable"), "{line}");
    }
    assert_eq!(replay("{}").status.code(), Some(64));
    assert_eq!(replay("nonsense").status.code(), Some(64));
    let missing = podgres().args(["replay", "/nowhere"]).output().expect("replay");
    assert_eq!(missing.status.code(), Some(69));
}
