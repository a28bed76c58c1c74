//! `restore_command` with a view of more than one file: what PostgreSQL will ask for next is fetched while it replays.
//!
//! A process of its own does that, as long as it takes for a handful of segments; what it fetched waits in a folder.
//! Nothing depends on it: what is not there is fetched when it is asked for.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use tokio::task::JoinSet;

use super::BackupError;
use super::error::FileContext as _;
use super::files::{blocking, create_private, create_private_file, remove_tree, with_suffix};
use super::wal::fetch;
use crate::core::backup::wal_file::WalFile;
use crate::core::data_directory::SystemIdentifier;
use crate::store::Store;
use crate::store::seal::SealKey;

const SEGMENTS: usize = 12;
const AT_ONCE: usize = 2;
const LOCK: &str = "lock";
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// For a file that is being fetched; then it is fetched again by whoever needs it. A process may be stopped for ever.
const TAKE_LIMIT: Duration = Duration::from_secs(30);

/// The folder where segments wait.
#[derive(Clone, Debug)]
pub struct Ahead {
    pub folder: PathBuf,
}

/// Where WAL is fetched from.
#[derive(Clone, Debug)]
pub struct Archive {
    pub store: Store,
    pub system_identifier: SystemIdentifier,
    pub key: Option<SealKey>,
}

impl Ahead {
    /// Gives the file its place under `into` if it was fetched ahead, or is within a time limit.
    ///
    /// # Errors
    /// The folder or the place is no good.
    pub async fn take(&self, file: WalFile, into: &Path) -> Result<bool, BackupError> {
        let waiting = self.place(file);
        let until = Instant::now() + TAKE_LIMIT;
        loop {
            let at_work = self.lock()?.is_none();
            if waiting.exists() {
                break;
            }
            if !at_work || Instant::now() >= until {
                return Ok(false);
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        let into = into.to_owned();
        blocking(move || {
            if fs::rename(&waiting, &into).is_ok() {
                return Ok(true);
            }
            // Another file system.
            fs::copy(&waiting, &into).file("copy file", &waiting)?;
            fs::remove_file(&waiting).file("remove file", &waiting)?;
            Ok(true)
        })
        .await
    }

    /// Whether it is time to fetch more: less than half waits, and nobody is at it.
    ///
    /// # Errors
    /// The folder is no good.
    pub fn wants_more(&self) -> Result<bool, BackupError> {
        let entries = fs::read_dir(&self.folder).file("read directory", &self.folder)?;
        Ok(entries.count() <= SEGMENTS / 2 && self.lock()?.is_some())
    }

    /// Fetches what follows `file`, until one is not there.
    ///
    /// # Errors
    /// The store's; what came before it waits.
    pub async fn fill(
        &self,
        archive: &Archive,
        file: WalFile,
        segment_bytes: u64,
    ) -> Result<(), BackupError> {
        let Some(_lock) = self.lock()? else {
            return Ok(());
        };
        self.forget_before(file)?;
        let following = std::iter::successors(file.next(segment_bytes), |file| file.next(segment_bytes));
        let mut following = following
            .take(SEGMENTS)
            .filter(|file| !self.place(*file).exists());
        let mut running = JoinSet::new();
        loop {
            while running.len() < AT_ONCE
                && let Some(file) = following.next()
            {
                let (archive, place) = (archive.clone(), self.place(file));
                running.spawn(async move {
                    let Archive {
                        store,
                        system_identifier,
                        key,
                    } = &archive;
                    fetch(store, *system_identifier, key.as_ref(), file, &place).await
                });
            }
            match running.join_next().await {
                Some(Ok(Ok(true))) => {}
                Some(Ok(Err(error))) => return Err(error),
                Some(Ok(Ok(false)) | Err(_)) | None => return Ok(()),
            }
        }
    }

    /// Removes the folder under the feet of whoever fills it.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn end(&self) -> Result<(), BackupError> {
        let gone = with_suffix(&self.folder, ".gone");
        remove_tree(&gone)?;
        if fs::rename(&self.folder, &gone).is_ok() {
            remove_tree(&gone)?;
        }
        Ok(())
    }

    fn place(&self, file: WalFile) -> PathBuf {
        self.folder.join(file.to_string())
    }

    /// What another timeline or an earlier try has left.
    fn forget_before(&self, file: WalFile) -> Result<(), BackupError> {
        for entry in fs::read_dir(&self.folder)
            .file("read directory", &self.folder)?
            .flatten()
        {
            let name = entry.file_name();
            let known = name.to_str().and_then(|name| name.parse::<WalFile>().ok());
            if name != LOCK && known.is_none_or(|known| !file.comes_before(known)) {
                fs::remove_file(entry.path()).ok();
            }
        }
        Ok(())
    }

    /// `None` while another process holds it.
    fn lock(&self) -> Result<Option<File>, BackupError> {
        create_private(&self.folder)?;
        let path = self.folder.join(LOCK);
        let file = create_private_file(&path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error).file("lock file", &path),
        }
    }
}
