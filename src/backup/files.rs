//! Directories that grow beside their final name, as a restore needs them. All of it blocks.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::BackupError;
use super::error::FileContext as _;
use crate::files::{set_mode, sync_directory};

/// Refuses a directory with anything in it, `lost+found` too: nothing can be renamed over it.
pub(super) fn check_empty(path: &Path) -> Result<(), BackupError> {
    let mut entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.file("read directory", path)?,
    };
    let Some(entry) = entries.next() else {
        return Ok(());
    };
    let name = entry.file("read directory", path)?.file_name();
    Err(BackupError::NotEmpty {
        path: path.to_owned(),
        found: format!("it holds \"{}\"", name.to_string_lossy()),
    })
}

/// Makes everything below `path` durable.
pub(super) fn sync_tree(path: &Path) -> Result<(), BackupError> {
    let tree = File::open(path).file("open directory", path)?;
    rustix::fs::syncfs(&tree).file("fsync the file system of", path)
}

/// Gives a complete directory its name, durably. An empty directory of that name gives way.
pub(super) fn publish(staging: &Path, path: &Path) -> Result<(), BackupError> {
    set_mode(staging, 0o700)?;
    sync_tree(staging)?;
    fs::rename(staging, path).file("rename directory", staging)?;
    Ok(sync_directory(path.parent().unwrap_or(Path::new("/")))?)
}

/// A new file, empty, that only its owner reads.
pub(super) fn create_private_file(path: &Path) -> Result<File, BackupError> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path).file("create file", path)
}

/// Runs `work` on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| BackupError::Broken)?
}
