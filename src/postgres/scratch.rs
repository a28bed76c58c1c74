//! A server on a restored directory that nobody else can reach: to replay WAL, and to look at what came back.
//!
//! Listens on one socket in a private folder. Takes from the restored cluster's own configuration only what PostgreSQL
//! needs to start on it. Nothing that it writes is synced; whoever keeps the directory syncs it as a whole.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use super::dump::Client;
use super::error::{JobError, ProgramError};
use super::private_server::{Limits, PrivateServer};
use super::process::{Locale, command};
use super::scratch_settings::{self, PORT};
use super::session::Address;
use crate::files::{create_private_directory, write_private};

/// Replay says something every ten seconds (`log_startup_progress_interval`), and for every segment of the archive.
const LIMITS: Limits = Limits {
    start: Duration::from_mins(10),
    lines_count: true,
    stop: Duration::from_mins(30),
};

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
        super::program::run(initdb, LIMITS.stop).await.map(drop)
    }

    /// Starts it and waits until recovery has ended and it accepts connections.
    ///
    /// # Errors
    /// It ended, with its last lines; or nothing was heard of it for ten minutes.
    pub async fn start(self) -> Result<ScratchServer, StartError> {
        let demands = scratch_settings::demanded(&self.program_directory, &self.data_directory).await;
        let mut server = self.spawn(&demands.map_err(JobError::from)?)?;
        match server.process.ready().await {
            Ok(()) => Ok(server),
            Err(error) if server.process.replaying && blames_data(&error) => {
                Err(StartError::Replaying(error))
            }
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
            process: PrivateServer::spawn(postgres, &self.data_directory, LIMITS)?,
            scratch: self,
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
    process: PrivateServer,
    scratch: Scratch,
}

impl ScratchServer {
    #[must_use]
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Runs `work` beside the server, whose log must be read meanwhile; `None` if the server ended first.
    pub fn during<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> impl Future<Output = Result<T, ProgramError>> {
        self.process.during(work)
    }

    /// Fast shutdown, which writes a checkpoint.
    ///
    /// # Errors
    /// It did not end well, or not within half an hour.
    pub fn stop(self) -> impl Future<Output = Result<(), ProgramError>> {
        self.process.stop()
    }
}
