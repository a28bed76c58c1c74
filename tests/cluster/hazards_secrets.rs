//! Passwords of every shape work, and stand nowhere but in the Secret and the passfile in the pod's memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{Start, wait_for};
use crate::kit::open_folder;
use crate::plain::give_away;

const SUPERUSER: &str = "it's a \"pass\\word\": ü %41 Zq7xSuper";
const REPLICATION: &str = "=re'plication\\ :\"ö\" $(x) Zq7xReplica";

/// What is in every spelling of a password, however it is quoted; and base64, which quotes nothing.
fn spellings() -> Vec<String> {
    use base64::Engine as _;
    let encoded = [SUPERUSER, REPLICATION]
        .map(|password| base64::engine::general_purpose::STANDARD_NO_PAD.encode(password));
    let mut all = vec!["Zq7xSuper".to_owned(), "Zq7xReplica".to_owned()];
    all.extend(encoded);
    all
}

/// Command lines of all processes, and environments of all but podgres' own, as long as `done` is false.
fn watch_processes(done: &AtomicBool, spellings: &[String]) -> (BTreeSet<String>, BTreeMap<String, usize>) {
    let (mut found, mut seen) = (BTreeSet::new(), BTreeMap::new());
    while !done.load(Ordering::Relaxed) {
        for process in crate::kit::processes() {
            for file in ["cmdline", "environ"] {
                let path = format!("/proc/{}/{file}", process.pid);
                // It may have ended by now.
                let Ok(bytes) = fs::read(&path) else { continue };
                let text = String::from_utf8_lossy(&bytes);
                if spellings.iter().any(|spelling| text.contains(spelling)) {
                    found.insert(format!("{} {file}", process.name));
                }
            }
            *seen.entry(process.name).or_default() += 1;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    (found, seen)
}

/// Files below `directory` in which a spelling stands.
fn files_with(directory: &Path, spellings: &[String]) -> Vec<PathBuf> {
    let mut grep = Command::new("grep");
    grep.args(["--recursive", "--files-with-matches", "--text", "--fixed-strings"]);
    for spelling in spellings {
        grep.arg("-e").arg(spelling);
    }
    let output = grep.arg(directory).env("LC_ALL", "C").output().expect("grep");
    let found = String::from_utf8(output.stdout).expect("paths");
    found.lines().map(PathBuf::from).collect()
}

/// As a Secret is mounted: for its owner alone, or for a group with fsGroup, which libpq takes for no passfile.
fn secret(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).expect("a secret");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
    give_away(path);
}

#[test]
fn row_71_passwords_of_every_shape_work_and_are_found_nowhere() {
    let folder = open_folder();
    let directory = folder.path().join("demo");
    fs::create_dir_all(directory.join("secret")).expect("folder");
    secret(
        &directory.join("secret/password"),
        &format!("{SUPERUSER}\n"),
        0o400,
    );
    let replication = folder.path().join("replication");
    secret(&replication, &format!("{REPLICATION}\n"), 0o440);
    let configuration = folder.path().join("configuration");
    fs::create_dir(&configuration).expect("folder");
    fs::write(
        configuration.join("log.conf"),
        "log_statement = all\nlog_min_messages = debug1\n",
    )
    .expect("file");

    let spellings = spellings();
    let done = AtomicBool::new(false);
    let (found, seen) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch_processes(&done, &spellings));
        let demo = Start::new(15)
            .with(&["--replicas", "2", "--set", "PODGRES_LOG_LEVEL=debug"])
            .with(&[
                "--set",
                &format!("PODGRES_REPLICATION_PASSWORD_FILE={}", replication.display()),
            ])
            .with(&[
                "--set",
                &format!("PODGRES_CONFIGURATION_DIR={}", configuration.display()),
            ])
            .run_in(&directory);
        demo.wait_streaming(1);
        done.store(true, Ordering::Relaxed);
        let watched = watcher.join().expect("watcher");

        // The logins are what the files say, through every way in.
        demo.sql(&[], "CREATE TABLE t AS SELECT 1 AS i");
        assert!(wait_for(Duration::from_secs(20), || {
            demo.try_sql(&["--read-only"], "TABLE t").status.success()
        }));
        let primary = demo.ask(&["dsn", "--member", "0"]);
        let (_, place) = primary.split_once('@').expect("a login");
        for (password, admitted) in [(REPLICATION, true), (SUPERUSER, false)] {
            let output = Command::new(crate::harness::programs(16).join("psql"))
                .args(["-X", "-A", "-t", "-c", "SELECT session_user"])
                .arg(format!("postgresql://podgres_replication@{place}"))
                .env("PGPASSWORD", password)
                .output()
                .expect("psql");
            assert_eq!(output.status.success(), admitted, "{output:?}");
        }

        let mut files = files_with(&directory, &spellings);
        files.retain(|path| !path.starts_with(directory.join("secret")));
        let passfile = |path: &PathBuf| path.ends_with("run/passfile");
        assert!(files.iter().all(passfile), "{files:?}");
        assert_eq!(
            files.len(),
            2,
            "the search does not even find what is there: {files:?}"
        );
        watched
    });
    assert!(found.is_empty(), "{found:?}");
    // Those were met that might have had it.
    for name in ["initdb", "postgres", "pg_basebackup", "podgres"] {
        assert!(seen.contains_key(name), "{name} is not among {seen:?}");
    }
}
