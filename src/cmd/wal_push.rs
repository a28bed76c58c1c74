//! `podgres wal-push PATH`: PostgreSQL's `archive_command`.
//!
//! The server's environment holds no secret, so what is needed to reach the archive comes by a file in the pod's run
//! directory, as the passwords of replication do.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backup::wal::{self, Writer};
use crate::backup::wal_batch::{Archiver, Marks};
use crate::backup::wal_place::Place;
use crate::backup::wal_standby;
use crate::config::ProcessEnvironment;
use crate::config::backup::StoreArguments;
use crate::config::server::ServerArguments;
use crate::core::data_directory::SystemIdentifier;
use crate::postgres::{ServerSettings, postmaster_pid, terms};
use crate::store::{Store, StoreSettings};

use super::{ExitStatus, Failure, backing};

const SETTINGS_FILE: &str = "archive.json";
const MARKS: &str = "archived";
/// PostgreSQL tries again, and says so in its log.
const LIMIT: Duration = Duration::from_mins(2);
/// A server that is to stop waits for its archiver, and a planned move for the server.
const STOPPING_LIMIT: Duration = Duration::from_secs(1);
const LOOK_PAUSE: Duration = Duration::from_millis(250);

#[derive(Args, Debug)]
pub struct Arguments {
    /// The file, %p
    pub path: PathBuf,
    /// Where the archive is [default: what --settings says]
    #[arg(long, env = "PODGRES_ARCHIVE_DESTINATION")]
    pub to: Option<String>,
    #[command(flatten)]
    pub store: StoreArguments,
    /// Name of this server in the archive
    #[arg(long, env = "POD_NAME", default_value = "")]
    pub member: String,
    /// Written by podgres for a server that it starts
    #[arg(long, hide = true, conflicts_with = "to")]
    pub settings: Option<PathBuf>,
}

/// What a server's `archive_command` needs to know.
#[derive(Serialize, Deserialize)]
struct Settings {
    destination: StoreSettings,
    key_file: Option<PathBuf>,
    member: String,
    marks: Option<PathBuf>,
}

/// Archives the file, and others that wait.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let settings = settings(&arguments)?;
    // PostgreSQL runs it in the data directory.
    let data_directory =
        std::env::current_dir().map_err(|error| Failure::from_error(ExitStatus::Overdue, &error))?;
    let system_identifier = wal::system_identifier(&data_directory)?;
    // Before anything else: most calls end here, and a bucket's client costs more than this.
    if let Some(marks) = settings.marks.clone().map(Marks)
        && marks.take(system_identifier, &data_directory.join(&arguments.path))?
    {
        return Ok(());
    }
    let archiver = archiver(settings, data_directory, system_identifier)?;
    push(&archiver, &arguments.path).await?;
    if let Some(place) = &archiver.place {
        place.remember()?;
    }
    Ok(())
}

async fn push(archiver: &Archiver, path: &Path) -> Result<(), Failure> {
    let stopping = postmaster_pid::is_stopping(&archiver.data_directory);
    let limit = if stopping { STOPPING_LIMIT } else { LIMIT };
    let ended = tokio::select! {
        ended = tokio::time::timeout(limit, archive(archiver, path)) => {
            ended.map_err(|_| late(archiver, limit)).and_then(|ended| ended)
        }
        failure = stops(archiver), if !stopping => Err(failure),
    };
    ended.map_err(|failure| {
        let stopping = stopping || postmaster_pid::is_stopping(&archiver.data_directory);
        // Tried again, it would hold up the stop, and a planned move; the next primary archives it.
        let status = if stopping {
            ExitStatus::NoRetry
        } else {
            failure.status
        };
        Failure { status, ..failure }
    })
}

fn settings(arguments: &Arguments) -> Result<Settings, Failure> {
    if let Some(path) = &arguments.settings {
        return read_settings(path);
    }
    let destination = arguments
        .store
        .settings("--to", arguments.to.as_deref(), &ProcessEnvironment)?;
    Ok(Settings {
        destination,
        key_file: arguments.store.key_file.clone(),
        member: arguments.member.clone(),
        marks: None,
    })
}

fn archiver(
    settings: Settings,
    data_directory: PathBuf,
    system_identifier: SystemIdentifier,
) -> Result<Archiver, Failure> {
    let key = StoreArguments {
        key_file: settings.key_file,
        ..StoreArguments::default()
    }
    .key()?;
    let place = Place::of(&settings.destination, system_identifier, &data_directory);
    let store = match &place {
        // A standby has nothing to archive yet.
        Some(place) => place.open(&settings.destination, !wal_standby::is_standby(&data_directory))?,
        None => Store::open(&settings.destination).map_err(|error| backing::failure(error.into()))?,
    };
    Ok(Archiver {
        store,
        place,
        writer: Writer {
            member: settings.member,
            term: terms::held_beside(&data_directory),
            key,
        },
        system_identifier,
        marks: settings.marks.map(Marks),
        data_directory,
    })
}

async fn archive(archiver: &Archiver, path: &Path) -> Result<(), Failure> {
    let standby = wal_standby::is_standby(&archiver.data_directory);
    if standby && wal_standby::confirmed(archiver, path).await? {
        return Ok(());
    }
    Ok(archiver.archive(path).await?)
}

/// Ends some time after the server was told to stop.
async fn stops(archiver: &Archiver) -> Failure {
    while !postmaster_pid::is_stopping(&archiver.data_directory) {
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    let standby = wal_standby::is_standby(&archiver.data_directory);
    tokio::time::sleep(if standby { Duration::ZERO } else { STOPPING_LIMIT }).await;
    late(archiver, STOPPING_LIMIT)
}

fn late(archiver: &Archiver, limit: Duration) -> Failure {
    let archive = &archiver.store;
    let whose = if wal_standby::is_standby(&archiver.data_directory) {
        "the primary has not archived it"
    } else {
        "could not archive"
    };
    Failure::new(
        ExitStatus::Overdue,
        format!("{whose} within {} s to \"{archive}\"", limit.as_secs()),
    )
    .hint("PostgreSQL keeps the file and tries again.")
}

/// Writes the file for the server's `archive_command`, and gives that command; `None` if nothing is archived.
pub(super) fn prepare(
    arguments: &ServerArguments,
    server: &ServerSettings,
) -> Result<Option<String>, Failure> {
    let Some(destination) = arguments
        .archive_destination
        .as_deref()
        .filter(|text| !text.is_empty())
    else {
        return Ok(None);
    };
    let settings = Settings {
        destination: arguments.store.settings(
            "PODGRES_ARCHIVE_DESTINATION",
            Some(destination),
            &ProcessEnvironment,
        )?,
        key_file: arguments.store.key_file.clone(),
        member: server.member.clone(),
        marks: Some(server.run_directory.join(MARKS)),
    };
    // A key that cannot be used is better known now than with the first segment.
    arguments.store.key()?;
    let path = server.run_directory.join(SETTINGS_FILE);
    backing::write_generated(&path, &serde_json::to_vec(&settings).unwrap_or_default())?;
    let binary = std::env::current_exe().map_err(|error| Failure::from_error(ExitStatus::Bug, &error))?;
    Ok(Some(command(&binary, &path)))
}

/// As the shell reads it, and `%` as PostgreSQL does.
fn command(binary: &Path, settings: &Path) -> String {
    let quoted = |path: &Path| {
        format!(
            "'{}'",
            path.to_string_lossy().replace('\'', "'\\''").replace('%', "%%")
        )
    };
    format!(
        "{} wal-push --log-format text --settings {} '%p'",
        quoted(binary),
        quoted(settings)
    )
}

pub(super) fn read_settings<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let unusable = |problem: String| {
        Failure::new(
            ExitStatus::Settings,
            format!("could not use \"{}\": {problem}", path.display()),
        )
    };
    let text = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| unusable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_survives_the_shell_and_postgresql() {
        assert_eq!(
            command(
                Path::new("/podgres/podgres"),
                Path::new("/run/it's 5%/archive.json")
            ),
            "'/podgres/podgres' wal-push --log-format text --settings '/run/it'\\''s 5%%/archive.json' '%p'"
        );
    }
}
