//! Small file operations that must be whole, private or durable. All of it blocks.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("could not {verb} \"{}\"", path.display())]
pub struct FileError {
    /// What was tried: "read file", "rename directory".
    pub verb: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// Says which file an [`io::Error`] is about.
pub(crate) trait FileContext<T> {
    fn file(self, verb: &'static str, path: &Path) -> Result<T, FileError>;
}

impl<T, E: Into<io::Error>> FileContext<T> for Result<T, E> {
    fn file(self, verb: &'static str, path: &Path) -> Result<T, FileError> {
        self.map_err(|source| FileError {
            verb,
            path: path.to_owned(),
            source: source.into(),
        })
    }
}

/// How a file is made that takes the place of another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Making {
    /// Less what the process' umask takes away.
    pub(crate) mode: u32,
    /// User and group; `None`: those of this process.
    pub(crate) owner: Option<(u32, u32)>,
    /// Its content is on the disk before it has its name; the name itself is not, before [`sync_directory`].
    pub(crate) durable: bool,
}

/// For the owner alone, and durable.
const PRIVATE: Making = Making {
    mode: 0o600,
    owner: None,
    durable: true,
};

/// Replaces `path` by a file with `content` that only its owner may read; never half written.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<(), FileError> {
    replace(path, content, PRIVATE)
}

/// The same in the run directory, whose files are made anew before every start: nothing is flushed, since a failover waits for
/// it, and one that says the same already is left alone.
pub(crate) fn write_generated(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let private =
        |path: &Path| fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o777 == 0o600);
    if private(path) && fs::read(path).is_ok_and(|found| found == content) {
        return Ok(());
    }
    let durable = false;
    replace(path, content, Making { durable, ..PRIVATE })
}

/// Writes beside and renames, so that the file is never there without its content, owner and mode.
pub(crate) fn replace(path: &Path, content: &[u8], making: Making) -> Result<(), FileError> {
    let new = with_suffix(path, ".new");
    remove_file(&new)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(making.mode)
        .open(&new)
        .file("create file", &new)?;
    file.write_all(content).file("write file", &new)?;
    if let Some((user, group)) = making.owner {
        fchown(&file, Some(user), Some(group)).file("change the owner of", &new)?;
    }
    if making.durable {
        file.sync_all().file("fsync file", &new)?;
    }
    fs::rename(&new, path).file("rename file", &new)
}

/// Makes a directory (parents too) for the owner alone; one that exists is left as it is.
pub(crate) fn create_private_directory(path: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .file("create directory", path)
}

/// Sets the mode, and says who owns the file if that is not allowed.
pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<(), FileError> {
    fs::set_permissions(path, Permissions::from_mode(mode)).file("change the mode of", path)
}

pub(crate) fn sync_directory(path: &Path) -> Result<(), FileError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .file("fsync directory", path)
}

/// Whether anything, even a dangling link, has this name.
pub(crate) fn exists(path: &Path) -> Result<bool, FileError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).file("stat", path),
    }
}

/// Removes a file that may be there.
pub(crate) fn remove_file(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).file("remove file", path),
        _ => Ok(()),
    }
}

/// Removes a directory that may be there, with all that is in it.
pub(crate) fn remove_tree(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).file("remove directory", path),
        _ => Ok(()),
    }
}

/// Removes a file, or a directory with all that is in it.
pub(crate) fn remove_any(path: &Path) -> Result<(), FileError> {
    if path.is_dir() {
        remove_tree(path)
    } else {
        remove_file(path)
    }
}

/// `a/b` and `.new` give `a/b.new`, whatever dots the name has.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
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
