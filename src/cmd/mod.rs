//! The command line: one thin file per verb, and what every verb shares: exit codes and how an error is shown.

mod backing;
pub mod backup;
mod backup_options;
pub mod backups;
pub mod check;
pub mod demo;
pub mod explain;
pub mod history;
pub mod init;
pub mod install;
mod lease_orders;
mod names;
mod open_files;
pub mod orders;
pub mod place;
mod pod_pages;
pub mod postgres;
pub mod read_only;
pub mod replay;
mod report;
pub mod restore;
pub mod route;
mod routes;
mod serve;
mod settling;
pub mod sidecar;
mod slices;
pub mod status;
pub mod verify;
pub mod wal_fetch;
pub mod wal_push;
mod wiring;

use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::InvalidSetting;
use crate::core::causes::causes;
use crate::telemetry::{LogFormat, LogLevel};

use self::backing::until_terminated;

/// Turns an ordinary StatefulSet with an ordinary PostgreSQL image into a replicated database.
#[derive(Parser, Debug)]
#[command(name = "podgres", version, propagate_version = true)]
pub struct CommandLine {
    #[arg(long, env = "PODGRES_LOG_FORMAT", value_enum, default_value_t = LogFormat::Auto, global = true)]
    pub log_format: LogFormat,
    #[arg(long, env = "PODGRES_LOG_LEVEL", value_enum, default_value_t = LogLevel::Info, global = true)]
    pub log_level: LogLevel,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Bring the data directory to "ready to start" (init container)
    Init(Box<init::Arguments>),
    /// Run PostgreSQL as process 1 of its container
    Postgres(Box<postgres::Arguments>),
    /// Observe, decide, act; health probes, metrics and routing endpoints
    Sidecar(Box<sidecar::Arguments>),
    /// The routing endpoints alone, beside an application or as a Deployment
    Route(Box<route::Arguments>),
    /// Run the whole cluster on this machine
    Demo(Box<demo::Arguments>),
    /// Show the cluster
    Status(status::Arguments),
    /// Show every change of the primary
    History(history::Arguments),
    /// Say why a member is what it is, who would be primary next, and what stands in the way
    Explain(explain::Arguments),
    /// Move the primary without losing anything
    Switchover(orders::SwitchoverArguments),
    /// Make a member the primary though commits may be lost
    Failover(orders::FailoverArguments),
    /// No failover and no automatic action from now on
    Pause(orders::ClusterArguments),
    /// End a pause
    Resume(orders::ClusterArguments),
    /// The read-only switch: take routed clients off the primary, or let them write again
    ReadOnly(read_only::Arguments),
    /// Stop and start PostgreSQL of one member
    Restart(orders::MemberArguments),
    /// Clone a standby afresh
    Reinit(orders::MemberArguments),
    /// Make a backup of the cluster, in a folder or a bucket
    Backup(Box<backup::Arguments>),
    /// List the backups at a destination
    Backups(Box<backups::Arguments>),
    /// Prove that backups can be restored
    Verify(Box<verify::Arguments>),
    /// Make a new data directory from a backup, up to a moment
    Restore(Box<restore::Arguments>),
    /// Archive a WAL file (archive_command)
    WalPush(Box<wal_push::Arguments>),
    /// Fetch an archived WAL file (restore_command)
    WalFetch(Box<wal_fetch::Arguments>),
    /// Name what in the environment cannot work
    Check(Box<check::Arguments>),
    /// Read a recorded observation, print the decision
    Replay(replay::Arguments),
    /// Copy this program into a folder (the image has no shell)
    Install(install::Arguments),
}

/// The exit codes that `docs/operations.md` lists: few, and each with one meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// Bad settings.
    Settings,
    /// Refused, because acting would endanger data.
    Refused,
    /// A deadline passed while waiting, or something needed is not there.
    Overdue,
    /// A bug in podgres.
    Bug,
    /// No permission.
    Permission,
    /// `wal-fetch`: the archive does not have the file.
    NotThere,
    /// PostgreSQL must not try again: a recovery must not go on (`wal-fetch --strict`), or a server stops that could not
    /// archive (`wal-push`).
    NoRetry,
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        ExitCode::from(match status {
            ExitStatus::Settings => 64,
            ExitStatus::Refused => 65,
            ExitStatus::Overdue => 69,
            ExitStatus::Bug => 70,
            ExitStatus::Permission => 77,
            ExitStatus::NotThere => 1,
            ExitStatus::NoRetry => 126,
        })
    }
}

/// Why a verb did not do what it was asked, in PostgreSQL's shape: message, detail, hint.
#[derive(Debug)]
pub struct Failure {
    pub status: ExitStatus,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl Failure {
    pub fn new(status: ExitStatus, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    /// An error with its causes, which go to the detail. Where one of them is want of permission, that
    /// is the status, whatever was waited for.
    pub fn from_error(status: ExitStatus, error: &(dyn std::error::Error + 'static)) -> Self {
        let permission = denied(error) || causes(error).any(denied);
        let causes: Vec<String> = causes(error).map(ToString::to_string).collect();
        let status = if permission {
            ExitStatus::Permission
        } else {
            status
        };
        Self {
            detail: (!causes.is_empty()).then(|| causes.join(": ")),
            ..Self::new(status, error.to_string())
        }
    }

    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<InvalidSetting> for Failure {
    fn from(error: InvalidSetting) -> Self {
        Self::new(ExitStatus::Settings, error.to_string()).hint(error.hint)
    }
}

fn denied(error: &(dyn std::error::Error + 'static)) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

/// Whether an I/O error is for want of permission.
pub fn status_of(error: &std::io::Error) -> ExitStatus {
    if error.kind() == std::io::ErrorKind::PermissionDenied {
        ExitStatus::Permission
    } else {
        ExitStatus::Overdue
    }
}

/// The same of a file that the user names: that it is not there is the user's to correct.
pub fn file_status(error: &std::io::Error) -> ExitStatus {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::InvalidFilename
        | ErrorKind::InvalidData => ExitStatus::Settings,
        _ => status_of(error),
    }
}

/// The text of a file that the user names, or of standard input for "-".
fn read_text(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(file).map(|found| text = found)
    };
    read.map(|()| text).map_err(|error| {
        let problem = format!("could not read \"{}\": {error}", file.display());
        Failure::new(file_status(&error), problem)
    })
}

/// Runs the verb on a runtime of one thread: the supervisor's children are bound to the thread that made them.
pub fn run(verb: Verb) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::from_error(ExitStatus::Bug, &error))?;
    let result = runtime.block_on(async {
        match verb {
            Verb::Init(arguments) => Box::pin(init::run(*arguments)).await,
            Verb::Postgres(arguments) => postgres::run(*arguments).await,
            Verb::Sidecar(arguments) => Box::pin(sidecar::run(*arguments)).await,
            Verb::Route(arguments) => Box::pin(route::run(*arguments)).await,
            Verb::Demo(arguments) => demo::run(*arguments).await,
            Verb::Status(arguments) => status::run(arguments).await,
            Verb::History(arguments) => history::run(arguments).await,
            Verb::Explain(arguments) => explain::run(arguments).await,
            Verb::Switchover(arguments) => orders::switchover(arguments).await,
            Verb::Failover(arguments) => orders::failover(arguments).await,
            Verb::Pause(arguments) => orders::pause(arguments, true).await,
            Verb::Resume(arguments) => orders::pause(arguments, false).await,
            Verb::ReadOnly(arguments) => read_only::run(arguments).await,
            Verb::Restart(arguments) => orders::restart(arguments).await,
            Verb::Reinit(arguments) => orders::reinit(arguments).await,
            Verb::Backup(arguments) => Box::pin(until_terminated(backup::run(*arguments))).await,
            Verb::Backups(arguments) => backups::run(*arguments).await,
            Verb::Verify(arguments) => Box::pin(until_terminated(verify::run(*arguments))).await,
            Verb::Restore(arguments) => Box::pin(until_terminated(restore::run(*arguments))).await,
            Verb::WalPush(arguments) => wal_push::run(*arguments).await,
            Verb::WalFetch(arguments) => wal_fetch::run(*arguments).await,
            Verb::Check(arguments) => check::run(*arguments).await,
            Verb::Replay(arguments) => replay::run(&arguments),
            Verb::Install(arguments) => install::run(&arguments),
        }
    });
    // Blocking work that nobody waits for any more (a look-up, a file) must not hold the exit back.
    runtime.shutdown_background();
    result
}
