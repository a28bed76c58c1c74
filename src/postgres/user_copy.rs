//! The user's `*.conf` and `pg_hba.conf` as a copy in the run directory, and which copy PostgreSQL has accepted.
//!
//! Two folders take turns, and a link names the one that was accepted last: what is refused never takes its place. A
//! file with includes of its own has no copy, since what it includes may be named from where it stands.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{ServerSettings, accepted, conf, tls_files};
use crate::files::{FileContext as _, FileError};
use crate::files::{create_private_directory, with_suffix, write_generated};

/// A link to the folder that was accepted last.
const LINK: &str = "user";
const FOLDERS: [&str; 2] = ["user-a", "user-b"];

/// The settings by which a configuration is made from a copy of the user's files as they are now; from the mounted folder
/// itself if one of them includes others. Blocks.
///
/// # Errors
/// A file cannot be read, or the copy cannot be written.
pub(super) fn stage(settings: &ServerSettings) -> Result<ServerSettings, FileError> {
    let Some(mounted) = &settings.user_configuration else {
        return Ok(settings.clone());
    };
    let files = read(mounted)?;
    if files.iter().any(|(_, content)| accepted::includes_more(content)) {
        return Ok(settings.clone());
    }
    let known = linked(settings);
    let same = |folder: &PathBuf| read(folder).is_ok_and(|found| found == files);
    if let Some(folder) = known.clone().filter(same) {
        return Ok(from(settings, folder));
    }
    let folders = FOLDERS.map(|name| settings.run_directory.join(name));
    let [first, second] = folders;
    let folder = if known.as_ref() == Some(&first) {
        second
    } else {
        first
    };
    clear(&folder)?;
    create_private_directory(&folder)?;
    for (name, content) in files {
        write_generated(&folder.join(name), &content)?;
    }
    Ok(from(settings, folder))
}

/// PostgreSQL has accepted what was `staged`. Blocks.
///
/// # Errors
/// The run directory cannot be written.
pub(super) fn keep(settings: &ServerSettings, staged: &ServerSettings) -> Result<(), FileError> {
    let link = settings.run_directory.join(LINK);
    let Some(folder) = &staged.user_configuration else {
        return Ok(());
    };
    if staged.user_configuration == settings.user_configuration {
        return absent(fs::remove_file(&link)).file("remove file", &link);
    }
    if linked(settings).as_ref() == Some(folder) {
        return Ok(());
    }
    let new = with_suffix(&link, ".new");
    absent(fs::remove_file(&new)).file("remove file", &new)?;
    symlink(folder, &new).file("create link", &new)?;
    fs::rename(&new, &link).file("rename file", &new)
}

/// The settings by which a configuration is made from what PostgreSQL accepted last in this pod: the user's files and those of TLS
/// that are in the run directory. `None` if nothing was, or of the user's files no copy was. Blocks.
pub(super) fn last_accepted(settings: &ServerSettings) -> Option<ServerSettings> {
    if !conf::path(settings).exists() {
        return None;
    }
    let copied = tls_files::with_copies(settings);
    match &settings.user_configuration {
        Some(_) => linked(settings).map(|folder| from(&copied, folder)),
        None => Some(copied),
    }
}

fn linked(settings: &ServerSettings) -> Option<PathBuf> {
    let folder = fs::read_link(settings.run_directory.join(LINK)).ok()?;
    folder.is_dir().then_some(folder)
}

fn from(settings: &ServerSettings, folder: PathBuf) -> ServerSettings {
    ServerSettings {
        user_configuration: Some(folder),
        ..settings.clone()
    }
}

/// Each file by its name, in order.
fn read(folder: &Path) -> Result<Vec<(OsString, Vec<u8>)>, FileError> {
    let files = conf::user_files(folder)?.into_iter();
    let read = |file: PathBuf| {
        let content = fs::read(&file).file("read file", &file)?;
        Ok((file.file_name().unwrap_or_default().to_owned(), content))
    };
    files.map(read).collect()
}

fn clear(folder: &Path) -> Result<(), FileError> {
    absent(fs::remove_dir_all(folder)).file("remove directory", folder)
}

/// What is not there need not be removed.
fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::postgres::fixtures::settings;

    fn put(settings: &ServerSettings, files: &[(&str, &str)]) {
        let folder = settings.user_configuration.as_ref().expect("a folder");
        clear(folder).expect("clear");
        fs::create_dir_all(folder).expect("mkdir");
        for (name, content) in files {
            fs::write(folder.join(name), content).expect("write");
        }
    }

    fn accept(settings: &ServerSettings) -> ServerSettings {
        let staged = stage(settings).expect("staged");
        keep(settings, &staged).expect("kept");
        fs::write(conf::path(settings), "").expect("write");
        staged
    }

    fn copy_of(settings: &ServerSettings) -> Vec<(OsString, Vec<u8>)> {
        let accepted = last_accepted(settings).expect("accepted");
        read(&accepted.user_configuration.expect("a copy")).expect("readable")
    }

    fn names(files: &[(OsString, Vec<u8>)]) -> Vec<&str> {
        files.iter().filter_map(|(name, _)| name.to_str()).collect()
    }

    #[test]
    fn a_file_that_was_removed_vanishes_and_what_is_refused_changes_nothing() {
        let folder = tempfile::tempdir().expect("folder");
        let settings = settings(folder.path());
        put(
            &settings,
            &[("a.conf", "one"), ("pg_hba.conf", "two"), ("notes", "")],
        );
        assert!(last_accepted(&settings).is_none(), "of a new pod");
        let first = accept(&settings);
        assert_eq!(names(&copy_of(&settings)), ["a.conf", "pg_hba.conf"]);
        let copy = first.user_configuration.clone().expect("a copy");
        let mode = |path: &Path| fs::metadata(path).expect("stat").permissions().mode() & 0o777;
        assert_eq!((mode(&copy), mode(&copy.join("a.conf"))), (0o700, 0o600));

        put(&settings, &[("a.conf", "refused")]);
        for _ in 0..2 {
            let refused = stage(&settings).expect("staged");
            assert_ne!(refused.user_configuration, first.user_configuration);
        }
        assert_eq!(names(&copy_of(&settings)), ["a.conf", "pg_hba.conf"]);
        assert_eq!(copy_of(&settings)[0].1, b"one");

        put(&settings, &[("a.conf", "three")]);
        let third = accept(&settings);
        assert_eq!(names(&copy_of(&settings)), ["a.conf"]);
        assert_eq!(copy_of(&settings)[0].1, b"three");
        assert_eq!(
            stage(&settings).expect("the same").user_configuration,
            third.user_configuration
        );
    }

    #[test]
    fn a_file_with_includes_is_read_where_it_stands_and_has_no_copy() {
        let folder = tempfile::tempdir().expect("folder");
        let settings = settings(folder.path());
        put(&settings, &[("a.conf", "one")]);
        accept(&settings);
        put(&settings, &[("a.conf", "one"), ("b.conf", "include 'more/c'")]);
        let staged = stage(&settings).expect("staged");
        assert_eq!(staged.user_configuration, settings.user_configuration);
        assert_eq!(copy_of(&settings)[0].1, b"one", "as long as it is not accepted");
        keep(&settings, &staged).expect("kept");
        assert!(last_accepted(&settings).is_none());
    }
}
