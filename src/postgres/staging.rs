//! Where a new data directory grows until it is complete, and how it takes its final name.
//!
//! Beside PGDATA there may be `.podgres-staging` (being made), `.podgres-discarded` (a stale copy
//! that makes room) and `.podgres-deleting` (on its way out). Only PGDATA is ever started. A kill between any
//! two steps leaves names from which [`recover`] finds back to a PGDATA that is absent or complete.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, StatxAttributes, StatxFlags};

use super::ServerSettings;
use super::data_directory;
use super::error::JobError;
use super::files::blocking;
use super::leftovers;
use crate::files::{
    self, FileContext as _, FileError, create_private_directory, exists, remove_tree, sync_directory,
    with_suffix,
};

const STAGING: &str = ".podgres-staging";
const DISCARDED: &str = ".podgres-discarded";
const DELETING: &str = ".podgres-deleting";

/// What stands at PGDATA when a job begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Nothing may be there.
    Empty,
    /// Whatever is there gives way to the new directory.
    Replace,
}

/// Repairs what a killed job left; called at every start of a supervisor, before anything else.
///
/// Deletes unfinished copies. A discarded directory goes back to PGDATA if nothing has taken its place.
///
/// # Errors
/// The volume does not allow it.
pub async fn recover(settings: &ServerSettings) -> Result<(), FileError> {
    let data_directory = settings.data_directory.clone();
    blocking(move || {
        if !exists(parent(&data_directory))? {
            return Ok(());
        }
        clean(&data_directory)?;
        let discarded = with_suffix(&data_directory, DISCARDED);
        if !exists(&discarded)? {
            return Ok(());
        }
        if files::exists(&data_directory.join("global/pg_control"))? {
            tracing::info!(directory = %discarded.display(), "deleting the directory that a finished clone has replaced");
            return delete(&data_directory, &discarded);
        }
        if !data_directory::entries(&data_directory)?.is_empty() {
            tracing::warn!(directory = %discarded.display(), "keeping a discarded data directory, since the one in its place is not complete");
            return Ok(());
        }
        tracing::info!(directory = %data_directory.display(), "putting back the directory that an interrupted clone had set aside");
        fs::rename(&discarded, &data_directory).file("rename directory", &discarded)?;
        sync_directory(parent(&data_directory))
    })
    .await
}

/// The directory that the running job fills: `<PGDATA>.podgres-staging`.
#[must_use]
pub fn staging_directory(settings: &ServerSettings) -> PathBuf {
    with_suffix(&settings.data_directory, STAGING)
}

/// Whether a new directory could take PGDATA's name at all: not if PGDATA is a mount point.
///
/// # Errors
/// The reason why it cannot.
pub fn replaceable(settings: &ServerSettings) -> Result<(), JobError> {
    check_place(&settings.data_directory)
}

/// Checks that a new directory can take PGDATA's name, and cleans what an earlier job left.
pub(super) async fn begin(settings: &ServerSettings, target: Target) -> Result<PathBuf, JobError> {
    recover(settings).await?;
    let data_directory = settings.data_directory.clone();
    let staging = staging_directory(settings);
    blocking(move || {
        check_name(&data_directory, target)?;
        let parent = parent(&data_directory);
        create_private_directory(parent)?;
        // Else the tool that fills it would say so, in words that are not understood.
        let wanted = Access::WRITE_OK | Access::EXEC_OK;
        rustix::fs::accessat(CWD, parent, wanted, AtFlags::EACCESS).file("write to directory", parent)?;
        Ok(staging)
    })
    .await
}

/// Makes the staged directory PGDATA, durably; with [`Target::Replace`] what stood there is deleted.
pub(super) async fn publish(settings: &ServerSettings, target: Target) -> Result<(), JobError> {
    let data_directory = settings.data_directory.clone();
    blocking(move || {
        let staging = with_suffix(&data_directory, STAGING);
        files::set_mode(&staging, 0o700)?;
        // One call for thousands of files. It reports write errors since Linux 5.8.
        let tree = File::open(&staging).file("open directory", &staging)?;
        rustix::fs::syncfs(&tree).file("fsync the file system of", &staging)?;
        check_name(&data_directory, target)?;
        if target == Target::Replace {
            discard(&data_directory)?;
        }
        // rename(2) takes the place of an empty directory, and of nothing else.
        fs::rename(&staging, &data_directory).file("rename directory", &staging)?;
        sync_directory(parent(&data_directory))?;
        delete(&data_directory, &with_suffix(&data_directory, DISCARDED))?;
        Ok(())
    })
    .await
}

/// Deletes the stale directory at PGDATA before its successor is complete, for want of space.
pub(super) async fn give_up_current(settings: &ServerSettings) -> Result<(), FileError> {
    let data_directory = settings.data_directory.clone();
    blocking(move || delete(&data_directory, &data_directory)).await
}

/// Deletes the staged directory of a job that failed.
pub(super) async fn abandon(settings: &ServerSettings) -> Result<(), FileError> {
    let data_directory = settings.data_directory.clone();
    blocking(move || clean(&data_directory)).await
}

/// Bytes that an unprivileged user may still write on the volume of `path`.
///
/// # Errors
/// Nothing on the way to `path` can be looked at.
pub fn free_bytes(path: &Path) -> Result<u64, FileError> {
    let volume = volume(path)?;
    Ok(volume.f_bavail.saturating_mul(volume.f_frsize))
}

/// The size of the volume of `path`.
///
/// # Errors
/// As [`free_bytes`].
pub fn total_bytes(path: &Path) -> Result<u64, FileError> {
    let volume = volume(path)?;
    Ok(volume.f_blocks.saturating_mul(volume.f_frsize))
}

/// Bytes that the files below `path` take on the disk.
pub(super) fn used_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return 0;
    };
    let below = match fs::read_dir(path) {
        Ok(entries) if metadata.is_dir() => entries.flatten().map(|entry| used_bytes(&entry.path())).sum(),
        _ => 0,
    };
    metadata.blocks() * 512 + below
}

/// Whether syncfs(2) of this kernel reports write errors: since Linux 5.8.
pub(super) fn syncfs_reports_errors() -> bool {
    reports_errors(&rustix::system::uname().release().to_string_lossy())
}

/// For a kernel release as uname(2) gives it, e.g. `6.1.0-13-amd64`.
fn reports_errors(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|digits| digits.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(8))
}

fn volume(path: &Path) -> Result<rustix::fs::StatVfs, FileError> {
    // PGDATA may not exist yet; its volume does.
    let existing = path
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    rustix::fs::statvfs(existing).file("stat the file system of", existing)
}

fn parent(data_directory: &Path) -> &Path {
    data_directory.parent().unwrap_or(Path::new("/"))
}

/// PGDATA is something that `rename` can replace, or nothing.
///
/// # Errors
/// It is a mount point, or a symbolic link.
pub fn check_place(data_directory: &Path) -> Result<(), JobError> {
    let path = data_directory.to_owned();
    if path.is_symlink() {
        return Err(JobError::SymbolicLink { path });
    }
    if exists(data_directory)? && is_mount_point(data_directory)? {
        return Err(JobError::MountPoint { path });
    }
    Ok(())
}

fn check_name(data_directory: &Path, target: Target) -> Result<(), JobError> {
    check_place(data_directory)?;
    if !exists(data_directory)? {
        return Ok(());
    }
    let path = data_directory.to_owned();
    let entries = data_directory::entries(data_directory)?;
    if target == Target::Empty && !entries.is_empty() {
        let found = data_directory::name(&entries);
        return Err(JobError::NotEmpty { path, found });
    }
    match leftovers::programs_in(data_directory).first() {
        Some(&pid) => Err(JobError::InUse { path, pid }),
        None => Ok(()),
    }
}

/// Whether something is mounted on `path`; a bind mount of the same file system counts.
fn is_mount_point(path: &Path) -> Result<bool, FileError> {
    use std::os::unix::fs::MetadataExt as _;
    if let Ok(status) = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS)
        && status.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
    {
        return Ok(status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    // Before Linux 5.8: another device than the parent's.
    let own = fs::metadata(path).file("stat directory", path)?;
    let above = fs::metadata(parent(path)).file("stat directory", parent(path))?;
    Ok(own.dev() != above.dev())
}

/// Ends programs that still write to it, then deletes the unfinished directory.
fn clean(data_directory: &Path) -> Result<(), FileError> {
    let staging = with_suffix(data_directory, STAGING);
    leftovers::end_programs_in(&staging);
    remove_tree(&staging)?;
    remove_tree(&with_suffix(data_directory, DELETING))
}

/// Sets PGDATA aside; [`recover`] brings it back until something else has its name.
fn discard(data_directory: &Path) -> Result<(), FileError> {
    let discarded = with_suffix(data_directory, DISCARDED);
    delete(data_directory, &discarded)?;
    if exists(data_directory)? {
        fs::rename(data_directory, &discarded).file("rename directory", data_directory)?;
        sync_directory(parent(data_directory))?;
    }
    Ok(())
}

/// Deletes a directory that might pass for complete: its name goes first, at once and durably, so
/// that a half deleted one is never taken for data.
fn delete(data_directory: &Path, directory: &Path) -> Result<(), FileError> {
    if !exists(directory)? {
        return Ok(());
    }
    let deleting = with_suffix(data_directory, DELETING);
    remove_tree(&deleting)?;
    fs::rename(directory, &deleting).file("rename directory", directory)?;
    sync_directory(parent(data_directory))?;
    remove_tree(&deleting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_5_8_are_told_apart() {
        for (release, expected) in [
            ("6.1.0-13-amd64", true),
            ("5.8.0", true),
            ("5.15.0-1042-aws", true),
            ("5.4.0-150-generic", false),
            ("4.18.0-477.el8.x86_64", false),
            ("", false),
        ] {
            assert_eq!(reports_errors(release), expected, "{release}");
        }
    }
}
