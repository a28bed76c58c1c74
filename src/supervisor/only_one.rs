//! One supervisor at a time for a data directory, across containers: a lock on the folder that PGDATA is in.
//!
//! PostgreSQL's own guard, `postmaster.pid`, does not see into another container. When a pod is deleted by force, Kubernetes
//! starts the next one of its name at once, maybe on the same node and volume, while the old one's processes still run. A server's children
//! inherit the lock, so that it is free only when the last of them has ended.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

const AGAIN: Duration = Duration::from_millis(100);

/// Held until it is dropped, and every child that inherited it has ended.
#[derive(Debug)]
pub(super) struct OnlyOne(#[expect(dead_code, reason = "an open file is the lock")] OwnedFd);

/// Waits until nobody else holds the folder; `None` where the file system knows no locks. The kubelet bounds the wait: it kills the old
/// container when its grace period is over.
pub(super) async fn wait(data_directory: &Path, inherited: bool) -> Option<OnlyOne> {
    let folder = folder(data_directory);
    let mut said = false;
    loop {
        match lock(&folder, inherited) {
            Ok(held) => {
                if said {
                    tracing::info!("the earlier server has ended");
                }
                return Some(held);
            }
            Err(Errno::WOULDBLOCK) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(
                        "folder \"{}\" is still used by an earlier server of this member: waiting for its end",
                        folder.display()
                    );
                }
            }
            Err(error) => {
                tracing::warn!("could not lock folder \"{}\": {error}", folder.display());
                return None;
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The folder itself is locked, since a file beside PGDATA would be one more thing on the volume. It is made where it is missing:
/// the first start must lock what later ones do.
fn folder(data_directory: &Path) -> PathBuf {
    let parent = data_directory.parent().unwrap_or(Path::new("/"));
    // What cannot be made is told by what needs it next.
    std::fs::create_dir_all(parent).ok();
    parent.to_owned()
}

fn lock(folder: &Path, inherited: bool) -> Result<OnlyOne, Errno> {
    let mut flags = OFlags::RDONLY | OFlags::DIRECTORY;
    flags.set(OFlags::CLOEXEC, !inherited);
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive)?;
    Ok(OnlyOne(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_next_one_waits_for_the_last_child_of_the_one_before() {
        let volume = tempfile::tempdir().expect("a folder");
        let data_directory = volume.path().join("new").join("pgdata");
        let first = wait(&data_directory, true).await.expect("free");
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("a child");
        drop(first);
        let soon = Duration::from_millis(300);
        let waited = tokio::time::timeout(soon, wait(&data_directory, true)).await;
        assert!(waited.is_err(), "a child of the earlier one still runs");
        child.kill().expect("killed");
        child.wait().expect("collected");
        let limit = Duration::from_secs(10);
        tokio::time::timeout(limit, wait(&data_directory, true))
            .await
            .expect("free now")
            .expect("locked");
    }
}
