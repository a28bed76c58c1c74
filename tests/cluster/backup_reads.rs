//! What a run does to the servers that it reads, and what they do to it.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::backup::{answer, text, told};
use crate::harness::{Demo, LIMIT, podgres, programs, wait_for};
use crate::kit::{family, open_folder, shared, signal};
use crate::user::give_away;

const STANDBY: &str = "demo-1";

struct Place {
    _folder: tempfile::TempDir,
    destination: PathBuf,
}

fn place() -> Place {
    let folder = open_folder();
    let destination = folder.path().join("backups");
    std::fs::create_dir(&destination).expect("folder");
    give_away(&destination);
    Place {
        _folder: folder,
        destination,
    }
}

fn backup(demo: &Demo, place: &Place, more: &[&str]) -> Child {
    let (directory, to) = (text(&demo.directory), text(&place.destination));
    let mut command = podgres();
    command
        .args(["backup", "--dir", directory, "--to", to, "--proof-size", "0B"])
        .args(more)
        .env("PG_BINDIR", programs(16))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().expect("podgres backup")
}

#[test]
fn row_49_a_backup_reads_the_standby_and_not_the_primary() {
    let (demo, place) = (shared(), place());
    let mut run = backup(&demo, &place, &["--max-rate", "200kB"]);
    let sessions = |member: &str| {
        // Senders are sessions too.
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'podgres_backup' AND backend_type = 'walsender'";
        demo.sql(&["--member", member], sql)
    };
    let primary = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'podgres_backup'";
    // Other tests' runs come and go on this demo, and this one is slow.
    let one_standby = wait_for(LIMIT, || {
        let mut standbys = ["1", "2"].map(sessions);
        standbys.sort();
        standbys == ["0", "1"] && demo.sql(&["--member", "0"], primary) == "0"
    });
    assert!(one_standby, "one standby is read, and the primary is not");
    assert!(run.try_wait().expect("wait").is_none(), "it was over before");
    run.kill().expect("kill");
    run.wait().expect("wait");
}

/// The `pg_dump` of a run, once it is there.
fn dumping(run: &Child) -> u32 {
    let mut found = None;
    let sees = || {
        found = family(run.id()).into_iter().find(|process| {
            let words = std::fs::read_to_string(format!("/proc/{}/cmdline", process.pid));
            process.name == "pg_dump" && words.is_ok_and(|words| words.contains("podgres_backup"))
        });
        found.is_some()
    };
    assert!(wait_for(LIMIT, sees), "nobody dumps");
    found.expect("a process").pid
}

/// Its snapshot is older than what the primary removes meanwhile, and replay does not wait for it.
#[test]
fn hazard_15_a_long_dump_on_a_standby_is_not_cancelled() {
    let (demo, place) = (shared(), place());
    demo.sql(
        &[],
        "CREATE TABLE dumped AS SELECT i FROM generate_series(1, 1000000) i",
    );
    demo.wait_replayed("0", "1");
    for sql in [
        "ALTER SYSTEM SET max_standby_streaming_delay = '300ms'",
        "SELECT pg_reload_conf()",
    ] {
        demo.sql(&["--member", "1"], sql);
    }
    demo.wait_sql(&["--member", "1"], "SHOW max_standby_streaming_delay", "300ms");
    let run = backup(
        &demo,
        &place,
        &[
            "--kind",
            "logical",
            "--from",
            STANDBY,
            "--database",
            "postgres",
            "--max-rate",
            "500kB",
        ],
    );
    let dump = dumping(&run);
    // Its snapshot is taken.
    let copying = "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE 'COPY public.dumped%'";
    demo.wait_sql(&["--member", "1"], copying, "t");
    signal(dump, Signal::STOP);
    demo.sql(&[], "DELETE FROM dumped");
    demo.sql(&[], "VACUUM dumped");
    demo.wait_replayed("0", "1");
    // Longer than replay would wait for it.
    std::thread::sleep(Duration::from_secs(1));
    signal(dump, Signal::CONT);
    let output = run.wait_with_output().expect("wait");
    demo.sql(
        &["--member", "1"],
        "ALTER SYSTEM RESET max_standby_streaming_delay",
    );
    demo.sql(&["--member", "1"], "SELECT pg_reload_conf()");
    let told = told(&output);
    assert!(
        output.status.success() && !told.contains("trying again"),
        "{told}"
    );
    assert!(
        told.contains(&format!("logical of {STANDBY} (standby)")),
        "{told}"
    );
    assert_eq!(rows(&place), 1_000_000, "{told}");
    demo.sql(&[], "DROP TABLE dumped");
}

/// Of the table in the one dump that there is.
fn rows(place: &Place) -> usize {
    let backups = std::fs::read_dir(place.destination.join("backups")).expect("backups");
    let backup = backups.flatten().next().expect("a backup").path();
    let mut restore = Command::new(programs(16).join("pg_restore"));
    restore.args(["--data-only", "-t", "dumped", "-f", "-"]);
    let script = answer(
        &restore
            .arg(backup.join("001-postgres.dump"))
            .output()
            .expect("pg_restore"),
    );
    let digits = |line: &&str| !line.is_empty() && line.bytes().all(|b| b.is_ascii_digit());
    script.lines().filter(digits).count()
}

/// Every member in one table: who streams, and that nobody lags.
#[test]
fn row_59_one_command_tells_whether_all_are_in_sync() {
    let demo = shared();
    let mut last = String::new();
    let in_sync = || {
        let mut status = podgres();
        let output = status.args(["status", "--dir", text(&demo.directory)]).output();
        last = answer(&output.expect("podgres status"));
        let rows = last
            .lines()
            .skip_while(|line| !line.starts_with("MEMBER"))
            .skip(1);
        let rows: Vec<Vec<&str>> = rows.map(|row| row.split_whitespace().collect()).collect();
        // Name, role, state, timeline, position, and a lag of two words.
        let primary = rows.iter().find(|row| row[1..3] == ["primary", "running"]);
        let standbys = rows.iter().filter(|row| row[1..3] == ["standby", "streaming"]);
        let same = |row: &&Vec<&str>| {
            primary.is_some_and(|primary| row[3..5] == primary[3..5] && row[5..7] == ["0", "B"])
        };
        standbys.filter(same).count() == 2 && rows.len() == 3
    };
    assert!(wait_for(LIMIT, in_sync), "{last}");
}
