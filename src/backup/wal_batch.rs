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
use super::wal::{Pushed, Writer, push};
use super::wal_place::Place;
use crate::core::data_directory::SystemIdentifier;
use crate::core::wal_file::WalFile;
use crate::files::{create_private_directory, remove_file};
use crate::store::Store;

const BATCH: usize = 16;
/// Each holds a compressed segment in memory, and once more if it is encrypted.
const MOST_AT_ONCE: u64 = 4;
/// Of segments under way, as they are in `pg_wal`: larger ones go one after the other.
const BYTES_AT_ONCE: u64 = 64 << 20;
const READY: &str = ".ready";

/// A data directory whose WAL is archived.
#[derive(Clone, Debug)]
pub struct Archiver {
    pub store: Store,
    pub writer: Writer,
    pub system_identifier: SystemIdentifier,
    pub data_directory: PathBuf,
    /// If it is a folder.
    pub place: Option<Place>,
    /// Where marks are kept; `None`: only the file that was asked for is archived.
    pub marks: Option<Marks>,
}

impl Archiver {
    /// Archives the file, relative to the data directory as `%p` has it, and others that are ready.
    ///
    /// # Errors
    /// Of the file that was asked for; another one's failure shows when it is asked for itself.
    pub async fn archive(&self, source: &Path) -> Result<(), BackupError> {
        let source = self.data_directory.join(source);
        let mut others = if self.marks.is_some() {
            ready_after(&source).into_iter()
        } else {
            Vec::new().into_iter()
        };
        let at_once = at_once(fs::metadata(&source).map_or(0, |found| found.len()));
        let mut running = JoinSet::new();
        let (archiver, asked) = (self.clone(), source.clone());
        running.spawn(async move { Ended::Asked(archiver.archive_asked(&asked).await) });
        let mut answer = Err(BackupError::Broken);
        let mut going_well = true;
        loop {
            while going_well
                && running.len() < at_once
                && let Some(other) = others.next()
            {
                let archiver = self.clone();
                running.spawn(async move { Ended::Other(archiver.archive_ahead(&other).await) });
            }
            // Whatever is in the way of one is likely in the way of all.
            match running.join_next().await {
                Some(Ok(Ended::Asked(ended))) => {
                    going_well &= ended.is_ok();
                    answer = ended;
                }
                Some(Ok(Ended::Other(ended))) => going_well &= ended.is_ok(),
                Some(Err(_)) => going_well = false,
                None => return answer,
            }
        }
    }

    /// One file, durable at an archive that is there.
    pub(super) async fn push(&self, source: &Path) -> Result<Pushed, BackupError> {
        let pushed = push(&self.store, &self.writer, self.system_identifier, source).await?;
        if let Some(place) = &self.place {
            place.check()?;
        }
        Ok(pushed)
    }

    async fn archive_asked(&self, source: &Path) -> Result<(), BackupError> {
        let pushed = self.push(source).await?;
        if pushed == Pushed::Known {
            tracing::info!(file = %source.display(), "was archived before, with the same content");
        }
        Ok(())
    }

    async fn archive_ahead(&self, source: &Path) -> Result<(), BackupError> {
        let Some(marks) = &self.marks else {
            return Ok(());
        };
        let mark = marks.mark(self.system_identifier, source);
        if mark.exists() {
            return Ok(());
        }
        let stamp = stamp(source)?;
        self.push(source).await?;
        // Not synced: a mark that a crash took, or half of it, costs one more look at the archive.
        fs::write(&mark, stamp).file("write file", &mark)
    }
}

/// How many segments of a size are archived at a time.
fn at_once(segment_bytes: u64) -> usize {
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let fit = (BYTES_AT_ONCE / segment_bytes.max(1)).clamp(1, MOST_AT_ONCE);
    usize::try_from(fit).unwrap_or(1).min(cores.max(2))
}

/// How a file's archiving ended.
enum Ended {
    Asked(Result<(), BackupError>),
    Other(Result<(), BackupError>),
}

/// The folder where it is kept which files have been archived before they were asked for.
#[derive(Clone, Debug)]
pub struct Marks(pub PathBuf);

impl Marks {
    /// Whether the file has been archived; the mark goes.
    ///
    /// # Errors
    /// The folder is no good.
    pub fn take(&self, system_identifier: SystemIdentifier, source: &Path) -> Result<bool, BackupError> {
        create_private_directory(&self.0)?;
        let mark = self.mark(system_identifier, source);
        let Ok(known) = fs::read_to_string(&mark) else {
            return Ok(false);
        };
        remove_file(&mark)?;
        Ok(known == stamp(source)?)
    }

    fn mark(&self, system_identifier: SystemIdentifier, source: &Path) -> PathBuf {
        let name = source.file_name().unwrap_or_default().to_string_lossy();
        self.0.join(format!("{system_identifier}-{name}"))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::wal::is_archived;
    use crate::store::StoreSettings;

    const CLUSTER: SystemIdentifier = SystemIdentifier(7);

    struct Lab {
        archiver: Archiver,
        marks: Marks,
        _folder: tempfile::TempDir,
    }

    fn name(number: u32) -> String {
        format!("0000000100000000{number:08X}")
    }

    fn path(number: u32) -> PathBuf {
        Path::new("pg_wal").join(name(number))
    }

    /// A data directory with so many segments, all ready to be archived.
    fn lab(segments: u32) -> Lab {
        let folder = tempfile::tempdir().expect("folder");
        let data_directory = folder.path().join("data");
        let status = data_directory.join("pg_wal/archive_status");
        fs::create_dir_all(&status).expect("folder");
        for number in 1..=segments {
            fs::write(data_directory.join(path(number)), name(number)).expect("file");
            fs::write(status.join(format!("{}.ready", name(number))), "").expect("file");
        }
        let destination = folder.path().join("archive");
        fs::create_dir(&destination).expect("folder");
        let settings = StoreSettings::new(destination.to_str().expect("utf-8").parse().expect("valid"));
        let marks = Marks(folder.path().join("marks"));
        create_private_directory(&marks.0).expect("folder");
        let archiver = Archiver {
            store: Store::open(&settings).expect("store"),
            writer: Writer {
                member: "pg-0".to_owned(),
                term: 1,
                key: None,
            },
            system_identifier: CLUSTER,
            data_directory,
            place: None,
            marks: Some(marks.clone()),
        };
        Lab {
            archiver,
            marks,
            _folder: folder,
        }
    }

    impl Lab {
        fn taken(&self, number: u32) -> bool {
            let source = self.archiver.data_directory.join(path(number));
            self.marks.take(CLUSTER, &source).expect("marks")
        }

        async fn archived(&self, segments: u32) -> Vec<u32> {
            let mut found = Vec::new();
            for number in 1..=segments {
                let file = name(number).parse().expect("a WAL file");
                if is_archived(&self.archiver.store, CLUSTER, file)
                    .await
                    .expect("store")
                {
                    found.push(number);
                }
            }
            found
        }
    }

    #[tokio::test]
    async fn what_waits_is_archived_in_the_same_run_and_marked_once() {
        let lab = lab(4);
        lab.archiver.archive(&path(2)).await.expect("archived");
        assert_eq!(
            lab.archived(4).await,
            [2, 3, 4],
            "what comes before was asked for before"
        );
        assert!(!lab.taken(2), "who asked knows it");
        assert!(lab.taken(3));
        assert!(!lab.taken(3), "a mark counts once");
        fs::write(
            lab.archiver.data_directory.join(path(4)),
            "another file of that name",
        )
        .expect("file");
        assert!(!lab.taken(4), "the mark is of another file");
    }

    #[tokio::test]
    async fn a_run_takes_no_more_than_a_batch() {
        let lab = lab(20);
        lab.archiver.archive(&path(1)).await.expect("archived");
        assert_eq!(lab.archived(20).await.len(), BATCH + 1);
    }

    #[test]
    fn large_segments_were_held_in_memory_several_at_a_time() {
        for (megabytes, expected) in [(64, 1), (1024, 1), (32, 2)] {
            assert_eq!(at_once(megabytes << 20), expected, "{megabytes} MB");
        }
        assert!((2..=4).contains(&at_once(16 << 20)));
    }

    #[tokio::test]
    async fn another_ones_failure_is_its_own() {
        let lab = lab(3);
        fs::remove_file(lab.archiver.data_directory.join(path(2))).expect("remove");
        lab.archiver.archive(&path(1)).await.expect("archived");
        assert!(lab.archiver.archive(&path(2)).await.is_err());
    }
}
