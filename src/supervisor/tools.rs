//! What the supervisor asks of PostgreSQL's programs and files, each within a time limit.
//!
//! Never decides; turns errors into the words that the agent gets to read.

use std::sync::Arc;
use std::time::Duration;

use backon::{ConstantBuilder, Retryable as _};
use rustix::process::Pid;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, watch};
use tokio::time::{sleep, timeout};

use super::inputs::Inputs;
use super::{kept_switch, reaper};
use crate::core::data_directory::{ControlState, DataDirectory};
use crate::core::lease::Incarnation;
use crate::core::supervision::{
    DivergedWal, FailureKind, JobProgress, JobRequest, NextTimeline, ServerRole, Terms,
};
use crate::core::switch::SwitchPosition;
use crate::files::FileError;
use crate::postgres::error::{JobError, describe};
use crate::postgres::given::{self, Given, Source};
use crate::postgres::postmaster_pid::{self, PostmasterPid, PostmasterStatus};
use crate::postgres::terms::{self, TermsError};
use crate::postgres::{
    ServerSettings, basebackup, data_directory, diverged, find, incarnation, initdb, process, rewind,
    signal_file, staging, timelines,
};

/// `pg_controldata` and a few small files.
const INSPECT_LIMIT: Duration = Duration::from_secs(10);
/// A look that failed at once: a program that was killed, a fork that was denied.
const LOOK_AGAIN: ConstantBuilder = ConstantBuilder::new()
    .with_delay(Duration::from_millis(200))
    .with_max_times(3);
/// The control file is read so often until it says "shut down".
const SHUT_DOWN_PAUSE: Duration = Duration::from_millis(10);
/// Small files, one of them on the data volume, and PostgreSQL's own check of them.
const CONFIGURATION_LIMIT: Duration = Duration::from_mins(1);
/// How long killed tools may take to be gone.
const TOOLS_END_LIMIT: Duration = Duration::from_secs(5);

const HALF_REWOUND: &str = "cannot start: the data directory is half rewound, and must be cloned anew";

/// What a supervisor must know before it can serve anybody.
pub(super) struct Found {
    pub(super) major_version: u32,
    /// As they were at its start; `None` if they cannot be read, which is forgiven without a Lease only.
    pub(super) terms: Option<Terms>,
    /// The read-only switch as an earlier supervisor kept it.
    pub(super) switch: SwitchPosition,
    /// Read while PostgreSQL is stopped, again and again.
    pub(super) seen: Seen,
}

/// What stands on the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) data_directory: DataDirectory,
    pub(super) incarnation: Option<Incarnation>,
    pub(super) diverged: Option<DivergedWal>,
}

/// Why that could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum ToolsError {
    #[error(transparent)]
    Programs(#[from] find::FindError),
    #[error(transparent)]
    Files(#[from] FileError),
    #[error(transparent)]
    Place(#[from] JobError),
    #[error(transparent)]
    Terms(#[from] TermsError),
}

/// What is to become of a cancelled job's staging directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cleanup {
    Now,
    /// Deleting may take longer than the time that is left.
    AtNextStart,
}

/// Why a job did not reach its end.
#[derive(Debug)]
pub(super) struct JobFailure {
    pub(super) kind: FailureKind,
    pub(super) message: String,
}

/// Repairs what a killed supervisor left and looks at what there is.
pub(super) async fn prepare(settings: &ServerSettings) -> Result<Found, ToolsError> {
    let major_version = find::major_version(&settings.program_directory).await?;
    staging::recover(settings).await?;
    Ok(Found {
        major_version,
        terms: known_terms(settings)?,
        switch: kept_switch::read(settings),
        seen: look(settings).await,
    })
}

/// Under a Lease they must stand on the volume that holds PGDATA, and be readable.
fn known_terms(settings: &ServerSettings) -> Result<Option<Terms>, ToolsError> {
    if settings.gated {
        staging::replaceable(settings)?;
        return Ok(Some(terms::read(settings)?));
    }
    Ok(terms::read(settings)
        .inspect_err(|error| tracing::warn!("{}", describe(error)))
        .ok())
}

/// As [`inspect`], with what stands there besides.
pub(super) async fn look(settings: &ServerSettings) -> Seen {
    let (data_directory, (name, diverged)) = tokio::join!(inspect(settings), names_and_reports(settings));
    let incarnation = match data_directory {
        DataDirectory::Complete(_) => name,
        DataDirectory::Empty | DataDirectory::Unusable { .. } => None,
    };
    Seen {
        data_directory,
        incarnation,
        diverged,
    }
}

/// Waits until the control file of a primary that is being stopped says "shut down", which is written behind the last checkpoint
/// (`CreateCheckPoint` in xlog.c); what stands there then. For ever, if PostgreSQL ends otherwise.
pub(super) async fn wait_shut_down(settings: &ServerSettings) -> Seen {
    let mut known = None;
    loop {
        let now = data_directory::control_file(settings).await;
        if now.is_some() && now != known {
            let seen = look(settings).await;
            match seen.data_directory.facts() {
                Some(facts) if facts.control_state == ControlState::ShutDown => return seen,
                Some(_) => known = now,
                None => {}
            }
        }
        sleep(SHUT_DOWN_PAUSE).await;
    }
}

async fn names_and_reports(settings: &ServerSettings) -> (Option<Incarnation>, Option<DivergedWal>) {
    let settings = settings.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let name = incarnation::read(&settings.data_directory, &settings.member);
        let name = name.inspect_err(|error| tracing::warn!("{}", describe(error)));
        (name.unwrap_or_default(), diverged::newest(&settings))
    });
    match timeout(INSPECT_LIMIT, reading).await {
        Ok(Ok(found)) => found,
        Ok(Err(_)) | Err(_) => (None, None),
    }
}

/// What stands at PGDATA. A directory that could not be looked at counts as unusable until the next
/// look, with the reason: what was known before may no longer be so.
async fn inspect(settings: &ServerSettings) -> DataDirectory {
    let looking = (|| data_directory::inspect(settings)).retry(LOOK_AGAIN);
    let reason = match timeout(INSPECT_LIMIT, looking).await {
        Ok(Ok(directory)) => return directory,
        Ok(Err(error)) => describe(&error),
        Err(_) => format!("no answer within {} s", INSPECT_LIMIT.as_secs()),
    };
    DataDirectory::Unusable {
        detail: format!("could not look at the data directory: {reason}"),
    }
}

/// Makes a complete data directory fit for a start as `server`; tells in any case what it found.
pub(super) async fn prepare_start(inputs: Arc<Inputs>, server: ServerRole) -> (Seen, Result<Given, String>) {
    let mut seen = look(&inputs.settings).await;
    let settings = inputs.settings.clone();
    let prepared = match &seen.data_directory {
        DataDirectory::Complete(facts) if facts.half_rewound => Err(HALF_REWOUND.to_owned()),
        DataDirectory::Complete(_) => configure(async move {
            let settings = inputs.now();
            data_directory::repair_mode(&settings)
                .await
                .map_err(|error| describe(&error))?;
            postmaster_pid::clear_stale(&settings).map_err(|error| describe(&error))?;
            incarnation::ensure(&settings.data_directory, &settings.member)
                .map_err(|error| describe(&error))?;
            signal_file::prepare_role(&settings, &server)
                .await
                .map_err(|error| describe(&error))?;
            write(&settings, &server, Source::MountedOrAccepted).await
        })
        .await
        .map_err(|error| format!("could not prepare the start: {error}")),
        DataDirectory::Empty => Err("cannot start: the data directory is empty".to_owned()),
        DataDirectory::Unusable { detail } => Err(format!("cannot start: {detail}")),
    };
    if prepared.is_err() {
        return (seen, prepared);
    }
    (seen.incarnation, seen.diverged) = names_and_reports(&settings).await;
    // It is looked at no more while the server runs, and without its name a member counts for nothing.
    let named = seen.incarnation.is_some();
    let unnamed = || Err("could not prepare the start: the incarnation was not read in time".to_owned());
    (seen, if named { prepared } else { unnamed() })
}

/// What tells a standby that it is to become the primary, once it gets SIGUSR1.
pub(super) async fn make_promote_file(inputs: Arc<Inputs>, timeline: NextTimeline) -> Result<(), String> {
    configure(async move {
        let directory = &inputs.settings.data_directory;
        let making =
            timelines::pass_over(directory, timeline).and_then(|()| signal_file::create_promote(directory));
        making.map_err(|error| format!("could not promote: {}", describe(&error)))
    })
    .await
}

/// Writes the configuration anew for a running server.
pub(super) async fn write_configuration(
    inputs: Arc<Inputs>,
    server: ServerRole,
    source: Source,
) -> Result<Given, String> {
    configure(async move { write(&inputs.now(), &server, source).await }).await
}

async fn write(settings: &ServerSettings, server: &ServerRole, source: Source) -> Result<Given, String> {
    given::give(settings, server, source)
        .await
        .map_err(|error| describe(&error))
}

/// Runs `work` on a thread of its own, one after another: a file operation that hangs must not hold
/// up the supervisor's loop, and with it the fence. The thread lives as long as the program that
/// `work` runs, so that the program's death signal does not come early.
async fn configure<T: Send + 'static>(
    work: impl Future<Output = Result<T, String>> + Send + 'static,
) -> Result<T, String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
    let runtime = Handle::current();
    let limited = async {
        let _turn = ONE_AT_A_TIME.lock().await;
        work.await
    };
    let done = tokio::task::spawn_blocking(move || runtime.block_on(timeout(CONFIGURATION_LIMIT, limited)));
    let late = || {
        format!(
            "configuration not written within {} s",
            CONFIGURATION_LIMIT.as_secs()
        )
    };
    match timeout(CONFIGURATION_LIMIT, done).await {
        Ok(Ok(Ok(result))) => result,
        Ok(Ok(Err(_))) | Err(_) => Err(late()),
        Ok(Err(error)) => Err(format!("could not finish writing the configuration: {error}")),
    }
}

/// Starts the postmaster as a child of this thread. It is collected by [`reaper`], not by the runtime.
pub(super) fn spawn_postmaster(settings: &ServerSettings) -> Result<Pid, String> {
    let could_not = |error: std::io::Error| format!("could not start PostgreSQL: {error}");
    let command = process::postmaster_command(settings).map_err(could_not)?;
    let child = command.into_std().spawn().map_err(could_not)?;
    Ok(Pid::from_child(&child))
}

/// What an earlier postmaster has left, before another is started.
pub(super) fn leftover(settings: &ServerSettings) -> Option<PostmasterPid> {
    postmaster_pid::read_postmaster_pid(settings)
}

/// Whether the postmaster says that it accepts connections, or waits for its primary.
pub(super) fn is_ready(settings: &ServerSettings, postmaster: Pid, leftover: Option<&PostmasterPid>) -> bool {
    let status = postmaster_status(settings, postmaster, leftover);
    matches!(status, Some(PostmasterStatus::Ready | PostmasterStatus::Standby))
}

/// Whether a server that was started as a standby has been promoted: PostgreSQL removes the signal
/// file then. If that cannot be told it counts as promoted.
pub(super) fn was_promoted(settings: &ServerSettings) -> bool {
    !settings.data_directory.join("standby.signal").exists()
}

fn postmaster_status(
    settings: &ServerSettings,
    postmaster: Pid,
    leftover: Option<&PostmasterPid>,
) -> Option<PostmasterStatus> {
    let said = postmaster_pid::read_postmaster_pid(settings)?;
    let own = i32::try_from(said.pid) == Ok(postmaster.as_raw_nonzero().get());
    let earlier = leftover.is_some_and(|leftover| said.is_of(leftover));
    (own && !earlier).then_some(said.status)
}

/// Runs a job until its end or until `cancelled` says what to do with its remains.
pub(super) async fn run_job(
    settings: &ServerSettings,
    job: JobRequest,
    report: watch::Sender<JobProgress>,
    mut cancelled: watch::Receiver<Option<Cleanup>>,
) -> Result<(), JobFailure> {
    let result = tokio::select! {
        result = run_tool(settings, job, report) => result.map_err(|error| JobFailure {
            kind: error.kind(),
            message: describe(&error),
        }),
        _ = cancelled.wait_for(Option::is_some) => Err(JobFailure {
            kind: FailureKind::Passing,
            message: "cancelled".to_owned(),
        }),
    };
    if result.is_err() {
        reaper::end_leftovers(TOOLS_END_LIMIT).await;
        tokio::select! {
            biased;
            _ = cancelled.wait_for(|cleanup| *cleanup == Some(Cleanup::AtNextStart)) => {}
            recovered = staging::recover(settings) => if let Err(error) = recovered {
                tracing::warn!("{}", describe(&error));
            },
        }
    }
    result
}

async fn run_tool(
    settings: &ServerSettings,
    job: JobRequest,
    report: watch::Sender<JobProgress>,
) -> Result<(), JobError> {
    match job {
        JobRequest::Initdb => initdb::run(settings).await,
        JobRequest::Clone {
            upstream,
            system_identifier,
            reason,
        } => {
            let clone = basebackup::CloneRequest {
                upstream,
                system_identifier,
                reason,
            };
            basebackup::run(settings, &clone, &report).await
        }
        JobRequest::Rewind {
            upstream,
            system_identifier,
        } => {
            // Crash recovery reads it.
            let server = ServerRole::Standby {
                upstream: Some(upstream.clone()),
            };
            let own = settings.clone();
            let source = Source::MountedOrAccepted;
            let written = configure(async move { write(&own, &server, source).await }).await;
            written.map_err(|detail| JobError::RewindInterrupted {
                path: settings.data_directory.clone(),
                detail,
            })?;
            let rewind = rewind::RewindRequest {
                upstream,
                system_identifier,
            };
            rewind::run(settings, &rewind, &report).await
        }
    }
}
