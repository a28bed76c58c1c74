//! A new data directory from a physical backup: extracted beside its name, replayed to the target, then given the name.
//!
//! The replay is podgres' own, in a scratch server: what stands under the name is a cleanly stopped primary on a
//! timeline of its own, which any PostgreSQL of that version starts. A kill at any moment leaves no such name, and the next
//! try goes on.

use std::path::{Path, PathBuf};

use super::extract;
use super::files::{self, blocking, with_suffix};
use super::finish;
use super::repository::{Repository, catalogue};
use super::wal::{self, FetchSettings};
use super::wal_ahead::Ahead;
use super::{BackupError, facts};
use crate::core::backup::choose::{Target, Wish, choose};
use crate::core::backup::{Kind, Record};
use crate::postgres::Login;
use crate::postgres::Secret;
use crate::postgres::scratch::{Scratch, ScratchServer};
use crate::postgres::session::{Access, Session, SessionError};
use crate::store::seal::SealKey;
use crate::store::{Store, StoreSettings};

const STAGING: &str = ".podgres-restore";

/// How a directory is restored.
#[derive(Clone, Debug)]
pub struct Options {
    pub destination: StoreSettings,
    /// This backup; else the one that fits the target.
    pub name: Option<String>,
    pub target: Target,
    /// `latest`, `current`, or a number.
    pub timeline: String,
    pub key: Option<SealKey>,
    pub key_file: Option<PathBuf>,
    pub program_directory: PathBuf,
    /// For the scratch server's configuration and socket.
    pub run_directory: PathBuf,
    /// This binary, for `restore_command`.
    pub binary: PathBuf,
    pub superuser: String,
    /// What its password becomes, as servers store it; the backup's if `None`.
    pub superuser_password: Option<String>,
}

/// Restores into `directory`, which is absent or empty.
///
/// # Errors
/// Whatever is in the way; `directory` is then as it was.
pub async fn restore(store: &Store, options: &Options, directory: &Path) -> Result<Record, BackupError> {
    files::check_empty(directory)?;
    let found = catalogue(store).await?;
    let (record, timeline) = pick(store, &found, options).await?;
    check_key(&record, options.key.as_ref())?;
    // By its number: where one was passed over, PostgreSQL's own search for the latest would end before it.
    let options = &Options {
        timeline: timeline.unwrap_or_else(|| options.timeline.clone()),
        ..options.clone()
    };
    let staging = with_suffix(directory, STAGING);
    tracing::info!(name = record.name, directory = %directory.display(), "restore begins");
    let place = staging.clone();
    let replaying = with_suffix(&staging, ".replaying");
    // A directory that a server has written to is no longer what was extracted.
    if replaying.exists() {
        blocking(move || extract::clear(&place)).await?;
        files::remove_file(&replaying)?;
    }
    extract::physical(store, &record, options.key.as_ref(), &staging).await?;
    files::write_whole(&replaying, b"")?;
    let mut server = replay(&record, options, &staging, &options.target).await?;
    if let Some(stored_form) = &options.superuser_password {
        finish::set_password(&mut server, &options.superuser, stored_form).await?;
    }
    let current = finish::current_segment(&mut server).await?;
    server.stop().await?;
    let (from, to) = (staging.clone(), directory.to_owned());
    blocking(move || {
        strip(&from)?;
        finish::mark_unarchived(&from, current)?;
        files::check_empty(&to)?;
        files::publish(&from, &to)?;
        extract::forget(&from)
    })
    .await?;
    files::remove_file(&replaying)?;
    Ok(record)
}

/// The record to restore, by the pure rules, and the timeline to follow, if the archive knows.
async fn pick(
    store: &Store,
    found: &Repository,
    options: &Options,
) -> Result<(Record, Option<String>), BackupError> {
    let newest = found
        .entries
        .iter()
        .rev()
        .find(|entry| entry.record.kind == Kind::Physical);
    let history = match (options.timeline.as_str(), newest) {
        ("current", _) | (_, None) => None,
        (timeline, Some(entry)) => {
            let wanted = timeline.parse().ok();
            wal::history(
                store,
                entry.record.system_identifier,
                options.key.as_ref(),
                wanted,
            )
            .await?
        }
    };
    let wish = Wish {
        kind: Kind::Physical,
        name: options.name.as_deref(),
        target: &options.target,
        history: history.as_ref(),
    };
    let record = choose(&found.entries, &wish)?.record.clone();
    Ok((record, history.map(|history| history.timeline.to_string())))
}

pub(super) fn check_key(record: &Record, key: Option<&SealKey>) -> Result<(), BackupError> {
    let found = key.map(SealKey::fingerprint);
    match &record.key {
        Some(expected) if Some(expected) != found.as_ref() => Err(BackupError::Key {
            name: record.name.clone(),
            expected: expected.clone(),
            found,
        }),
        _ => Ok(()),
    }
}

/// Replays to `target` and leaves the server running, out of recovery.
pub(super) async fn replay(
    record: &Record,
    options: &Options,
    directory: &Path,
    target: &Target,
) -> Result<ScratchServer, BackupError> {
    files::create_private(&options.run_directory)?;
    strip(directory)?;
    let fetch = FetchSettings {
        destination: options.destination.clone(),
        key_file: options.key_file.clone(),
        system_identifier: record.system_identifier,
        ahead: Some(ahead(directory).folder),
    };
    let fetch_file = options.run_directory.join("fetch.json");
    files::write_whole(&fetch_file, &serde_json::to_vec(&fetch).unwrap_or_default())?;
    files::write_whole(&directory.join("recovery.signal"), b"")?;
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
fn strip(directory: &Path) -> Result<(), BackupError> {
    for name in [
        "standby.signal",
        "recovery.signal",
        "postmaster.pid",
        "postmaster.opts",
        // Tablespaces come back as directories inside: nothing is linked to the places of the original.
        "tablespace_map",
    ] {
        files::remove_file(&directory.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_mean_themselves_to_the_shell_and_to_postgresql() {
        assert_eq!(
            restore_command(Path::new("/a'b/podgres"), Path::new("/run/50%/fetch.json"), false),
            "'/a'\\''b/podgres' wal-fetch --strict --settings '/run/50%%/fetch.json' '%f' '%p'"
        );
    }
}
