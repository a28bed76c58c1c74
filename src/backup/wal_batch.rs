//! `archive_command` with a view of more than one file: what else waits is archived in the same run.
//!
//! PostgreSQL asks for one file at a time and starts a process for each. A process that is started for one file also takes
//! the next that are ready, several at a time, and leaves a mark for each, in the pod's run directory; the call for a marked
//! file ends at once. A mark is written after the object is durable, and counts only for the very file it was made for.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tokio::task::JoinSet;

use super::BackupError;
use super::error::FileContext as _;
use super::files::{create_private, remove_file, write_whole};
use super::wal::{Pushed, Writer, push};
use crate::core::backup::wal_file::WalFile;
use crate::core::data_directory::SystemIdentifier;
use crate::store::Store;

const BATCH: usize = 16;
/// Each holds a compressed segment in memory.
const MOST_AT_ONCE: usize = 4;
const READY: &str = ".ready";

/// A data directory whose WAL is archived.
#[derive(Clone, Debug)]
pub struct Archiver {
    pub store: Store,
    pub writer: Writer,
    pub system_identifier: SystemIdentifier,
    pub data_directory: PathBuf,
    /// Where marks are kept; `None`: only the file that was asked for is archived.
    pub marks: Option<PathBuf>,
}

impl Archiver {
    /// Archives the file, relative to the data directory as `%p` has it, and others that are ready.
    ///
    /// # Errors
    /// Of the file that was asked for; another one's failure shows when it is asked for itself.
    pub async fn archive(&self, source: &Path) -> Result<(), BackupError> {
        let source = self.data_directory.join(source);
        if self.take_mark(&source)? {
            return Ok(());
        }
        let others = if self.marks.is_some() {
            ready_after(&source)
        } else {
            Vec::new()
        };
        let mut others = others.into_iter();
        let at_once = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let at_once = at_once.clamp(2, MOST_AT_ONCE);
        let mut running = JoinSet::new();
        let asked = push(&self.store, &self.writer, self.system_identifier, &source);
        let beside = async {
            loop {
                while running.len() < at_once - 1
                    && let Some(other) = others.next()
                {
                    let archiver = self.clone();
                    running.spawn(async move { archiver.archive_ahead(&other).await });
                }
                match running.join_next().await {
                    Some(Ok(Ok(()))) => {}
                    // Whatever is in the way of one is likely in the way of all.
                    Some(_) | None => return,
                }
            }
        };
        let (asked, ()) = tokio::join!(asked, beside);
        if asked? == Pushed::Known {
            tracing::info!(file = %source.display(), "was archived before, with the same content");
        }
        Ok(())
    }

    async fn archive_ahead(&self, source: &Path) -> Result<(), BackupError> {
        let Some(mark) = self.mark(source) else {
            return Ok(());
        };
        if mark.exists() {
            return Ok(());
        }
        let stamp = stamp(source)?;
        push(&self.store, &self.writer, self.system_identifier, source).await?;
        write_whole(&mark, stamp.as_bytes())
    }

    fn mark(&self, source: &Path) -> Option<PathBuf> {
        let name = format!(
            "{}-{}",
            self.system_identifier,
            source.file_name()?.to_string_lossy()
        );
        self.marks.as_ref().map(|marks| marks.join(name))
    }

    /// Whether the file has been archived ahead; the mark goes.
    fn take_mark(&self, source: &Path) -> Result<bool, BackupError> {
        let (Some(marks), Some(mark)) = (&self.marks, self.mark(source)) else {
            return Ok(false);
        };
        create_private(marks)?;
        let Ok(known) = fs::read_to_string(&mark) else {
            return Ok(false);
        };
        remove_file(&mark)?;
        Ok(known == stamp(source)?)
    }
}

/// What tells a file from another one of its name.
fn stamp(path: &Path) -> Result<String, BackupError> {
    let found = fs::metadata(path).file("stat file", path)?;
    Ok(format!(
        "{} {} {}.{}",
        found.ino(),
        found.len(),
        found.mtime(),
        found.mtime_nsec()
    ))
}

/// Files that PostgreSQL will ask for next.
fn ready_after(source: &Path) -> Vec<PathBuf> {
    let (Some(folder), Some(asked)) = (source.parent(), source.file_name()) else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir(folder.join("archive_status")) else {
        return Vec::new();
    };
    let names = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let name = name.strip_suffix(READY)?.to_owned();
        let segment = matches!(name.parse(), Ok(WalFile::Segment { .. }));
        (segment && asked < name.as_str()).then_some(name)
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    names.truncate(BATCH);
    names.into_iter().map(|name| folder.join(name)).collect()
}
