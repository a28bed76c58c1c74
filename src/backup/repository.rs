//! The catalogue at a destination: complete backups with their records, and what a killed run has left.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::BackupError;
use crate::core::backup::{Entry, FORMAT, Record, Verification, name};
use crate::core::data_directory::SystemIdentifier;
use crate::store::Store;

pub(super) const BACKUPS: &str = "backups";
const RECORD: &str = "backup.json";
const VERIFICATION: &str = "verified.json";

/// The folder of a backup's objects.
pub(super) fn folder(name: &str) -> String {
    format!("{BACKUPS}/{name}")
}

/// What stands at a destination.
#[derive(Debug, Default)]
pub struct Repository {
    /// Complete backups, oldest first.
    pub entries: Vec<Entry>,
    /// Names without a record: of a run that was killed, or that is under way.
    pub torn: Vec<String>,
    /// What cannot be read of a backup, by its name: its record, or what its last verification found.
    pub unreadable: Vec<(String, BackupError)>,
    /// One more than any that was used.
    pub next_sequence: u64,
}

/// Reads all of it, for whoever may delete.
///
/// # Errors
/// The store's, or a record that cannot be read: it is neither passed over nor deleted.
pub(super) async fn catalogue_whole(store: &Store) -> Result<Repository, BackupError> {
    let mut found = catalogue(store).await?;
    match found.unreadable.pop() {
        Some((_, error)) => Err(error),
        None => Ok(found),
    }
}

/// Reads what can be read: one damaged record is not in the way of restoring another backup.
///
/// # Errors
/// The store's.
pub async fn catalogue(store: &Store) -> Result<Repository, BackupError> {
    let mut found = Repository {
        next_sequence: 1,
        ..Repository::default()
    };
    for name in store.folders(BACKUPS).await? {
        let Some(sequence) = name::sequence_of(&name) else {
            continue;
        };
        found.next_sequence = found.next_sequence.max(sequence + 1);
        match record(store, &name).await {
            Ok(Some(record)) => found.add(store, record).await?,
            Ok(None) => found.torn.push(name),
            Err(error @ BackupError::Record { .. }) => found.unreadable.push((name, error)),
            Err(error) => return Err(error),
        }
    }
    found.entries.sort_by_key(|entry| entry.record.sequence);
    for (_, error) in &found.unreadable {
        tracing::warn!("{error}");
    }
    Ok(found)
}

async fn record(store: &Store, name: &str) -> Result<Option<Record>, BackupError> {
    let Some(record) = read::<Record>(store, &format!("{}/{RECORD}", folder(name))).await? else {
        return Ok(None);
    };
    if record.format != FORMAT {
        let detail = format!("it has format {}, this podgres knows {FORMAT}", record.format);
        return Err(BackupError::Record {
            path: folder(name),
            detail,
        });
    }
    Ok(Some(record))
}

/// Whether a backup that was found earlier is still there.
pub(super) async fn is_there(store: &Store, name: &str) -> Result<bool, BackupError> {
    Ok(store.exists(&format!("{}/{RECORD}", folder(name))).await?)
}

impl Repository {
    async fn add(&mut self, store: &Store, record: Record) -> Result<(), BackupError> {
        let path = format!("{}/{VERIFICATION}", folder(&record.name));
        let verification = match read(store, &path).await {
            Err(error @ BackupError::Record { .. }) => {
                self.unreadable.push((record.name.clone(), error));
                None
            }
            read => read?,
        };
        self.entries.push(Entry { record, verification });
        Ok(())
    }

    /// The backups whose record cannot be read, and why.
    pub fn without_record(&self) -> impl Iterator<Item = &(String, BackupError)> {
        let known = |name: &String| self.entries.iter().any(|entry| entry.record.name == *name);
        self.unreadable.iter().filter(move |(name, _)| !known(name))
    }

    /// Why the backup of this name has no record that can be read, if it has none.
    pub(super) fn take_unreadable(&mut self, name: Option<&str>) -> Option<BackupError> {
        let wanted = self
            .without_record()
            .find(|(found, _)| Some(found.as_str()) == name)?
            .0
            .clone();
        let at = self.unreadable.iter().position(|(found, _)| *found == wanted)?;
        Some(self.unreadable.swap_remove(at).1)
    }

    /// Refuses a destination of another cluster.
    pub(super) fn check_owner(&self, store: &Store, expected: SystemIdentifier) -> Result<(), BackupError> {
        let foreign = self
            .entries
            .iter()
            .find(|entry| entry.record.system_identifier != expected);
        foreign.map_or(Ok(()), |entry| {
            Err(BackupError::ForeignDestination {
                destination: store.to_string(),
                found: entry.record.system_identifier.to_string(),
                expected: expected.to_string(),
            })
        })
    }
}

/// Makes the backup one: nothing of it was visible before.
pub(super) async fn commit(store: &Store, record: &Record) -> Result<(), BackupError> {
    write(store, &format!("{}/{RECORD}", folder(&record.name)), record).await
}

pub(super) async fn remember(
    store: &Store,
    name: &str,
    verification: &Verification,
) -> Result<(), BackupError> {
    write(store, &format!("{}/{VERIFICATION}", folder(name)), verification).await
}

/// Deletes a backup; its record first, so that nobody takes the rest for one.
pub(super) async fn delete(store: &Store, name: &str) -> Result<(), BackupError> {
    store.delete(&format!("{}/{RECORD}", folder(name))).await?;
    Ok(store.delete_folder(&folder(name)).await?)
}

async fn read<T: DeserializeOwned>(store: &Store, path: &str) -> Result<Option<T>, BackupError> {
    let Some(bytes) = store.get(path).await? else {
        return Ok(None);
    };
    let read = serde_json::from_slice(&bytes);
    read.map(Some).map_err(|error| BackupError::Record {
        path: path.to_owned(),
        detail: error.to_string(),
    })
}

async fn write<T: Serialize>(store: &Store, path: &str, value: &T) -> Result<(), BackupError> {
    // Plain data: this cannot fail.
    let text = serde_json::to_vec_pretty(value).unwrap_or_default();
    Ok(store.put(path, Bytes::from(text)).await?)
}
