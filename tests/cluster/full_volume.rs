//! With a Lease: a primary whose volume has no room for WAL any more.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::{Demo, LIMIT, Start, member, wait_for};
use crate::kit::open_folder;
use crate::plain::run;
use crate::volume::Volume;

/// Room for the database and a few segments.
const SIZE: &str = "120m";
const MORE: &str = "600m";

/// A demo whose first member has a volume of its own.
fn with_small_volume(directory: &Path) -> (Demo, Volume) {
    let start = || Start::lease(16).run_in(directory);
    let mut demo = start();
    demo.wait_streaming(2);
    demo.stop();
    let path = directory.join("volumes/data-demo-0");
    let aside = directory.join("volumes/aside");
    fs::rename(&path, &aside).expect("the volume aside");
    fs::create_dir(&path).expect("a mount point");
    let volume = Volume::mount(&path, SIZE);
    run(Command::new("cp").arg("-a").arg(aside.join(".")).arg(&path));
    fs::remove_dir_all(&aside).expect("the old volume");
    let demo = start();
    demo.wait_streaming(2);
    (demo, volume)
}

#[test]
fn a_full_volume_costs_one_failover_and_its_member_comes_back_when_there_is_room() {
    let folder = open_folder();
    let (demo, volume) = with_small_volume(&folder.path().join("demo"));
    let term = |demo: &Demo| demo.status().and_then(|status| status["term"].as_u64());
    let before = demo.status().expect("a status");
    assert_eq!(member(&before, "demo-0")["role"], "primary");
    let first = term(&demo).expect("a term");
    demo.sql(
        &[],
        "CREATE TABLE numbers (number int); INSERT INTO numbers VALUES (1)",
    );

    // WAL and nothing else; PostgreSQL panics when there is no room for the next segment.
    let wal = "SELECT count(pg_logical_emit_message(true, 'test', repeat('x', 1000000))) FROM generate_series(1, 200)";
    let filled = demo.try_sql(&["--member", "0"], wal);
    assert!(!filled.status.success(), "the volume took everything");
    demo.wait("another primary, and the first member's reason", |status| {
        let found = member(status, "demo-0");
        let detail = found["message"].as_str().unwrap_or_default();
        status["term"].as_u64() == Some(first + 1)
            && found["role"] == "standby"
            && detail.contains("No space left on device")
    });
    assert!(wait_for(LIMIT, || demo
        .try_sql(&[], "INSERT INTO numbers VALUES (2)")
        .status
        .success()));

    volume.resize(MORE);
    demo.wait_streaming(2);
    assert_eq!(term(&demo), Some(first + 1), "it went to and fro");
    demo.wait_sql(&["--member", "0"], "SELECT count(*) FROM numbers", "2");
}

/// The demo moves a volume aside to wipe it, which cannot be done to a mount point.
#[test]
fn a_mounted_volume_could_not_be_wiped() {
    let folder = open_folder();
    let directory = folder.path().join("demo");
    let path = directory.join("volumes/data-demo-1");
    fs::create_dir_all(&path).expect("a mount point");
    let _volume = Volume::mount(&path, MORE);
    let demo = Start::lease(16).with(&["--replicas", "2"]).run_in(&directory);
    demo.wait_streaming(1);
    fs::write(path.join("old"), "").expect("a file");
    demo.ask(&["delete-pod", "1", "--wipe-volume"]);
    demo.wait_streaming(1);
    assert!(!path.join("old").exists(), "it was not wiped");
}
