//! The read-only switch of a cluster without a Lease, kept beside PGDATA: it outlives the pods, all at once.
//!
//! One small JSON file, replaced as a whole. What cannot be read counts as nothing: the other members keep a copy too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::ServerSettings;
use crate::core::switch::SwitchPosition;
use crate::files::{
    FileContext as _, FileError, create_private_directory, sync_directory, with_suffix, write_private,
};

const SUFFIX: &str = ".podgres-read-only";

/// Where it stands: `<PGDATA>.podgres-read-only`.
#[must_use]
pub fn path(settings: &ServerSettings) -> PathBuf {
    with_suffix(&settings.data_directory, SUFFIX)
}

/// The position that was kept last; the first of all if there is none. Blocks.
///
/// # Errors
/// The file cannot be read, or is not what [`write()`] makes.
pub fn read(settings: &ServerSettings) -> Result<SwitchPosition, FileError> {
    let path = path(settings);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(io::Error::from)
            .file("read file", &path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(SwitchPosition::default()),
        Err(error) => Err(error).file("read file", &path),
    }
}

/// Keeps it durably. Blocks.
///
/// # Errors
/// The volume does not take it; what stood there is still there.
pub fn write(settings: &ServerSettings, position: &SwitchPosition) -> Result<(), FileError> {
    let path = path(settings);
    let folder = path.parent().unwrap_or(Path::new("/"));
    create_private_directory(folder)?;
    // A number and three texts: this cannot fail.
    let text = serde_json::to_vec(position).unwrap_or_default();
    write_private(&path, &text)?;
    sync_directory(folder)
}
