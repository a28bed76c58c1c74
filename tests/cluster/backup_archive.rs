//! The archive: one content for each name, an alarm while it cannot be reached, and no gap after a failover then.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::backup::{Lab, answer, ask_restored, text, told};
use crate::harness::{LIMIT, Start, members, wait_for};
use crate::user::give_away;

const VERSION: u32 = 16;

fn primary_ordinal(lab: &Lab) -> u32 {
    let status = lab.demo.wait_streaming(2);
    let found = members(&status).iter().find(|member| member["role"] == "primary");
    let ordinal = found.expect("a primary")["ordinal"].as_u64().expect("an ordinal");
    u32::try_from(ordinal).expect("an ordinal")
}

fn metric(lab: &Lab, ordinal: u32, name: &str) -> Option<f64> {
    let (_, page) = lab.demo.get(ordinal, "/metrics")?;
    let line = page.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn wait_metric(lab: &Lab, ordinal: u32, name: &str, condition: impl Fn(f64) -> bool) {
    let mut last = None;
    let came = wait_for(LIMIT, || {
        last = metric(lab, ordinal, name);
        last.is_some_and(&condition)
    });
    assert!(came, "{name} is {last:?}");
}

#[test]
fn an_archive_that_fails_is_an_alarm_and_a_failover_then_leaves_no_gap() {
    let lab = Lab::new(Start::lease(VERSION));
    lab.demo.sql(&[], "CREATE TABLE t AS SELECT 1 i");
    lab.backup(&[]);
    other_content_is_refused(&lab);
    another_archive_command_took_the_wal(&lab);
    let primary = primary_ordinal(&lab);
    wait_metric(&lab, primary, "podgres_archive_waiting_files", |files| {
        files == 0.0
    });
    let away = lab.folder.path().join("away");
    fs::rename(lab.destination(), &away).expect("rename");
    for number in 2..=4 {
        let sql = format!("INSERT INTO t VALUES ({number}); SELECT pg_switch_wal()");
        lab.demo.sql(&[], &sql);
        if number == 2 {
            wait_metric(&lab, primary, "podgres_archive_failures_total", |failures| {
                failures > 0.0
            });
            // As an unmounted volume leaves it.
            fs::create_dir(lab.destination()).expect("nobody made it anew");
            give_away(&lab.destination());
        }
    }
    wait_metric(&lab, primary, "podgres_archive_waiting_files", |files| {
        files >= 3.0
    });
    wait_metric(&lab, primary, "podgres_archive_lag_seconds", |seconds| {
        seconds > 0.5
    });
    lab.demo
        .ask(&["delete-pod", &primary.to_string(), "--force", "--wipe-volume"]);
    lab.demo.wait("another primary", |status| {
        let found = members(status).iter().find(|member| member["role"] == "primary");
        found.is_some_and(|found| found["ordinal"] != primary && found["state"] == "running")
    });
    fs::remove_dir(lab.destination()).expect("nobody archived into an empty folder");
    fs::rename(&away, lab.destination()).expect("rename");
    let primary = primary_ordinal(&lab);
    lab.demo.sql(&[], "INSERT INTO t VALUES (5)");
    lab.archive_all();
    wait_metric(&lab, primary, "podgres_archive_waiting_files", |files| {
        files == 0.0
    });
    let directory = lab.restored("no-gap");
    answer(&lab.restore(&directory, &["--latest"]));
    let sql = "SELECT string_agg(i::text, ' ' ORDER BY i) FROM t";
    assert_eq!(ask_restored(VERSION, &directory, sql), "1 2 3 4 5");
}

/// A volume of its own, unmounted at the end.
struct Volume(PathBuf);

impl Volume {
    fn mount(path: PathBuf, options: &str) -> Self {
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", options, "podgres-test"])
            .arg(&path);
        assert!(
            mount.status().expect("mount").success(),
            "these tests run as root"
        );
        Self(path)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Somebody may still be at work in it.
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

/// Until no archiver of the two has anything left to do.
fn wait_for_archivers(lab: &Lab) {
    for ordinal in 0..2 {
        let none = "SELECT count(*) = 0 FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";
        let done = || lab.demo.sql(&["--member", &ordinal.to_string()], none) == "t";
        assert!(wait_for(LIMIT, done), "member {ordinal} still waits");
    }
}

#[test]
fn a_full_archive_loses_no_wal() {
    let lab = Lab::with_standbys(Start::new(VERSION), 1);
    let inner = lab.destination().join("wal");
    lab.demo.sql(&[], "CREATE TABLE t (content bytea)");
    lab.backup(&[]);
    lab.archive_all();
    // What a standby still looks for would be out of its sight.
    wait_for_archivers(&lab);
    // Over the archived WAL, which comes back before the restore.
    let identifier = lab.list()[0]["system_identifier"].clone();
    let identifier = identifier.as_str().map_or(identifier.to_string(), str::to_owned);
    let (archive, aside) = (inner.join(&identifier), lab.folder.path().join("aside"));
    let volume = Volume::mount(archive.clone(), "size=12m,mode=0777");
    give_away(&archive);
    let bulk = "INSERT INTO t SELECT string_agg(uuid_send(gen_random_uuid()), '') FROM generate_series(1, 1000000) i \
                GROUP BY i % 1000; SELECT pg_switch_wal()";
    lab.demo.sql(&[], bulk);
    lab.demo.sql(&[], bulk);
    wait_metric(&lab, 0, "podgres_archive_failures_total", |failures| {
        failures > 0.0
    });
    wait_metric(&lab, 0, "podgres_archive_waiting_files", |files| files >= 1.0);
    let mut enlarge = Command::new("mount");
    enlarge.args(["-o", "remount,size=200m"]).arg(&archive);
    assert!(enlarge.status().expect("mount").success());
    lab.archive_all();
    wait_for_archivers(&lab);
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(&archive).arg(&aside);
    assert!(copy.status().expect("cp").success());
    drop(volume);
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(format!("{}/.", aside.display())).arg(&archive);
    assert!(copy.status().expect("cp").success());
    let directory = lab.restored("full");
    answer(&lab.restore(&directory, &["--latest"]));
    assert_eq!(
        ask_restored(VERSION, &directory, "SELECT count(*) FROM t"),
        "2000"
    );
}

/// The WAL receiver marks the last segment of the timeline that ended as ready, and the new primary archives that one under
/// another name, or on its own timeline only.
#[test]
fn a_standby_waited_for_ever_for_the_last_segment_of_a_timeline_that_had_ended() {
    let lab = Lab::new(Start::lease(VERSION));
    lab.demo.sql(&[], "CREATE TABLE t (i int)");
    for turn in 0..2 {
        let (status, primary) = (lab.demo.wait_streaming(2), primary_ordinal(&lab));
        let standby = members(&status).iter().find(|member| member["role"] == "standby");
        let to = standby.expect("a standby")["name"]
            .as_str()
            .expect("a name")
            .to_owned();
        lab.demo.sql(&[], &format!("INSERT INTO t VALUES ({turn})"));
        if turn == 0 {
            lab.done(&["switchover", "--dir", text(&lab.demo.directory), "--to", &to]);
        } else {
            lab.demo.ask(&["delete-pod", &primary.to_string(), "--force"]);
        }
        lab.demo.wait("another primary", |status| {
            let found = members(status).iter().find(|member| member["role"] == "primary");
            found.is_some_and(|found| found["ordinal"] != primary && found["state"] == "running")
        });
        nothing_waits_on_a_standby(&lab);
    }
}

fn nothing_waits_on_a_standby(lab: &Lab) {
    let primary = primary_ordinal(lab);
    lab.demo.sql(&[], "INSERT INTO t VALUES (7)");
    lab.archive_all();
    for ordinal in (0..3).filter(|ordinal| *ordinal != primary) {
        let mut waiting = String::new();
        let none = wait_for(LIMIT, || {
            let names = "SELECT string_agg(name, ' ' ORDER BY name) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";
            waiting = lab.demo.sql(&["--member", &ordinal.to_string()], names);
            waiting.is_empty()
        });
        assert!(none, "standby {ordinal} still has {waiting}");
    }
}

/// `postgresql.auto.conf` is read after podgres' own file.
fn another_archive_command_took_the_wal(lab: &Lab) {
    for name in ["archive_command", "restore_command"] {
        lab.demo
            .sql(&[], &format!("ALTER SYSTEM SET {name} = '/bin/true'"));
    }
    lab.demo.sql(&[], "SELECT pg_reload_conf()");
    lab.demo.sql(&[], "SELECT pg_sleep(0.5)");
    let found = lab.demo.sql(&[], "SELECT current_setting('archive_command')");
    assert!(found.contains(" wal-push "), "{found}");
    assert_eq!(lab.demo.sql(&[], "SHOW restore_command"), "");
    for name in ["archive_command", "restore_command"] {
        lab.demo.sql(&[], &format!("ALTER SYSTEM RESET {name}"));
    }
}

/// By hand as another server would do it, that passes for this cluster's.
fn other_content_is_refused(lab: &Lab) {
    lab.archive_all();
    let identifier = lab.list()[0]["system_identifier"].clone();
    let identifier = identifier.as_str().map_or(identifier.to_string(), str::to_owned);
    let archived = lab.destination().join("wal").join(&identifier);
    let mut names: Vec<PathBuf> = fs::read_dir(&archived)
        .expect("archive")
        .map(|entry| entry.expect("entry").path())
        .collect();
    names.sort();
    let object = names.first().expect("archived WAL");
    let before = fs::read(object).expect("read");
    let name = object.file_name().expect("a name").to_str().expect("utf-8");
    let name = name.strip_suffix(".zst").expect("a WAL file");
    let copy = lab.folder.path().join("copy");
    fs::create_dir_all(copy.join("global")).expect("folder");
    fs::create_dir_all(copy.join("pg_wal")).expect("folder");
    let control = lab.demo.data_directory("demo-0").join("global/pg_control");
    fs::copy(control, copy.join("global/pg_control")).expect("copy");
    let file = copy.join("pg_wal").join(name);
    let push = |content: &[u8]| {
        fs::write(&file, content).expect("write");
        lab.command(&[
            "wal-push",
            "--to",
            text(&lab.destination()),
            text(Path::new(&format!("pg_wal/{name}"))),
        ])
        .current_dir(&copy)
        .output()
        .expect("wal-push")
    };
    let output = push(&vec![7; 16 << 20]);
    assert_eq!(output.status.code(), Some(65), "{}", told(&output));
    let expected = format!(
        "WAL file \"{name}\" is already archived with other content, written by \"demo-0\" in term 1"
    );
    assert!(told(&output).contains(&expected), "{}", told(&output));
    assert_eq!(fs::read(object).expect("read"), before, "it was overwritten");
    // The same once more is no error: PostgreSQL asks again after a crash.
    let same = lab.folder.path().join("same");
    let fetched = lab
        .command(&["wal-fetch", "--from", text(&lab.destination()), name, text(&same)])
        .current_dir(&copy)
        .output()
        .expect("wal-fetch");
    answer(&fetched);
    answer(&push(&fs::read(&same).expect("read")));
}
