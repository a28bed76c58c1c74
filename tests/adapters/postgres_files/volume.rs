//! Volumes as they are mounted: too small, mounted right on PGDATA, with lost+found. Needs root to mount.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use podgres::core::supervision::{CloneReason, JobProgress};
use podgres::postgres::error::{JobError, describe};
use podgres::postgres::{ServerSettings, basebackup, initdb, progress, staging};
use rustix::process::Signal;
use tokio::sync::watch;

use crate::user::server_user;

use super::lab::{Lab, absent_or_complete, as_postgres, facts, names, processes_on, root, signal};
use crate::wait::eventually;

/// A mount that goes with its value. Made and undone by the test's own thread, which is still root.
struct Mount(tempfile::TempDir);

impl Mount {
    fn tmpfs(options: &str) -> Self {
        let mount = Self::point();
        let (user, group) = server_user().expect("this test mounts file systems and must be run as root");
        let options = format!("{options},uid={user},gid={group},mode=0770");
        mount.run(&["-t", "tmpfs", "-o", &options, "podgres-test"]);
        mount
    }

    fn bind(source: &Path) -> Self {
        let mount = Self::point();
        mount.run(&["--bind", source.to_str().expect("plain path")]);
        mount
    }

    fn point() -> Self {
        assert!(root(), "this test mounts file systems and must be run as root");
        let folder = tempfile::Builder::new()
            .prefix("pg")
            .tempdir_in("/tmp")
            .expect("tempdir");
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("chmod");
        fs::create_dir(folder.path().join("mount")).expect("mkdir");
        Self(folder)
    }

    fn run(&self, arguments: &[&str]) {
        let status = Command::new("mount")
            .args(arguments)
            .arg(self.path())
            .status()
            .expect("mount");
        assert!(status.success(), "mount {arguments:?}: {status}");
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("mount")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("-l").arg(self.path()).status();
        assert!(status.is_ok_and(|status| status.success()), "could not unmount");
    }
}

async fn clone(settings: &ServerSettings, clone: &basebackup::CloneRequest) -> Result<(), JobError> {
    let (sender, _) = watch::channel(JobProgress::default());
    basebackup::run(settings, clone, &sender).await
}

/// Stops the copy for longer than a second, so that the server reports its size before it is done.
async fn hold_up(settings: &ServerSettings) {
    let programs = stop(settings).await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    go_on(&programs);
}

/// Clones, and stops the copy until it can be told which cluster it is of: a small one is done before.
async fn clone_slowly(settings: &ServerSettings, request: &basebackup::CloneRequest) -> Result<(), JobError> {
    let hold = async {
        let programs = stop(settings).await;
        // WAL comes to a process that the copying one has started.
        let (copying, others): (Vec<u32>, Vec<u32>) =
            programs.into_iter().partition(|pid| starts_others(*pid));
        go_on(&others);
        let staging = staging::staging_directory(settings);
        eventually("the first WAL", async || {
            progress::streamed_system_identifier(&staging).is_some()
        })
        .await;
        go_on(&copying);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = clone(settings, request) => result,
        () = hold => unreachable!("it ends with the copy"),
    }
}

async fn stop(settings: &ServerSettings) -> Vec<u32> {
    let staging = staging::staging_directory(settings);
    eventually("the copy to begin", async || staging.join("base").exists()).await;
    let programs = processes_on(&staging);
    for pid in &programs {
        signal(*pid, Signal::STOP);
    }
    programs
}

/// Those that have not been ended meanwhile.
fn go_on(programs: &[u32]) {
    for pid in programs {
        if Path::new(&format!("/proc/{pid}")).exists() {
            signal(*pid, Signal::CONT);
        }
    }
}

fn starts_others(pid: u32) -> bool {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    children.is_ok_and(|children| !children.trim().is_empty())
}

#[test]
fn pgdata_as_a_mount_point_is_refused() {
    let source = tempfile::Builder::new()
        .prefix("pg")
        .tempdir_in("/tmp")
        .expect("tempdir");
    for mount in [Mount::tmpfs("size=16m"), Mount::bind(source.path())] {
        let path = mount.path();
        as_postgres(move || async move {
            let lab = Lab::new(15);
            let mut settings = lab.settings(0);
            settings.data_directory = path.clone();
            let error = initdb::run(&settings).await.expect_err("mount point");
            assert!(error.refused(), "{error}");
            let expected = format!(
                "set PGDATA to a sub-directory of the volume, for example \"{}/pgdata\"",
                path.display()
            );
            assert!(error.to_string().contains(&expected), "{error}");
        });
    }
}

#[test]
fn row_76_lost_and_found_beside_pgdata_is_fine() {
    let mount = Mount::tmpfs("size=200m");
    fs::create_dir(mount.path().join("lost+found")).expect("mkdir");
    let path = mount.path();
    as_postgres(move || async move {
        let lab = Lab::new(18);
        let mut settings = lab.settings(0);
        settings.data_directory = path.join("pgdata");
        fs::create_dir(&settings.data_directory).expect("mkdir");
        initdb::run(&settings).await.expect("initdb");
        assert!(absent_or_complete(&settings).await);
        assert_eq!(names(&path), ["lost+found", "pgdata"]);
    });
}

/// A table of so many rows of 640 bytes. A vacuum of it in the middle of a clone would write about as much WAL.
fn big(rows: u32) -> String {
    format!(
        "CREATE TABLE big WITH (autovacuum_enabled = off) AS SELECT repeat(md5(i::text), 20) FROM generate_series(1, {rows}) i"
    )
}

#[test]
fn a_volume_that_is_too_small_is_refused_with_both_figures() {
    let mount = Mount::tmpfs("size=60m");
    let path = mount.path();
    as_postgres(move || async move {
        let lab = Lab::new(16);
        let primary = lab.primary().await;
        primary.query(&big(60_000)).await;
        let mut settings = lab.settings(1);
        settings.data_directory = path.join("pgdata");
        let job = primary.clone_for(1, CloneReason::Empty).await;
        let (error, ()) = tokio::join!(clone(&settings, &job), hold_up(&settings));
        let error = error.expect_err("too small");
        match &error {
            JobError::NoSpace {
                needed_bytes,
                free_bytes,
                ..
            } => {
                assert!(*free_bytes <= 60 << 20 && *needed_bytes > 60 << 20, "{error}");
            }
            other => panic!("{}", describe(other)),
        }
        assert!(error.refused());
        assert!(
            names(&path).is_empty(),
            "the staging directory is left: {:?}",
            names(&path)
        );
    });
}

#[test]
fn a_volume_that_runs_full_on_the_way_is_refused() {
    // Too few inodes: nothing that a look at the free bytes could have told.
    let mount = Mount::tmpfs("size=1g,nr_inodes=300");
    let path = mount.path();
    as_postgres(move || async move {
        let lab = Lab::new(15);
        let primary = lab.primary().await;
        let mut settings = lab.settings(1);
        settings.data_directory = path.join("pgdata");
        let job = primary.clone_for(1, CloneReason::Empty).await;
        let error = clone(&settings, &job).await.expect_err("full");
        assert!(matches!(error, JobError::DiskFull { .. }), "{}", describe(&error));
        assert!(error.refused());
        assert!(names(&path).is_empty());
    });
}

#[test]
fn a_stale_copy_gives_way_where_two_do_not_fit() {
    let mount = Mount::tmpfs("size=220m");
    let path = mount.path();
    as_postgres(move || async move {
        let lab = Lab::new(15);
        let primary = lab.primary().await;
        primary.query(&big(130_000)).await;
        let mut settings = lab.settings(1);
        settings.data_directory = path.join("pgdata");
        let mut job = primary.clone_for(1, CloneReason::Empty).await;
        clone(&settings, &job).await.expect("first clone");
        let first = facts(&settings).await;
        let free = staging::free_bytes(&path).expect("free");
        assert!(free < 150 << 20, "both would fit: {free} bytes free");
        job.reason = CloneReason::WalGone;
        primary.query("CHECKPOINT").await;
        // Once with the size known in time, once without.
        let (second, ()) = tokio::join!(clone(&settings, &job), hold_up(&settings));
        second.expect("second clone");
        let second = facts(&settings).await;
        assert_ne!(second.control_lsn, first.control_lsn);
        primary.query("CHECKPOINT").await;
        clone_slowly(&settings, &job).await.expect("third clone");
        assert_ne!(facts(&settings).await.control_lsn, second.control_lsn);
        assert_eq!(names(&path), ["pgdata"]);

        // A foreign upstream never costs the old directory, however little space there is.
        job.system_identifier.0 += 1;
        let error = clone_slowly(&settings, &job).await.expect_err("foreign");
        assert!(matches!(error, JobError::ForeignUpstream { .. }), "{error}");
        assert!(absent_or_complete(&settings).await);
    });
}
