//! A server on a restored directory that nobody else can reach: to replay WAL, and to look at what came back.
//!
//! Listens on one socket in a private folder. Takes from the restored cluster's own configuration only what PostgreSQL
//! needs to start on it. Nothing that it writes is synced; whoever keeps the directory syncs it as a whole.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, interval, timeout};

use super::dump::Client;
use super::error::{JobError, ProgramError};
use super::postmaster_pid::{self, PostmasterStatus};
use super::process::{Locale, command};
use super::program::{Event, Line, Program, outcome};
use super::scratch_settings::{self, PORT};
use super::session::Address;
use crate::files::{create_private_directory, write_private};

const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Replay says something every ten seconds (`log_startup_progress_interval`), and for every segment of the archive.
const SILENCE_LIMIT: Duration = Duration::from_mins(10);
const STOP_LIMIT: Duration = Duration::from_mins(30);
/// As PostgreSQL 15 to 18 log it (`xlogrecovery.c`).
const REPLAY_BEGINS: &str = "redo starts at";

/// Whether a server that ended while it replayed WAL ended of what it read, rather than of a full volume, of an archive
/// that does not answer, or of a library that this machine lacks.
fn blames_data(error: &ProgramError) -> bool {
    let elsewhere = [
        "No space left on device",
        "from archive",
        "out of memory",
        "Cannot allocate memory",
        "Input/output error",
        "could not access file",
        "could not load library",
        "resource manager",
        "maximum number of prepared transactions",
        "terminated by signal 9",
    ];
    error.exited("postgres", 1) && !elsewhere.iter().any(|part| error.output().contains(part))
}

/// What is started, and where.
#[derive(Clone, Debug)]
pub struct Scratch {
    pub program_directory: PathBuf,
    pub data_directory: PathBuf,
    /// For configuration and socket; short, since a socket's path may have 107 bytes.
    pub run_directory: PathBuf,
    pub superuser: String,
    /// More settings, e.g. how far to replay.
    pub settings: Vec<(&'static str, String)>,
}

impl Scratch {
    #[must_use]
    pub fn address(&self) -> Address {
        Address::Socket {
            folder: self.run_directory.clone(),
            port: PORT,
        }
    }

    /// For programs that connect to it.
    #[must_use]
    pub fn client(&self) -> Client {
        Client {
            program_directory: self.program_directory.clone(),
            address: self.address(),
            user: self.superuser.clone(),
            passfile: None,
            authority: None,
            application_name: "podgres_verify".to_owned(),
        }
    }

    /// `initdb` of an empty cluster, to load dumps into.
    ///
    /// # Errors
    /// What `initdb` said.
    pub async fn initdb(&self) -> Result<(), ProgramError> {
        let mut initdb = command(&self.program_directory.join("initdb"), Locale::C, Signal::KILL);
        initdb.args([
            "--no-sync",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "-U",
            &self.superuser,
        ]);
        initdb.arg("-D").arg(&self.data_directory);
        super::program::run(initdb, STOP_LIMIT).await.map(drop)
    }

    /// Starts it and waits until recovery has ended and it accepts connections.
    ///
    /// # Errors
    /// It ended, with its last lines; or nothing was heard of it for ten minutes.
    pub async fn start(self) -> Result<ScratchServer, StartError> {
        let demands = scratch_settings::demanded(&self.program_directory, &self.data_directory).await;
        let mut server = self.spawn(&demands.map_err(JobError::from)?)?;
        match server.ready().await {
            Ok(()) => Ok(server),
            Err(error) if server.replaying && blames_data(&error) => Err(StartError::Replaying(error)),
            Err(error) => Err(JobError::from(error).into()),
        }
    }

    fn spawn(self, demands: &[(&'static str, String)]) -> Result<ScratchServer, JobError> {
        create_private_directory(&self.run_directory)?;
        write_private(&self.run_directory.join("pg_hba.conf"), b"local all all trust\n")?;
        write_private(&self.run_directory.join("pg_ident.conf"), b"")?;
        let config_file = self.run_directory.join("postgresql.conf");
        let libraries = scratch_settings::libraries(&self.data_directory);
        write_private(&config_file, libraries.as_bytes())?;
        let mut option = OsString::from("config_file=");
        option.push(&config_file);
        let mut postgres = command(&self.program_directory.join("postgres"), Locale::C, Signal::QUIT);
        postgres.arg("-D").arg(&self.data_directory).arg("-c").arg(option);
        let fixed = scratch_settings::fixed(&self.data_directory, &self.run_directory);
        for (name, value) in fixed.iter().chain(demands).chain(&self.settings) {
            postgres.arg("-c").arg(format!("{name}={value}"));
        }
        Ok(ScratchServer {
            program: Program::spawn_server(postgres)?,
            scratch: self,
            replaying: false,
        })
    }
}

/// Why there is no server on a restored directory.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It did not come to reading WAL: programs, settings or the machine are at fault, or it was ended.
    #[error(transparent)]
    Before(#[from] JobError),
    /// It ended by itself while it replayed WAL.
    #[error("replay ended too early: {0}")]
    Replaying(ProgramError),
}

/// The running server. Dropping it begins an immediate shutdown.
pub struct ScratchServer {
    program: Program,
    scratch: Scratch,
    /// It has begun to replay WAL.
    replaying: bool,
}

impl ScratchServer {
    #[must_use]
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Runs `work` beside the server, whose log must be read meanwhile; `None` if the server ended first.
    pub async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<T, ProgramError> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                result = &mut work => return Ok(result),
                event = self.program.next() => self.keep_running(event?)?,
            }
        }
    }

    /// Fast shutdown, which writes a checkpoint.
    ///
    /// # Errors
    /// It did not end well, or not within half an hour.
    pub async fn stop(mut self) -> Result<(), ProgramError> {
        let pid = self
            .program
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // If it has ended by itself, the wait below says how.
            kill_process(pid, Signal::INT).ok();
        }
        let late = ProgramError::Timeout {
            program: "postgres".into(),
            limit_s: STOP_LIMIT.as_secs(),
        };
        timeout(STOP_LIMIT, self.program.end()).await.unwrap_or(Err(late))
    }

    async fn ready(&mut self) -> Result<(), ProgramError> {
        let file = self.scratch.data_directory.join("postmaster.pid");
        let mut heard = Instant::now();
        let mut look = interval(LOOK_INTERVAL);
        while heard.elapsed() < SILENCE_LIMIT {
            tokio::select! {
                event = self.program.next() => {
                    self.keep_running(event?)?;
                    heard = Instant::now();
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
        Err(ProgramError::Timeout {
            program: "postgres".into(),
            limit_s: SILENCE_LIMIT.as_secs(),
        })
    }

    fn keep_running(&mut self, event: Event) -> Result<(), ProgramError> {
        match event {
            Event::Line(Line::Out(line) | Line::Err(line)) => {
                self.replaying |= line.contains(REPLAY_BEGINS);
                tracing::debug!(line, "scratch server");
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
