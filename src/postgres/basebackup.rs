//! Copies an upstream with `pg_basebackup` into a staging directory and gives it PGDATA's name.
//!
//! The caller sees to it that the slot exists on the upstream. A kill or a dropped future at any point
//! leaves PGDATA absent or as it was. Never `-R`: that would write the login into the data directory.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep, sleep_until};

use super::conninfo::conninfo;
use super::data_directory::{InspectError, inspect, inspect_at};
use super::diverged::Keep;
use super::error::{JobError, describe};
use super::files::blocking;
use super::process::{Locale, command};
use super::program::{Event, Line, Program};
use super::staging::{self, Target};
use super::{
    ServerSettings, auto_conf, incarnation, passfile, progress, rewind, rewind_source, rewinding,
    signal_file, tablespaces,
};
use crate::core::data_directory::{DataDirectory, SystemIdentifier};
use crate::core::supervision::{CloneReason, JobProgress, Upstream};

/// A copy that does not grow for this long hangs. The first byte waits for a checkpoint.
const STALL_LIMIT: Duration = Duration::from_mins(10);
/// WAL arrives with the first data; only its header is needed.
const WAL_LIMIT: Duration = Duration::from_secs(30);
const WAL_LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Room for the WAL that is written while the copy runs: two segments of the default size.
const WAL_RESERVE_BYTES: u64 = 32 << 20;
const NO_SPACE: &str = "No space left on device";

/// What a clone is made of; the fields of `JobRequest::Clone`.
#[derive(Clone, Debug)]
pub struct CloneRequest {
    pub upstream: Upstream,
    /// What the copy must turn out to be.
    pub system_identifier: SystemIdentifier,
    /// `Empty` refuses a PGDATA that holds anything, the others replace it.
    pub reason: CloneReason,
}

/// Clones. `progress` gets every report of `pg_basebackup`, about one a second.
///
/// # Errors
/// See [`JobError`]; the staging directory is deleted then.
pub async fn run(
    settings: &ServerSettings,
    clone: &CloneRequest,
    progress: &watch::Sender<JobProgress>,
) -> Result<(), JobError> {
    let target = match clone.reason {
        CloneReason::Empty => Target::Empty,
        CloneReason::WalGone | CloneReason::Diverged | CloneReason::Requested | CloneReason::NotRewound => {
            Target::Replace
        }
    };
    let staging = staging::begin(settings, target).await?;
    if target == Target::Replace {
        keep_diverged(settings, clone).await;
    }
    let result = async {
        passfile::write(settings)?;
        tablespaces::refuse(settings, &clone.upstream, &application_name(settings)).await?;
        copy(settings, clone, &staging, progress).await?;
        finish(settings, clone, &staging).await
    }
    .await;
    if let Err(error) = result {
        if let Err(left) = staging::abandon(settings).await {
            tracing::warn!(error = %describe(&left), "could not delete the staging directory");
        }
        return Err(error);
    }
    staging::publish(settings, target).await?;
    // The new directory's name has made it void.
    let directory = settings.data_directory.clone();
    Ok(blocking(move || rewinding::end(&directory)).await?)
}

/// What a former primary alone has goes with its directory; of a half rewound one it was kept before.
async fn keep_diverged(settings: &ServerSettings, clone: &CloneRequest) {
    let Ok(DataDirectory::Complete(facts)) = inspect(settings).await else {
        return;
    };
    let standby = facts.standby_signal || facts.control_state.was_standby();
    if standby || facts.half_rewound || facts.system_identifier != clone.system_identifier {
        return;
    }
    match rewind_source::ask(settings, &clone.upstream).await {
        Ok(source) => rewind::keep_diverged(settings, &facts, &source.history, Keep::Link).await,
        Err(error) => tracing::warn!(
            "could not find out what only this member has: {}",
            describe(&error)
        ),
    }
}

/// Copies; once more after a stale directory gave way, if the volume ran full before there was room: the upstream's
/// size is reported after a second.
async fn copy(
    settings: &ServerSettings,
    clone: &CloneRequest,
    staging: &Path,
    progress: &watch::Sender<JobProgress>,
) -> Result<(), JobError> {
    let mut first = Copy::begin(settings, clone, staging)?;
    let result = first.run(progress).await;
    if !matches!(result, Err(JobError::DiskFull { .. })) {
        return result;
    }
    // It may have run full before anybody looked.
    first.check_identity()?;
    let room_can_be_made =
        clone.reason != CloneReason::Empty && first.identity_checked && first.fits != Some(true);
    drop(first);
    if !room_can_be_made {
        return result;
    }
    staging::abandon(settings).await?;
    tracing::warn!("deleting the stale data directory first, since the volume cannot hold both");
    staging::give_up_current(settings).await?;
    Copy::begin(settings, clone, staging)?.run(progress).await
}

/// A running `pg_basebackup`.
struct Copy<'a> {
    settings: &'a ServerSettings,
    clone: &'a CloneRequest,
    staging: &'a Path,
    program: Program,
    begun: Instant,
    free_at_start_bytes: u64,
    /// Without another directory's giving way; `None`: not known yet.
    fits: Option<bool>,
    identity_checked: bool,
}

impl<'a> Copy<'a> {
    fn begin(
        settings: &'a ServerSettings,
        clone: &'a CloneRequest,
        staging: &'a Path,
    ) -> Result<Self, JobError> {
        let upstream = &clone.upstream;
        tracing::info!(upstream = upstream.host, slot = upstream.slot, reason = ?clone.reason, "cloning");
        let free_at_start_bytes = staging::free_bytes(staging)?;
        let mut basebackup = command(&settings.program("pg_basebackup"), Locale::C, Signal::KILL);
        basebackup
            .arg("-D")
            .arg(staging)
            .args(["-X", "stream", "-S", &upstream.slot, "--checkpoint=fast"])
            .args([
                "--no-sync",
                "--progress",
                "--no-manifest",
                "--no-password",
                "--no-clean",
            ])
            .args(["-d", &conninfo(settings, upstream, &application_name(settings))]);
        Ok(Self {
            settings,
            clone,
            staging,
            program: Program::spawn(basebackup)?,
            begun: Instant::now(),
            free_at_start_bytes,
            fits: None,
            identity_checked: false,
        })
    }

    async fn run(&mut self, progress: &watch::Sender<JobProgress>) -> Result<(), JobError> {
        let mut deadline = Instant::now() + STALL_LIMIT;
        let mut look = interval(WAL_LOOK_INTERVAL);
        loop {
            let event = tokio::select! {
                event = self.program.next() => event?,
                _ = look.tick(), if !self.identity_checked => {
                    self.check_identity()?;
                    continue;
                }
                () = sleep_until(deadline) => return Err(self.stalled()),
            };
            let line = match event {
                Event::Line(Line::Err(line)) => line,
                Event::Line(Line::Out(_)) => continue,
                Event::Ended(status) => {
                    self.program.drain().await;
                    return self
                        .program
                        .judge(status)
                        .map_err(|error| self.classify(error.into()));
                }
            };
            let Some(report) = progress::parse(&line, self.begun.elapsed()) else {
                tracing::debug!(line, "pg_basebackup");
                continue;
            };
            if report.done_bytes > progress.borrow().done_bytes {
                deadline = Instant::now() + STALL_LIMIT;
            }
            progress.send_replace(report);
            if report.total_bytes > 0 && self.fits.is_none() {
                self.check_space(report.total_bytes).await?;
                deadline = Instant::now() + STALL_LIMIT;
            }
        }
    }

    /// Stops a copy of the wrong cluster at its first WAL page instead of at its end.
    fn check_identity(&mut self) -> Result<(), JobError> {
        if self.identity_checked {
            return Ok(());
        }
        let Some(found) = progress::streamed_system_identifier(self.staging) else {
            return Ok(());
        };
        self.identity_checked = true;
        if found == self.clone.system_identifier {
            Ok(())
        } else {
            Err(foreign(self.clone, found))
        }
    }

    /// Compares the upstream's size with what was free; a stale directory gives way if that is enough.
    async fn check_space(&mut self, total_bytes: u64) -> Result<(), JobError> {
        let needed_bytes = total_bytes.saturating_add(WAL_RESERVE_BYTES);
        let free_bytes = self.free_at_start_bytes;
        self.fits = Some(needed_bytes <= free_bytes);
        if needed_bytes <= free_bytes {
            return Ok(());
        }
        let path = self.settings.data_directory.clone();
        let no_space = |free_bytes| JobError::NoSpace {
            path: path.clone(),
            needed_bytes,
            free_bytes,
        };
        if self.clone.reason == CloneReason::Empty {
            return Err(no_space(free_bytes));
        }
        // Else it would fill the volume before there is room. WAL comes to a process of its own.
        self.program.signal(Signal::STOP);
        let stale_path = path.clone();
        let stale_bytes = blocking(move || Ok::<_, JobError>(staging::used_bytes(&stale_path))).await?;
        if needed_bytes > free_bytes.saturating_add(stale_bytes) {
            return Err(no_space(free_bytes.saturating_add(stale_bytes)));
        }
        self.wait_for_identity(no_space(free_bytes)).await?;
        tracing::warn!(
            needed_bytes,
            free_bytes,
            stale_bytes,
            "deleting the stale data directory first, since the volume cannot hold both"
        );
        staging::give_up_current(self.settings).await?;
        self.program.signal(Signal::CONT);
        Ok(())
    }

    /// Nothing is deleted before the copy is known to be of the right cluster.
    async fn wait_for_identity(&mut self, otherwise: JobError) -> Result<(), JobError> {
        let deadline = Instant::now() + WAL_LIMIT;
        while !self.identity_checked {
            if Instant::now() > deadline {
                return Err(otherwise);
            }
            self.check_identity()?;
            sleep(WAL_LOOK_INTERVAL).await;
        }
        Ok(())
    }

    fn stalled(&self) -> JobError {
        JobError::Stalled {
            upstream: self.clone.upstream.host.clone(),
            limit_s: STALL_LIMIT.as_secs(),
        }
    }

    fn classify(&self, error: JobError) -> JobError {
        let output = self.program.tail();
        if output.contains(NO_SPACE) {
            let path = self.settings.data_directory.clone();
            return JobError::DiskFull { path, output };
        }
        error
    }
}

/// Makes the copy a standby of this cluster, after a last look at what it is.
async fn finish(settings: &ServerSettings, clone: &CloneRequest, staging: &Path) -> Result<(), JobError> {
    let unusable = |detail: String| JobError::UnusableCopy {
        upstream: clone.upstream.host.clone(),
        detail,
    };
    let found = inspect_at(settings, staging).await.map_err(|error| match error {
        InspectError::File(error) => JobError::File(error),
        InspectError::Program(error) => JobError::Program(error),
    })?;
    match found {
        DataDirectory::Complete(facts) if facts.system_identifier == clone.system_identifier => {}
        DataDirectory::Complete(facts) => return Err(foreign(clone, facts.system_identifier)),
        DataDirectory::Unusable { detail } => return Err(unusable(detail)),
        DataDirectory::Empty => return Err(unusable("it is empty".into())),
    }
    tablespaces::refuse_copied(staging, &clone.upstream)?;
    signal_file::create(staging)?;
    auto_conf::strip(settings, staging)?;
    let (directory, member) = (staging.to_owned(), settings.member.clone());
    blocking(move || incarnation::renew(&directory, &member)).await?;
    Ok(())
}

fn foreign(clone: &CloneRequest, found: SystemIdentifier) -> JobError {
    JobError::ForeignUpstream {
        upstream: clone.upstream.host.clone(),
        expected: clone.system_identifier.to_string(),
        found: found.to_string(),
    }
}

/// Not the member's own name: with a slot, `pg_basebackup` reports what it has received, and under a name in
/// `synchronous_standby_names` it would acknowledge commits that are not durable anywhere but on the primary.
fn application_name(settings: &ServerSettings) -> String {
    format!("{}-clone", settings.member)
}
