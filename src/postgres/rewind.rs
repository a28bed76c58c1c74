//! Makes a stopped former primary able to follow its successor: `pg_rewind`, and what it needs before and after.
//!
//! A directory that is being changed bears a mark (`rewinding`) and is never started while it does: `pg_rewind` cannot
//! begin again where it was ended. Until it begins to change anything, a failure leaves everything as it was.

use std::ffi::OsString;
use std::fs::File;
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::conninfo::conninfo;
use super::data_directory::{InspectError, inspect};
use super::diverged::{self, Keep};
use super::error::{JobError, ProgramError, describe};
use super::files::blocking;
use super::process::{Locale, command};
use super::program::{Event, Line, Program};
use super::{
    ServerSettings, auto_conf, conf, incarnation, passfile, postmaster_pid, progress, rewind_source,
    rewinding, signal_file,
};
use crate::core::data_directory::{ControlState, DataDirectory, DataDirectoryFacts, SystemIdentifier};
use crate::core::supervision::{JobProgress, Upstream};
use crate::core::wal::{TimelineHistory, WalPosition};
use crate::files::FileContext as _;

/// PostgreSQL says every ten seconds how far crash recovery is.
const RECOVERY_STALL_LIMIT: Duration = Duration::from_mins(10);
/// `pg_rewind` reports every second once it copies; before, it lists files and reads WAL.
const REWIND_STALL_LIMIT: Duration = Duration::from_mins(2);
/// Its last words before it changes anything, with `--progress` (`main` of `pg_rewind.c`).
const POINT_OF_NO_RETURN: &str = "need to copy";
/// A failure with one of these is the network's or the source's, and may pass.
const PASSING: [&str; 5] = [
    "connection",
    "could not receive data",
    "could not send data",
    "could not translate host name",
    "starting up",
];

/// The fields of `JobRequest::Rewind`.
#[derive(Clone, Debug)]
pub struct RewindRequest {
    pub upstream: Upstream,
    pub system_identifier: SystemIdentifier,
}

/// Rewinds PGDATA, whose server is stopped. [`conf::write`] for a standby was called before.
///
/// # Errors
/// See [`JobError`]; of kind `Data` if only a clone helps.
pub async fn run(
    settings: &ServerSettings,
    rewind: &RewindRequest,
    progress: &watch::Sender<JobProgress>,
) -> Result<(), JobError> {
    let facts = suitable(settings, rewind).await?;
    passfile::write(settings)?;
    let source = rewind_source::ask(settings, &rewind.upstream).await?;
    if source.identity.system_identifier != rewind.system_identifier {
        return Err(JobError::ForeignUpstream {
            upstream: rewind.upstream.host.clone(),
            expected: rewind.system_identifier.to_string(),
            found: source.identity.system_identifier.to_string(),
        });
    }
    recover(settings, &facts).await?;
    let facts = suitable(settings, rewind).await?;
    refuse_if_ahead(settings, &facts, source.identity.position)?;
    keep_diverged(settings, &facts, &source.history, Keep::Copy).await;
    rewind_source::checkpoint(settings, &rewind.upstream, source.identity.position.timeline).await?;
    let (directory, member) = (settings.data_directory.clone(), settings.member.clone());
    blocking(move || rewinding::begin(&directory, &member)).await?;
    copy(settings, &rewind.upstream, progress).await?;
    finish(settings).await
}

/// As [`diverged::keep`], where failing does not matter.
pub(super) async fn keep_diverged(
    settings: &ServerSettings,
    facts: &DataDirectoryFacts,
    upstream: &TimelineHistory,
    how: Keep,
) {
    let kept = async {
        match diverged::branch_point(settings, facts, upstream).await? {
            Some((branch, own)) => diverged::keep(settings, facts, branch, &own, how).await,
            None => Ok(None),
        }
    };
    match kept.await {
        Ok(Some(_)) => {}
        Ok(None) => tracing::info!("this member has no commits that the cluster does not have"),
        Err(error) => tracing::warn!(
            "could not keep the WAL that only this member has: {}",
            describe(&error)
        ),
    }
}

async fn suitable(settings: &ServerSettings, rewind: &RewindRequest) -> Result<DataDirectoryFacts, JobError> {
    let path = settings.data_directory.clone();
    let found = inspect(settings).await.map_err(|error| match error {
        InspectError::File(error) => JobError::File(error),
        InspectError::Program(error) => JobError::Program(error),
    })?;
    let not = |detail: String| JobError::NotRewindable {
        path: path.clone(),
        detail,
    };
    let facts = match found {
        DataDirectory::Complete(facts) => facts,
        DataDirectory::Empty => return Err(not("it is empty".to_owned())),
        DataDirectory::Unusable { detail } => return Err(not(detail)),
    };
    if facts.system_identifier != rewind.system_identifier {
        return Err(JobError::ForeignDirectory {
            path,
            expected: rewind.system_identifier.to_string(),
            found: facts.system_identifier.to_string(),
        });
    }
    if facts.half_rewound {
        let detail = "an earlier rewind was interrupted".to_owned();
        return Err(JobError::HalfRewound { path, detail });
    }
    Ok(facts)
}

/// `pg_rewind` finds nothing to do on one and the same timeline.
fn refuse_if_ahead(
    settings: &ServerSettings,
    facts: &DataDirectoryFacts,
    source: WalPosition,
) -> Result<(), JobError> {
    if facts.timeline != source.timeline || facts.control_lsn <= source.lsn {
        return Ok(());
    }
    Err(JobError::NotRewindable {
        path: settings.data_directory.clone(),
        detail: format!(
            "it is at {} of timeline {}, its upstream only at {}",
            facts.control_lsn, facts.timeline, source.lsn
        ),
    })
}

/// Crash recovery, in a server of its own that nobody can connect to, as `pg_rewind` would run it.
async fn recover(settings: &ServerSettings, facts: &DataDirectoryFacts) -> Result<(), JobError> {
    let clean = matches!(
        facts.control_state,
        ControlState::ShutDown | ControlState::ShutDownInRecovery
    );
    if clean || facts.standby_signal {
        return Ok(());
    }
    tracing::info!("recovering the data directory from its crash before it is rewound");
    let own = settings.clone();
    blocking(move || postmaster_pid::clear_stale(&own)).await?;
    let mut config_file = OsString::from("config_file=");
    config_file.push(conf::path(settings));
    let mut postgres = command(&settings.program("postgres"), Locale::C, Signal::QUIT);
    postgres
        .args(["--single", "-F", "-D"])
        .arg(&settings.data_directory)
        .arg("-c")
        .arg(config_file)
        // Nothing it does waits for anybody, and its checkpoint removes nothing that pg_rewind may have to go back to.
        .args(["-c", "synchronous_standby_names="])
        .args(["-c", "wal_keep_size=2147483647MB", "template1"]);
    let mut program = Program::spawn_server(postgres)?;
    loop {
        match timeout(RECOVERY_STALL_LIMIT, program.next()).await {
            Ok(event) => match event? {
                Event::Line(Line::Out(line) | Line::Err(line)) => tracing::debug!(line, "crash recovery"),
                Event::Ended(status) => {
                    program.drain().await;
                    return Ok(program.judge(status)?);
                }
            },
            Err(_) => return Err(stalled("postgres", RECOVERY_STALL_LIMIT)),
        }
    }
}

/// Runs `pg_rewind`. If it fails before it has changed anything, the mark is taken away again.
async fn copy(
    settings: &ServerSettings,
    upstream: &Upstream,
    progress: &watch::Sender<JobProgress>,
) -> Result<(), JobError> {
    tracing::info!(upstream = upstream.host, "rewinding");
    let name = rewind_source::application_name(settings);
    let source = format!("{} dbname=postgres", conninfo(settings, upstream, &name));
    let mut rewind = command(&settings.program("pg_rewind"), Locale::C, Signal::KILL);
    rewind
        .arg("--target-pgdata")
        .arg(&settings.data_directory)
        .args(["--source-server", &source])
        // One syncfs(2) at the end instead of thousands of fsyncs.
        .args(["--no-sync", "--no-ensure-shutdown", "--progress"]);
    let mut program = Program::spawn(rewind)?;
    let mut changing = false;
    let Err(error) = follow(&mut program, progress, &mut changing).await else {
        return Ok(());
    };
    let output = program.tail();
    drop(program);
    let path = settings.data_directory.clone();
    let detail = describe(&error);
    if changing {
        return Err(JobError::HalfRewound { path, detail });
    }
    let directory = settings.data_directory.clone();
    blocking(move || rewinding::end(&directory)).await?;
    let failed = matches!(&error, JobError::Program(error @ ProgramError::Failed { .. }) if !error.killed());
    if failed && !PASSING.iter().any(|words| output.contains(words)) {
        return Err(JobError::NotRewindable { path, detail });
    }
    Err(JobError::RewindInterrupted { path, detail })
}

async fn follow(
    program: &mut Program,
    progress: &watch::Sender<JobProgress>,
    changing: &mut bool,
) -> Result<(), JobError> {
    let begun = Instant::now();
    loop {
        let event = timeout(REWIND_STALL_LIMIT, program.next())
            .await
            .map_err(|_| stalled("pg_rewind", REWIND_STALL_LIMIT))?;
        let mut take = |line: &Line| {
            let (Line::Out(text) | Line::Err(text)) = line;
            let decided = text.contains(POINT_OF_NO_RETURN);
            // How much, of how much.
            if decided {
                tracing::info!("{text}");
            } else {
                tracing::debug!(line = text, "pg_rewind");
            }
            *changing |= decided;
            if let Some(report) = progress::parse(text, begun.elapsed()) {
                progress.send_replace(report);
            }
        };
        match event? {
            Event::Line(line) => take(&line),
            Event::Ended(status) => {
                program.drain().await.iter().for_each(&mut take);
                return Ok(program.judge(status)?);
            }
        }
    }
}

fn stalled(program: &str, limit: Duration) -> JobError {
    JobError::Program(ProgramError::Timeout {
        program: program.to_owned(),
        limit_s: limit.as_secs(),
    })
}

/// A standby of this member again, durably; its new name says that the rewind has ended.
async fn finish(settings: &ServerSettings) -> Result<(), JobError> {
    let settings = settings.clone();
    blocking(move || {
        let directory = &settings.data_directory;
        signal_file::create(directory)?;
        auto_conf::strip(&settings, directory)?;
        let tree = File::open(directory).file("open directory", directory)?;
        rustix::fs::syncfs(&tree).file("fsync the file system of", directory)?;
        incarnation::renew(directory, &settings.member)?;
        rewinding::end(directory)?;
        Ok(())
    })
    .await
}
