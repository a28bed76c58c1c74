//! `pg_verifybackup`: whether a restored directory is what its manifest says.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use super::error::ProgramError;
use super::process::{Locale, command};
use super::program;

const PROGRAM: &str = "pg_verifybackup";
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
    let mut verify = command(&program_directory.join(PROGRAM), Locale::C, Signal::KILL);
    verify
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--quiet")
        .arg(directory);
    program::run(verify, LIMIT).await.map(drop)
}

/// Whether it was the directory that `pg_verifybackup` did not like: it was there, and had all that it needs itself.
#[must_use]
pub fn differs(error: &ProgramError) -> bool {
    let unable = [
        "is needed by",
        "was found by",
        "out of memory",
        "Permission denied",
        "Input/output error",
    ];
    error.exited(PROGRAM, 1) && !unable.iter().any(|part| error.output().contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_the_programs_libraries_was_taken_for_a_bad_backup() {
        for (outcome, output, expected) in [
            (
                "exited with code 1",
                "checksum mismatch for file \"PG_VERSION\"",
                true,
            ),
            (
                "exited with code 127",
                "error while loading shared libraries: libpq.so.5",
                false,
            ),
            ("was killed by signal 9", "", false),
            (
                "exited with code 1",
                "program \"pg_waldump\" is needed by pg_verifybackup but was not found in the same directory",
                false,
            ),
        ] {
            let error = ProgramError::Failed {
                program: PROGRAM.to_owned(),
                outcome: outcome.to_owned(),
                output: output.to_owned(),
            };
            assert_eq!(differs(&error), expected, "{error}");
        }
    }
}
