//! Jobs that end half way: the next one always succeeds, and PGDATA is never torn.

use std::process::Stdio;
use std::time::Duration;

use podgres::core::supervision::{CloneReason, JobProgress, ServerRole};
use podgres::postgres::{ServerSettings, basebackup, initdb, passfile, staging};
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::time::timeout;

use super::lab::{Lab, Server, absent_or_complete, as_postgres, connect, facts, names, processes_on, signal};
use crate::wait::eventually;

/// More than any job needs: the last delay is some hours. The loops end with the first job that completes.
const STEPS: i32 = 60;

/// Grows by a quarter a step from 20 ms, so that fast and slow machines interrupt a job about as often;
/// a random part lets every run of the tests hit other points.
fn delay(step: i32) -> Duration {
    Duration::from_millis(20).mul_f64(1.25_f64.powi(step) * (1.0 + fastrand::f64() / 4.0))
}

async fn clean(settings: &ServerSettings) {
    let staging = staging::staging_directory(settings);
    eventually("the children to be gone", async || {
        processes_on(&staging).is_empty()
    })
    .await;
}

#[test]
fn row_65_initdb_dropped_anywhere_begins_again() {
    as_postgres(|| async {
        let lab = Lab::new(18);
        let settings = lab.settings(0);
        let mut interrupted = 0;
        for step in 0..STEPS {
            let finished = timeout(delay(step), initdb::run(&settings)).await;
            clean(&settings).await;
            match finished {
                Ok(result) => {
                    result.expect("initdb");
                    break;
                }
                // Dropped while the last rename was under way: that counts as done.
                Err(_) if absent_or_complete(&settings).await => break,
                Err(_) => interrupted += 1,
            }
        }
        assert!(interrupted > 3, "only {interrupted} interruptions");
        let server = Server::start(settings, ServerRole::alone()).await;
        let replication = server.settings.replication.clone();
        connect(&server.settings, &replication.user, replication.password.expose())
            .await
            .expect("role");
    });
}

/// Runs `job`, and kills everything that works on the staging directory, `delay` after the first such process.
async fn with_children_killed<T>(
    settings: &ServerSettings,
    delay: Duration,
    job: impl Future<Output = T>,
) -> T {
    let staging = staging::staging_directory(settings);
    let kill = async {
        while processes_on(&staging).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(delay).await;
        for pid in processes_on(&staging) {
            if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(pid).expect("pid")) {
                rustix::process::kill_process(pid, Signal::KILL).ok();
            }
        }
    };
    let mut job = std::pin::pin!(job);
    tokio::select! {
        result = &mut job => return result,
        () = kill => {}
    }
    job.await
}

#[test]
fn row_65_initdb_with_killed_children_begins_again() {
    as_postgres(|| async {
        let lab = Lab::new(16);
        let settings = lab.settings(0);
        let mut failures = 0;
        for step in 1..STEPS {
            let job = initdb::run(&settings);
            let result = with_children_killed(&settings, delay(step), job).await;
            match result {
                Ok(()) => break,
                Err(error) => {
                    assert!(!error.refused(), "{error}");
                    failures += 1;
                }
            }
            assert!(!absent_or_complete(&settings).await);
        }
        assert!(failures > 2, "only {failures} failures");
        assert!(absent_or_complete(&settings).await);
        assert_eq!(names(settings.data_directory.parent().expect("parent")), ["data"]);
    });
}

async fn big_primary(lab: &Lab) -> Server {
    let primary = lab.primary().await;
    let sql = "CREATE TABLE big AS SELECT repeat(md5(i::text), 20) FROM generate_series(1, 150000) i";
    primary.query(sql).await;
    primary
}

#[test]
fn row_64_a_clone_dropped_anywhere_begins_again() {
    as_postgres(|| async {
        let lab = Lab::new(15);
        let primary = big_primary(&lab).await;
        let settings = lab.settings(1);
        let mut clone = primary.clone_for(1, CloneReason::Empty).await;
        for reason in [CloneReason::Empty, CloneReason::WalGone] {
            clone.reason = reason;
            let had_data = reason != CloneReason::Empty;
            let mut interrupted = 0;
            for step in 0..STEPS {
                let (sender, _) = watch::channel(JobProgress::default());
                let finished = timeout(delay(step), basebackup::run(&settings, &clone, &sender)).await;
                clean(&settings).await;
                if let Ok(result) = finished {
                    result.expect("clone");
                    break;
                }
                staging::recover(&settings).await.expect("recover");
                let complete = absent_or_complete(&settings).await;
                assert!(complete || !had_data, "the old data are gone");
                if complete && !had_data {
                    break;
                }
                interrupted += 1;
            }
            assert!(interrupted > 3, "only {interrupted} interruptions");
            assert_eq!(names(settings.data_directory.parent().expect("parent")), ["data"]);
        }
        assert!(facts(&settings).await.standby_signal);
    });
}

#[test]
fn row_64_a_clone_with_killed_children_begins_again() {
    as_postgres(|| async {
        let lab = Lab::new(18);
        let primary = big_primary(&lab).await;
        let settings = lab.settings(1);
        let clone = primary.clone_for(1, CloneReason::Empty).await;
        let mut failures = 0;
        for step in 1..STEPS {
            let (sender, _) = watch::channel(JobProgress::default());
            let job = basebackup::run(&settings, &clone, &sender);
            let result = with_children_killed(&settings, delay(step), job).await;
            clean(&settings).await;
            match result {
                Ok(()) => break,
                Err(error) => {
                    assert!(!error.refused(), "{error}");
                    assert!(!absent_or_complete(&settings).await);
                    failures += 1;
                }
            }
        }
        assert!(failures > 2, "only {failures} failures");
        assert!(absent_or_complete(&settings).await);
    });
}

/// A killed supervisor takes `pg_basebackup` along, whose WAL receiver lives on and keeps the slot.
#[test]
fn row_64_a_left_over_wal_receiver_does_not_block_the_next_clone() {
    as_postgres(|| async {
        let lab = Lab::new(15);
        let primary = big_primary(&lab).await;
        let settings = lab.settings(1);
        let clone = primary.clone_for(1, CloneReason::Empty).await;
        passfile::write(&settings).expect("passfile");
        let staging = staging::staging_directory(&settings);
        let mut orphaned = tokio::process::Command::new(settings.program("pg_basebackup"))
            .arg("-D")
            .arg(&staging)
            .args([
                "-X",
                "stream",
                "-S",
                &clone.upstream.slot,
                "--max-rate=1M",
                "-c",
                "fast",
                "-h",
            ])
            .arg(clone.upstream.address.to_string())
            .args(["-U", &settings.replication.user])
            .env("PGPASSFILE", passfile::path(&settings))
            .stderr(Stdio::null())
            .spawn()
            .expect("pg_basebackup");
        eventually("its WAL receiver", async || {
            primary.query("SELECT active FROM pg_replication_slots").await == "t"
        })
        .await;
        signal(orphaned.id().expect("running"), Signal::KILL);
        orphaned.wait().await.expect("wait");
        assert_eq!(processes_on(&staging).len(), 1, "the WAL receiver lives on");
        let (sender, _) = watch::channel(JobProgress::default());
        basebackup::run(&settings, &clone, &sender).await.expect("clone");
        assert!(processes_on(&staging).is_empty());
        assert!(absent_or_complete(&settings).await);
    });
}

/// `PR_SET_PDEATHSIG` follows the thread, so that the end of a thread stands for the end of podgres.
#[test]
fn the_postmaster_ends_with_its_parent() {
    as_postgres(|| async {
        let lab = Lab::new(15);
        let settings = lab.settings(0);
        initdb::run(&settings).await.expect("initdb");
        let own = settings.clone();
        let pid = as_postgres(move || async move {
            let mut server = Server::start(own, ServerRole::alone()).await;
            let pid = server.child.id().expect("running");
            assert!(!processes_on(&server.settings.data_directory).is_empty());
            // Without this its destructor would do the work.
            let null = tokio::process::Command::new("true").spawn().expect("true");
            let child = std::mem::replace(&mut server.child, null);
            std::mem::forget(child);
            pid
        });
        eventually("the postmaster to end", async || {
            processes_on(&settings.data_directory).is_empty()
        })
        .await;
        assert!(!std::path::Path::new(&format!("/proc/{pid}/cwd/postmaster.pid")).exists());
        assert!(absent_or_complete(&settings).await);
    });
}
