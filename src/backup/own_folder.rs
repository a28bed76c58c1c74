//! A folder of one run's own among others' in a place that outlives them all, e.g. a volume for scratch data.
//!
//! Locked as long as the run lives; what killed runs have left goes with the next one. Never one that was there before: in a
//! container every run has the same process id.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::BackupError;
use super::error::FileContext as _;
use crate::files::{create_private_directory, remove_any};

/// Goes when it is dropped.
pub(super) struct OwnFolder {
    path: PathBuf,
    _lock: File,
}

impl OwnFolder {
    /// Makes it in `scratch`, and removes what killed runs have left there under this prefix.
    pub(super) fn create(scratch: &Path, prefix: &str) -> Result<Self, BackupError> {
        sweep(scratch, prefix)?;
        let named = unique_name(prefix);
        // Locked before it has the name that others look for.
        let (new, path) = (scratch.join(format!(".{named}")), scratch.join(named));
        create_private_directory(&new)?;
        let lock = File::open(&new).file("open directory", &new)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).file("lock directory", &new)?;
        fs::rename(&new, &path).file("rename directory", &new)?;
        Ok(Self { path, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for OwnFolder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.path).ok();
    }
}

/// The process id for whoever looks, the time for processes of other containers.
fn unique_name(prefix: &str) -> String {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanoseconds = since_1970.map_or(0, |time| time.as_nanos());
    format!("{prefix}{}-{nanoseconds:x}", std::process::id())
}

/// Whose lock is free has no process any more.
fn sweep(scratch: &Path, prefix: &str) -> Result<(), BackupError> {
    for entry in fs::read_dir(scratch).file("read directory", scratch)?.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        let path = entry.path();
        let Ok(left) = File::open(&path) else {
            continue;
        };
        if rustix::fs::flock(&left, FlockOperation::NonBlockingLockExclusive).is_ok() {
            remove_any(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "podgres-verify-";

    #[test]
    fn what_an_interrupted_verification_had_left_was_taken_for_its_own_by_the_next() {
        let scratch = tempfile::tempdir().expect("folder");
        let left = scratch.path().join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir_all(left.join("base")).expect("folder");
        let state = scratch
            .path()
            .join(format!("{PREFIX}{}.state.json", std::process::id()));
        fs::write(&state, "{}").expect("file");
        let own = OwnFolder::create(scratch.path(), PREFIX).expect("a folder");
        assert!(!left.exists() && !state.exists(), "nobody has them any more");
        assert_eq!(fs::read_dir(own.path()).expect("folder").count(), 0);
        let other = OwnFolder::create(scratch.path(), PREFIX).expect("another");
        assert!(own.path() != other.path() && own.path().exists(), "both live");
        drop((own, other));
        assert_eq!(fs::read_dir(scratch.path()).expect("folder").count(), 0);
    }
}
