//! Archived WAL: `archive_command` and `restore_command`, and what may go.
//!
//! An object is never overwritten: a file that is there already must be the same, else somebody else has written
//! that part of the timeline.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::BackupError;
use super::error::FileContext as _;
use super::files::{blocking, create_private_file};
use super::wal_object::{Origin, Tag, pack, unpack};
use crate::core::backup::Entry;
use crate::core::backup::archive::Archive;
use crate::core::data_directory::SystemIdentifier;
use crate::core::wal::{Lsn, TimelineHistory, TimelineId};
use crate::core::wal_file::WalFile;
use crate::files::with_suffix;
use crate::store::seal::SealKey;
use crate::store::{Store, StoreSettings};

const WAL: &str = "wal";
const SUFFIX: &str = ".zst";
/// More later files than one process archives beside the one that it was asked for.
const OUT_OF_ORDER: usize = 64;

/// What `wal-fetch` needs to know, as a file that only its owner reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FetchSettings {
    pub destination: StoreSettings,
    pub key_file: Option<PathBuf>,
    pub system_identifier: SystemIdentifier,
    /// Where segments wait that were fetched ahead; `None`: only what is asked for is fetched.
    #[serde(default)]
    pub ahead: Option<PathBuf>,
}

/// Who archives.
#[derive(Clone, Debug)]
pub struct Writer {
    pub member: String,
    pub term: u64,
    pub key: Option<SealKey>,
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    New,
    /// It was there, and is the same.
    Known,
}

fn folder(system_identifier: SystemIdentifier) -> String {
    format!("{WAL}/{system_identifier}")
}

fn path(system_identifier: SystemIdentifier, file: WalFile) -> String {
    format!("{}/{file}{SUFFIX}", folder(system_identifier))
}

/// The number that stands first in `global/pg_control` of a data directory, in the machine's byte order.
///
/// # Errors
/// The file cannot be read.
pub fn system_identifier(data_directory: &Path) -> Result<SystemIdentifier, BackupError> {
    let path = data_directory.join("global/pg_control");
    let mut bytes = [0; 8];
    let mut file = fs::File::open(&path).file("open file", &path)?;
    file.read_exact(&mut bytes).file("read file", &path)?;
    Ok(SystemIdentifier(u64::from_ne_bytes(bytes)))
}

/// Archives one file of `pg_wal`.
///
/// # Errors
/// The store's, or [`BackupError::OtherContent`].
pub async fn push(
    store: &Store,
    writer: &Writer,
    system_identifier: SystemIdentifier,
    source: &Path,
) -> Result<Pushed, BackupError> {
    let name = source.file_name().unwrap_or_default().to_string_lossy();
    let file: WalFile = name.parse()?;
    let (source, writer_copy) = (source.to_owned(), writer.clone());
    let (sha256, packed) = blocking(move || {
        let mut content = fs::File::open(&source).file("open file", &source)?;
        let origin = Origin {
            file: file.to_string(),
            system_identifier,
            member: writer_copy.member,
            term: writer_copy.term,
        };
        let (tag, packed) =
            pack(origin, &mut content, writer_copy.key.as_ref()).file("compress file", &source)?;
        Ok((tag.sha256, packed))
    })
    .await?;
    let path = path(system_identifier, file);
    if store.put_new(&path, Bytes::from(packed)).await? {
        return Ok(Pushed::New);
    }
    let known = store.get(&path).await?.unwrap_or_default();
    let tag = read(&path, &known, writer.key.as_ref(), &mut io::sink())?;
    if tag.sha256 == sha256 {
        return Ok(Pushed::Known);
    }
    Err(BackupError::OtherContent {
        file: file.to_string(),
        writer: tag.member,
        term: tag.term,
    })
}

/// Whether there is such a file in the archive.
///
/// # Errors
/// The store's.
pub async fn is_archived(
    store: &Store,
    system_identifier: SystemIdentifier,
    file: WalFile,
) -> Result<bool, BackupError> {
    Ok(store.exists(&path(system_identifier, file)).await?)
}

/// Whether much later WAL of the timeline is archived: then nobody is about to archive this.
///
/// # Errors
/// The store's.
pub async fn passed_over(
    store: &Store,
    system_identifier: SystemIdentifier,
    file: WalFile,
) -> Result<bool, BackupError> {
    let archived = archived(store, system_identifier).await?;
    let later = archived.iter().filter(|(other, _)| file.comes_before(*other));
    Ok(later.count() > OUT_OF_ORDER)
}

fn read(
    path: &str,
    object: &[u8],
    key: Option<&SealKey>,
    into: &mut dyn io::Write,
) -> Result<Tag, BackupError> {
    unpack(object, key, into).map_err(|error| BackupError::Damaged {
        path: path.to_owned(),
        detail: error.to_string(),
    })
}

/// Brings a file back under `into`; false if it was never archived.
///
/// # Errors
/// The store's, or the object is damaged.
pub async fn fetch(
    store: &Store,
    system_identifier: SystemIdentifier,
    key: Option<&SealKey>,
    file: WalFile,
    into: &Path,
) -> Result<bool, BackupError> {
    let path = path(system_identifier, file);
    let Some(object) = store.get(&path).await? else {
        return Ok(false);
    };
    let (into, key) = (into.to_owned(), key.cloned());
    blocking(move || {
        // Not synced: after a crash PostgreSQL asks for it again.
        let staged = with_suffix(&into, ".podgres-new");
        let mut content = create_private_file(&staged)?;
        let tag = read(&path, &object, key.as_ref(), &mut content)?;
        if tag.system_identifier != system_identifier || tag.file != file.to_string() {
            return Err(BackupError::ForeignWal {
                file: tag.file,
                found: tag.system_identifier.to_string(),
                expected: system_identifier.to_string(),
            });
        }
        fs::rename(&staged, &into).file("rename file", &staged)
    })
    .await?;
    Ok(true)
}

/// The history of a timeline.
///
/// # Errors
/// The store's; or its file is not there: then another timeline's WAL would be taken for its.
async fn history(
    store: &Store,
    system_identifier: SystemIdentifier,
    key: Option<&SealKey>,
    timeline: TimelineId,
) -> Result<TimelineHistory, BackupError> {
    let file = WalFile::History { timeline };
    let path = path(system_identifier, file);
    let text = match store.get(&path).await? {
        Some(object) => {
            let mut text = Vec::new();
            read(&path, &object, key, &mut text)?;
            String::from_utf8_lossy(&text).into_owned()
        }
        None if timeline <= TimelineId(1) => String::new(),
        None => {
            return Err(BackupError::Damaged {
                path,
                detail: "it is gone, so that nobody knows where its timeline begins".to_owned(),
            });
        }
    };
    let parsed = TimelineHistory::parse(timeline, &text);
    parsed.map_err(|error| BackupError::Damaged {
        path,
        detail: error.to_string(),
    })
}

async fn archived(
    store: &Store,
    system_identifier: SystemIdentifier,
) -> Result<Vec<(WalFile, String)>, BackupError> {
    let found = store.list(&folder(system_identifier)).await?;
    let named = found.into_iter().filter_map(|found| {
        let name = found
            .path
            .rsplit('/')
            .next()?
            .strip_suffix(SUFFIX)?
            .parse()
            .ok()?;
        Some((name, found.path))
    });
    Ok(named.collect())
}

/// What is archived for a cluster.
///
/// # Errors
/// The store's.
pub async fn names(
    store: &Store,
    system_identifier: SystemIdentifier,
) -> Result<BTreeSet<WalFile>, BackupError> {
    let archived = archived(store, system_identifier).await?;
    Ok(archived.into_iter().map(|(file, _)| file).collect())
}

/// What is archived for a cluster, with the history of a timeline, or of the newest one.
///
/// # Errors
/// The archive cannot be read, or a history of its cannot.
pub async fn archive(
    store: &Store,
    system_identifier: SystemIdentifier,
    key: Option<&SealKey>,
    wanted: Option<u32>,
) -> Result<Archive, BackupError> {
    let files = names(store, system_identifier).await?;
    let newest = files.iter().map(|file| file.timeline()).max();
    let history = match wanted.map(TimelineId).or(newest) {
        Some(timeline) => Some(history(store, system_identifier, key, timeline).await?),
        None => None,
    };
    Ok(Archive { files, history })
}

/// Deletes WAL that ends before `needed_from`, and tells how many files that were. Histories stay.
pub(super) async fn prune(store: &Store, kept: &[Entry], needed_from: Lsn) -> Result<usize, BackupError> {
    let Some(record) = kept.last().map(|entry| &entry.record) else {
        return Ok(0);
    };
    let mut deleted = 0;
    for (file, path) in archived(store, record.system_identifier).await? {
        if file
            .end(record.wal_segment_bytes)
            .is_some_and(|end| end <= needed_from)
        {
            store.delete(&path).await?;
            deleted += 1;
        }
    }
    Ok(deleted)
}
