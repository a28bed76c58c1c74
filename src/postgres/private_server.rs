//! A server that this process started for itself, watched from its start to its end.
//!
//! Its log is read all the time, since it would stop on a full pipe; its end fails whatever was going on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::Command;
use tokio::time::{Instant, interval, timeout};

use super::error::ProgramError;
use super::postmaster_pid::{self, PostmasterStatus};
use super::program::{Event, Line, Program, outcome};

/// How often the status line in `postmaster.pid` is looked at while the server starts.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// As PostgreSQL 15 to 18 log it (`xlogrecovery.c`).
const REPLAY_BEGINS: &str = "redo starts at";

/// What is waited for.
pub(super) struct Limits {
    /// Until it accepts connections.
    pub(super) start: Duration,
    /// A line of its log begins [`Self::start`] anew.
    pub(super) lines_count: bool,
    /// The shutdown checkpoint.
    pub(super) stop: Duration,
}

/// The running server. Dropping it begins an immediate shutdown.
pub(super) struct PrivateServer {
    program: Program,
    directory: PathBuf,
    limits: Limits,
    /// It has begun to replay WAL.
    pub(super) replaying: bool,
}

impl PrivateServer {
    pub(super) fn spawn(
        postgres: Command,
        data_directory: &Path,
        limits: Limits,
    ) -> Result<Self, ProgramError> {
        Ok(Self {
            program: Program::spawn_server(postgres)?,
            directory: data_directory.to_owned(),
            limits,
            replaying: false,
        })
    }

    /// Waits until it accepts connections.
    pub(super) async fn ready(&mut self) -> Result<(), ProgramError> {
        let file = self.directory.join("postmaster.pid");
        let mut since = Instant::now();
        let mut look = interval(LOOK_INTERVAL);
        while since.elapsed() < self.limits.start {
            tokio::select! {
                event = self.program.next() => {
                    self.keep_running(event?)?;
                    if self.limits.lines_count {
                        since = Instant::now();
                    }
                }
                _ = look.tick() => {
                    let text = std::fs::read_to_string(&file).unwrap_or_default();
                    let status = postmaster_pid::parse(&text).map(|read| read.status);
                    if status == Some(PostmasterStatus::Ready) {
                        return Ok(());
                    }
                }
            }
        }
        Err(late(self.limits.start))
    }

    /// Runs `work` beside the server.
    pub(super) async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<T, ProgramError> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                result = &mut work => return Ok(result),
                event = self.program.next() => self.keep_running(event?)?,
            }
        }
    }

    /// Fast shutdown, which writes a checkpoint.
    pub(super) async fn stop(mut self) -> Result<(), ProgramError> {
        // If it has ended by itself, the wait says how.
        self.program.signal(Signal::INT);
        let limit = self.limits.stop;
        timeout(limit, self.program.end())
            .await
            .unwrap_or_else(|_| Err(late(limit)))
    }

    fn keep_running(&mut self, event: Event) -> Result<(), ProgramError> {
        match event {
            Event::Line(Line::Out(line) | Line::Err(line)) => {
                self.replaying |= line.contains(REPLAY_BEGINS);
                tracing::debug!(line, "private server");
                Ok(())
            }
            Event::Ended(status) => Err(ProgramError::Failed {
                program: "postgres".into(),
                outcome: outcome(status),
                output: self.program.tail(),
            }),
        }
    }
}

fn late(limit: Duration) -> ProgramError {
    ProgramError::Timeout {
        program: "postgres".into(),
        limit_s: limit.as_secs(),
    }
}
