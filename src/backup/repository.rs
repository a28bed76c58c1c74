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
    /// One more than any that was used.
    pub next_sequence: u64,
}

/// Reads it.
///
/// # Errors
/// The store's, or a record that cannot be read: it is neither passed over nor deleted.
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
        let Some(record) = read::<Record>(store, &format!("{}/{RECORD}", folder(&name))).await? else {
            found.torn.push(name);
            continue;
        };
        if record.format != FORMAT {
            let detail = format!("it has format {}, this podgres knows {FORMAT}", record.format);
            return Err(BackupError::Record {
                path: folder(&name),
                detail,
            });
        }
        let verification = read(store, &format!("{}/{VERIFICATION}", folder(&name))).await?;
        found.entries.push(Entry { record, verification });
    }
    found.entries.sort_by_key(|entry| entry.record.sequence);
    Ok(found)
}

impl Repository {
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
