//! A new data directory from a physical backup: extracted beside its name, replayed to the target, then given the name.
//!
//! The replay is podgres' own, in a scratch server: what stands under the name is a cleanly stopped primary on a
//! timeline of its own, which any PostgreSQL of that version starts. A kill at any moment leaves no such name, and the next
//! try goes on.

use std::path::{Path, PathBuf};

use super::assemble::Assembly;
use super::extract;
use super::files::{self, blocking};
use super::finish;
use super::replay::{replay, strip};
use super::repository::{Repository, catalogue};
use super::restore_lock::RestoreLock;
use super::{BackupError, wal};
use crate::core::backup::archive::{Archive, reach};
use crate::core::backup::chain::chain;
use crate::core::backup::choose::{ChooseError, Target, Wish, choose};
use crate::core::backup::parent::major;
use crate::core::backup::{Entry, Kind, Record};
use crate::core::wal::TimelineHistory;
use crate::core::wal_file::WalFile;
use crate::files::{remove_file, with_suffix, write_private};
use crate::postgres::staging::check_place;
use crate::postgres::{find, terms};
use crate::store::seal::SealKey;
use crate::store::{Store, StoreSettings};

const STAGING: &str = ".podgres-restore";

/// How a directory is restored.
#[derive(Clone, Debug)]
pub struct Options {
    pub destination: StoreSettings,
    /// This backup; else the one that fits the target.
    pub name: Option<String>,
    pub target: Target,
    /// `latest`, `current`, or a number.
    pub timeline: String,
    pub key: Option<SealKey>,
    pub key_file: Option<PathBuf>,
    pub program_directory: PathBuf,
    /// For the scratch server's configuration and socket.
    pub run_directory: PathBuf,
    /// This binary, for `restore_command`.
    pub binary: PathBuf,
    pub superuser: String,
    /// What its password becomes, as servers store it; the backup's if `None`.
    pub superuser_password: Option<String>,
}

/// What was restored.
#[derive(Debug)]
pub struct Restored {
    pub record: Record,
    /// Where the replay ended: a position, and the last commit's time if any was replayed.
    pub reached: String,
    /// Why that is not the end of what was archived.
    pub gap: Option<String>,
}

/// Restores into `directory`, which is absent or empty.
///
/// # Errors
/// Whatever is in the way; `directory` is then as it was.
pub async fn restore(store: &Store, options: &Options, directory: &Path) -> Result<Restored, BackupError> {
    let staging = with_suffix(directory, STAGING);
    check_place(directory)?;
    let lock = RestoreLock::take(&staging, directory)?;
    files::check_empty(directory)?;
    check_never_served(directory)?;
    let mut found = catalogue(store).await?;
    if let Some(error) = found.take_unreadable(options.name.as_deref()) {
        return Err(error);
    }
    let (entry, archive) = pick(store, &found, options).await?;
    let chain = records(&found.entries, entry)?;
    let record = entry.record.clone();
    check_key(&record, options.key.as_ref())?;
    check_programs(&record, &options.program_directory).await?;
    // By its number: where one was passed over, PostgreSQL's own search for the latest would end before it.
    let timeline = archive
        .history
        .as_ref()
        .map(|history| history.timeline.to_string());
    let options = &Options {
        timeline: timeline.unwrap_or_else(|| options.timeline.clone()),
        ..options.clone()
    };
    tracing::info!(name = record.name, directory = %directory.display(), "restore begins");
    extract_whole(store, &chain, options, &staging).await?;
    let gap = gap(&archive, &record).filter(|_| options.target != Target::Backup);
    let replayed = replay_whole(&record, options, &staging).await;
    if let (Err(_), Some(gap)) = (&replayed, &gap) {
        tracing::warn!("{gap}");
    }
    let (reached, current) = replayed?;
    let (from, to) = (staging.clone(), directory.to_owned());
    blocking(move || {
        strip(&from)?;
        finish::mark_unarchived(&from, current)?;
        files::check_empty(&to)?;
        files::publish(&from, &to)?;
        extract::forget(&from)
    })
    .await?;
    remove_file(&replaying(&staging))?;
    drop(lock);
    Ok(Restored {
        record,
        reached,
        gap: gap.filter(|_| options.target == Target::Latest),
    })
}

/// Whoever was primary last goes on under a Lease without a proof: that must not be a directory with less.
fn check_never_served(directory: &Path) -> Result<(), BackupError> {
    match terms::held_beside(directory) {
        0 => Ok(()),
        term => Err(BackupError::Served {
            path: directory.to_owned(),
            term,
        }),
    }
}

/// There while a server may have written to the directory.
fn replaying(staging: &Path) -> PathBuf {
    with_suffix(staging, ".replaying")
}

/// The files of the backup, or what an interrupted try lacks of them.
async fn extract_whole(
    store: &Store,
    chain: &[Record],
    options: &Options,
    staging: &Path,
) -> Result<(), BackupError> {
    let (place, replaying) = (staging.to_owned(), replaying(staging));
    // A directory that a server has written to is no longer what was extracted.
    if replaying.exists() {
        blocking(move || extract::clear(&place)).await?;
        remove_file(&replaying)?;
    }
    let assembly = Assembly {
        store,
        chain,
        options,
        prove: false,
    };
    assembly.fill(staging).await?;
    Ok(write_private(&replaying, b"")?)
}

/// Replays to the target and stops; where the replay ended, and the segment that the new timeline has come to.
async fn replay_whole(
    record: &Record,
    options: &Options,
    staging: &Path,
) -> Result<(String, WalFile), BackupError> {
    let mut server = replay(record, options, staging, &options.target).await?;
    let reached = finish::reached(&mut server).await?;
    if let Some(stored_form) = &options.superuser_password {
        finish::set_password(&mut server, &options.superuser, stored_form).await?;
    }
    let current = finish::current_segment(&mut server).await?;
    server.stop().await?;
    Ok((reached, current))
}

/// The sentence about a gap on the way from a backup to the end of the archive.
fn gap(archive: &Archive, record: &Record) -> Option<String> {
    // Along its own timeline, if no other one is followed.
    let own = TimelineHistory {
        timeline: record.timeline,
        ancestors: Vec::new(),
    };
    let history = archive.history.as_ref().unwrap_or(&own);
    reach(&archive.files, record, history).gap_text()
}

/// The backup with what it builds on, the full one first.
pub(super) fn records(entries: &[Entry], entry: &Entry) -> Result<Vec<Record>, ChooseError> {
    let chain = chain(entries, entry)?;
    Ok(chain.into_iter().map(|entry| entry.record.clone()).collect())
}

/// The backup to restore, by the pure rules, and what is archived, with the history to follow if that is known.
async fn pick<'a>(
    store: &Store,
    found: &'a Repository,
    options: &Options,
) -> Result<(&'a Entry, Archive), BackupError> {
    let newest = found
        .entries
        .iter()
        .rev()
        .find(|entry| entry.record.kind == Kind::Physical);
    let archive = match (options.timeline.as_str(), newest) {
        (_, None) => Archive::default(),
        ("current", Some(entry)) => Archive {
            files: wal::names(store, entry.record.system_identifier).await?,
            history: None,
        },
        (timeline, Some(entry)) => {
            let (cluster, key) = (entry.record.system_identifier, options.key.as_ref());
            wal::archive(store, cluster, key, timeline.parse().ok()).await?
        }
    };
    let wish = Wish {
        kind: Kind::Physical,
        name: options.name.as_deref(),
        target: &options.target,
        history: archive.history.as_ref(),
    };
    Ok((choose(&found.entries, &wish)?, archive))
}

/// Refuses programs that cannot read the backup, before anything is extracted: a directory takes its own major version, a
/// dump any that is not older.
pub(super) async fn check_programs(record: &Record, directory: &Path) -> Result<(), BackupError> {
    let expected = major(&record.postgres_version);
    let found = find::major_version(directory).await?;
    let fits = match record.kind {
        Kind::Physical => found == expected,
        Kind::Logical => found >= expected,
    };
    if fits {
        return Ok(());
    }
    Err(BackupError::Programs {
        name: record.name.clone(),
        expected,
        found,
        directory: directory.to_owned(),
    })
}

pub(super) fn check_key(record: &Record, key: Option<&SealKey>) -> Result<(), BackupError> {
    let found = key.map(SealKey::fingerprint);
    match &record.key {
        Some(expected) if Some(expected) != found.as_ref() => Err(BackupError::Key {
            name: record.name.clone(),
            expected: expected.clone(),
            found,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_of_a_primary_under_a_lease_is_not_filled() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = folder.path().join("pgdata");
        check_never_served(&directory).expect("a new place");
        std::fs::write(
            folder.path().join("pgdata.podgres"),
            r#"{"promised": 3, "held": 2}"#,
        )
        .expect("written");
        let refused = check_never_served(&directory).expect_err("refused");
        assert!(refused.refused(), "{refused}");
        assert!(refused.to_string().contains("term 2"), "{refused}");
    }
}
