//! Looks at PGDATA while PostgreSQL is stopped, and gives it the mode that PostgreSQL demands.
//!
//! Never changes anything but that mode. What is not understood is `Unusable`, with the reason.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use super::ServerSettings;
use super::error::ProgramError;
use super::files::blocking;
use super::process::{Locale, command};
use super::{program, rewinding};
use crate::core::data_directory::{ControlState, DataDirectory, DataDirectoryFacts, SystemIdentifier};
use crate::core::wal::{Lsn, TimelineId};
use crate::files::{self, FileContext as _, FileError};

/// `pg_controldata` reads one page.
const CONTROLDATA_LIMIT: Duration = Duration::from_secs(30);
/// `PG_MODE_MASK_OWNER`'s counterpart: the owner alone.
const MODE: u32 = 0o700;
/// Entries named in the description of a directory that is no data directory.
const NAMED_ENTRIES: usize = 3;

/// Why a data directory could not be looked at; not what was found in it.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// Looks at PGDATA. Meant for a stopped server: the control file of a running one lags behind.
///
/// # Errors
/// Files or `pg_controldata` could not be read or run, so that nothing is known.
pub async fn inspect(settings: &ServerSettings) -> Result<DataDirectory, InspectError> {
    let mut found = inspect_at(settings, &settings.data_directory).await?;
    if let DataDirectory::Complete(facts) = &mut found {
        let (directory, member) = (settings.data_directory.clone(), settings.member.clone());
        facts.half_rewound = blocking(move || rewinding::is_half_done(&directory, &member)).await?;
    }
    Ok(found)
}

/// The control file as it is, to see whether it has changed; `None` if it cannot be read.
pub async fn control_file(settings: &ServerSettings) -> Option<Vec<u8>> {
    let path = settings.data_directory.join("global/pg_control");
    blocking(move || Ok::<_, FileError>(fs::read(path).ok()))
        .await
        .ok()?
}

/// As [`inspect`], for a directory that is not (yet) PGDATA.
pub(super) async fn inspect_at(
    settings: &ServerSettings,
    directory: &Path,
) -> Result<DataDirectory, InspectError> {
    let path = directory.to_owned();
    let held = match blocking(move || look(&path)).await? {
        Look::Empty => return Ok(DataDirectory::Empty),
        Look::Strange(detail) => return Ok(DataDirectory::Unusable { detail }),
        Look::Cluster(held) => held,
    };
    let mut controldata = command(&settings.program("pg_controldata"), Locale::C, Signal::KILL);
    controldata.arg("-D").arg(directory);
    let lines = match program::run(controldata, CONTROLDATA_LIMIT).await {
        Ok(lines) => lines,
        // It started and gave up: the file is damaged, which is a finding.
        Err(error @ ProgramError::Failed { .. }) if !error.killed() => {
            return Ok(DataDirectory::Unusable {
                detail: error.to_string(),
            });
        }
        Err(error) => return Err(error.into()),
    };
    Ok(match facts(&held, &lines) {
        Ok(facts) => DataDirectory::Complete(facts),
        Err(detail) => DataDirectory::Unusable { detail },
    })
}

/// Gives PGDATA mode 0700 if it exists: a volume's `fsGroup` makes it 2770 at every mount, which
/// PostgreSQL refuses. Its parents and its content stay as they are.
///
/// # Errors
/// The directory belongs to another user.
pub async fn repair_mode(settings: &ServerSettings) -> Result<(), FileError> {
    let path = settings.data_directory.clone();
    blocking(move || {
        let mode = match fs::metadata(&path) {
            Ok(metadata) => metadata.permissions().mode() & 0o7777,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).file("stat directory", &path),
        };
        if mode != MODE {
            files::set_mode(&path, MODE)?;
            tracing::info!(directory = %path.display(), from = format!("{mode:04o}"), "repaired the mode of the data directory to 0700");
        }
        Ok(())
    })
    .await
}

/// What the names alone tell.
enum Look {
    Empty,
    Strange(String),
    Cluster(Held),
}

/// What the files beside `pg_control` tell.
struct Held {
    major_version: u32,
    standby_signal: bool,
    recovery_signal: bool,
    backup_label: bool,
}

fn look(directory: &Path) -> Result<Look, FileError> {
    let entries = match entries(directory) {
        Err(error) if error.source.kind() == io::ErrorKind::NotADirectory => {
            return Ok(Look::Strange("is not a directory".into()));
        }
        entries => entries?,
    };
    if entries.is_empty() {
        return Ok(Look::Empty);
    }
    if !files::exists(&directory.join("global/pg_control"))? {
        return Ok(Look::Strange(format!(
            "holds {}, but no \"global/pg_control\"",
            name(&entries)
        )));
    }
    let version_file = directory.join("PG_VERSION");
    let version = match fs::read_to_string(&version_file) {
        Ok(text) => text.trim().parse(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Look::Strange(
                "holds \"global/pg_control\", but no \"PG_VERSION\"".into(),
            ));
        }
        Err(error) => return Err(error).file("read file", &version_file),
    };
    let Ok(major_version) = version else {
        return Ok(Look::Strange("has an unreadable \"PG_VERSION\"".into()));
    };
    Ok(Look::Cluster(Held {
        major_version,
        standby_signal: files::exists(&directory.join("standby.signal"))?,
        recovery_signal: files::exists(&directory.join("recovery.signal"))?,
        backup_label: files::exists(&directory.join("backup_label"))?,
    }))
}

/// The sorted names in a directory without `lost+found`; none if there is no directory.
pub(super) fn entries(directory: &Path) -> Result<Vec<String>, FileError> {
    let listing = match fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).file("read directory", directory),
    };
    let mut names = Vec::new();
    for entry in listing {
        let entry = entry.file("read directory", directory)?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name != "lost+found");
    names.sort();
    Ok(names)
}

/// "\"a\", \"b\" and 4 more".
pub(super) fn name(entries: &[String]) -> String {
    let shown: Vec<String> = entries
        .iter()
        .take(NAMED_ENTRIES)
        .map(|e| format!("{e:?}"))
        .collect();
    let rest = entries.len() - shown.len();
    let shown = shown.join(", ");
    if rest == 0 {
        shown
    } else {
        format!("{shown} and {rest} more")
    }
}

/// Reads `pg_controldata`'s report (`src/bin/pg_controldata/pg_controldata.c`, same wording in 15 to 18).
fn facts(held: &Held, lines: &[String]) -> Result<DataDirectoryFacts, String> {
    if lines.iter().any(|line| line.starts_with("WARNING: ")) {
        return Err(format!(
            "\"global/pg_control\" is damaged or was not written by these programs (\"PG_VERSION\" says {})",
            held.major_version
        ));
    }
    let text = |key: &str| {
        lines
            .iter()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
            .map(str::trim)
            .ok_or_else(|| format!("pg_controldata does not show \"{key}\""))
    };
    let number = |key: &str| parse::<u32>(key, text(key)?);
    let lsn = |key: &str| parse::<Lsn>(key, text(key)?);
    Ok(DataDirectoryFacts {
        system_identifier: SystemIdentifier(parse(
            "Database system identifier",
            text("Database system identifier")?,
        )?),
        major_version: held.major_version,
        timeline: TimelineId(
            number("Latest checkpoint's TimeLineID")?.max(number("Min recovery ending loc's timeline")?),
        ),
        control_lsn: lsn("Latest checkpoint location")?.max(lsn("Minimum recovery ending location")?),
        control_state: control_state(text("Database cluster state")?)?,
        standby_signal: held.standby_signal,
        recovery_signal: held.recovery_signal,
        backup_label: held.backup_label,
        half_rewound: false,
    })
}

fn parse<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|_| format!("pg_controldata shows \"{key}\" as \"{value}\""))
}

fn control_state(text: &str) -> Result<ControlState, String> {
    Ok(match text {
        "starting up" => ControlState::StartingUp,
        "shut down" => ControlState::ShutDown,
        "shut down in recovery" => ControlState::ShutDownInRecovery,
        "shutting down" => ControlState::ShuttingDown,
        "in crash recovery" => ControlState::InCrashRecovery,
        "in archive recovery" => ControlState::InArchiveRecovery,
        "in production" => ControlState::InProduction,
        other => return Err(format!("pg_controldata shows the cluster state \"{other}\"")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> Held {
        Held {
            major_version: 16,
            standby_signal: true,
            recovery_signal: false,
            backup_label: false,
        }
    }

    fn report(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn the_further_of_checkpoint_and_recovery_point_counts() {
        let facts = facts(
            &held(),
            &report(&[
                "Database system identifier:           7400000000000000001",
                "Database cluster state:               in archive recovery",
                "Latest checkpoint location:           0/3000060",
                "Latest checkpoint's TimeLineID:       1",
                "Minimum recovery ending location:     0/5000000",
                "Min recovery ending loc's timeline:   2",
            ]),
        )
        .expect("facts");
        assert_eq!(facts.timeline, TimelineId(2));
        assert_eq!(facts.control_lsn, Lsn(0x500_0000));
        assert_eq!(facts.control_state, ControlState::InArchiveRecovery);
        assert_eq!(
            facts.system_identifier,
            SystemIdentifier(7_400_000_000_000_000_001)
        );
    }

    #[test]
    fn a_damaged_control_file_is_no_fact() {
        let error = facts(
            &held(),
            &report(&["WARNING: Calculated CRC checksum does not match value stored in file."]),
        )
        .expect_err("damaged");
        assert!(error.contains("damaged"), "{error}");
        assert!(facts(&held(), &[]).is_err());
    }

    #[test]
    fn few_entries_are_named() {
        let names: Vec<String> = ["a", "b", "c", "d", "e"].map(String::from).into();
        assert_eq!(name(&names), "\"a\", \"b\", \"c\" and 2 more");
        assert_eq!(name(&names[..1]), "\"a\"");
    }
}
