//! Backups to a bucket that answers with errors, ends connections in the middle, or does not let its answers arrive.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::backup::{answer, text, told};
use crate::harness::{LIMIT, podgres, programs, wait_for};
use crate::kit::shared;
use crate::s3_server::{Fate, S3};

const BUCKET: &str = "s3://bucket/some/prefix";

fn at(server: &S3, words: &[&str]) -> Command {
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
