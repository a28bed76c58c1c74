//! `pg_combinebackup`: a data directory from a full backup and the incremental ones that add to it (17 and later).

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use super::error::ProgramError;
use super::process::{Locale, command};
use super::program;

/// Writing every byte of a very large directory.
const LIMIT: Duration = Duration::from_hours(24);

/// What is put together, and how.
#[derive(Clone, Copy, Debug)]
pub struct Combination<'a> {
    /// Extracted backups, each with its `backup_manifest`, the full one first.
    pub links: &'a [PathBuf],
    /// Absent, or empty.
    pub output: &'a Path,
    /// Files that are taken as they are become hard links (18 and later): the links are then good for nothing else.
    pub consume: bool,
    /// Writes a manifest of the result.
    pub manifest: bool,
}

/// Puts a chain together. Nothing is synced; what a failure has left in `output` is the caller's to remove.
///
/// # Errors
/// What the program said, e.g. that the backups do not follow each other.
pub async fn combine_backups(
    program_directory: &Path,
    combination: &Combination<'_>,
) -> Result<(), ProgramError> {
    let program = program_directory.join("pg_combinebackup");
    let mut combine = command(&program, Locale::C, Signal::KILL);
    combine.arg("--no-sync");
    if combination.consume {
        combine.arg("--link");
    }
    if !combination.manifest {
        combine.arg("--no-manifest");
    }
    combine.arg("--output").arg(combination.output);
    combine.args(combination.links);
    program::run(combine, LIMIT).await.map(drop)
}
