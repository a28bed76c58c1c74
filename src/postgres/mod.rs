//! PostgreSQL's programs, files and client protocol: one file per verb.
//!
//! Never decides anything; tells what it found and does what it is told.

mod accepted;
pub mod auto_conf;
pub mod basebackup;
pub mod checkpoint;
pub mod combine;
pub mod conf;
pub mod conninfo;
pub mod data_directory;
pub mod diverged;
pub mod dump;
pub mod error;
mod files;
pub mod find;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod gate;
pub mod given;
pub mod hba;
pub mod incarnation;
pub mod initdb;
mod initdb_scripts;
pub mod kept_switch;
mod leftovers;
mod lines;
pub mod mounted;
pub mod passfile;
pub mod postmaster_pid;
mod private_server;
pub mod process;
mod program;
pub mod progress;
pub mod query;
pub mod replication;
pub mod rewind;
mod rewind_source;
mod rewinding;
pub mod roles;
pub mod routed;
mod scram;
pub mod scratch;
mod scratch_settings;
pub mod session;
pub mod signal_file;
pub mod slots;
pub mod staging;
mod status_query;
pub mod table_facts;
mod tablespaces;
mod temporary_server;
pub mod terms;
pub mod timelines;
pub mod tls;
mod tls_files;
pub mod user;
mod user_copy;
pub mod verify;
mod waldump;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A text that must not reach a log, an argument or a child's environment.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself; the caller sees to it that it goes nowhere else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A login: role name and password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    pub password: Secret,
}

/// Reads the superuser's and the replication role's login anew, so that a rotated password is picked up. May block.
pub type ReadLogins = Arc<dyn Fn() -> Result<(Login, Login), String> + Send + Sync>;

/// Everything that the programs and configuration of one server need and that does not change while it lives.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// `<cluster>-<ordinal>`; `application_name` of the WAL receiver and `cluster_name`.
    pub member: String,
    /// PGDATA.
    pub data_directory: PathBuf,
    /// The folder with `initdb`, `postgres`, `pg_basebackup`, `pg_controldata`.
    pub program_directory: PathBuf,
    /// The pod's shared emptyDir: generated configuration, passfile, sockets. Never on the data volume.
    pub run_directory: PathBuf,
    /// Where PostgreSQL puts its own unix sockets.
    pub socket_directories: Vec<PathBuf>,
    /// `listen_addresses`.
    pub listen_addresses: String,
    /// Where this pod's own clients (sidecar) reach the server.
    pub local_address: IpAddr,
    pub port: u16,
    pub superuser: Login,
    pub replication: Login,
    /// `POSTGRES_DB`.
    pub database: String,
    /// `POSTGRES_INITDB_ARGS`, split as a shell would.
    pub initdb_arguments: Vec<String>,
    /// `POSTGRES_HOST_AUTH_METHOD`, `scram-sha-256` by default.
    pub host_auth_method: String,
    /// `/docker-entrypoint-initdb.d`.
    pub initdb_scripts: PathBuf,
    /// A mounted folder with the user's `*.conf` and `pg_hba.conf`, if any.
    pub user_configuration: Option<PathBuf>,
    /// A mounted folder with `tls.crt`, `tls.key`, `ca.crt`, if any.
    pub tls: Option<PathBuf>,
    /// Fast stop, then immediate stop after this long.
    pub stop_timeout: Duration,
    /// `leadership=lease`: commits wait for the commit gate, also in a server that somebody else has promoted.
    pub gated: bool,
    /// `archive_command`; nothing is archived if `None`.
    pub archive_command: Option<String>,
    /// What fills the directory of a new cluster instead of initdb: a program with its arguments, the directory being the last.
    pub restore_program: Option<Vec<String>>,
}

impl ServerSettings {
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.program_directory.join(name)
    }
}
