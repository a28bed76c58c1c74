//! Clones that are killed, that find no room, and volumes with odd modes: PGDATA is absent or complete.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::hand::Pod;
use crate::harness::{LIMIT, wait_for};
use crate::network::Network;
use crate::plain::{bytes_below, control_data, give_away, listing, names_in};
use crate::volume::Volume;

/// A primary with so many megabytes in one table.
fn primary_of(network: &mut Network, megabytes: u32) -> Pod {
    let mut primary = network.pod(0);
    primary.run();
    primary.wait_ready();
    // EXTERNAL keeps the rows as large as they are.
    primary.sql(&format!(
        "CREATE TABLE t (i int, filler text); ALTER TABLE t ALTER filler SET STORAGE EXTERNAL;
         INSERT INTO t SELECT i, repeat('x', 1 << 20) FROM generate_series(1, {megabytes}) i; CHECKPOINT"
    ));
    primary
}

fn killed_at_any_byte(version: u32, points: usize) {
    let mut network = Network::new(version);
    let primary = primary_of(&mut network, 64);
    let mut standby = network.pod(1);
    let directory = standby.data_directory();
    let (code, log) = standby.init();
    assert_eq!(code, 0, "{log}");
    let size = bytes_below(&directory);
    fs::remove_dir_all(&directory).expect("PGDATA");

    let relay = network.list_behind_relay(0, 128 << 20);
    let mut complete = 0;
    for point in 0..points {
        let at = fastrand::u64(..size);
        let signal = [Signal::KILL, Signal::TERM][point % 2];
        let left = bytes_below(&standby.volume);
        let mut init = standby.start("init");
        // What the earlier kill left does not count.
        let cleaned = || left == 0 || bytes_below(&standby.volume) < left;
        assert!(
            wait_for(LIMIT, cleaned),
            "the staging area was not cleaned\n{}",
            init.log()
        );
        let reached = wait_for(LIMIT, || bytes_below(&standby.volume) >= at || !init.running());
        assert!(reached, "{at} bytes did not come\n{}", init.log());
        init.signal(signal);
        init.ended(LIMIT);
        if directory.exists() {
            let identifier =
                |pod: &Pod| control_data(&network, &pod.data_directory(), "Database system identifier");
            assert_eq!(identifier(&standby), identifier(&primary), "{signal:?} at {at}");
            for file in ["standby.signal", "PG_VERSION", "backup_label"] {
                assert!(
                    directory.join(file).exists(),
                    "no {file} after {signal:?} at {at}"
                );
            }
            fs::remove_dir_all(&directory).expect("PGDATA");
            complete += 1;
        }
    }
    assert!(
        complete * 2 <= points,
        "most kills came too late: {complete} of {points}"
    );

    drop(relay);
    network.list(0);
    standby.run();
    standby.wait_situation("streaming", "");
    let contents = "SELECT count(*), sum(length(filler)) FROM t";
    assert_eq!(standby.sql(contents), primary.sql(contents));
    assert_eq!(names_in(&standby.volume), ["pgdata"]);
    assert_eq!(primary.sql("SELECT count(*) FROM pg_replication_slots"), "1");
}

#[test]
fn row_64_a_clone_killed_at_any_byte_is_cleaned_and_begun_again_on_15() {
    killed_at_any_byte(15, 12);
}

#[test]
fn row_64_a_clone_killed_at_any_byte_is_cleaned_and_begun_again_on_18() {
    killed_at_any_byte(18, 1);
}

#[test]
fn row_64_what_others_left_half_done_is_named_and_left_alone() {
    let mut network = Network::new(15);
    let standby = network.pod(1);
    let directory = standby.data_directory();
    // As pg_basebackup leaves its target when it is killed: pg_control comes last.
    for file in ["PG_VERSION", "backup_label", "base/1/1259", "global/1262"] {
        let path = directory.join(file);
        fs::create_dir_all(path.parent().expect("folder")).expect("folder");
        fs::write(&path, "15\n").expect("file");
    }
    for found in ["no \\\"global/pg_control\\\"", "global/pg_control"] {
        give_away_all(&directory);
        let before = listing(&standby.volume);
        let (code, log) = standby.init();
        assert_eq!(code, 65, "{log}");
        assert!(log.contains(found) && log.contains("hint: "), "{log}");
        assert_eq!(listing(&standby.volume), before, "it was touched");
        // The next time there is one, cut off.
        fs::write(directory.join("global/pg_control"), "").expect("file");
    }
}

fn give_away_all(directory: &Path) {
    give_away(directory);
    for path in listing(directory).keys() {
        give_away(path);
    }
}

#[test]
fn row_76_a_volume_without_room_is_refused_before_and_left_clean_when_it_fills_up() {
    let mut network = Network::new(15);
    let _primary = primary_of(&mut network, 64);
    // pg_basebackup tells the size once a second: a copy must not be over by then.
    let _relay = network.list_behind_relay(0, 32 << 20);
    let standby = network.pod(1);
    let volume = Volume::mount(&standby.volume, "96m");
    let (code, log) = standby.init();
    assert_eq!(code, 65, "{log}");
    assert!(log.contains("not enough space for a copy of"), "{log}");
    assert!(
        listing(&standby.volume).is_empty(),
        "{:?}",
        listing(&standby.volume).keys()
    );

    // Enough room at first; then somebody else takes it.
    volume.resize("400m");
    let mut init = standby.start("init");
    let filler = standby.volume.join("filler");
    assert!(
        wait_for(LIMIT, || bytes_below(&standby.volume) > 1 << 20),
        "{}",
        init.log()
    );
    // Whatever is left is taken, and the error says that it was.
    let taken = Command::new("dd")
        .args(["if=/dev/zero", "bs=1M", "status=none"])
        .arg(format!("of={}", filler.display()))
        .status();
    assert!(!taken.expect("dd").success());
    assert_eq!(init.ended(LIMIT), Some(65), "{}", init.log());
    assert!(init.log().contains("no space left"), "{}", init.log());
    assert_eq!(listing(&standby.volume).keys().collect::<Vec<_>>(), [&filler]);

    fs::remove_file(&filler).expect("filler");
    let (code, log) = standby.init();
    assert_eq!(code, 0, "{log}");
}

#[test]
fn row_76_the_mode_that_fs_group_gives_and_lost_and_found_do_no_harm() {
    let mut network = Network::new(15);
    let mut first = network.pod(0);
    // As a fresh ext4 volume: root's, closed.
    fs::create_dir(first.volume.join("lost+found")).expect("folder");
    fs::set_permissions(first.volume.join("lost+found"), fs::Permissions::from_mode(0o700)).expect("mode");
    first.run();
    first.wait_ready();
    let mut standby = network.pod(1);
    fs::create_dir(standby.volume.join("lost+found")).expect("folder");
    standby.run();
    standby.wait_situation("streaming", "");

    // It comes back with every mount.
    for _ in 0..2 {
        for pod in [&mut standby, &mut first] {
            pod.stop();
            let directory = pod.data_directory();
            fs::set_permissions(&directory, fs::Permissions::from_mode(0o2770)).expect("mode");
            fs::set_permissions(&pod.volume, fs::Permissions::from_mode(0o2770)).expect("mode");
            pod.run();
        }
        first.wait_ready();
        standby.wait_situation("streaming", "");
        for pod in [&standby, &first] {
            let mode = fs::metadata(pod.data_directory())
                .expect("PGDATA")
                .permissions()
                .mode();
            assert_eq!(mode & 0o7777, 0o700);
            assert!(pod.volume.join("lost+found").exists());
        }
    }
}

#[test]
fn row_76_a_mount_point_as_pgdata_is_refused_with_what_to_do() {
    let mut network = Network::new(15);
    let mut first = network.pod(0);
    let volume = Volume::mount(&first.volume, "200m");
    fs::create_dir(first.volume.join("lost+found")).expect("folder");
    let mount_point = volume.path().to_str().expect("utf-8").to_owned();
    first.set("PGDATA", &mount_point);
    let (code, log) = first.init();
    assert_eq!(code, 64, "{log}");
    assert!(
        log.contains("mount point") && log.contains("sub-directory"),
        "{log}"
    );
    assert_eq!(listing(&first.volume).len(), 1, "only lost+found");
}
