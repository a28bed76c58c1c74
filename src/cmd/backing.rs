//! What the commands about backups share: destination, programs, an unprivileged user, exit codes.

use std::ffi::OsString;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::process::{Gid, Uid};

use crate::backup::BackupError;
use crate::config::backup::StoreArguments;
use crate::config::{Environment as _, ProcessEnvironment};
use crate::files;
use crate::postgres::error::JobError;
use crate::postgres::find;
use crate::postgres::user::{ServerUser, server_user};
use crate::store::{Destination, LockError, Store, StoreError, StoreSettings};

use super::{ExitStatus, Failure};

/// A destination that is open.
pub(super) struct Opened {
    pub store: Store,
    pub settings: StoreSettings,
}

/// Opens what `--to` or `--from` names.
pub(super) fn open(
    arguments: &StoreArguments,
    flag: &str,
    destination: Option<&str>,
) -> Result<Opened, Failure> {
    let settings = arguments.settings(flag, destination, &ProcessEnvironment)?;
    let store = Store::open(&settings).map_err(|error| failure(error.into()))?;
    Ok(Opened { store, settings })
}

/// As [`open`], for a command that starts PostgreSQL's programs or writes: root goes on as another user, who owns what
/// is written.
pub(super) fn open_unprivileged(
    arguments: &StoreArguments,
    flag: &str,
    destination: Option<&str>,
) -> Result<Opened, Failure> {
    if let Some(user) = unprivileged_user()? {
        become_user(&user)?;
    }
    open(arguments, flag, destination)
}

/// As [`open_unprivileged`], for a destination that may be new.
pub(super) fn create(
    arguments: &StoreArguments,
    flag: &str,
    destination: Option<&str>,
) -> Result<Opened, Failure> {
    let settings = arguments.settings(flag, destination, &ProcessEnvironment)?;
    if let Some(user) = unprivileged_user()? {
        if let Destination::Folder(folder) = &settings.destination {
            give_new_folder(folder, &user);
        }
        become_user(&user)?;
    }
    let store = Store::create(&settings).map_err(|error| failure(error.into()))?;
    Ok(Opened { store, settings })
}

fn unprivileged_user() -> Result<Option<ServerUser>, Failure> {
    server_user().map_err(|error| Failure::from_error(ExitStatus::Settings, &error))
}

/// Runs `work` until TERM or Ctrl-C, which end it in order: what it drops cleans up behind itself.
pub(super) async fn until_terminated<T>(
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        result = work => result,
        ended = super::sidecar::terminated() => {
            ended?;
            Err(Failure::new(ExitStatus::Overdue, "ended by a signal"))
        }
    }
}

/// What cannot be made or given is told by whoever then uses it.
fn give_new_folder(folder: &Path, user: &ServerUser) {
    if std::fs::create_dir(folder).is_ok() {
        std::os::unix::fs::chown(folder, Some(user.uid), Some(user.gid)).ok();
    }
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        failure(error)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
pub(super) fn failure(error: BackupError) -> Failure {
    let status = match &error {
        error if error.refused() => ExitStatus::Refused,
        BackupError::Store(StoreError::Settings { .. })
        | BackupError::Lock(LockError::Unconditional { .. })
        | BackupError::Programs { .. }
        | BackupError::Job(JobError::MountPoint { .. } | JobError::SymbolicLink { .. })
        | BackupError::Find(_) => ExitStatus::Settings,
        BackupError::Store(source) | BackupError::Lock(LockError::Store { source, .. })
            if source.denied() =>
        {
            ExitStatus::Permission
        }
        BackupError::Broken => ExitStatus::Bug,
        _ => ExitStatus::Overdue,
    };
    let failure = Failure::from_error(status, &error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// The folder of PostgreSQL's programs.
pub(super) async fn program_directory(flag: Option<&Path>) -> Result<PathBuf, Failure> {
    let variable = |name| ProcessEnvironment.get(name).map(OsString::from);
    find::find_program_directory(
        flag,
        variable("PG_BINDIR").as_deref(),
        variable("PATH").as_deref(),
    )
    .await
    .map_err(|error| Failure::from_error(ExitStatus::Settings, &error))
}

/// PostgreSQL refuses root: whoever runs as root goes on as `postgres`, or `nobody`, for good.
///
/// Called before any thread is made: threads that come later have the same user.
fn become_user(user: &ServerUser) -> Result<(), Failure> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_groups(&[])
        .and_then(|()| rustix::thread::set_thread_res_gid(gid, gid, gid))
        .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid))
        .map_err(|error| {
            Failure::new(
                ExitStatus::Bug,
                format!("could not become \"{}\": {error}", user.name),
            )
        })?;
    tracing::debug!(user = user.name, "going on as a user that PostgreSQL accepts");
    Ok(())
}

/// Writes a file of the run directory that only its owner reads.
pub(super) fn write_generated(path: &Path, content: &[u8]) -> Result<(), Failure> {
    files::write_generated(path, content)
        .map_err(|error| Failure::from_error(super::status_of(&error.source), &error))
}

/// A folder of this process' own, which goes with it.
pub(super) struct RunDirectory(PathBuf);

impl RunDirectory {
    pub(super) fn create() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("podgres-{}", std::process::id()));
        std::fs::remove_dir_all(&path).ok();
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| {
            Failure::new(
                super::status_of(&error),
                format!("could not create \"{}\": {error}", path.display()),
            )
            .hint("Set TMPDIR to a folder that may be written to.")
        })?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Prints to standard output.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    use std::io::Write as _;
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::new(super::status_of(&error), format!("could not print: {error}")))
}
