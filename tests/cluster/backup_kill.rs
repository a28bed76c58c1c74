//! What is at a bucket when a run ends at any of its requests, or goes on after others thought it dead.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::backup::{answer, text, told};
use crate::backup_s3::{BUCKET, at};
use crate::harness::{Demo, LIMIT, Start, wait_for};
use crate::kit::{open_folder, shared};
use crate::s3_server::{Fate, Held, S3};
use crate::user::give_away;

const LOCK: &str = "some/prefix/lock.json";
const BACKUPS: &str = "some/prefix/backups/";
/// More than a run has.
const MOST_REQUESTS: u32 = 240;

fn backup(server: &S3, demo: &Demo, more: &[&str]) -> Command {
    let words = [
        "backup",
        "--dir",
        text(&demo.directory),
        "--to",
        BUCKET,
        "--proof-size",
        "0B",
    ];
    let mut command = at(server, &[&words, more].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The names of complete backups; whatever they list is there, as long as it says.
fn whole(server: &S3) -> Vec<String> {
    let keys = server.keys();
    let records = keys
        .iter()
        .filter_map(|key| key.strip_prefix(BACKUPS)?.strip_suffix("/backup.json"));
    let mut names: Vec<String> = records.map(str::to_owned).collect();
    // A killed run's last request may be carried out just now, and be that of a record.
    names.retain(|name| server.content(&format!("{BACKUPS}{name}/backup.json")).is_some());
    for name in &names {
        let content = |path: &str| server.content(&format!("{BACKUPS}{name}/{path}"));
        let Some(record) = content("backup.json") else {
            continue;
        };
        let record: Value = serde_json::from_slice(&record).expect("JSON");
        for object in record["objects"].as_array().expect("objects") {
            let path = object["path"].as_str().expect("a path");
            let bytes = content(path).map(|content| content.len());
            assert_eq!(
                object["stored_bytes"],
                Value::from(bytes),
                "{path} of {name}: {keys:#?}"
            );
        }
    }
    names
}

/// Waits until the held request has come; false if the run ended before.
fn comes(held: &Held, run: &mut Child) -> bool {
    let mut came = false;
    let ended = || {
        came = held.arrived();
        came || run.try_wait().expect("wait").is_some()
    };
    assert!(wait_for(LIMIT, ended), "the run stands still");
    came
}

#[test]
fn row_48_a_run_killed_at_any_request_leaves_whole_backups_only() {
    let (server, demo) = (S3::start(), shared());
    answer(&backup(&server, &demo, &[]).output().expect("backup"));
    let mut killed = 0;
    for number in 0..MOST_REQUESTS {
        let requests = AtomicU32::new(0);
        // The lock's own are left out: how many there are is a matter of time.
        let held = server.hold(move |line| {
            !line.contains("lock.json") && requests.fetch_add(1, Ordering::Relaxed) == number
        });
        let mut run = backup(&server, &demo, &["--keep", "1"]).spawn().expect("backup");
        if !comes(&held, &mut run) {
            break;
        }
        run.kill().expect("kill");
        // Done or not, the run does not learn it.
        held.go_on(if number % 2 == 0 { Fate::Cut } else { Fate::Deaf });
        run.wait().expect("wait");
        killed += 1;
        server.set(LOCK, None);
        assert!(
            !whole(&server).is_empty(),
            "nothing is left after request {number}"
        );
    }
    assert!((10..MOST_REQUESTS).contains(&killed), "{killed} kills");
    println!("{killed} kills");
    server.set_fates(|_| Fate::Pass);
    answer(&backup(&server, &demo, &["--keep", "1"]).output().expect("backup"));
    let names = whole(&server);
    assert_eq!(names.len(), 1, "{names:?}");
    let folder = format!("{BACKUPS}{}/", names[0]);
    let keys = server.keys();
    let left = keys
        .iter()
        .filter(|key| key.starts_with(BACKUPS) && !key.starts_with(&folder));
    assert_eq!(left.count(), 0, "{keys:#?}");
    answer(
        &at(&server, &["verify", "--from", BUCKET])
            .output()
            .expect("verify"),
    );
}

/// A database whose data do not compress is more than one part of an upload.
#[test]
fn an_upload_of_several_parts_that_ends_at_any_of_its_requests_is_no_backup() {
    let server = S3::start();
    let demo = Start::new(16).with(&["--replicas", "1"]).run();
    demo.wait_streaming(0);
    demo.sql(
        &[],
        "CREATE TABLE bulk AS SELECT string_agg(uuid_send(gen_random_uuid()), '') content FROM generate_series(1, 1500000) i \
         GROUP BY i % 1500",
    );
    let uploads = |line: &str| line.contains("uploads") || line.contains("uploadId=");
    let parts = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&parts);
    server.set_fates(move |line| {
        counted.fetch_add(u32::from(line.contains("partNumber=")), Ordering::Relaxed);
        Fate::Pass
    });
    answer(&backup(&server, &demo, &[]).output().expect("backup"));
    let parts = parts.load(Ordering::Relaxed);
    assert!(parts >= 3, "{parts} parts");
    let known = whole(&server);
    // Its beginning, the first part, the last one, and its completion.
    for number in [0, 1, parts, parts + 1] {
        let requests = AtomicU32::new(0);
        let held =
            server.hold(move |line| uploads(line) && requests.fetch_add(1, Ordering::Relaxed) == number);
        let mut run = backup(&server, &demo, &[]).spawn().expect("backup");
        assert!(comes(&held, &mut run), "there is no request {number}");
        run.kill().expect("kill");
        held.go_on(if number % 2 == 0 { Fate::Cut } else { Fate::Deaf });
        run.wait().expect("wait");
        server.set(LOCK, None);
        assert_eq!(whole(&server), known, "after request {number}");
    }
    server.set_fates(|_| Fate::Pass);
    answer(&backup(&server, &demo, &["--keep", "1"]).output().expect("backup"));
    let words = ["verify", "--from", BUCKET];
    answer(&at(&server, &words).output().expect("verify"));
}

/// As the supervisor's `archive_command` and `restore_command` run: killed at any request, then asked once more.
#[test]
fn wal_that_was_being_archived_or_fetched_at_a_kill_is_whole_the_next_time() {
    let (server, folder) = (S3::start(), open_folder());
    let data = folder.path().join("data");
    for name in ["global", "pg_wal"] {
        fs::create_dir_all(data.join(name)).expect("folder");
    }
    fs::write(data.join("global/pg_control"), 7_u64.to_ne_bytes()).expect("file");
    let name = "000000010000000000000001";
    let (path, into) = (format!("pg_wal/{name}"), folder.path().join("into"));
    let content = name.repeat(3_000);
    fs::write(data.join(&path), &content).expect("file");
    let push = ["wal-push", "--to", BUCKET, &path];
    let fetch = ["wal-fetch", "--from", BUCKET, name, text(&into)];
    for words in [&push[..], &fetch[..]] {
        let mut killed = 0;
        for number in 0..MOST_REQUESTS {
            let requests = AtomicU32::new(0);
            let held = server.hold(move |_| requests.fetch_add(1, Ordering::Relaxed) == number);
            let mut command = at(&server, words);
            let mut run = command
                .current_dir(&data)
                .stderr(Stdio::null())
                .spawn()
                .expect("podgres");
            if !comes(&held, &mut run) {
                break;
            }
            run.kill().expect("kill");
            held.go_on(if number % 2 == 0 { Fate::Deaf } else { Fate::Cut });
            run.wait().expect("wait");
            killed += 1;
            assert!(!into.exists(), "half a file has the name after request {number}");
            server.set_fates(|_| Fate::Pass);
            if words == push {
                answer(&at(&server, words).current_dir(&data).output().expect("wal-push"));
            }
        }
        assert!(
            (1..MOST_REQUESTS).contains(&killed),
            "{killed} kills of {words:?}"
        );
    }
    server.set_fates(|_| Fate::Pass);
    answer(
        &at(&server, &fetch)
            .current_dir(&data)
            .output()
            .expect("wal-fetch"),
    );
    assert_eq!(fs::read_to_string(&into).expect("read"), content);
}

/// In a place that outlives the run, as a volume for scratch data does.
#[test]
fn a_verification_that_was_killed_leaves_nothing_to_the_next() {
    let (server, demo, folder) = (S3::start(), shared(), open_folder());
    answer(
        &backup(&server, &demo, &["--piece-size", "4MB"])
            .output()
            .expect("backup"),
    );
    give_away(folder.path());
    let words = ["verify", "--from", BUCKET, "--scratch-dir", text(folder.path())];
    let pieces = AtomicU32::new(0);
    let held = server.hold(move |line| is_piece(line) && pieces.fetch_add(1, Ordering::Relaxed) == 2);
    let mut run = at(&server, &words).stderr(Stdio::null()).spawn().expect("verify");
    assert!(comes(&held, &mut run), "there are fewer pieces");
    run.kill().expect("kill");
    run.wait().expect("wait");
    held.go_on(Fate::Cut);
    server.set_fates(|_| Fate::Pass);
    assert!(
        fs::read_dir(folder.path()).expect("folder").count() > 0,
        "it had not begun"
    );
    let name = whole(&server).pop().expect("a backup");
    let remembered = || server.content(&format!("{BACKUPS}{name}/verified.json"));
    assert_eq!(remembered(), None);
    answer(&at(&server, &words).output().expect("verify"));
    assert!(remembered().is_some());
    assert_eq!(fs::read_dir(folder.path()).expect("folder").count(), 0);
}

/// Longer than others wait for the lock's heartbeat.
#[test]
fn a_run_whose_store_does_not_answer_has_lost_the_lock() {
    let (server, demo) = (S3::start(), shared());
    let held = server.hold(|line| line.starts_with("PUT") && line.contains("/base."));
    let mut run = backup(&server, &demo, &[]).spawn().expect("backup");
    assert!(comes(&held, &mut run), "nothing was ever written");
    let ended = || run.try_wait().expect("wait").is_some();
    assert!(wait_for(LIMIT, ended), "it waits for ever");
    held.go_on(Fate::Pass);
    let output = run.wait_with_output().expect("wait");
    assert_eq!(output.status.code(), Some(69), "{}", told(&output));
    let expected = "the lock of the destination was lost";
    assert!(told(&output).contains(expected), "{}", told(&output));
    assert!(whole(&server).is_empty(), "{:?}", server.keys());
}

/// Another run has the lock, and has deleted what looked torn: whether that happens before the record is written or while.
#[test]
fn a_run_that_stood_still_committed_what_another_had_deleted() {
    let (server, demo) = (S3::start(), shared());
    for object in ["/backup_manifest.zst", "/backup.json"] {
        let held = server.hold(move |line| line.starts_with("PUT") && line.contains(object));
        let mut run = backup(&server, &demo, &[]).spawn().expect("backup");
        assert!(comes(&held, &mut run), "{object} was never written");
        server.set(LOCK, Some(br#"{"who":"another run","token":7,"beat":1}"#));
        for key in server.keys().iter().filter(|key| key.starts_with(BACKUPS)) {
            server.set(key, None);
        }
        held.go_on(Fate::Pass);
        let output = run.wait_with_output().expect("wait");
        assert_eq!(output.status.code(), Some(69), "{}", told(&output));
        assert!(
            told(&output).contains("the lock of the destination was lost"),
            "{}",
            told(&output)
        );
        assert!(whole(&server).is_empty(), "{:?}", server.keys());
        assert!(server.content(LOCK).is_some(), "it is the other run's");
        server.set(LOCK, None);
    }
}

/// Another run has the lock: what it may build on is not deleted under it.
#[test]
fn a_run_that_has_lost_the_lock_deletes_no_further_backup() {
    let (server, demo) = (S3::start(), shared());
    for _ in 0..2 {
        answer(&backup(&server, &demo, &[]).output().expect("backup"));
    }
    let expired = whole(&server);
    let held = server.hold(|line| line.starts_with("POST") && line.contains("?delete"));
    let mut run = backup(&server, &demo, &["--keep", "1"]).spawn().expect("backup");
    assert!(comes(&held, &mut run), "nothing was ever deleted");
    server.set(LOCK, Some(br#"{"who":"another run","token":7,"beat":1}"#));
    held.go_on(Fate::Pass);
    let output = run.wait_with_output().expect("wait");
    assert_eq!(output.status.code(), Some(69), "{}", told(&output));
    let left = whole(&server);
    // The new one, and of those two the one that was not under way.
    let spared = left.iter().filter(|name| expired.contains(name)).count();
    assert_eq!((expired.len(), left.len(), spared), (2, 2, 1), "{left:?}");
}

/// Pieces that a killed restore has extracted are not fetched once more.
#[test]
fn a_killed_restore_goes_on_with_the_pieces_that_are_missing() {
    let (server, demo, folder) = (S3::start(), shared(), open_folder());
    answer(
        &backup(&server, &demo, &["--piece-size", "1MB"])
            .output()
            .expect("backup"),
    );
    let into = folder.path().join("restored");
    fs::create_dir(&into).expect("folder");
    give_away(&into);
    let directory = into.join("data");
    let restore = || {
        at(
            &server,
            &["restore", "--from", BUCKET, "--pgdata", text(&directory)],
        )
    };
    let pieces = AtomicU32::new(0);
    let held = server.hold(move |line| is_piece(line) && pieces.fetch_add(1, Ordering::Relaxed) == 7);
    let mut run = restore().stderr(Stdio::null()).spawn().expect("restore");
    assert!(comes(&held, &mut run), "there are fewer pieces");
    let state = into.join("data.podgres-restore.state.json");
    let done = || -> BTreeSet<String> {
        let state: Value = serde_json::from_slice(&fs::read(&state).unwrap_or_default()).unwrap_or_default();
        let done = state["done"].as_array().cloned().unwrap_or_default();
        done.iter()
            .map(|path| path.as_str().expect("a path").to_owned())
            .collect()
    };
    // One is held, the other of two may go on.
    assert!(wait_for(LIMIT, || done().len() >= 6), "{:?}", done());
    run.kill().expect("kill");
    run.wait().expect("wait");
    held.go_on(Fate::Cut);
    let done = done();
    let fetched: Arc<Mutex<Vec<String>>> = Arc::default();
    let asked = Arc::clone(&fetched);
    server.set_fates(move |line| {
        if is_piece(line) {
            asked.lock().expect("lock").push(line.to_owned());
        }
        Fate::Pass
    });
    answer(&restore().output().expect("restore"));
    let fetched = fetched.lock().expect("lock");
    assert!(!fetched.is_empty(), "nothing was missing");
    for path in &done {
        assert!(
            !fetched.iter().any(|line| line.contains(path.as_str())),
            "{path} was there: {fetched:#?}"
        );
    }
    assert!(directory.join("global/pg_control").exists());
}

fn is_piece(line: &str) -> bool {
    line.starts_with("GET") && line.contains("/base.")
}
