//! `podgres backups`: what is at a destination.

use clap::Args;

use crate::backup::{BackupError, catalogue, now, wal};
use crate::config::backup::StoreArguments;
use crate::core::backup::Entry;
use crate::core::backup::archive::Archive;
use crate::core::backup::catalogue::{Listing, json, table};

use crate::store::Store;
use crate::store::seal::SealKey;

use super::Failure;
use super::backing;
use super::status::Output;

#[derive(Args, Debug)]
pub struct Arguments {
    /// Where the backups are: a folder, s3://bucket/prefix, azure://container/prefix or gs://bucket/prefix
    #[arg(long, env = "PODGRES_BACKUP_DESTINATION")]
    pub from: Option<String>,
    #[command(flatten)]
    pub store: StoreArguments,
    /// Output
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Prints the list, oldest first.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let opened = backing::open(&arguments.store, "--from", arguments.from.as_deref())?;
    let found = catalogue(&opened.store).await?;
    let archive = match found.entries.last() {
        Some(entry) => archive(&opened.store, entry, arguments.store.key()?.as_ref()).await?,
        None => Archive::default(),
    };
    let listing = Listing {
        entries: &found.entries,
        now: now(),
        archive: &archive,
    };
    match arguments.output {
        Output::Table => backing::print(&table(&listing))?,
        Output::Json => backing::print(&format!("{:#}\n", json(&listing)))?,
    }
    match found.unreadable.into_iter().next() {
        Some((_, error)) => Err(error.into()),
        None => Ok(()),
    }
}

/// What is archived; without its newest timeline's history, e.g. for want of the key, it is only known that something is.
async fn archive(store: &Store, entry: &Entry, key: Option<&SealKey>) -> Result<Archive, BackupError> {
    let cluster = entry.record.system_identifier;
    match wal::archive(store, cluster, key, None).await {
        Err(error @ BackupError::Damaged { .. }) => {
            tracing::warn!("how far the archive leads is not known: {error}");
            Ok(Archive {
                files: wal::names(store, cluster).await?,
                history: None,
            })
        }
        read => read,
    }
}
