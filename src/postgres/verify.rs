//! `pg_verifybackup`: whether a restored directory is what its manifest says.

use std::path::Path;
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
