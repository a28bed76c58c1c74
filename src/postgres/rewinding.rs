//! The mark beside PGDATA that says: `pg_rewind` is changing this directory, so it must not be started.
//!
//! Holds the directory's incarnation. A directory that bears another one of this member's since was rewound to the end
//! or replaced; so the new name is what ends a rewind, and the mark may go at any later time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::incarnation;
use crate::files::{FileContext as _, FileError, sync_directory, with_suffix, write_private};

const SUFFIX: &str = ".podgres-rewinding";

fn path(data_directory: &Path) -> PathBuf {
    with_suffix(data_directory, SUFFIX)
}

/// Marks the directory durably. Blocks.
pub(super) fn begin(data_directory: &Path, member: &str) -> Result<(), FileError> {
    let own = incarnation::ensure(data_directory, member)?;
    let path = path(data_directory);
    write_private(&path, own.0.as_bytes())?;
    sync_directory(path.parent().unwrap_or(Path::new("/")))
}

/// Takes the mark away. Blocks.
pub(super) fn end(data_directory: &Path) -> Result<(), FileError> {
    let path = path(data_directory);
    match fs::remove_file(&path) {
        Ok(()) => sync_directory(path.parent().unwrap_or(Path::new("/"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).file("remove file", &path),
    }
}

/// Whether a rewind of this directory began and did not end. Blocks.
pub(super) fn is_half_done(data_directory: &Path, member: &str) -> Result<bool, FileError> {
    let path = path(data_directory);
    let marked = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).file("read file", &path),
    };
    let now = incarnation::read(data_directory, member)?;
    Ok(now.is_none_or(|now| now.0.as_bytes() == marked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_new_name_of_its_own_ends_a_rewind() {
        let folder = tempfile::tempdir().expect("folder");
        let data = folder.path().join("data");
        fs::create_dir(&data).expect("mkdir");
        let half = || is_half_done(&data, "pg-0").expect("readable");
        assert!(!half());
        begin(&data, "pg-0").expect("marked");
        assert!(half(), "before anything was changed");
        incarnation::renew(&data, "pg-1").expect("copied");
        assert!(half(), "with the source's name");
        incarnation::renew(&data, "pg-0").expect("renamed");
        assert!(!half(), "though the mark is still there");
        begin(&data, "pg-0").expect("marked again");
        assert!(half());
        end(&data).expect("removed");
        assert!(!half());
        end(&data).expect("once more");
    }
}
