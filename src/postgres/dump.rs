//! `pg_dump`, `pg_dumpall --globals-only` and `pg_restore`: output as a stream, passwords through a passfile of their own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::{ChildStdout, Command};

use super::conninfo::Conninfo;
use super::error::ProgramError;
use super::process::{Locale, command};
use super::program::{self, Program};
use super::session::Address;
use crate::core::backup::DumpFormat;

const AMCHECK: &str = "pg_amcheck";
/// Where to connect while databases are dropped and made.
const MAINTENANCE_DATABASE: &str = "template1";
/// Restoring a dump takes as long as it takes; a day is more than any.
const LOAD_LIMIT: Duration = Duration::from_hours(24);

/// How a program of PostgreSQL's reaches a server.
#[derive(Clone, Debug)]
pub struct Client {
    /// The folder of the programs.
    pub program_directory: PathBuf,
    pub address: Address,
    pub user: String,
    /// Mode 0600; `None` where no password is asked.
    pub passfile: Option<PathBuf>,
    /// `ca.crt`, if the server's certificate is to be verified.
    pub authority: Option<PathBuf>,
    pub application_name: String,
}

/// A program that prints a dump.
pub struct Dump {
    program: Program,
    /// The dump.
    pub output: ChildStdout,
}

impl Dump {
    /// How it ended; call it when the output has.
    ///
    /// # Errors
    /// What the program said.
    pub async fn end(mut self) -> Result<(), ProgramError> {
        drop(self.output);
        self.program.end().await
    }
}

impl Client {
    /// `pg_dump` of a database as of a snapshot, in one stream.
    pub fn dump(&self, database: &str, snapshot: &str, format: DumpFormat) -> Result<Dump, ProgramError> {
        stream(self.pg_dump(database, snapshot, format))
    }

    /// The same into an empty folder, by several jobs; nothing comes as output.
    pub fn dump_files(
        &self,
        database: &str,
        snapshot: &str,
        folder: &Path,
        jobs: u32,
    ) -> Result<Dump, ProgramError> {
        let mut pg_dump = self.pg_dump(database, snapshot, DumpFormat::Directory);
        pg_dump.arg("--no-sync").arg(format!("--jobs={jobs}"));
        pg_dump.arg("--file").arg(folder);
        stream(pg_dump)
    }

    fn pg_dump(&self, database: &str, snapshot: &str, format: DumpFormat) -> Command {
        let mut pg_dump = self.program("pg_dump");
        pg_dump
            .arg(format!("--format={}", format.as_str()))
            .args(["--no-password", "--lock-wait-timeout=60s"])
            .arg(format!("--snapshot={snapshot}"));
        pg_dump.arg("-d").arg(self.conninfo(database));
        pg_dump
    }

    /// `pg_dumpall --globals-only`: roles with their password verifiers, and tablespaces.
    pub fn dump_globals(&self) -> Result<Dump, ProgramError> {
        let mut pg_dumpall = self.program("pg_dumpall");
        pg_dumpall
            .args(["--globals-only", "--no-password"])
            .arg("-d")
            .arg(self.conninfo("postgres"));
        stream(pg_dumpall)
    }

    /// Loads a dump as the database it was made of, which is dropped first if it is there. More than one job reads no tar.
    pub async fn load_new(&self, dump: &Path, jobs: usize) -> Result<(), ProgramError> {
        let mut pg_restore = self.program("pg_restore");
        pg_restore.args([
            "--exit-on-error",
            "--no-password",
            "--create",
            "--clean",
            "--if-exists",
            // Their places are those of another machine.
            "--no-tablespaces",
        ]);
        pg_restore.arg(format!("--jobs={jobs}"));
        pg_restore
            .arg("-d")
            .arg(self.conninfo(MAINTENANCE_DATABASE))
            .arg(dump);
        program::run(pg_restore, LOAD_LIMIT).await.map(drop)
    }

    /// Runs a dump of the globals by psql; errors are passed over, as a role that is there already.
    pub async fn load_globals(&self, script: &Path) -> Result<(), ProgramError> {
        let mut psql = self.program("psql");
        psql.args(["-X", "-q", "--no-password", "-vON_ERROR_STOP=0"]);
        psql.arg("-d").arg(self.conninfo(MAINTENANCE_DATABASE));
        psql.arg("-f").arg(script);
        program::run(psql, LOAD_LIMIT).await.map(drop)
    }

    /// `pg_amcheck` of every database: heaps and B-tree indexes, and whether every row is in its indexes. See [`corrupt`].
    pub async fn check_relations(&self, jobs: usize) -> Result<(), ProgramError> {
        let mut pg_amcheck = self.program(AMCHECK);
        pg_amcheck.args(["--all", "--install-missing", "--heapallindexed", "--no-password"]);
        pg_amcheck
            .arg(format!("--jobs={jobs}"))
            .arg("--maintenance-db")
            .arg(self.conninfo("postgres"));
        program::run(pg_amcheck, LOAD_LIMIT).await.map(drop)
    }

    fn program(&self, name: &str) -> Command {
        command(&self.program_directory.join(name), Locale::C, Signal::KILL)
    }

    fn conninfo(&self, database: &str) -> String {
        let mut text = Conninfo::default();
        match &self.address {
            Address::Tcp { host, address, port } => {
                text.add("host", host);
                text.add("hostaddr", &address.to_string());
                text.add("port", &port.to_string());
            }
            Address::Socket { folder, port } => {
                text.add_path("host", folder);
                text.add("port", &port.to_string());
            }
        }
        text.add("dbname", database);
        text.add("user", &self.user);
        text.add("application_name", &self.application_name);
        if let Some(passfile) = &self.passfile {
            text.add_path("passfile", passfile);
        }
        text.add_encryption(self.authority.as_deref(), &self.program_directory);
        text.0
    }
}

fn stream(command: Command) -> Result<Dump, ProgramError> {
    let mut program = Program::spawn_streaming(command)?;
    let output = program.take_stdout().ok_or_else(|| ProgramError::Output {
        program: "pg_dump".to_owned(),
        detail: "it has none".to_owned(),
    })?;
    Ok(Dump { program, output })
}

/// Standard output for the caller, standard error for messages.
impl Program {
    fn spawn_streaming(command: Command) -> Result<Self, ProgramError> {
        Self::spawn_into(command, Stdio::piped())
    }
}

/// Whether `pg_amcheck` found a relation that is not as it must be, rather than not being able to look.
#[must_use]
pub fn corrupt(error: &ProgramError) -> bool {
    error.exited(AMCHECK, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_quotes() {
        let client = Client {
            program_directory: PathBuf::from("/programs"),
            address: Address::Socket {
                folder: PathBuf::from("/run/a b"),
                port: 5432,
            },
            user: "o'b\\".to_owned(),
            passfile: Some(PathBuf::from("/run/pass")),
            authority: None,
            application_name: "podgres_backup".to_owned(),
        };
        assert_eq!(
            client.conninfo("a' host='x"),
            "host='/run/a b' port=5432 dbname='a\\' host=\\'x' user='o\\'b\\\\' application_name=podgres_backup \
             passfile=/run/pass sslmode=prefer gssencmode=disable sslcert=/programs/no-client-certificate"
        );
    }
}
