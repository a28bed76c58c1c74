//! Runs the user's init scripts against the temporary server, as the official image's entrypoint does.
//!
//! In name order: `*.sh` is executed if executable, else sourced by bash or sh; `*.sql` goes to psql, and
//! so do `*.sql.gz`, `.xz` and `.zst` after the image's own decompressor. Scripts get the container's
//! environment without podgres' and PostgreSQL's secrets. They have no time limit: loading a dump takes what
//! it takes, and cancelling the job ends it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::fs::{Access, access};
use rustix::process::Signal;
use tokio::process::Command;

use super::ServerSettings;
use super::error::{JobError, ProgramError};
use super::process::{Locale, command};
use super::program::{Line, Program, run_watched};
use crate::files::{FileContext as _, FileError};

/// What the official image offers to sourced scripts.
const PREAMBLE: &str = r#"docker_process_sql() {
    psql -v ON_ERROR_STOP=1 --no-password --no-psqlrc --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" "$@"
}
. "$1""#;
const SHELLS: &[(&str, &[&str])] = &[
    ("/bin/bash", &["-Eeo", "pipefail", "-c"]),
    ("/usr/local/bin/bash", &["-Eeo", "pipefail", "-c"]),
    ("/usr/bin/bash", &["-Eeo", "pipefail", "-c"]),
    ("/bin/sh", &["-e", "-c"]),
];

/// How a file is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Shell,
    Sql,
    /// The program that decompresses to its standard output.
    Compressed(&'static str),
    Ignored,
}

/// Runs every script; the first that fails ends the job. No folder means no scripts.
pub(super) async fn run(settings: &ServerSettings, staging: &Path, sockets: &Path) -> Result<(), JobError> {
    for script in scripts(&settings.initdb_scripts)? {
        let environment = Environment {
            settings,
            staging,
            sockets,
        };
        match kind(&script) {
            Kind::Shell => shell(&environment, &script).await?,
            Kind::Sql => sql(&environment, &script).await?,
            Kind::Compressed(with) => compressed(&environment, &script, with).await?,
            Kind::Ignored => {
                tracing::warn!(script = %script.display(), "ignoring a file that is no init script");
            }
        }
    }
    Ok(())
}

struct Environment<'a> {
    settings: &'a ServerSettings,
    staging: &'a Path,
    sockets: &'a Path,
}

impl Environment<'_> {
    /// A program with what the official image gives to its scripts.
    fn command(&self, program: &Path) -> Command {
        let settings = self.settings;
        let mut command = command(program, Locale::Inherited, Signal::KILL);
        command
            .envs(std::env::vars_os().filter(|(name, value)| self.harmless(name, value)))
            .env("PATH", self.path())
            .env("PGDATA", self.staging)
            .env("PGHOST", self.sockets)
            .env("PGPORT", settings.port.to_string())
            .env("POSTGRES_USER", &settings.superuser.user)
            .env("POSTGRES_DB", &settings.database);
        command
    }

    fn psql(&self) -> Command {
        let mut command = self.command(&self.settings.program("psql"));
        command.args([
            "-v",
            "ON_ERROR_STOP=1",
            "--no-password",
            "--no-psqlrc",
            "--username",
        ]);
        command.arg(&self.settings.superuser.user);
        command.arg("--dbname").arg(&self.settings.database);
        command
    }

    /// Not ours, not a login of libpq, and not one of the two passwords under another name.
    fn harmless(&self, name: &OsString, value: &OsString) -> bool {
        let name = name.to_string_lossy();
        let value = value.to_string_lossy();
        let secrets = [
            &self.settings.superuser.password,
            &self.settings.replication.password,
        ];
        !name.starts_with("PODGRES_")
            && !name.starts_with("PG")
            && name != "POSTGRES_PASSWORD"
            && !secrets
                .iter()
                .any(|secret| !secret.expose().is_empty() && value.trim_end() == secret.expose())
    }

    /// The programs of this server come first: on Debian they are not on PATH.
    fn path(&self) -> OsString {
        let mut path = self.settings.program_directory.clone().into_os_string();
        if let Some(inherited) = std::env::var_os("PATH") {
            path.push(":");
            path.push(inherited);
        }
        path
    }
}

async fn shell(environment: &Environment<'_>, script: &Path) -> Result<(), JobError> {
    let executable = access(script, Access::EXEC_OK).is_ok();
    let command = if executable {
        environment.command(script)
    } else {
        let Some((shell, options)) = SHELLS.iter().find(|(shell, _)| Path::new(shell).exists()) else {
            return Err(JobError::Script {
                script: script.to_owned(),
                detail: "it is not executable, and this image has no shell that could source it",
            });
        };
        let mut command = environment.command(Path::new(shell));
        command.args(*options).arg(PREAMBLE).arg(shell).arg(script);
        command
    };
    watched(command, script).await
}

async fn sql(environment: &Environment<'_>, script: &Path) -> Result<(), JobError> {
    let mut psql = environment.psql();
    psql.arg("-f").arg(script);
    watched(psql, script).await
}

async fn compressed(environment: &Environment<'_>, script: &Path, with: &str) -> Result<(), JobError> {
    let (reader, writer) = io::pipe().file("make a pipe for", script)?;
    let source = fs::File::open(script).file("open file", script)?;
    let mut decompress = environment.command(Path::new(with));
    decompress.arg("-dc").stdin(Stdio::from(source));
    let mut decompressor = Program::spawn_into(decompress, Stdio::from(writer))?;
    let mut psql = environment.psql();
    psql.stdin(Stdio::from(reader));
    let (loaded, ended) = tokio::join!(watched(psql, script), decompressor.end());
    loaded?;
    // A torn archive: psql has seen an orderly end of a shorter script.
    ended.map_err(|error| failed(with, error.to_string()))
}

async fn watched(command: Command, script: &Path) -> Result<(), JobError> {
    tracing::info!(script = %script.display(), "running an init script");
    let name = script
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let show = |line: &Line| {
        let (Line::Out(text) | Line::Err(text)) = line;
        tracing::info!(script = name, "{text}");
    };
    match run_watched(command, None, show).await {
        Ok(_) => Ok(()),
        Err(error) => Err(failed(&script.to_string_lossy(), error.to_string())),
    }
}

fn failed(program: &str, output: String) -> JobError {
    JobError::Program(ProgramError::Failed {
        program: program.to_owned(),
        outcome: "failed".into(),
        output,
    })
}

fn kind(script: &Path) -> Kind {
    let name = script.file_name().unwrap_or_default().to_string_lossy();
    let ends = |suffix: &str| name.ends_with(suffix);
    if ends(".sh") {
        Kind::Shell
    } else if ends(".sql") {
        Kind::Sql
    } else if ends(".sql.gz") {
        Kind::Compressed("gunzip")
    } else if ends(".sql.xz") {
        Kind::Compressed("xz")
    } else if ends(".sql.zst") {
        Kind::Compressed("zstd")
    } else {
        Kind::Ignored
    }
}

/// The files in the folder by name; a name with a leading dot is no script, as for a shell's `*`.
fn scripts(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let listing = match fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).file("read directory", folder),
    };
    let mut files = Vec::new();
    for entry in listing {
        let entry = entry.file("read directory", folder)?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_tells_how_a_script_is_run() {
        for (name, expected) in [
            ("1.sh", Kind::Shell),
            ("2.sql", Kind::Sql),
            ("3.sql.gz", Kind::Compressed("gunzip")),
            ("4.sql.xz", Kind::Compressed("xz")),
            ("5.sql.zst", Kind::Compressed("zstd")),
            ("readme.txt", Kind::Ignored),
            ("6.gz", Kind::Ignored),
        ] {
            assert_eq!(kind(Path::new(name)), expected, "{name}");
        }
    }
}
