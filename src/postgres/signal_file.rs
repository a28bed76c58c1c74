//! Makes a data directory's signal files fit the role that it is to be started in.
//!
//! Creates `standby.signal`, and never deletes it: what was a standby becomes a primary only by promotion.

use std::fs::File;

use super::ServerSettings;
use super::error::ConfigurationError;
use super::files::blocking;
use super::timelines;
use crate::core::supervision::ServerRole;
use crate::files::{FileContext as _, FileError, exists, sync_directory};

/// `PROMOTE_SIGNAL_FILE` of PostgreSQL (`access/xlog.h`).
const PROMOTE: &str = "promote";
const STANDBY_SIGNAL: &str = "standby.signal";

/// Called before every start.
///
/// # Errors
/// A primary's directory holds `standby.signal`, or the file cannot be created.
pub async fn prepare_role(settings: &ServerSettings, role: &ServerRole) -> Result<(), ConfigurationError> {
    let directory = settings.data_directory.clone();
    let standby = matches!(role, ServerRole::Standby { .. });
    blocking(move || {
        if standby {
            timelines::clear(&directory)?;
            Ok(create(&directory)?)
        } else if exists(&directory.join(STANDBY_SIGNAL))? {
            Err(ConfigurationError::StandbySignal { path: directory })
        } else {
            Ok(())
        }
    })
    .await
}

/// Creates the file that `pg_ctl promote` creates; the postmaster takes it away. Blocks.
///
/// # Errors
/// The volume does not take it.
pub fn create_promote(directory: &std::path::Path) -> Result<(), FileError> {
    let path = directory.join(PROMOTE);
    File::create(&path).map(drop).file("create file", &path)
}

/// Creates `standby.signal` durably, if it is not there.
pub(super) fn create(directory: &std::path::Path) -> Result<(), FileError> {
    let path = directory.join(STANDBY_SIGNAL);
    if exists(&path)? {
        return Ok(());
    }
    File::create(&path)
        .and_then(|file| file.sync_all())
        .file("create file", &path)?;
    sync_directory(directory)
}
