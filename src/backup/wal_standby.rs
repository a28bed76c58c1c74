//! `archive_command` of a standby: a file counts as archived once the primary has archived it.
//!
//! So every member keeps what is not archived yet, and a standby that is promoted archives what the lost primary had no time
//! for. Never sends what the primary is about to send: only what it has passed over.

use std::path::Path;
use std::time::Duration;

use super::BackupError;
use super::wal::{self, Pushed};
use super::wal_batch::Archiver;
use crate::core::backup::wal_file::WalFile;

/// The primary archives a segment within moments, or not for long: then each look is a request that costs.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
const STANDBY_SIGNAL: &str = "standby.signal";

/// Whether the server of a data directory is a standby, for a program that knows no more than its place.
#[must_use]
pub fn is_standby(data_directory: &Path) -> bool {
    data_directory.join(STANDBY_SIGNAL).exists()
}

/// Ends when the file is archived, or when this server is no standby any more: then it is the caller's turn.
///
/// # Errors
/// The store's, or the name is none of a WAL file.
pub async fn confirmed(archiver: &Archiver, source: &Path) -> Result<bool, BackupError> {
    let file: WalFile = source.file_name().unwrap_or_default().to_string_lossy().parse()?;
    let (store, cluster) = (&archiver.store, archiver.system_identifier);
    if wal::is_archived(store, cluster, file).await? {
        return Ok(true);
    }
    if wal::passed_over(store, cluster, file).await? {
        let source = archiver.data_directory.join(source);
        let pushed = wal::push(store, &archiver.writer, cluster, &source).await?;
        tracing::info!(file = %file, new = pushed == Pushed::New, "archived what the primary has passed over");
        return Ok(true);
    }
    let mut pause = FIRST_PAUSE;
    while is_standby(&archiver.data_directory) {
        tokio::time::sleep(pause).await;
        pause = LONGEST_PAUSE.min(2 * pause);
        if wal::is_archived(store, cluster, file).await? {
            return Ok(true);
        }
    }
    Ok(false)
}
