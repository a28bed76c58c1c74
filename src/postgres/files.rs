//! Small file operations that must be whole, private or durable.
//!
//! Everything here blocks; callers on the runtime go through [`blocking`].

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use tokio::sync::Mutex;

use super::error::{FileContext as _, FileError};

/// One change of a data directory at a time: a job that was dropped may still have an operation
/// under way on the blocking pool, and the next one must not begin before that has ended.
static CHANGE: LazyLock<Arc<Mutex<()>>> = LazyLock::new(Arc::default);

/// Runs a blocking change of files, or a look at them, off the runtime, after every earlier one has ended.
pub(super) async fn blocking<T, E>(change: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<FileError> + Send + 'static,
{
    let turn = Arc::clone(&CHANGE).lock_owned().await;
    let task = tokio::task::spawn_blocking(move || {
        let result = change();
        drop(turn);
        result
    });
    match task.await {
        Ok(result) => result,
        Err(error) => Err(E::from(FileError {
            verb: "finish the work on",
            path: PathBuf::from("data directory"),
            source: io::Error::other(error),
        })),
    }
}

/// Replaces `path` by a file with `content` that only its owner may read; never half written.
pub(super) fn write_private(path: &Path, content: &[u8]) -> Result<(), FileError> {
    replace(path, content, true)
}

/// The same in the run directory, whose files are made anew before every start: nothing is flushed, since a failover waits for
/// it, and one that says the same already is left alone.
pub(super) fn write_generated(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let private =
        |path: &Path| fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o777 == 0o600);
    if private(path) && fs::read(path).is_ok_and(|found| found == content) {
        return Ok(());
    }
    replace(path, content, false)
}

fn replace(path: &Path, content: &[u8], durable: bool) -> Result<(), FileError> {
    let new = with_suffix(path, ".new");
    match fs::remove_file(&new) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).file("remove file", &new),
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .file("create file", &new)?;
    file.write_all(content).file("write file", &new)?;
    if durable {
        file.sync_all().file("fsync file", &new)?;
    }
    fs::rename(&new, path).file("rename file", &new)
}

/// Makes a directory (parents too) for the owner alone; one that exists is left as it is.
pub(super) fn create_private_directory(path: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .file("create directory", path)
}

/// Sets the mode, and says who owns the file if that is not allowed.
pub(super) fn set_mode(path: &Path, mode: u32) -> Result<(), FileError> {
    fs::set_permissions(path, Permissions::from_mode(mode)).file("change the mode of", path)
}

pub(super) fn sync_directory(path: &Path) -> Result<(), FileError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .file("fsync directory", path)
}

/// Whether anything, even a dangling link, has this name.
pub(super) fn exists(path: &Path) -> Result<bool, FileError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).file("stat", path),
    }
}

/// `a/b` and `.new` give `a/b.new`, whatever dots the name has.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_file_is_0600_and_replaces_what_was_there() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("a.conf");
        fs::write(&path, "old").expect("write");
        fs::write(with_suffix(&path, ".new"), "left over").expect("write");
        write_private(&path, b"new").expect("write_private");
        assert_eq!(fs::read_to_string(&path).expect("read"), "new");
        let mode = fs::metadata(&path).expect("stat").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert!(!exists(&with_suffix(&path, ".new")).expect("exists"));
    }

    #[test]
    fn a_generated_file_that_says_the_same_is_left_alone_unless_others_may_read_it() {
        use std::os::unix::fs::MetadataExt as _;
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("a.conf");
        let write = |content: &[u8]| {
            write_generated(&path, content).expect("write_generated");
            fs::metadata(&path).expect("stat").ino()
        };
        let first = write(b"one");
        assert_eq!(write(b"one"), first);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("chmod");
        write(b"one");
        assert_eq!(
            fs::metadata(&path).expect("stat").permissions().mode() & 0o7777,
            0o600
        );
        write(b"two");
        assert_eq!(fs::read(&path).expect("read"), b"two");
    }
}
