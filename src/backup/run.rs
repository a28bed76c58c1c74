//! One run of `podgres backup`: lock, look, stream, record, prune; nothing is visible before the record is.

use std::path::PathBuf;

use super::facts;
use super::incremental::{self, Parent};
use super::logical::{self, Wish};
use super::physical::{self, Identity};
use super::pipeline::Shape;
use super::repository::{Repository, catalogue_whole, commit, delete, folder};
use super::{BackupError, Server, now, wal};
use crate::core::backup::parent::Base;
use crate::core::backup::retention::{Keep, expired, wal_needed_from};
use crate::core::backup::{DumpFormat, Entry, FORMAT, Kind, Record, StoredObject, TableFacts, name};
use crate::core::wal::{Lsn, TimelineId};
use crate::store::seal::SealKey;
use crate::store::{Lock, Store};

/// How a backup is made.
#[derive(Clone, Debug)]
pub struct Options {
    pub kind: Kind,
    /// What a physical backup adds to.
    pub base: Base,
    /// Of a logical backup; all if empty.
    pub databases: Vec<String>,
    pub format: DumpFormat,
    /// That write a dump in directory format.
    pub jobs: u32,
    /// Where the files of such a dump stand until they are sent.
    pub scratch_directory: PathBuf,
    pub keep: Option<Keep>,
    pub key: Option<SealKey>,
    /// Of zstd.
    pub level: i32,
    /// Threads that compress.
    pub threads: u32,
    /// Bytes a second to the destination.
    pub max_rate_bytes: Option<u64>,
    /// How long the pieces of a physical backup are, before compression.
    pub piece_bytes: u64,
    /// How much of the tables is read for what a verification compares.
    pub facts_bytes: u64,
    /// With `pg_dump`; needed for a logical backup.
    pub program_directory: PathBuf,
    /// Holds the superuser's password for it.
    pub passfile: Option<PathBuf>,
    pub cluster: String,
    pub term: u64,
}

/// Where it is read from.
#[derive(Clone)]
pub struct Source {
    pub server: Server,
    /// Where a logical backup of a standby holds its horizon.
    pub primary: Option<Server>,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub record: Record,
    /// Backups that were deleted.
    pub pruned: Vec<String>,
    /// Archived WAL files that were.
    pub pruned_wal: usize,
}

struct Taken {
    timeline: TimelineId,
    start_lsn: Lsn,
    stop_lsn: Lsn,
    parent: Option<String>,
    objects: Vec<StoredObject>,
    tables: Vec<TableFacts>,
}

/// Makes a backup. The caller ends this if the lock is lost.
async fn backup(
    store: &Store,
    lock: &Lock,
    source: &Source,
    options: &Options,
) -> Result<Outcome, BackupError> {
    let found = catalogue_whole(store).await?;
    let identity = physical::identify(&source.server).await?;
    found.check_owner(store, identity.system_identifier)?;
    sweep(store, &found).await?;
    let started_at = now();
    let name = name::name(found.next_sequence, started_at, options.kind);
    let taken = match options.kind {
        Kind::Physical => {
            let parent = incremental::find(&found.entries, &source.server, options).await?;
            take_physical(store, source, options, &name, parent.as_ref()).await?
        }
        Kind::Logical => take_logical(store, source, options, &name, identity.position.timeline).await?,
    };
    let record = Record {
        name,
        sequence: found.next_sequence,
        started_at,
        ..record(source, options, identity, taken)
    };
    commit_held(store, lock, &record).await?;
    tracing::info!(
        name = record.name,
        bytes = record.bytes(),
        stored_bytes = record.stored_bytes(),
        "backup complete"
    );
    let mut entries = found.entries;
    entries.push(Entry {
        record: record.clone(),
        verification: None,
    });
    let (pruned, pruned_wal) = match options.keep {
        Some(keep) => prune(store, lock, entries, options.kind, keep).await?,
        None => (Vec::new(), 0),
    };
    Ok(Outcome {
        record,
        pruned,
        pruned_wal,
    })
}

/// What was taken, of whom and how; the caller knows its place among the others.
fn record(source: &Source, options: &Options, identity: Identity, taken: Taken) -> Record {
    Record {
        format: FORMAT,
        name: String::new(),
        sequence: 0,
        kind: options.kind,
        system_identifier: identity.system_identifier,
        cluster: options.cluster.clone(),
        term: options.term,
        timeline: taken.timeline,
        start_lsn: taken.start_lsn,
        stop_lsn: taken.stop_lsn,
        started_at: 0,
        finished_at: now(),
        source: source.server.name.clone(),
        source_role: source.server.role.clone(),
        wal_segment_bytes: identity.wal_segment_bytes,
        postgres_version: identity.server_version,
        podgres_version: env!("CARGO_PKG_VERSION").to_owned(),
        parent: taken.parent,
        key: options.key.as_ref().map(SealKey::fingerprint),
        objects: taken.objects,
        tables: taken.tables,
    }
}

/// Makes a backup under the destination's lock. `who` is what another run is told.
///
/// # Errors
/// Whatever is in the way, or the lock is held or lost. The destination then holds what it held, and what is left over is
/// deleted by the next run.
pub async fn locked_backup(
    store: &Store,
    who: &str,
    source: &Source,
    options: &Options,
) -> Result<Outcome, BackupError> {
    let lock = Lock::take(store, who).await?;
    let result = tokio::select! {
        result = backup(store, &lock, source, options) => result,
        () = lock.lost() => Err(BackupError::LockLost),
    };
    lock.release().await;
    result
}

async fn take_physical(
    store: &Store,
    source: &Source,
    options: &Options,
    name: &str,
    parent: Option<&Parent>,
) -> Result<Taken, BackupError> {
    let server = &source.server;
    let before = facts::before(server, options.facts_bytes).await?;
    if options.base != Base::None {
        incremental::move_on(source).await?;
    }
    let streamed = physical::stream(server, store, &folder(name), name, &shape(options), parent).await?;
    Ok(Taken {
        timeline: streamed.stop.timeline,
        start_lsn: streamed.start.lsn,
        stop_lsn: streamed.stop.lsn,
        parent: streamed.parent,
        objects: streamed.objects,
        tables: facts::unchanged(server, before).await?,
    })
}

async fn take_logical(
    store: &Store,
    source: &Source,
    options: &Options,
    name: &str,
    timeline: TimelineId,
) -> Result<Taken, BackupError> {
    let wish = Wish {
        databases: &options.databases,
        primary: source.primary.as_ref(),
        program_directory: &options.program_directory,
        passfile: options.passfile.clone(),
        facts_bytes: options.facts_bytes,
        format: options.format,
        jobs: options.jobs,
        scratch_directory: &options.scratch_directory,
    };
    let dumped = logical::dump(&source.server, store, &folder(name), &shape(options), &wish).await?;
    Ok(Taken {
        timeline,
        start_lsn: dumped.position,
        stop_lsn: dumped.position,
        parent: None,
        objects: dumped.objects,
        tables: dumped.tables,
    })
}

fn shape(options: &Options) -> Shape {
    Shape {
        key: options.key.clone(),
        level: options.level,
        threads: options.threads,
        max_rate_bytes: options.max_rate_bytes,
        piece_bytes: options.piece_bytes,
    }
}

/// Deletes what killed runs left: with the lock held nobody else is at it.
async fn sweep(store: &Store, found: &Repository) -> Result<(), BackupError> {
    for name in &found.torn {
        tracing::info!(name, "deleting what a run that did not end has left");
        delete(store, name).await?;
    }
    Ok(())
}

async fn require(lock: &Lock) -> Result<(), BackupError> {
    if lock.held().await? {
        Ok(())
    } else {
        Err(BackupError::LockLost)
    }
}

/// Makes the backup one, if nobody has thought this run dead meanwhile: its objects may be deleted as those of a torn
/// backup. It may have stood still at any place, so it looks once more afterwards.
async fn commit_held(store: &Store, lock: &Lock, record: &Record) -> Result<(), BackupError> {
    require(lock).await?;
    commit(store, record).await?;
    if let Err(lost) = require(lock).await {
        delete(store, &record.name).await?;
        return Err(lost);
    }
    Ok(())
}

async fn prune(
    store: &Store,
    lock: &Lock,
    entries: Vec<Entry>,
    kind: Kind,
    keep: Keep,
) -> Result<(Vec<String>, usize), BackupError> {
    let gone = expired(&entries, kind, keep);
    // In this order: nothing is ever left without what it builds on.
    for name in &gone {
        require(lock).await?;
        tracing::info!(name, "deleting an expired backup");
        delete(store, name).await?;
    }
    let kept: Vec<Entry> = entries
        .into_iter()
        .filter(|entry| !gone.contains(&entry.record.name))
        .collect();
    let pruned_wal = match wal_needed_from(&kept) {
        Some(needed_from) => {
            require(lock).await?;
            wal::prune(store, &kept, needed_from).await?
        }
        None => 0,
    };
    Ok((gone, pruned_wal))
}
