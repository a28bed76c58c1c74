//! A server of our own on an extracted directory: replays WAL up to a target, and tells what it came to.

use std::path::Path;

use super::assemble::MANIFEST;
use super::restore::Options;
use super::wal::FetchSettings;
use super::wal_ahead::Ahead;
use super::{BackupError, facts, wal_place};
use crate::core::backup::Record;
use crate::core::backup::choose::Target;
use crate::files::{create_private_directory, remove_file, with_suffix, write_private};
use crate::postgres::scratch::{Scratch, ScratchServer};
use crate::postgres::session::{Access, Session, SessionError};
use crate::postgres::{Login, Secret, incarnation};

/// Replays to `target` and leaves the server running, out of recovery.
pub(super) async fn replay(
    record: &Record,
    options: &Options,
    directory: &Path,
    target: &Target,
) -> Result<ScratchServer, BackupError> {
    create_private_directory(&options.run_directory)?;
    strip(directory)?;
    // A killed try's, perhaps of another backup or another branch.
    ahead(directory).end()?;
    let fetch = FetchSettings {
        destination: options.destination.clone(),
        key_file: options.key_file.clone(),
        system_identifier: record.system_identifier,
        ahead: Some(ahead(directory).folder),
    };
    let fetch_file = options.run_directory.join("fetch.json");
    write_private(&fetch_file, &serde_json::to_vec(&fetch).unwrap_or_default())?;
    write_private(&directory.join("recovery.signal"), b"")?;
    let settings = recovery_settings(options, target, &fetch_file);
    let scratch = Scratch {
        program_directory: options.program_directory.clone(),
        data_directory: directory.to_owned(),
        run_directory: options.run_directory.clone(),
        superuser: options.superuser.clone(),
        settings,
    };
    let started = scratch.start().await;
    ahead(directory).end()?;
    let mut server = started?;
    check_identity(record, &mut server).await?;
    Ok(server)
}

/// On the volume that must hold the WAL anyway.
fn ahead(directory: &Path) -> Ahead {
    Ahead {
        folder: with_suffix(directory, ".wal-ahead"),
    }
}

/// The backup's own end is where the WAL in it ends: there may be no record after that place to stop at.
fn recovery_settings(options: &Options, target: &Target, fetch_file: &Path) -> Vec<(&'static str, String)> {
    let histories = *target == Target::Backup;
    let timeline = if histories {
        "current"
    } else {
        options.timeline.as_str()
    };
    let mut settings = vec![
        (
            "restore_command",
            restore_command(&options.binary, fetch_file, histories),
        ),
        ("recovery_target_timeline", timeline.to_owned()),
        ("recovery_target_action", "promote".to_owned()),
    ];
    settings.extend(match target {
        Target::Backup | Target::Latest => None,
        Target::Time(time) => Some(("recovery_target_time", time.clone())),
        Target::Lsn(lsn) => Some(("recovery_target_lsn", lsn.to_string())),
        Target::Name(name) => Some(("recovery_target_name", name.clone())),
    });
    settings
}

async fn check_identity(record: &Record, server: &mut ScratchServer) -> Result<(), BackupError> {
    let scratch = server.scratch().clone();
    let asked = async {
        let session = connect(&scratch, "template1").await?;
        session
            .text(
                "ask for the system identifier",
                "SELECT system_identifier::text FROM pg_control_system()",
            )
            .await
    };
    let found = server.during(asked).await?.map_err(scratch_error)?;
    let expected = record.system_identifier.to_string();
    if found == expected {
        return Ok(());
    }
    Err(BackupError::ForeignDirectory { found, expected })
}

/// Logs in to a scratch server.
pub(super) async fn connect(scratch: &Scratch, database: &str) -> Result<Session, SessionError> {
    let address = scratch.address();
    let login = Login {
        user: scratch.superuser.clone(),
        password: Secret::new(String::new()),
    };
    let access = Access {
        address: &address,
        login: &login,
        tls: None,
        application_name: facts::APPLICATION_NAME,
    };
    Session::connect(&access, database, super::CONNECT_LIMIT).await
}

pub(super) fn scratch_error(source: SessionError) -> BackupError {
    BackupError::Session {
        server: "the scratch server".to_owned(),
        source,
    }
}

/// `'…/podgres' wal-fetch --strict --settings '…' '%f' '%p'`, as the shell reads it and `%` as PostgreSQL does.
fn restore_command(binary: &Path, settings: &Path, histories: bool) -> String {
    let quoted = |path: &Path| {
        format!(
            "'{}'",
            path.to_string_lossy().replace('\'', "'\\''").replace('%', "%%")
        )
    };
    let more = if histories { " --histories" } else { "" };
    format!(
        "{} wal-fetch --strict{more} --settings {} '%f' '%p'",
        quoted(binary),
        quoted(settings)
    )
}

/// Removes what belongs to the server that was copied and not to the copy.
pub(super) fn strip(directory: &Path) -> Result<(), BackupError> {
    for name in [
        "standby.signal",
        "recovery.signal",
        "postmaster.pid",
        "postmaster.opts",
        // Tablespaces come back as directories inside: nothing is linked to the places of the original.
        "tablespace_map",
        // Of a chain that was put together.
        MANIFEST,
        // Where the copy archives to is not the original's archive, even under one path.
        wal_place::MEMORY,
        // Nor has it confirmed the commits that the original has, though it may come to the member of the same name.
        incarnation::FILE,
    ] {
        remove_file(&directory.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restored_directory_is_not_taken_for_the_one_that_confirmed_commits() {
        let folder = tempfile::tempdir().expect("a folder");
        let named = incarnation::ensure(folder.path(), "pg-0").expect("a name");
        strip(folder.path()).expect("stripped");
        assert_eq!(incarnation::read(folder.path(), "pg-0").expect("read"), None);
        assert_ne!(incarnation::ensure(folder.path(), "pg-0").expect("a name"), named);
    }

    #[test]
    fn paths_mean_themselves_to_the_shell_and_to_postgresql() {
        assert_eq!(
            restore_command(Path::new("/a'b/podgres"), Path::new("/run/50%/fetch.json"), false),
            "'/a'\\''b/podgres' wal-fetch --strict --settings '/run/50%%/fetch.json' '%f' '%p'"
        );
    }
}
