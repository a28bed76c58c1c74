//! A server on a staged directory that only podgres and the init scripts can reach.
//!
//! Listens on one socket in a private directory, without TLS and without replication. Nothing that it
//! writes is synced: the directory is thrown away unless everything succeeds, and synced as a whole then.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, interval, timeout};

use super::error::{JobError, ProgramError};
use super::postmaster_pid::{self, PostmasterStatus};
use super::process::{Locale, command};
use super::program::{Event, Program, outcome};
use super::{ServerSettings, conf};
use crate::files::{FileError, write_private};

/// A fresh cluster starts within a second; a loaded machine may take longer.
const START_LIMIT: Duration = Duration::from_mins(2);
/// The shutdown checkpoint after the user's scripts have loaded their data.
const STOP_LIMIT: Duration = Duration::from_mins(10);
/// How often the status line in `postmaster.pid` is looked at while the server starts.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The running server. Dropping it begins an immediate shutdown.
pub(super) struct TemporaryServer {
    program: Program,
    pid: u32,
    /// The directory of its socket.
    pub socket_directory: PathBuf,
}

impl TemporaryServer {
    /// Starts on `directory`, with configuration and socket in `private`, and waits until it is ready.
    pub(super) async fn start(
        settings: &ServerSettings,
        directory: &Path,
        private: &Path,
    ) -> Result<Self, JobError> {
        let config_file = private.join("postgresql.conf");
        write_private(&private.join("pg_hba.conf"), b"local all all trust\n")?;
        write_private(
            &config_file,
            configuration(settings, directory, private)?.as_bytes(),
        )?;
        let mut option = OsString::from("config_file=");
        option.push(&config_file);
        let mut postgres = command(&settings.program("postgres"), Locale::Inherited, Signal::QUIT);
        postgres.arg("-D").arg(directory).arg("-c").arg(option);
        let program = Program::spawn_server(postgres)?;
        let pid = program.id().unwrap_or_default();
        let mut server = Self {
            program,
            pid,
            socket_directory: private.to_owned(),
        };
        server.ready(directory).await?;
        Ok(server)
    }

    /// Runs `work` beside the server, whose log must be read meanwhile; its end fails the work.
    pub(super) async fn during<T>(
        &mut self,
        work: impl Future<Output = Result<T, JobError>>,
    ) -> Result<T, JobError> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                result = &mut work => return result,
                event = self.program.next() => self.keep_running(event?)?,
            }
        }
    }

    /// Fast shutdown, which writes a checkpoint.
    pub(super) async fn stop(mut self) -> Result<(), JobError> {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            // If it has ended by itself, the wait below says how.
            kill_process(pid, Signal::INT).ok();
        }
        let ended = async {
            loop {
                if let Event::Ended(status) = self.program.next().await? {
                    return self.program.judge(status);
                }
            }
        };
        let result = timeout(STOP_LIMIT, ended).await;
        Ok(result.map_err(|_| ProgramError::Timeout {
            program: "postgres".into(),
            limit_s: STOP_LIMIT.as_secs(),
        })??)
    }

    async fn ready(&mut self, directory: &Path) -> Result<(), JobError> {
        let deadline = Instant::now() + START_LIMIT;
        let mut look = interval(LOOK_INTERVAL);
        loop {
            tokio::select! {
                event = self.program.next() => self.keep_running(event?)?,
                now = look.tick() => {
                    let text = std::fs::read_to_string(directory.join("postmaster.pid")).unwrap_or_default();
                    let status = postmaster_pid::parse(&text).map(|read| read.status);
                    if status == Some(PostmasterStatus::Ready) {
                        return Ok(());
                    }
                    if now > deadline {
                        return Err(ProgramError::Timeout {
                            program: "postgres".into(),
                            limit_s: START_LIMIT.as_secs(),
                        }
                        .into());
                    }
                }
            }
        }
    }

    fn keep_running(&self, event: Event) -> Result<(), ProgramError> {
        match event {
            Event::Line(line) => {
                tracing::debug!(?line, "temporary server");
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

/// The cluster's own file and the user's (an extension may need to be preloaded), then what makes it temporary.
fn configuration(settings: &ServerSettings, directory: &Path, private: &Path) -> Result<String, JobError> {
    let display = |path: &Path| path.to_string_lossy().into_owned();
    let mut text = conf::include(&directory.join("postgresql.conf"), true)?;
    text.push_str(&conf::user_includes(settings)?);
    let sockets = conf::socket_directories(&[private.to_owned()]);
    for (name, value) in [
        ("data_directory", display(directory).as_str()),
        ("hba_file", &display(&private.join("pg_hba.conf"))),
        ("listen_addresses", ""),
        ("port", &settings.port.to_string()),
        ("unix_socket_directories", &sockets),
        ("ssl", "off"),
        ("fsync", "off"),
        ("archive_mode", "off"),
        ("synchronous_standby_names", ""),
        ("password_encryption", "scram-sha-256"),
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        // No statement text in the log: a script may set passwords.
        ("log_statement", "none"),
        ("log_min_error_statement", "panic"),
        ("log_min_duration_statement", "-1"),
    ] {
        text.push_str(&conf::line(name, value)?);
    }
    Ok(text)
}

/// A directory in the run directory that exists only as long as the job.
pub(super) struct PrivateDirectory(PathBuf);

impl PrivateDirectory {
    /// Makes it afresh, mode 0700.
    pub(super) fn create(settings: &ServerSettings) -> Result<Self, FileError> {
        let path = settings.run_directory.join("initdb");
        let private = Self(path);
        private.remove();
        crate::files::create_private_directory(&private.0)?;
        Ok(private)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    fn remove(&self) {
        // Whatever cannot be removed now makes the creation fail, which says so.
        std::fs::remove_dir_all(&self.0).ok();
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        self.remove();
    }
}
