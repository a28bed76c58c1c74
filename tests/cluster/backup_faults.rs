//! What a backup and a restore survive: kills, a second run, a full volume, damage.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::backup::{Lab, answer, ask_restored, text, told};
use crate::harness::{LIMIT, Start, wait_for};
use crate::kit::shared;
use crate::user::give_away;

/// Backup folders at the destination, complete or not.
fn folders(lab: &Lab) -> Vec<PathBuf> {
    let entries = fs::read_dir(lab.destination().join("backups"));
    entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

/// Until a server sends a base backup.
fn wait_under_way(lab: &Lab) {
    let sql = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'podgres_backup' AND state = 'backup'";
    let sends = |member: &str| lab.demo.sql(&["--member", member], sql) == "1";
    let under_way = || ["0", "1", "2"].into_iter().any(sends);
    assert!(wait_for(LIMIT, under_way), "the run does not begin");
}

fn start(command: &mut Command) -> Child {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("podgres")
}

fn first_piece(lab: &Lab, name: &str) -> PathBuf {
    lab.destination()
        .join("backups")
        .join(name)
        .join("base.00001.tar.zst")
}

#[test]
fn row_48_and_56_killed_and_overlapping_runs_leave_whole_backups_only() {
    let lab = Lab::new(Start::new(16));
    lab.demo.sql(
        &[],
        "CREATE TABLE t AS SELECT i, md5(i::text) m FROM generate_series(1, 50000) i",
    );
    a_second_run_is_refused_while_the_first_lives(&lab);
    the_rate_is_kept_to(&lab);
    killed_anywhere(&lab);
    damage_is_found(&lab);
    one_unreadable_record_was_in_the_way_of_every_restore(&lab);
    damaged_wal_ends_a_restore(&lab);
    what_differs_from_the_record_is_found(&lab);
    another_clusters_destination_is_refused(&lab);
    a_full_destination(&lab);
    an_interrupted_restore_goes_on(&lab);
}

fn a_second_run_is_refused_while_the_first_lives(lab: &Lab) {
    let mut slow = start(&mut lab.backup_command(&["--max-rate", "200kB"]));
    wait_under_way(lab);
    let second = lab.backup_command(&[]).output().expect("podgres backup");
    assert_eq!(second.status.code(), Some(65), "{}", told(&second));
    assert!(
        told(&second).contains("is in use by podgres backup on"),
        "{}",
        told(&second)
    );
    assert!(lab.list().is_empty(), "a backup that is under way is shown");
    slow.kill().expect("kill");
    slow.wait().expect("wait");
    assert!(lab.list().is_empty(), "a backup that was killed is shown");
    // The lock has gone with the process; what it left goes with the next run.
    lab.backup(&[]);
    assert_eq!((lab.list().len(), folders(lab).len()), (1, 1));
}

fn the_rate_is_kept_to(lab: &Lab) {
    let begun = std::time::Instant::now();
    lab.backup(&["--max-rate", "1MB", "--keep", "1"]);
    let took = begun.elapsed();
    let list = lab.list();
    let objects = list[0]["objects"].as_array().expect("objects");
    let largest = objects
        .iter()
        .filter_map(|object| object["stored_bytes"].as_u64())
        .max();
    let due = Duration::from_millis(largest.expect("an object") / 1_049);
    assert!(due > Duration::from_secs(1), "too little to tell: {due:?}");
    assert!(took >= due, "{took:?} for what may take {due:?} at least");
}

fn killed_anywhere(lab: &Lab) {
    for number in 1..=8 {
        let mut run = start(&mut lab.backup_command(&["--keep", "1", "--max-rate", "20MB"]));
        std::thread::sleep(Duration::from_millis(number * 150));
        run.kill().expect("kill");
        run.wait().expect("wait");
        let list = lab.list();
        assert!(!list.is_empty(), "after kill {number} there is no backup left");
        for entry in list {
            for object in entry["objects"].as_array().expect("objects") {
                let name = entry["name"].as_str().expect("a name");
                let path = lab
                    .destination()
                    .join("backups")
                    .join(name)
                    .join(object["path"].as_str().expect("a path"));
                let bytes = fs::metadata(&path).expect("a listed object is there").len();
                assert_eq!(object["stored_bytes"], bytes, "{}", path.display());
            }
        }
    }
    lab.backup(&["--keep", "1"]);
    assert_eq!((lab.list().len(), folders(lab).len()), (1, 1));
    let verified = lab.done(&["verify", "--from", text(&lab.destination())]);
    assert!(verified.contains(": verified"), "{verified}");
}

/// A flipped byte: verification says so, the backup is not restored, and it does not push a good one out.
fn damage_is_found(lab: &Lab) {
    lab.backup(&[]);
    let list = lab.list();
    let [good, bad] = [0, 1].map(|at: usize| list[at]["name"].as_str().expect("a name").to_owned());
    flip(&first_piece(lab, &bad));
    let output = lab
        .command(&["verify", "--from", text(&lab.destination())])
        .output()
        .expect("verify");
    assert_eq!(output.status.code(), Some(65), "{}", told(&output));
    assert!(told(&output).contains("is damaged: "), "{}", told(&output));
    assert_eq!(lab.list()[1]["good"], false);
    let output = lab.restore(&lab.restored("bad"), &["--backup", &bad]);
    assert_eq!(output.status.code(), Some(65), "{}", told(&output));
    let restored = answer(&lab.restore(&lab.restored("good"), &["--to-backup"]));
    assert!(restored.starts_with(&good), "{restored}");
    lab.backup(&["--keep", "1"]);
    let names: Vec<_> = lab.list().iter().map(|entry| entry["name"].clone()).collect();
    assert_eq!(
        names.len(),
        2,
        "the newest, and the newest that is verified: {names:?}"
    );
    assert_eq!(names[0], good);
}

/// Whoever deletes must know all of them; who restores another one need not.
fn one_unreadable_record_was_in_the_way_of_every_restore(lab: &Lab) {
    let (from, list) = (lab.destination(), lab.list());
    let [good, other] = [0, 1].map(|at: usize| list[at]["name"].as_str().expect("a name").to_owned());
    let code = |words: &[&str]| {
        let words = [words, &["--from", text(&from)]].concat();
        let output = lab.command(&words).output().expect("podgres");
        (output.status.code(), told(&output))
    };
    for (name, file) in [(&other, "backup.json"), (&good, "verified.json")] {
        let path = from.join("backups").join(name).join(file);
        let before = fs::read(&path).expect("read");
        fs::write(&path, "{").expect("write");
        let directory = lab.restored(file);
        let restored = answer(&lab.restore(&directory, &["--backup", &good, "--to-backup"]));
        assert!(restored.starts_with(&good), "{restored}");
        let (listed, text) = code(&["backups"]);
        assert!(
            listed == Some(65) && text.contains(&good) && text.contains(file),
            "{text}"
        );
        let output = lab.backup_command(&["--keep", "1"]).output().expect("backup");
        assert_eq!(output.status.code(), Some(65), "{}", told(&output));
        if name == &other {
            let output = lab.restore(&lab.restored("unreadable"), &["--backup", &other]);
            assert_eq!(output.status.code(), Some(65), "{}", told(&output));
            for words in [&["verify"][..], &["verify", &other], &["verify", "--all"]] {
                let (verified, text) = code(words);
                assert!(verified == Some(65) && text.contains(&other), "{words:?}: {text}");
            }
        } else {
            let (verified, text) = code(&["verify", &good, "-o", "json"]);
            assert_eq!(verified, Some(0), "{text}");
            let line = text.lines().find(|line| line.starts_with('{')).expect("JSON");
            let value: Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(value["name"], good.as_str());
            assert_eq!(
                value["verification"]["differences"],
                Value::Array(Vec::new()),
                "{value}"
            );
        }
        fs::write(&path, before).expect("write");
    }
    assert_eq!(lab.list().len(), list.len());
}

/// As a restore to the archive's end finds it, not the verification of a backup.
fn damaged_wal_ends_a_restore(lab: &Lab) {
    let file = lab
        .demo
        .sql(&[], "SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    lab.demo.sql(&[], "CREATE TABLE late AS SELECT 1 i");
    lab.archive_all();
    let identifier = lab.list()[0]["system_identifier"].clone();
    let identifier = identifier.as_str().map_or(identifier.to_string(), str::to_owned);
    let object = lab
        .destination()
        .join("wal")
        .join(identifier)
        .join(format!("{file}.zst"));
    flip(&object);
    let directory = lab.restored("damaged-wal");
    let output = lab.restore(&directory, &["--latest"]);
    assert!(!output.status.success(), "{}", told(&output));
    let expected = format!("{file}.zst\" is damaged");
    assert!(told(&output).contains(&expected), "{}", told(&output));
    assert!(!directory.exists());
    flip(&object);
    answer(&lab.restore(&directory, &["--latest"]));
    assert_eq!(ask_restored(16, &directory, "SELECT i FROM late"), "1");
}

/// Rows and content as a restore brings them, against what the record says of them; and a dump's flipped byte.
fn what_differs_from_the_record_is_found(lab: &Lab) {
    lab.demo.sql(&[], "CREATE TABLE u AS SELECT 1 i");
    lab.backup(&["--kind", "logical"]);
    let entry = lab.list().pop().expect("a backup");
    let backup = lab
        .destination()
        .join("backups")
        .join(entry["name"].as_str().expect("a name"));
    let verify = || {
        let output = lab
            .command(&["verify", "--from", text(&lab.destination())])
            .output()
            .expect("verify");
        assert_eq!(output.status.code(), Some(65), "{}", told(&output));
        told(&output)
    };
    let path = backup.join("backup.json");
    let record = fs::read(&path).expect("a record");
    let mut edited: Value = serde_json::from_slice(&record).expect("JSON");
    let tables = edited["tables"].as_array_mut().expect("tables");
    for table in tables {
        if table["table"] == "public.t" {
            table["rows"] = Value::from(50_001);
        } else {
            table["checksum"] = Value::from("1");
        }
    }
    fs::write(&path, serde_json::to_vec(&edited).expect("JSON")).expect("write");
    let found = verify();
    for expected in [
        "table public.t of database \"postgres\" has 50000 rows, expected 50001",
        "table public.u of database \"postgres\" has other content in its 1 rows",
    ] {
        assert!(found.contains(expected), "{found}");
    }
    fs::write(&path, record).expect("write");
    let objects = entry["objects"].as_array().expect("objects");
    let mut paths = objects
        .iter()
        .map(|object| object["path"].as_str().expect("a path"));
    let dump = paths.find(|path| path.ends_with("-postgres.dump"));
    flip(&backup.join(dump.expect("a dump")));
    let found = verify();
    assert!(found.contains("is damaged: "), "{found}");
}

fn another_clusters_destination_is_refused(lab: &Lab) {
    let (other, to, before) = (shared(), lab.destination(), lab.list().len());
    let words = [
        "backup",
        "--dir",
        text(&other.directory),
        "--to",
        text(&to),
        "--keep",
        "1",
    ];
    let output = lab.command(&words).output().expect("backup");
    assert_eq!(output.status.code(), Some(65), "{}", told(&output));
    assert!(
        told(&output).contains("holds backups of system identifier"),
        "{}",
        told(&output)
    );
    assert_eq!(lab.list().len(), before);
}

/// Changes one bit in the middle of a file.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).expect("write");
}

fn a_full_destination(lab: &Lab) {
    let folder = lab.folder.path().join("full");
    fs::create_dir(&folder).expect("folder");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2m,mode=0777", "podgres-test"])
        .arg(&folder)
        .status()
        .expect("mount");
    assert!(mounted.success(), "these tests run as root");
    give_away(&folder);
    let output = lab
        .command(&[
            "backup",
            "--dir",
            text(&lab.demo.directory),
            "--to",
            text(&folder),
        ])
        .output()
        .expect("podgres backup");
    let list = lab.done(&["backups", "--from", text(&folder), "-o", "json"]);
    let unmounted = Command::new("umount").arg(&folder).status().expect("umount");
    assert!(unmounted.success());
    assert_eq!(output.status.code(), Some(69), "{}", told(&output));
    assert!(
        told(&output).contains("No space left on device"),
        "{}",
        told(&output)
    );
    assert!(list.contains("\"backups\": []"), "{list}");
}

/// Kills a restore after a while; whether its directory was there already, which it is whole or not at all.
pub(crate) fn killed_restore(command: &mut Command, after: Duration, directory: &Path) -> bool {
    let mut run = start(command);
    std::thread::sleep(after);
    run.kill().expect("kill");
    run.wait().expect("wait");
    let whole = directory.join("global/pg_control").exists();
    assert!(
        whole || !directory.exists(),
        "half a directory after a kill at {after:?}"
    );
    whole
}

fn an_interrupted_restore_goes_on(lab: &Lab) {
    let directory = lab.restored("killed");
    let from = lab.destination();
    for number in 0..6 {
        let words = ["restore", "--from", text(&from), "--pgdata", text(&directory)];
        let after = Duration::from_millis(100 + number * 200);
        let whole = killed_restore(&mut lab.command(&words), after, &directory);
        if whole {
            break;
        }
    }
    if !directory.exists() {
        answer(&lab.restore(&directory, &[]));
    }
    assert_eq!(ask_restored(16, &directory, "SELECT count(*) FROM t"), "50000");
    assert!(
        !lab.restored("killed.podgres-restore").exists(),
        "the staging directory is left"
    );
}
