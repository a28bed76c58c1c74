//! One run at a time at a destination, and no dead run in the way of the next.
//!
//! A folder is locked by flock(2), which the kernel takes back when the process ends, also over NFS. A bucket
//! has no such thing: there the lock is an object with a heartbeat, see [`super::lock_lease`].

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use rustix::fs::FlockOperation;

use super::lock_lease::Heartbeat;
use super::{Store, StoreError};

const FILE_NAME: &str = ".podgres.lock";

/// Why the destination is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else holds it and lives.
    #[error("destination \"{destination}\" is in use by {holder}")]
    Held { destination: String, holder: String },
    /// It would let two runs go on side by side.
    #[error("destination \"{destination}\" cannot be locked: it ignores conditional writes (If-None-Match)")]
    Unconditional { destination: String },
    #[error("could not lock destination \"{destination}\"")]
    Store { destination: String, source: StoreError },
    #[error("could not lock \"{}\"", path.display())]
    File {
        path: std::path::PathBuf,
        source: std::io::Error,
    },
}

/// The lock, until it is dropped.
#[derive(Debug)]
pub struct Lock(Kind);

#[derive(Debug)]
enum Kind {
    File(#[expect(dead_code, reason = "closing it gives the lock back")] File),
    Heartbeat(Heartbeat),
}

impl Lock {
    /// Takes the lock. `who` is what others are told, e.g. `backup on pg-backup-1 (process 7)`.
    ///
    /// # Errors
    /// Somebody holds it. A bucket's dead holder is known as such after fifteen seconds.
    pub async fn take(store: &Store, who: &str) -> Result<Self, LockError> {
        match store.folder() {
            Some(folder) => flock(folder, who, &store.to_string()).map(|file| Self(Kind::File(file))),
            None => Heartbeat::take(store, who)
                .await
                .map(|heartbeat| Self(Kind::Heartbeat(heartbeat))),
        }
    }

    /// Ends when the lock was lost, e.g. because the store could not be reached for longer than others wait.
    pub async fn lost(&self) {
        match &self.0 {
            Kind::File(_) => std::future::pending().await,
            Kind::Heartbeat(heartbeat) => heartbeat.lost().await,
        }
    }

    /// Whether it is ours at this moment, by asking: a process that stood still does not know that others thought it dead.
    ///
    /// # Errors
    /// The store does not say.
    pub async fn held(&self) -> Result<bool, LockError> {
        match &self.0 {
            Kind::File(_) => Ok(true),
            Kind::Heartbeat(heartbeat) => heartbeat.held().await,
        }
    }

    /// Gives it back, so that the next one need not wait.
    pub async fn release(self) {
        if let Kind::Heartbeat(heartbeat) = self.0 {
            heartbeat.release().await;
        }
    }
}

fn flock(folder: &Path, who: &str, destination: &str) -> Result<File, LockError> {
    let path = folder.join(FILE_NAME);
    let failed = |source| LockError::File {
        path: path.clone(),
        source,
    };
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let holder = std::fs::read_to_string(&path).unwrap_or_default();
            return Err(LockError::Held {
                destination: destination.to_owned(),
                holder: holder.trim().to_owned(),
            });
        }
        Err(error) => return Err(failed(error.into())),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{who}"))
        .map_err(failed)?;
    Ok(file)
}
