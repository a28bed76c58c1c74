//! A server on a staged directory that only podgres and the init scripts can reach.
//!
//! Listens on one socket in a private directory, without TLS and without replication. Nothing that it
//! writes is synced: the directory is thrown away unless everything succeeds, and synced as a whole then.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use super::error::JobError;
use super::private_server::{Limits, PrivateServer};
use super::process::{Locale, command};
use super::{ServerSettings, conf};
use crate::files::{FileError, write_private};

/// A fresh cluster starts within a second; a loaded machine may take longer. The shutdown checkpoint comes after the user's
/// scripts have loaded their data.
const LIMITS: Limits = Limits {
    start: Duration::from_mins(2),
    lines_count: false,
    stop: Duration::from_mins(10),
};

/// Starts on `directory`, with configuration and socket in `private`, and waits until it is ready.
pub(super) async fn start(
    settings: &ServerSettings,
    directory: &Path,
    private: &Path,
) -> Result<PrivateServer, JobError> {
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
    let mut server = PrivateServer::spawn(postgres, directory, LIMITS)?;
    server.ready().await?;
    Ok(server)
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
