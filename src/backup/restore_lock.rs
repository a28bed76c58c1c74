//! One restore at a time into a directory: the second would clear away what the first is about to give its name.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::BackupError;
use super::error::FileContext as _;
use crate::files::{create_private_directory, with_suffix};

/// A file beside the directory, which goes when this is dropped; a killed run's is no lock any more.
pub(super) struct RestoreLock {
    path: PathBuf,
    _file: File,
}

impl RestoreLock {
    /// Takes it.
    ///
    /// # Errors
    /// [`BackupError::Restoring`]: another run has it.
    pub(super) fn take(staging: &Path, directory: &Path) -> Result<Self, BackupError> {
        let path = with_suffix(staging, ".lock");
        create_private_directory(path.parent().unwrap_or(Path::new("/")))?;
        loop {
            let mut options = File::options();
            options.create(true).truncate(false).write(true);
            let file = options.open(&path).file("create file", &path)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(BackupError::Restoring {
                        path: directory.to_owned(),
                    });
                }
                locked => locked.file("lock file", &path)?,
            }
            // A run that ended in between has taken the name away from it.
            let own = file.metadata().file("stat file", &path)?;
            if fs::metadata(&path).is_ok_and(|named| named.ino() == own.ino()) {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

impl Drop for RestoreLock {
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_restore_cleared_away_what_the_first_had_extracted() {
        let folder = tempfile::tempdir().expect("folder");
        let (directory, staging) = (folder.path().join("pgdata"), folder.path().join("pgdata.new"));
        let take = || RestoreLock::take(&staging, &directory);
        let first = take().expect("free");
        let refused = take().err().expect("refused");
        assert!(refused.refused(), "{refused}");
        assert!(
            refused.to_string().starts_with("another restore into"),
            "{refused}"
        );
        drop(first);
        assert_eq!(fs::read_dir(folder.path()).expect("folder").count(), 0);
        drop(take().expect("free again"));
        fs::write(with_suffix(&staging, ".lock"), "").expect("of a killed run");
        take().expect("nobody has it");
    }
}
