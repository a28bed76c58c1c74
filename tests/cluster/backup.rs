//! Backups of a whole cluster: rows 47 to 60 as far as no Kubernetes is needed, on real servers.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::{Demo, LIMIT, Start, podgres, programs, wait_for};
use crate::kit::open_folder;
use crate::user::give_away;

/// A cluster of three with an archive, and where its backups go.
pub(crate) struct Lab {
    pub(crate) demo: Demo,
    pub(crate) version: u32,
    /// PostgreSQL's, for the commands.
    pub(crate) programs: PathBuf,
    pub(crate) folder: tempfile::TempDir,
}

impl Lab {
    pub(crate) fn new(start: Start) -> Self {
        Self::with_standbys(start, 2)
    }

    pub(crate) fn with_standbys(start: Start, standbys: usize) -> Self {
        let folder = open_folder();
        for name in ["archive", "restored"] {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).expect("folder");
            give_away(&path);
        }
        give_away(folder.path());
        let archive = format!(
            "PODGRES_ARCHIVE_DESTINATION={}",
            folder.path().join("archive").display()
        );
        let version = start.version;
        let replicas = (standbys + 1).to_string();
        let demo = start.with(&["--set", &archive, "--replicas", &replicas]).run();
        demo.wait_streaming(standbys);
        Self {
            demo,
            version,
            programs: programs(version),
            folder,
        }
    }

    pub(crate) fn destination(&self) -> PathBuf {
        self.folder.path().join("archive")
    }

    pub(crate) fn restored(&self, name: &str) -> PathBuf {
        self.folder.path().join("restored").join(name)
    }

    /// `podgres VERB …` with the programs of this version.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = podgres();
        command.args(words).env("PG_BINDIR", &self.programs);
        command
    }

    pub(crate) fn backup(&self, more: &[&str]) -> String {
        answer(&self.backup_command(more).output().expect("podgres backup"))
    }

    pub(crate) fn backup_command(&self, more: &[&str]) -> Command {
        let to = self.destination();
        let words = ["backup", "--dir", text(&self.demo.directory), "--to", text(&to)];
        self.command(&[&words, more].concat())
    }

    pub(crate) fn restore(&self, directory: &Path, more: &[&str]) -> Output {
        let from = self.destination();
        let words = ["restore", "--from", text(&from), "--pgdata", text(directory)];
        self.command(&[&words, more].concat())
            .output()
            .expect("podgres restore")
    }

    pub(crate) fn done(&self, words: &[&str]) -> String {
        answer(&self.command(words).output().expect("podgres"))
    }

    pub(crate) fn list(&self) -> Vec<Value> {
        let text = self.done(&["backups", "--from", text(&self.destination()), "-o", "json"]);
        let value: Value = serde_json::from_str(&text).expect("JSON");
        value["backups"].as_array().expect("a list").clone()
    }

    /// The end of the WAL is in the archive.
    pub(crate) fn archive_all(&self) {
        let file = self.demo.sql(&[], "SELECT pg_walfile_name(pg_switch_wal())");
        let archived = format!("SELECT last_archived_wal >= '{file}' FROM pg_stat_archiver");
        assert!(
            wait_for(LIMIT, || self.demo.sql(&[], &archived) == "t"),
            "{file} was not archived"
        );
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}

pub(crate) fn answer(output: &Output) -> String {
    assert!(output.status.success(), "{}", told(output));
    String::from_utf8(output.stdout.clone()).expect("utf-8")
}

pub(crate) fn told(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Starts a restored directory, asks it one thing, stops it.
pub(crate) fn ask_restored(version: u32, directory: &Path, sql: &str) -> String {
    let socket = directory.parent().expect("parent");
    let log = directory.with_extension("log");
    let server = |words: &[&str]| {
        let mut command = Command::new(programs(version).join("pg_ctl"));
        command
            .args(["-D", text(directory), "-w", "-l", text(&log)])
            .args(words);
        let output = crate::user::run_as_server_user(&mut command)
            .output()
            .expect("pg_ctl");
        assert!(output.status.success(), "{}", told(&output));
    };
    let hba = directory.with_extension("hba");
    std::fs::write(&hba, "local all all trust\n").expect("pg_hba.conf");
    let options = format!(
        "-c listen_addresses='' -c unix_socket_directories='{}' -c hba_file='{}'",
        socket.display(),
        hba.display()
    );
    server(&["-o", &options, "start"]);
    let mut psql = Command::new(programs(version).join("psql"));
    psql.args([
        "-XAtq",
        "-h",
        text(socket),
        "-U",
        "postgres",
        "-d",
        "postgres",
        "-c",
        sql,
    ]);
    let output = psql.output().expect("psql");
    server(&["-m", "fast", "stop"]);
    answer(&output).trim().to_owned()
}

fn physical_round(version: u32) {
    let lab = Lab::new(Start::new(version));
    lab.demo.sql(
        &[],
        "CREATE TABLE t AS SELECT i, md5(i::text) m FROM generate_series(1, 20000) i",
    );
    lab.demo.sql(&[], "CREATE INDEX ON t (m)");
    let told = lab.backup(&[]);
    assert!(told.contains("(standby)"), "{told}");
    let logical = lab.backup(&["--kind", "logical"]);
    assert!(logical.contains("logical of demo-"), "{logical}");
    let list = lab.list();
    assert_eq!(list.len(), 2);
    assert_eq!(list[0]["tables"][0]["rows"], 20_000, "{list:#?}");
    assert_eq!(list[0]["tables"], list[1]["tables"], "both kinds saw the same");
    let verified = lab.done(&["verify", "--all", "--from", text(&lab.destination())]);
    assert_eq!(verified.matches("verified\n").count(), 2, "{verified}");
    // The wheel's programs come without the extension, the distribution's with it.
    let checked = if version == 15 {
        "pg_amcheck found nothing wrong"
    } else {
        "pg_amcheck was left out"
    };
    assert_eq!(verified.matches(checked).count(), 2, "{verified}");
    assert!(lab.list().iter().all(|entry| entry["verified"] == true));
    if version == 15 {
        a_machines_faults_were_held_against_the_backup(&lab);
    }
    dump_formats(&lab);
    row_57_to_a_moment(&lab);
    if version == 16 {
        a_gap_in_the_archive_was_taken_for_its_end(&lab);
    }
}

/// Programs of another version, and one that cannot run: what was found before stays.
fn a_machines_faults_were_held_against_the_backup(lab: &Lab) {
    let verified = |lab: &Lab| {
        lab.list()
            .iter()
            .map(|entry| entry["verification"].clone())
            .collect::<Vec<_>>()
    };
    let (from, before) = (lab.destination(), verified(lab));
    let broken = lab.restored("broken");
    std::fs::create_dir(&broken).expect("folder");
    for entry in std::fs::read_dir(&lab.programs).expect("programs").flatten() {
        if entry.file_name() != "pg_verifybackup" {
            symlink(entry.path(), broken.join(entry.file_name())).expect("link");
        }
    }
    let script = broken.join("pg_verifybackup");
    std::fs::write(
        &script,
        "#!/bin/sh\necho libpq.so.5: no such file >&2\nexit 127\n",
    )
    .expect("script");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let other = "is of PostgreSQL 15, but";
    for (programs, code, expected) in [(programs(16), 64, other), (broken, 69, "exited with code 127")] {
        let mut verify = lab.command(&["verify", "--all", "--from", text(&from)]);
        let output = verify.env("PG_BINDIR", programs).output().expect("verify");
        assert_eq!(output.status.code(), Some(code), "{}", told(&output));
        assert!(told(&output).contains(expected), "{}", told(&output));
    }
    let directory = lab.restored("other");
    let mut restore = lab.command(&["restore", "--from", text(&from), "--pgdata", text(&directory)]);
    let output = restore.env("PG_BINDIR", programs(16)).output().expect("restore");
    assert_eq!(output.status.code(), Some(64), "{}", told(&output));
    assert_eq!(verified(lab), before, "they were verified, and still are");
}

/// By several jobs, and as tar: proven like the others, and nothing stays behind.
fn dump_formats(lab: &Lab) {
    let content = "SELECT lo_from_bytea(0, decode(repeat('ab', 300000), 'hex'))";
    lab.demo.sql(&[], content);
    let scratch = lab.restored("scratch");
    let left = scratch.join("podgres-dump-1");
    for folder in [&scratch, &left] {
        std::fs::create_dir(folder).expect("folder");
        give_away(folder);
    }
    let logical = ["--kind", "logical"];
    let jobs = ["--jobs", "3", "--scratch-dir", text(&scratch)];
    lab.backup(&[&logical[..], &jobs].concat());
    lab.backup(&[&logical[..], &["--format", "tar"]].concat());
    let found = std::fs::read_dir(&scratch).expect("folder").count();
    assert_eq!(found, 0, "of this run or of one that was killed");
    let list = lab.list();
    let names = [2, 3].map(|at: usize| list[at]["name"].as_str().expect("a name"));
    let from = lab.destination();
    let verified = lab.done(&["verify", names[0], names[1], "--from", text(&from)]);
    assert_eq!(verified.matches("verified\n").count(), 2, "{verified}");
    as_an_operator_reads_it(lab, &from.join("backups").join(names[0]), &scratch);
    let both = ["--kind", "logical", "--jobs", "3", "--format", "tar"];
    let output = lab.backup_command(&both).output().expect("podgres backup");
    assert_eq!(output.status.code(), Some(64), "{}", told(&output));
}

/// The archive is a folder of `pg_dump`'s for anybody with tar.
fn as_an_operator_reads_it(lab: &Lab, backup: &Path, scratch: &Path) {
    let archive = backup.join("001-postgres.dir.tar");
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(&archive).arg("-C").arg(scratch);
    answer(&tar.output().expect("tar"));
    let mut list = Command::new(lab.programs.join("pg_restore"));
    let list = answer(&list.arg("--list").arg(scratch).output().expect("pg_restore"));
    for entry in ["TABLE DATA public t ", "BLOBS"] {
        assert!(list.contains(entry), "{list}");
    }
    let mut script = Command::new(lab.programs.join("pg_restore"));
    let script = script
        .args(["-f", "-"])
        .arg(scratch)
        .output()
        .expect("pg_restore");
    let script = answer(&script);
    assert!(script.contains(&md5_of(20_000)), "the rows are not there");
    assert!(
        script.contains(&"ab".repeat(5_000)),
        "the large object is not there"
    );
}

/// What the test's table has in the row of a number.
fn md5_of(number: u32) -> String {
    let output = Command::new("sh")
        .args(["-c", &format!("printf {number} | md5sum")])
        .output()
        .expect("md5sum");
    answer(&output)[..32].to_owned()
}

/// To the second, the LSN, the name; each loses exactly what came later.
fn row_57_to_a_moment(lab: &Lab) {
    let mut moments = Vec::new();
    for number in 1..=3 {
        lab.demo
            .sql(&[], &format!("INSERT INTO t VALUES (-{number}, 'late')"));
        let lsn = lab.demo.sql(&[], "SELECT pg_current_wal_insert_lsn()");
        lab.demo
            .sql(&[], &format!("SELECT pg_create_restore_point('after {number}')"));
        let time = lab.demo.sql(&[], "SELECT clock_timestamp()");
        lab.demo.sql(&[], "SELECT pg_sleep(1.1)");
        moments.push((lsn, time));
    }
    lab.archive_all();
    let targets = [
        vec!["--to-lsn", &moments[0].0],
        vec!["--to-time", &moments[1].1],
        vec!["--to-name", "after 2"],
        vec!["--latest"],
        vec!["--to-backup"],
    ];
    for (target, expected) in targets.iter().zip(["1", "2", "2", "3", "0"]) {
        let directory = lab.restored(&target[0][2..]);
        let restored = answer(&lab.restore(&directory, target));
        assert!(
            restored.contains("\" up to 0/") && restored.lines().count() == 1,
            "{restored}"
        );
        let found = ask_restored(lab.version, &directory, "SELECT count(*) FROM t WHERE i < 0");
        assert_eq!(found, expected, "{target:?}");
    }
    let output = lab.restore(&lab.restored("latest"), &[]);
    assert_eq!(output.status.code(), Some(65), "not empty: {}", told(&output));
    let output = lab.restore(&lab.restored("early"), &["--to-time", "2001-01-01 00:00:00"]);
    assert_eq!(output.status.code(), Some(65), "{}", told(&output));
    assert!(
        told(&output).contains("no backup ends before 2001-01-01 00:00:00"),
        "{}",
        told(&output)
    );
    assert!(!lab.restored("early").exists());
}

/// A file is gone from the middle: the list, the verification and the restore say so.
fn a_gap_in_the_archive_was_taken_for_its_end(lab: &Lab) {
    let mut files = Vec::new();
    for number in 4..=6 {
        lab.demo
            .sql(&[], &format!("INSERT INTO t VALUES (-{number}, 'later')"));
        let file = "SELECT pg_walfile_name(pg_current_wal_insert_lsn())";
        files.push(lab.demo.sql(&[], file));
        lab.archive_all();
    }
    let (from, list) = (lab.destination(), lab.list());
    let name = list[0]["name"].as_str().expect("a name");
    let whole = lab.done(&["verify", name, "--from", text(&from)]);
    assert!(
        whole.contains("archived WAL follows without a gap up to"),
        "{whole}"
    );
    let cluster = &list[0]["system_identifier"];
    let cluster = cluster.as_str().map_or(cluster.to_string(), str::to_owned);
    let lost = from.join("wal").join(cluster).join(format!("{}.zst", files[1]));
    std::fs::remove_file(lost).expect("an archived segment");
    let sentence = format!(
        "WAL file \"{}\" is not archived, although later ones are",
        files[1]
    );
    let table = lab.done(&["backups", "--from", text(&from)]);
    assert!(table.contains(", then a gap\n"), "{table}");
    let output = lab
        .command(&["verify", name, "--from", text(&from)])
        .output()
        .expect("verify");
    assert_eq!(output.status.code(), Some(65), "{}", told(&output));
    assert!(told(&output).contains(&sentence), "{}", told(&output));
    assert_eq!(lab.list()[0]["verified"], true, "it is no fault of the backup's");
    let directory = lab.restored("before-the-gap");
    let restored = answer(&lab.restore(&directory, &["--latest"]));
    assert!(
        restored.contains(&format!("NOT to the end of the archive: {sentence}")),
        "{restored}"
    );
    let found = ask_restored(lab.version, &directory, "SELECT count(*) FROM t WHERE i < 0");
    assert_eq!(found, "4", "{restored}");
}

#[test]
fn row_57_and_60_backups_are_proven_and_restored_to_a_moment_on_15() {
    physical_round(15);
}

#[test]
fn row_57_and_60_backups_are_proven_and_restored_to_a_moment_on_16() {
    physical_round(16);
}

#[test]
fn row_58_a_backup_without_a_destination_fails() {
    let output = podgres()
        .args(["backup", "--dir", "/nowhere"])
        .output()
        .expect("podgres");
    assert_eq!(output.status.code(), Some(64), "{}", told(&output));
    assert!(
        told(&output).contains("invalid value for --to: not set"),
        "{}",
        told(&output)
    );
}
