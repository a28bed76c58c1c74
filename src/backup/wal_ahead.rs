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
use super::files::{blocking, create_private_file};
use super::wal::fetch;
use crate::core::data_directory::SystemIdentifier;
use crate::core::wal_file::WalFile;
use crate::files::{create_private_directory, remove_tree, with_suffix};
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
        let waiting = self.waiting_after(file)?;
        // After the last that waits: what is missing before it has been taken meanwhile.
        let last = waiting.iter().max().unwrap_or(&file);
        let following = std::iter::successors(last.next(segment_bytes), |file| file.next(segment_bytes));
        let mut following = following.take(SEGMENTS.saturating_sub(waiting.len()));
        let mut running = JoinSet::new();
        // What is under way when the archive's end is found comes before it.
        let mut more = true;
        loop {
            while more
                && running.len() < AT_ONCE
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
                Some(Ok(Ok(found))) => more &= found,
                Some(Ok(Err(error))) => return Err(error),
                Some(Err(_)) | None => return Ok(()),
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

    /// What waits to be asked for after `file`. What another timeline or an earlier try has left goes.
    fn waiting_after(&self, file: WalFile) -> Result<Vec<WalFile>, BackupError> {
        let mut waiting = Vec::new();
        for entry in fs::read_dir(&self.folder)
            .file("read directory", &self.folder)?
            .flatten()
        {
            let name = entry.file_name();
            let known = name.to_str().and_then(|name| name.parse::<WalFile>().ok());
            match known.filter(|known| file.comes_before(*known)) {
                Some(known) => waiting.push(known),
                None if name != LOCK => {
                    fs::remove_file(entry.path()).ok();
                }
                None => {}
            }
        }
        Ok(waiting)
    }

    /// `None` while another process holds it.
    fn lock(&self) -> Result<Option<File>, BackupError> {
        create_private_directory(&self.folder)?;
        let path = self.folder.join(LOCK);
        let file = create_private_file(&path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error).file("lock file", &path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::wal::{Writer, push};
    use crate::store::StoreSettings;

    const SEGMENT_BYTES: u64 = 16 << 20;

    struct Lab {
        folder: tempfile::TempDir,
        archive: Archive,
        ahead: Ahead,
    }

    fn segment(number: u32) -> WalFile {
        format!("0000000100000000{number:08X}")
            .parse()
            .expect("a WAL file")
    }

    /// An archive with segments 1 to `last`, each with its own name for content.
    async fn lab(last: u32) -> Lab {
        let folder = tempfile::tempdir().expect("folder");
        let destination = folder.path().join("archive");
        fs::create_dir(&destination).expect("folder");
        let settings = StoreSettings::new(destination.to_str().expect("utf-8").parse().expect("valid"));
        let archive = Archive {
            store: Store::open(&settings).expect("store"),
            system_identifier: SystemIdentifier(7),
            key: None,
        };
        let writer = Writer {
            member: "pg-0".to_owned(),
            term: 1,
            key: None,
        };
        for number in 1..=last {
            let source = folder.path().join(segment(number).to_string());
            fs::write(&source, segment(number).to_string()).expect("file");
            push(&archive.store, &writer, archive.system_identifier, &source)
                .await
                .expect("push");
        }
        let ahead = Ahead {
            folder: folder.path().join("ahead"),
        };
        Lab {
            folder,
            archive,
            ahead,
        }
    }

    impl Lab {
        async fn fill(&self, after: u32) {
            self.ahead
                .fill(&self.archive, segment(after), SEGMENT_BYTES)
                .await
                .expect("fill");
        }

        /// What came, if anything did.
        async fn taken(&self, number: u32) -> Option<String> {
            let into = self.folder.path().join("taken");
            let taken = self.ahead.take(segment(number), &into).await.expect("take");
            taken.then(|| fs::read_to_string(&into).expect("read"))
        }

        fn waiting(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.ahead.folder).expect("folder").flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            let mut names: Vec<String> = names.filter(|name| name != LOCK).collect();
            names.sort();
            names
        }

        fn hold(&self) -> File {
            self.ahead.lock().expect("lock").expect("nobody has it")
        }
    }

    #[tokio::test]
    async fn what_follows_is_fetched_to_the_archives_end_and_given_once() {
        let lab = lab(4).await;
        lab.fill(1).await;
        assert_eq!(lab.waiting(), [2, 3, 4].map(|number| segment(number).to_string()));
        assert_eq!(lab.taken(2).await, Some(segment(2).to_string()));
        lab.fill(1).await;
        assert_eq!(
            lab.waiting().len(),
            2,
            "what was taken meanwhile is not fetched again"
        );
        assert_eq!(lab.taken(2).await, None, "it has been given");
        assert_eq!(lab.taken(5).await, None, "it was never archived");
        lab.ahead.end().expect("end");
        assert!(!lab.ahead.folder.exists());
    }

    #[tokio::test]
    async fn no_more_than_a_handful_waits() {
        let lab = lab(20).await;
        lab.fill(1).await;
        assert_eq!(lab.waiting().len(), SEGMENTS);
        assert!(!lab.ahead.wants_more().expect("folder"), "enough waits");
        for number in 2..=8 {
            lab.taken(number).await.expect("it waits");
        }
        assert!(lab.ahead.wants_more().expect("folder"));
        let held = lab.hold();
        assert!(!lab.ahead.wants_more().expect("folder"), "somebody is at it");
        lab.fill(8).await;
        assert_eq!(lab.waiting().len(), SEGMENTS - 7, "two were at it");
        drop(held);
        lab.fill(8).await;
        assert_eq!(lab.waiting().len(), SEGMENTS);
    }

    #[tokio::test]
    async fn what_another_try_has_left_goes() {
        let lab = lab(6).await;
        fs::create_dir(&lab.ahead.folder).expect("folder");
        for left in [
            "000000010000000000000002",
            "000000020000000000000005",
            "half.podgres-new",
        ] {
            fs::write(lab.ahead.folder.join(left), "left").expect("file");
        }
        lab.fill(4).await;
        assert_eq!(lab.waiting(), [5, 6].map(|number| segment(number).to_string()));
    }

    #[tokio::test]
    async fn a_segment_that_is_under_way_is_waited_for() {
        let lab = lab(1).await;
        let held = lab.hold();
        let later = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            fs::write(lab.ahead.place(segment(2)), "late").expect("file");
        };
        let (taken, ()) = tokio::join!(lab.taken(2), later);
        assert_eq!(taken.as_deref(), Some("late"));
        // Whoever was at it has ended without it.
        let later = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(held);
        };
        let (taken, ()) = tokio::join!(lab.taken(3), later);
        assert_eq!(taken, None);
    }
}
