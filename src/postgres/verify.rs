//! `pg_verifybackup` and `pg_combinebackup`: whether a restored directory is what its manifest says.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use super::error::ProgramError;
use super::process::{Locale, command};
use super::program;

/// Reading every byte of a very large directory.
const LIMIT: Duration = Duration::from_hours(24);

/// Compares every file with the manifest, and reads the WAL that the backup needs.
///
/// # Errors
/// The first lines of what differs.
pub async fn verify_backup(
    program_directory: &Path,
    directory: &Path,
    manifest: &Path,
) -> Result<(), ProgramError> {
    let mut verify = command(
        &program_directory.join("pg_verifybackup"),
        Locale::C,
        Signal::KILL,
    );
    verify
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--quiet")
        .arg(directory);
    program::run(verify, LIMIT).await.map(drop)
}

/// Makes a full directory of a full backup and the incremental ones after it, oldest first (PostgreSQL 17 and later).
///
/// # Errors
/// They do not fit each other.
pub async fn combine_backups(
    program_directory: &Path,
    chain: &[PathBuf],
    into: &Path,
) -> Result<(), ProgramError> {
    let mut combine = command(
        &program_directory.join("pg_combinebackup"),
        Locale::C,
        Signal::KILL,
    );
    combine.arg("--no-sync").arg("--output").arg(into).args(chain);
    program::run(combine, LIMIT).await.map(drop)
}
