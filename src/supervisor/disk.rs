//! Whether the data volume still takes what is flushed to it: tried once a second while PostgreSQL is primary, and once it has
//! failed until it does again, so that a primary that was stopped because of it is not opened on it anew.
//!
//! On a thread of its own, since the very failure is that it does not return. Overwrites a few bytes, so that a full
//! volume is no failing one: PostgreSQL says that itself. Never decides what follows from it.

use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until, timeout};

use crate::clock::boottime_ms;

const INTERVAL: Duration = Duration::from_secs(1);
/// Longer than a busy volume takes for eight bytes.
const LIMIT: Duration = Duration::from_secs(2);
const SUFFIX: &str = ".podgres-probe";

/// The two ends of the probe.
pub(super) struct Disk {
    /// Whether to try at all.
    pub(super) wanted: watch::Sender<bool>,
    /// Since when it fails: the beginning of the first attempt that did (`CLOCK_BOOTTIME`, milliseconds).
    pub(super) failing: watch::Sender<Option<u64>>,
}

impl Disk {
    pub(super) fn new() -> Self {
        Self {
            wanted: watch::Sender::new(false),
            failing: watch::Sender::new(None),
        }
    }
}

/// Tries as long as that is wanted or the last attempt failed, and tells each change.
pub(super) async fn watch(
    data_directory: &Path,
    mut wanted: watch::Receiver<bool>,
    failing: watch::Sender<Option<u64>>,
) -> Infallible {
    let mut name = data_directory.as_os_str().to_owned();
    name.push(SUFFIX);
    let path = PathBuf::from(name);
    loop {
        let fails = failing.borrow().is_some();
        if !fails && wanted.wait_for(|wanted| *wanted).await.is_err() {
            return std::future::pending().await;
        }
        let next = Instant::now() + INTERVAL;
        attempt(&path, &failing).await;
        sleep_until(next).await;
    }
}

async fn attempt(path: &Path, failing: &watch::Sender<Option<u64>>) {
    let begun_ms = boottime_ms();
    let fails = |error: &str| {
        let new = failing.send_if_modified(|since| {
            let new = since.is_none();
            since.get_or_insert(begun_ms);
            new
        });
        if new {
            tracing::error!(
                "the data volume fails: could not write and fsync \"{}\": {error}",
                path.display()
            );
        }
    };
    let mut writing = spawn_blocking({
        let path = path.to_owned();
        move || write(&path, begun_ms)
    });
    let written = if let Ok(written) = timeout(LIMIT, &mut writing).await {
        written
    } else {
        fails(&format!("no answer within {} s", LIMIT.as_secs()));
        writing.await
    };
    match written {
        Ok(Ok(())) => {
            if failing.send_if_modified(|since| since.take().is_some()) {
                tracing::info!("the data volume takes writes again");
            }
        }
        Ok(Err(error)) => fails(&error.to_string()),
        Err(error) => fails(&error.to_string()),
    }
}

/// Other bytes than last time, or there would be nothing to flush.
fn write(path: &Path, number: u64) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    file.write_all_at(&number.to_le_bytes(), 0)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_volume_that_takes_no_write_is_told_and_so_is_its_recovery() {
        let folder = tempfile::tempdir().expect("folder");
        let volume = folder.path().join("volume");
        let disk = Disk::new();
        let mut failing = disk.failing.subscribe();
        let data_directory = volume.join("data");
        let begun_ms = boottime_ms();
        disk.wanted.send_replace(true);
        let test = async {
            let since = *failing.wait_for(Option::is_some).await.expect("told");
            assert!(since.is_some_and(|since| since >= begun_ms), "{since:?}");
            std::fs::create_dir(&volume).expect("mkdir");
            failing.wait_for(Option::is_none).await.expect("told");
            std::fs::remove_dir_all(&volume).expect("remove");
            failing.wait_for(Option::is_some).await.expect("told again");
            disk.wanted.send_replace(false);
            tokio::time::sleep(2 * INTERVAL).await;
            assert!(failing.borrow().is_some(), "it still fails");
            std::fs::create_dir(&volume).expect("mkdir");
            failing
                .wait_for(Option::is_none)
                .await
                .expect("tried until it takes writes");
        };
        tokio::select! {
            never = watch(&data_directory, disk.wanted.subscribe(), disk.failing.clone()) => match never {},
            ended = timeout(Duration::from_secs(20), test) => ended.expect("in time"),
        }
    }
}
