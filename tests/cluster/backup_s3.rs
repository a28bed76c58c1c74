//! Backups to a bucket that answers with errors, ends connections in the middle, or does not let its answers arrive.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::backup::{answer, text, told};
use crate::harness::{LIMIT, podgres, programs, wait_for};
use crate::kit::{open_folder, shared};
use crate::s3_server::{Fate, S3};

pub(crate) const BUCKET: &str = "s3://bucket/some/prefix";

pub(crate) fn at(server: &S3, words: &[&str]) -> Command {
    let mut command = podgres();
    command
        .args(words)
        .env("PG_BINDIR", programs(16))
        .env("AWS_ENDPOINT_URL", format!("http://{}", server.address))
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", "secret");
    command
}

fn records(server: &S3) -> usize {
    server
        .keys()
        .iter()
        .filter(|key| key.ends_with("/backup.json"))
        .count()
}

#[test]
fn a_bucket_that_fails_now_and_then_gets_whole_backups() {
    let (server, demo) = (S3::start(), shared());
    let key = demo.directory.parent().expect("a folder").join("backup-key");
    std::fs::write(&key, "5e".repeat(32)).expect("key");
    let requests = AtomicU32::new(0);
    server.set_fates(move |line| match requests.fetch_add(1, Ordering::Relaxed) % 7 {
        2 => Fate::Error,
        4 => Fate::Cut,
        // Of a conditional write an answer that was lost cannot be told from a refusal: see the lock.
        6 if line.contains("partNumber") || line.starts_with("GET") => Fate::Deaf,
        _ => Fate::Pass,
    });
    let backup = [
        "backup",
        "--dir",
        text(&demo.directory),
        "--to",
        BUCKET,
        "--key-file",
        text(&key),
    ];
    answer(&at(&server, &backup).output().expect("backup"));
    answer(
        &at(&server, &[&backup[..], &["--kind", "logical"]].concat())
            .output()
            .expect("backup"),
    );
    let verify = ["verify", "--all", "--from", BUCKET, "--key-file", text(&key)];
    let verified = answer(&at(&server, &verify).output().expect("verify"));
    assert_eq!(verified.matches(": verified\n").count(), 2, "{verified}");
    let output = at(&server, &["verify", "--from", BUCKET])
        .output()
        .expect("verify");
    assert_eq!(
        output.status.code(),
        Some(65),
        "without the key: {}",
        told(&output)
    );
    an_unusable_bucket(&server, &backup);
    a_dead_holder_of_the_lock(&server, &backup);
}

#[test]
fn a_bucket_that_ignores_conditional_writes_was_taken_for_locked() {
    let (server, demo) = (S3::start(), shared());
    server.ignore_conditions();
    let words = ["backup", "--dir", text(&demo.directory), "--to", BUCKET];
    let output = at(&server, &words).output().expect("backup");
    assert_eq!(output.status.code(), Some(64), "{}", told(&output));
    let expected = "it ignores conditional writes";
    assert!(told(&output).contains(expected), "{}", told(&output));
    assert_eq!(records(&server), 0);
}

/// As PostgreSQL's archiver and recovery do it, on a bucket that fails now and then; what follows comes ahead of its time.
#[test]
fn wal_goes_to_a_bucket_and_comes_back_ahead_of_its_time() {
    let (server, folder) = (S3::start(), open_folder());
    let data = folder.path().join("data");
    for name in ["global", "pg_wal"] {
        std::fs::create_dir_all(data.join(name)).expect("folder");
    }
    std::fs::write(data.join("global/pg_control"), 7_u64.to_ne_bytes()).expect("file");
    let names: Vec<String> = (1..=8)
        .map(|number| format!("0000000100000000{number:08X}"))
        .collect();
    let requests = AtomicU32::new(0);
    server.set_fates(move |_| match requests.fetch_add(1, Ordering::Relaxed) % 5 {
        3 => Fate::Error,
        _ => Fate::Pass,
    });
    let done = |words: &[&str]| answer(&at(&server, words).current_dir(&data).output().expect("podgres"));
    for name in &names {
        let path = format!("pg_wal/{name}");
        std::fs::write(data.join(&path), name.repeat(3_000)).expect("file");
        done(&["wal-push", "--to", BUCKET, &path]);
    }
    let (ahead, into) = (folder.path().join("ahead"), folder.path().join("into"));
    let asked = Arc::new(AtomicU32::new(0));
    let fetch = |name: &str| at_ahead(&server, &ahead, name, &into);
    for (number, name) in names.iter().enumerate() {
        answer(&fetch(name).current_dir(&data).output().expect("wal-fetch"));
        assert_eq!(std::fs::read_to_string(&into).expect("read"), name.repeat(3_000));
        if number == 0 {
            let waits = || names[1..].iter().all(|name| ahead.join(name).exists());
            assert!(wait_for(LIMIT, waits), "nothing is fetched ahead");
            // The last ones may be taken before somebody who fetches ahead has looked.
            let (asked, names) = (Arc::clone(&asked), names[..6].to_vec());
            server.set_fates(move |line| {
                if names.iter().any(|name| line.contains(name)) {
                    asked.fetch_add(1, Ordering::Relaxed);
                }
                Fate::Pass
            });
        }
    }
    assert_eq!(
        asked.load(Ordering::Relaxed),
        0,
        "what waits was fetched once more"
    );
    let end = fetch("000000010000000000000009")
        .current_dir(&data)
        .output()
        .expect("wal-fetch");
    assert_eq!(end.status.code(), Some(1), "{}", told(&end));
}

fn at_ahead(server: &S3, ahead: &Path, name: &str, into: &Path) -> Command {
    at(
        server,
        &[
            "wal-fetch",
            "--from",
            BUCKET,
            "--ahead-dir",
            text(ahead),
            name,
            text(into),
        ],
    )
}

/// Data are refused for good: exit code 69, and no backup more.
fn an_unusable_bucket(server: &S3, backup: &[&str]) {
    server.set_fates(|line| {
        if line.contains(".tar.zst") {
            Fate::Error
        } else {
            Fate::Pass
        }
    });
    let output = at(server, backup).output().expect("backup");
    server.set_fates(|_| Fate::Pass);
    assert_eq!(output.status.code(), Some(69), "{}", told(&output));
    assert!(
        told(&output).contains("could not write \"backups/000003-"),
        "{}",
        told(&output)
    );
    assert_eq!(records(server), 2);
    assert!(
        !server.keys().iter().any(|key| key.ends_with("lock.json")),
        "the lock was not given back"
    );
}

/// A run that was killed holds the lock until its heart has not beaten for fifteen seconds; a living one keeps it.
fn a_dead_holder_of_the_lock(server: &S3, backup: &[&str]) {
    let slow = [backup, &["--max-rate", "100kB"]].concat();
    let mut first = at(server, &slow)
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("backup");
    let locked = || server.keys().iter().any(|key| key == "some/prefix/lock.json");
    assert!(wait_for(LIMIT, locked), "the first run does not begin");
    let output = at(server, backup).output().expect("backup");
    assert_eq!(output.status.code(), Some(65), "{}", told(&output));
    first.kill().expect("kill");
    first.wait().expect("wait");
    let begun = Instant::now();
    answer(&at(server, backup).output().expect("backup"));
    assert!(
        begun.elapsed() > Duration::from_secs(14),
        "the lock of a run that might live was taken"
    );
    assert_eq!(records(server), 3);
}
