//! A new data directory from a physical backup: extracted beside its name, replayed to the target, then given the name.
//!
//! The replay is podgres' own, in a scratch server: what stands under the name is a cleanly stopped primary on a
//! timeline of its own, which any PostgreSQL of that version starts. A kill at any moment leaves no such name, and the next
//! try goes on.

use std::path::{Path, PathBuf};

use super::assemble::Assembly;
use super::extract;
use super::files::{self, blocking, with_suffix};
use super::finish;
use super::replay::{replay, strip};
use super::repository::{Repository, catalogue};
use super::{BackupError, wal};
use crate::core::backup::chain::chain;
use crate::core::backup::choose::{ChooseError, Target, Wish, choose};
use crate::core::backup::parent::major;
use crate::core::backup::{Entry, Kind, Record};
use crate::postgres::find;
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

/// Restores into `directory`, which is absent or empty.
///
/// # Errors
/// Whatever is in the way; `directory` is then as it was.
pub async fn restore(store: &Store, options: &Options, directory: &Path) -> Result<Record, BackupError> {
    files::check_empty(directory)?;
    let found = catalogue(store).await?;
    let (entry, timeline) = pick(store, &found, options).await?;
    let chain = records(&found.entries, entry)?;
    let record = entry.record.clone();
    check_key(&record, options.key.as_ref())?;
    check_programs(&record, &options.program_directory).await?;
    // By its number: where one was passed over, PostgreSQL's own search for the latest would end before it.
    let options = &Options {
        timeline: timeline.unwrap_or_else(|| options.timeline.clone()),
        ..options.clone()
    };
    let staging = with_suffix(directory, STAGING);
    tracing::info!(name = record.name, directory = %directory.display(), "restore begins");
    let place = staging.clone();
    let replaying = with_suffix(&staging, ".replaying");
    // A directory that a server has written to is no longer what was extracted.
    if replaying.exists() {
        blocking(move || extract::clear(&place)).await?;
        files::remove_file(&replaying)?;
    }
    let assembly = Assembly {
        store,
        chain: &chain,
        options,
        prove: false,
    };
    assembly.fill(&staging).await?;
    files::write_whole(&replaying, b"")?;
    let mut server = replay(&record, options, &staging, &options.target).await?;
    if let Some(stored_form) = &options.superuser_password {
        finish::set_password(&mut server, &options.superuser, stored_form).await?;
    }
    let current = finish::current_segment(&mut server).await?;
    server.stop().await?;
    let (from, to) = (staging.clone(), directory.to_owned());
    blocking(move || {
        strip(&from)?;
        finish::mark_unarchived(&from, current)?;
        files::check_empty(&to)?;
        files::publish(&from, &to)?;
        extract::forget(&from)
    })
    .await?;
    files::remove_file(&replaying)?;
    Ok(record)
}

/// The backup with what it builds on, the full one first.
pub(super) fn records(entries: &[Entry], entry: &Entry) -> Result<Vec<Record>, ChooseError> {
    let chain = chain(entries, entry)?;
    Ok(chain.into_iter().map(|entry| entry.record.clone()).collect())
}

/// The backup to restore, by the pure rules, and the timeline to follow, if the archive knows.
async fn pick<'a>(
    store: &Store,
    found: &'a Repository,
    options: &Options,
) -> Result<(&'a Entry, Option<String>), BackupError> {
    let newest = found
        .entries
        .iter()
        .rev()
        .find(|entry| entry.record.kind == Kind::Physical);
    let history = match (options.timeline.as_str(), newest) {
        ("current", _) | (_, None) => None,
        (timeline, Some(entry)) => {
            let wanted = timeline.parse().ok();
            wal::history(
                store,
                entry.record.system_identifier,
                options.key.as_ref(),
                wanted,
            )
            .await?
        }
    };
    let wish = Wish {
        kind: Kind::Physical,
        name: options.name.as_deref(),
        target: &options.target,
        history: history.as_ref(),
    };
    let entry = choose(&found.entries, &wish)?;
    Ok((entry, history.map(|history| history.timeline.to_string())))
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
