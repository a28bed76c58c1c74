//! Backups to a container of Azure's blob storage: made, listed, proven, restored, pruned and locked as in a folder.

use std::process::{Command, Stdio};

use crate::azure_server::{ACCOUNT, Azure, KEY};
use crate::backup::{answer, ask_restored, text, told};
use crate::harness::{LIMIT, podgres, programs, wait_for};
use crate::kit::{open_folder, shared};
use crate::user::give_away;

const CONTAINER: &str = "azure://container/some/prefix";

fn at(server: &Azure, words: &[&str]) -> Command {
    let mut command = podgres();
    command
        .args(words)
        .env("PG_BINDIR", programs(16))
        .env(
            "AZURE_STORAGE_ENDPOINT",
            format!("http://{}/{ACCOUNT}", server.address),
        )
        .env("AZURE_STORAGE_ACCOUNT", ACCOUNT)
        .env("AZURE_STORAGE_KEY", KEY);
    command
}

#[test]
fn a_container_keeps_proven_backups() {
    let (server, demo) = (Azure::start(), shared());
    let backup = ["backup", "--dir", text(&demo.directory), "--to", CONTAINER];
    let done = |words: &[&str]| answer(&at(&server, words).output().expect("podgres"));
    done(&backup);
    done(&[&backup[..], &["--kind", "logical"]].concat());
    let verified = done(&["verify", "--all", "--from", CONTAINER]);
    assert_eq!(verified.matches(": verified\n").count(), 2, "{verified}");
    let folder = open_folder();
    give_away(folder.path());
    let directory = folder.path().join("restored");
    done(&[
        "restore",
        "--from",
        CONTAINER,
        "--to-backup",
        "--pgdata",
        text(&directory),
    ]);
    assert_eq!(ask_restored(16, &directory, "SELECT 1"), "1");
    one_run_at_a_time(&server, &backup);
    assert_eq!(server.refused(), 0);
    a_wrong_key(&server);
}

/// The lock is a blob with a condition; what goes is deleted in one request.
fn one_run_at_a_time(server: &Azure, backup: &[&str]) {
    let slow = [backup, &["--max-rate", "300kB"]].concat();
    let mut slow = at(server, &slow);
    let mut first = slow
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("backup");
    let locked = || server.names().iter().any(|name| name == "some/prefix/lock.json");
    assert!(wait_for(LIMIT, locked), "the first run does not begin");
    let second = at(server, backup).output().expect("backup");
    assert_eq!(second.status.code(), Some(65), "{}", told(&second));
    // In order: the lock is given back.
    let pid = i32::try_from(first.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(pid.expect("a pid"), rustix::process::Signal::TERM).expect("kill");
    first.wait().expect("wait");
    answer(
        &at(server, &[backup, &["--keep", "1"]].concat())
            .output()
            .expect("backup"),
    );
    let names = server.names();
    let records = names.iter().filter(|name| name.ends_with("/backup.json")).count();
    assert_eq!(
        records, 3,
        "the verified ones of each kind, and the newest: {names:?}"
    );
    assert!(
        !names.iter().any(|name| name.ends_with("/lock.json")),
        "{names:?}"
    );
}

fn a_wrong_key(server: &Azure) {
    let mut list = at(server, &["backups", "--from", CONTAINER]);
    let output = list
        .env("AZURE_STORAGE_KEY", "b3RoZXI=")
        .output()
        .expect("backups");
    assert_eq!(output.status.code(), Some(77), "{}", told(&output));
    assert!(server.refused() > 0);
}
