//! What a cluster has set for itself, and what its databases hold besides plain tables: neither is in the way of a restore, nor
//! held against a backup.

use std::fs;

use crate::backup::{Lab, answer, ask_restored, text, told};
use crate::harness::Start;
use crate::kit::open_folder;

const VERSION: u32 = 15;

/// All of it for the live server, which never reads it here; `postgresql.auto.conf` is part of a backup.
const HOSTILE: &[(&str, &str)] = &[
    ("ssl", "on"),
    ("shared_buffers", "4TB"),
    ("logging_collector", "on"),
    ("log_min_messages", "panic"),
    ("lc_messages", "C"),
    ("TimeZone", "America/New_York"),
    ("restore_command", "false"),
    ("recovery_target_lsn", "0/1"),
    ("recovery_min_apply_delay", "1d"),
];

fn statements(lab: &Lab, statements: &[&str]) {
    for sql in statements {
        lab.demo.sql(&[], sql);
    }
}

#[test]
fn what_a_cluster_had_set_for_itself_was_in_the_way_of_its_restore() {
    let folder = open_folder();
    fs::write(
        folder.path().join("test.conf"),
        "max_prepared_transactions = 20\n",
    )
    .expect("file");
    let setting = format!("PODGRES_CONFIGURATION_DIR={}", folder.path().display());
    let lab = Lab::with_standbys(Start::new(VERSION).with(&["--set", &setting]), 0);
    lab.demo.sql(&[], "CREATE TABLE t (i int)");
    lab.demo.sql(
        &[],
        "BEGIN; INSERT INTO t VALUES (100); PREPARE TRANSACTION 'left'",
    );
    let touched = lab.restored("touched");
    for (name, value) in HOSTILE {
        lab.demo.sql(&[], &format!("ALTER SYSTEM SET {name} = '{value}'"));
    }
    for name in [
        "archive_command",
        "archive_cleanup_command",
        "recovery_end_command",
    ] {
        let sql = format!("ALTER SYSTEM SET {name} = 'touch {}'", text(&touched));
        lab.demo.sql(&[], &sql);
    }
    lab.backup(&["--from", "primary"]);
    let verified = lab.done(&["verify", "--from", text(&lab.destination())]);
    assert!(verified.contains(": verified"), "{verified}");
    lab.demo.sql(&[], "INSERT INTO t VALUES (1)");
    // As UTC, whatever the cluster takes a time for.
    let sql = "SELECT (clock_timestamp() AT TIME ZONE 'UTC')::text FROM pg_sleep(1.1)";
    let moment = lab.demo.sql(&[], sql);
    lab.demo.sql(&[], "INSERT INTO t SELECT 2 FROM pg_sleep(1.1)");
    lab.archive_all();
    let directory = lab.restored("moment");
    answer(&lab.restore(&directory, &["--to-time", &moment]));
    assert!(!touched.exists(), "a command of the cluster's own was run");
    let own = directory.join("postgresql.auto.conf");
    let kept = fs::read_to_string(&own).expect("the cluster's own settings");
    assert!(kept.contains("America/New_York"), "{kept}");
    fs::write(&own, "max_prepared_transactions = 20\n").expect("write");
    let numbers = "SELECT string_agg(i::text, ' ' ORDER BY i) || (SELECT string_agg(gid, '') FROM pg_prepared_xacts) FROM t";
    assert_eq!(ask_restored(VERSION, &directory, numbers), "1left");
    a_place_that_cannot_be_renamed_to_was_found_hours_later(&lab);
}

/// A new file system's root, as a volume's mount point is.
fn a_place_that_cannot_be_renamed_to_was_found_hours_later(lab: &Lab) {
    let directory = lab.restored("root");
    fs::create_dir_all(directory.join("lost+found")).expect("folder");
    let output = lab.restore(&directory, &[]);
    assert_eq!(output.status.code(), Some(65), "{}", told(&output));
    assert!(
        told(&output).contains("it holds \"lost+found\""),
        "{}",
        told(&output)
    );
    let output = lab.restore(std::path::Path::new("/proc"), &[]);
    assert_eq!(output.status.code(), Some(64), "{}", told(&output));
    assert!(
        told(&output).contains("since it is a mount point"),
        "{}",
        told(&output)
    );
}

#[test]
fn what_a_dump_brings_back_in_another_form_was_held_against_it() {
    let lab = Lab::with_standbys(Start::new(VERSION), 0);
    statements(
        &lab,
        &[
            "CREATE TABLE t AS SELECT 1 i",
            "CREATE MATERIALIZED VIEW stale AS SELECT i FROM t",
            "INSERT INTO t VALUES (2)",
            "CREATE TABLE parent (a int)",
            "CREATE TABLE child (b int) INHERITS (parent)",
            "CREATE TABLE plain_child () INHERITS (parent)",
            "ALTER TABLE parent ADD COLUMN c int",
            "INSERT INTO child VALUES (1, 2, 3)",
            "INSERT INTO plain_child VALUES (1, 3)",
            "CREATE ROLE reader LOGIN PASSWORD 'x'",
            "CREATE ROLE team",
            "GRANT team TO reader",
            "CREATE DATABASE other OWNER team",
            "ALTER DATABASE other SET lc_monetary = 'C'",
            "GRANT SELECT ON t TO reader",
        ],
    );
    lab.backup(&["--kind", "logical"]);
    lab.backup(&["--kind", "physical"]);
    let list = lab.list();
    let tables = |at: usize| -> Vec<String> {
        let tables = list[at]["tables"].as_array().expect("tables");
        let name = |table: &serde_json::Value| table["table"].as_str().expect("a name").to_owned();
        let mut names: Vec<String> = tables.iter().map(name).collect();
        names.sort();
        names
    };
    assert_eq!(tables(0), ["public.parent", "public.plain_child", "public.t"]);
    assert_eq!(
        tables(1),
        [
            "public.child",
            "public.parent",
            "public.plain_child",
            "public.stale",
            "public.t"
        ]
    );
    let verified = lab.done(&["verify", "--all", "--from", text(&lab.destination())]);
    assert_eq!(verified.matches(": verified\n").count(), 2, "{verified}");
    roles_and_every_database_come_back(&lab);
    a_dump_that_cannot_be_loaded_is_never_called_verified(&lab);
}

/// A check that finds its table by the session's `search_path`, which a restore does not have.
fn a_dump_that_cannot_be_loaded_is_never_called_verified(lab: &Lab) {
    statements(
        lab,
        &[
            "CREATE FUNCTION known() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM parent'",
            "CREATE TABLE checked (i int CHECK (known() >= 0))",
            "INSERT INTO checked VALUES (1)",
        ],
    );
    lab.backup(&["--kind", "logical"]);
    let output = lab
        .command(&["verify", "--from", text(&lab.destination())])
        .output()
        .expect("verify");
    assert_eq!(output.status.code(), Some(69), "{}", told(&output));
    assert!(
        told(&output).contains("\"pg_restore\" exited"),
        "{}",
        told(&output)
    );
    let last = lab.list().pop().expect("a backup");
    assert_eq!(last["verified"], false, "{last:#}");
}

/// By hand: the globals by psql, then each dump by `pg_restore`.
fn roles_and_every_database_come_back(lab: &Lab) {
    let list = lab.list();
    let folder = lab
        .destination()
        .join("backups")
        .join(list[0]["name"].as_str().expect("a name"));
    let mut objects: Vec<String> = fs::read_dir(&folder)
        .expect("objects")
        .map(|entry| entry.expect("entry").file_name().into_string().expect("utf-8"))
        .collect();
    objects.sort();
    let databases = ["001-other.dump", "002-postgres.dump"];
    assert!(
        databases
            .iter()
            .all(|name| objects.iter().any(|found| found == name)),
        "{objects:?}"
    );
    statements(
        lab,
        &[
            "DROP DATABASE other",
            "DROP TABLE t CASCADE",
            "DROP ROLE reader",
            "DROP ROLE team",
        ],
    );
    let dsn = lab.demo.ask(&["dsn"]);
    let run = |program: &str, words: &[&str]| {
        let mut command = std::process::Command::new(lab.programs.join(program));
        command
            .arg("-d")
            .arg(dsn.trim())
            .args(words)
            .output()
            .expect(program)
    };
    let globals = fs::File::open(folder.join("globals.sql.zst")).expect("the globals");
    let script = lab.restored("globals.sql");
    fs::write(&script, zstd::decode_all(globals).expect("zstd")).expect("write");
    run("psql", &["-Xq", "-f", text(&script)]);
    answer(&run(
        "pg_restore",
        &["--create", text(&folder.join(databases[0]))],
    ));
    answer(&run("pg_restore", &["-t", "t", text(&folder.join(databases[1]))]));
    for (sql, expected) in [
        (
            "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'other'",
            "team",
        ),
        ("SELECT pg_has_role('reader', 'team', 'member')", "t"),
        (
            "SELECT rolpassword LIKE 'SCRAM-%' FROM pg_authid WHERE rolname = 'reader'",
            "t",
        ),
        ("SELECT has_table_privilege('reader', 't', 'SELECT')", "t"),
    ] {
        assert_eq!(lab.demo.sql(&[], sql), expected, "{sql}");
    }
}
