//! Directories that grow beside their final name, as a restore needs them. All of it blocks.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::BackupError;
use super::error::FileContext as _;

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes a directory, mode 0700, with its parents.
pub(super) fn create_private(path: &Path) -> Result<(), BackupError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .file("create directory", path)
}

pub(super) fn remove_tree(path: &Path) -> Result<(), BackupError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).file("remove directory", path),
        _ => Ok(()),
    }
}

pub(super) fn remove_file(path: &Path) -> Result<(), BackupError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).file("remove file", path),
        _ => Ok(()),
    }
}

/// Removes a file, or a directory with all that is in it.
pub(super) fn remove_any(path: &Path) -> Result<(), BackupError> {
    if path.is_dir() {
        remove_tree(path)
    } else {
        remove_file(path)
    }
}

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
    fs::set_permissions(staging, fs::Permissions::from_mode(0o700)).file("chmod directory", staging)?;
    sync_tree(staging)?;
    fs::rename(staging, path).file("rename directory", staging)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    let opened = File::open(parent).file("open directory", parent)?;
    opened.sync_all().file("fsync directory", parent)
}

/// A new file, empty, that only its owner reads.
pub(super) fn create_private_file(path: &Path) -> Result<File, BackupError> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path).file("create file", path)
}

/// Writes a file as a whole: never half of it under its name.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> Result<(), BackupError> {
    use std::io::Write as _;
    let staged = with_suffix(path, ".podgres-new");
    let mut file = File::create(&staged).file("create file", &staged)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))
        .file("chmod file", &staged)?;
    file.write_all(content).file("write file", &staged)?;
    file.sync_all().file("fsync file", &staged)?;
    fs::rename(&staged, path).file("rename file", &staged)
}

/// Runs `work` on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| BackupError::Broken)?
}
