//! Backups, the archive and restores across failovers, and new clusters that begin with a backup.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::backup::{Lab, answer, ask_restored, text, told};
use crate::harness::{Demo, LIMIT, Start, member, members, wait_for};
use crate::kit::{processes, signal};
use crate::user::give_away;

const VERSION: u32 = 16;
const NUMBERS: &str = "SELECT string_agg(i::text, ' ' ORDER BY i) FROM t";

/// A run of `podgres backup` whose server stands still in the middle of sending.
struct Held {
    run: Child,
    sender: u32,
}

impl Held {
    fn begin(lab: &Lab, from: &str) -> Self {
        let title = format!("sending backup \"{:06}-", lab.list().len() + 1);
        let mut command = lab.backup_command(&["--from", from, "--proof-size", "0B"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let run = command.spawn().expect("podgres backup");
        let mut sender = None;
        let limit = std::time::Instant::now() + LIMIT;
        while sender.is_none() && std::time::Instant::now() < limit {
            sender = sending(&title);
            std::thread::sleep(Duration::from_millis(2));
        }
        let sender = sender.expect("no server began to send");
        signal(sender, Signal::STOP);
        Self { run, sender }
    }

    /// Lets it go on, to its end.
    fn end(self) -> String {
        signal(self.sender, Signal::CONT);
        let output = self.run.wait_with_output().expect("wait");
        assert!(output.status.success(), "{}", told(&output));
        told(&output)
    }
}

/// The process of a server that sends this backup.
fn sending(title: &str) -> Option<u32> {
    let found = processes().into_iter().find(|process| {
        let cmdline = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        String::from_utf8_lossy(&cmdline).contains(title)
    });
    found.map(|process| process.pid)
}

fn named(status: &Value, role: &str) -> String {
    let found = members(status).iter().find(|member| member["role"] == role);
    found.expect(role)["name"].as_str().expect("a name").to_owned()
}

fn insert(demo: &Demo, number: i32) -> String {
    demo.sql(&[], &format!("INSERT INTO t VALUES ({number})"));
    demo.sql(&[], "SELECT pg_current_wal_insert_lsn()")
}

fn numbers(lab: &Lab, target: &[&str], name: &str) -> String {
    let directory = lab.restored(name);
    answer(&lab.restore(&directory, target));
    ask_restored(lab.version, &directory, NUMBERS)
}

#[test]
fn backups_archive_and_restores_outlive_failovers_and_begin_new_clusters() {
    let mut lab = Lab::new(Start::lease(VERSION));
    lab.demo.sql(&[], "CREATE TABLE t (i int)");
    insert(&lab.demo, 1);
    lab.backup(&[]);
    insert(&lab.demo, 2);
    let moment = lab.demo.sql(&[], "SELECT clock_timestamp() FROM pg_sleep(1.1)");
    let before = insert(&lab.demo, 3);
    the_member_that_is_read_is_promoted(&lab);
    let between = insert(&lab.demo, 4);
    the_primary_is_lost_while_a_standby_is_read(&lab);
    insert(&lab.demo, 5);
    lab.archive_all();
    let names = lab.list().into_iter().map(|entry| entry["name"].clone());
    let names: Vec<String> = names
        .map(|name| name.as_str().expect("a name").to_owned())
        .collect();
    let verified = lab.done(&["verify", "--from", text(&lab.destination()), &names[1], &names[2]]);
    assert_eq!(verified.matches(": verified\n").count(), 2, "{verified}");
    assert_eq!(numbers(&lab, &["--backup", &names[0]], "over-both"), "1 2 3 4 5");
    assert_eq!(numbers(&lab, &["--to-lsn", &before], "before"), "1 2 3");
    assert_eq!(numbers(&lab, &["--to-lsn", &between], "between"), "1 2 3 4");
    lab.demo.stop();
    a_cluster_goes_back_to_before_the_failovers(&mut lab, &moment);
    what_was_left_is_restored_by_name_only(&lab, &names[1]);
    lab.demo.stop();
    a_new_cluster(&mut lab, Start::new(VERSION), &[]);
    assert_eq!(lab.demo.sql(&["--member", "1"], NUMBERS), "1 2 6");
}

/// With fixed leadership nobody takes over: what the archive lacks is read from the standby that has replayed most.
#[test]
fn what_the_archive_lacked_was_given_up_though_the_standbys_had_it() {
    let mut lab = Lab::new(Start::new(VERSION));
    lab.demo.sql(&[], "CREATE TABLE t (i int)");
    insert(&lab.demo, 1);
    lab.backup(&[]);
    lab.archive_all();
    let [paused, fresh] = ["1", "2"];
    lab.demo
        .sql(&["--member", paused], "SELECT pg_wal_replay_pause()");
    insert(&lab.demo, 2);
    the_freshest_standby_is_read(&lab, &format!("demo-{fresh}"), &format!("demo-{paused}"));
    let seen = || lab.demo.sql(&["--member", "2"], NUMBERS) == "1 2";
    assert!(wait_for(LIMIT, seen), "the other standby does not replay");
    lab.demo.ask(&["delete-pod", "0", "--force", "--wipe-volume"]);
    assert_eq!(numbers(&lab, &["--latest"], "archive-only"), "1");
    let (standby, copy) = (lab.demo.data_directory("demo-2"), lab.restored("copy"));
    lab.demo.stop();
    let mut cp = Command::new("cp");
    answer(&cp.arg("-a").args([&standby, &copy]).output().expect("cp"));
    std::fs::remove_file(copy.join("standby.signal")).expect("a standby's copy");
    assert_eq!(ask_restored(VERSION, &copy, NUMBERS), "1 2");
}

/// To another place, so that the archive stays behind.
fn the_freshest_standby_is_read(lab: &Lab, name: &str, behind: &str) {
    let to = lab.restored("elsewhere");
    std::fs::create_dir(&to).expect("folder");
    give_away(&to);
    // More than the difference that replay makes by itself.
    lab.demo
        .sql(&[], "CREATE TABLE bulk AS SELECT generate_series(1, 100000) i");
    // Whomever the run asks.
    let known = |ordinal: u32| {
        let (_, page) = lab.demo.get(ordinal, "/cluster")?;
        let status: Value = serde_json::from_str(&page).ok()?;
        let lag = |name: &str| member(&status, name)["lag_bytes"].as_u64();
        Some(lag(name)? < 1_000_000 && lag(behind)? > 1_000_000)
    };
    let all = || (0..3).all(|ordinal| known(ordinal) == Some(true));
    assert!(wait_for(LIMIT, all), "who is behind is not known");
    for _ in 0..3 {
        let words = ["backup", "--dir", text(&lab.demo.directory), "--to", text(&to)];
        let told = told(&lab.command(&words).output().expect("backup"));
        assert!(told.contains(&format!("physical of {name} (standby)")), "{told}");
    }
}

/// Pod 0 restores, the other clones it; the new Secret's passwords hold, not those in the backup.
fn a_new_cluster(lab: &mut Lab, start: Start, more: &[String]) {
    let old = lab.list()[0]["system_identifier"].clone();
    let from = format!("PODGRES_RESTORE_FROM={}", lab.destination().display());
    let sets = more.iter().chain([&from]).flat_map(|set| ["--set", set.as_str()]);
    let sets: Vec<&str> = sets.chain(["--replicas", "2"]).collect();
    lab.demo = start.with(&sets).run();
    let status = lab.demo.wait_streaming(1);
    assert_eq!(status["system_identifier"], old, "{status:#}");
}

/// In the same archive: the timelines that are left behind stay, the new one goes on beside them.
fn a_cluster_goes_back_to_before_the_failovers(lab: &mut Lab, moment: &str) {
    let more = [
        format!("PODGRES_RESTORE_TO_TIME={moment}"),
        format!("PODGRES_ARCHIVE_DESTINATION={}", lab.destination().display()),
    ];
    a_new_cluster(lab, Start::lease(lab.version), &more);
    assert_eq!(lab.demo.sql(&[], NUMBERS), "1 2");
    insert(&lab.demo, 6);
    lab.archive_all();
    assert_eq!(numbers(lab, &["--latest"], "gone-back"), "1 2 6");
}

fn what_was_left_is_restored_by_name_only(lab: &Lab, name: &str) {
    let refused = lab.restore(&lab.restored("refused"), &["--backup", name]);
    assert_eq!(refused.status.code(), Some(65), "{}", told(&refused));
    let expected = format!("\"{name}\" was taken on a branch that timeline 4 does not contain");
    assert!(told(&refused).contains(&expected), "{}", told(&refused));
    let left = ["--backup", name, "--timeline", "3"];
    assert_eq!(numbers(lab, &left, "left"), "1 2 3 4 5");
}

/// Its copy is of no use any more: the run begins again.
fn the_member_that_is_read_is_promoted(lab: &Lab) {
    let source = named(&lab.demo.wait_streaming(2), "standby");
    let held = Held::begin(lab, &source);
    lab.done(&["switchover", "--dir", text(&lab.demo.directory), "--to", &source]);
    lab.demo.wait("the source is the primary", |status| {
        member(status, &source)["role"] == "primary"
    });
    let told = held.end();
    assert!(told.contains("trying again"), "{told}");
    let list = lab.list();
    assert_eq!(
        (list.len(), &list[1]["timeline"]),
        (2, &Value::from(2)),
        "{list:#?}"
    );
    lab.demo.wait_streaming(2);
}

/// Whoever is promoted, the one that is read or the other: the backup is whole.
fn the_primary_is_lost_while_a_standby_is_read(lab: &Lab) {
    let status = lab.demo.wait_streaming(2);
    let (source, primary) = (named(&status, "standby"), named(&status, "primary"));
    let held = Held::begin(lab, &source);
    let ordinal = primary.rsplit('-').next().expect("an ordinal");
    lab.demo.ask(&["delete-pod", ordinal, "--force"]);
    lab.demo.wait("another primary", |status| {
        let found = members(status).iter().find(|member| member["role"] == "primary");
        found.is_some_and(|found| found["name"] != primary.as_str() && found["state"] == "running")
    });
    held.end();
    assert_eq!(lab.list().len(), 3);
    lab.demo.wait_streaming(2);
}
