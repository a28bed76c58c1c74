//! Makes a new cluster: initdb in a staging directory, database, replication role, the user's init
//! scripts, and only then the name PGDATA.
//!
//! A kill or a dropped future at any point leaves PGDATA absent; the next run begins again. Behaves as
//! the official image's entrypoint where that is documented.

use std::path::Path;
use std::time::Duration;

use postgres_protocol::escape::{escape_identifier, escape_literal};
use rustix::process::Signal;
use tokio_postgres::{Client, NoTls};

use super::error::JobError;
use super::files::blocking;
use super::process::{Locale, command};
use super::staging::{self, Target};
use super::temporary_server::{self, PrivateDirectory};
use super::{Secret, ServerSettings, conf, incarnation, initdb_scripts, program, roles};
use crate::files::write_private;

/// initdb takes seconds; slow volumes and many locales take longer.
const INITDB_LIMIT: Duration = Duration::from_mins(10);
/// Connecting to a server that has just said "ready".
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// Options that podgres gives itself, or that break the rule that PGDATA is one directory.
const OWN_OPTIONS: &[(&str, &str)] = &[
    ("--pgdata", "the data directory is PGDATA"),
    (
        "--waldir",
        "WAL must stay inside the data directory, which is renamed as a whole",
    ),
    ("--username", "the superuser is POSTGRES_USER"),
    ("--pwfile", "the password is POSTGRES_PASSWORD"),
    ("--pwprompt", "the password is POSTGRES_PASSWORD"),
    ("--sync-only", "a new cluster must be made"),
];
/// The same by letter.
const OWN_LETTERS: &[(char, usize)] = &[('D', 0), ('X', 1), ('U', 2), ('W', 4), ('S', 5)];
/// Letters whose value may follow in the same word.
const LETTERS_WITH_VALUE: &str = "AcELT";

/// Makes the cluster at PGDATA, which must be absent or empty.
///
/// # Errors
/// See [`JobError`]; nothing but a staging directory is left then, which the next job removes.
pub async fn run(settings: &ServerSettings) -> Result<(), JobError> {
    check_arguments(&settings.initdb_arguments)?;
    if settings.superuser.user.contains(['"', '\'', '$', '\\', '\n']) {
        return Err(JobError::SuperuserName {
            name: settings.superuser.user.clone(),
        });
    }
    let staging = staging::begin(settings, Target::Empty).await?;
    let private = PrivateDirectory::create(settings)?;
    let result = fill(settings, &staging, private.path()).await;
    drop(private);
    if let Err(error) = result {
        if let Err(left) = staging::abandon(settings).await {
            tracing::warn!(error = %super::error::describe(&left), "could not delete the staging directory");
        }
        return Err(error);
    }
    staging::publish(settings, Target::Empty).await
}

async fn fill(settings: &ServerSettings, staging: &Path, private: &Path) -> Result<(), JobError> {
    match &settings.restore_program {
        Some(words) => restore(words, staging).await?,
        None => fill_anew(settings, staging, private).await?,
    }
    let (directory, member) = (staging.to_owned(), settings.member.clone());
    blocking(move || incarnation::renew(&directory, &member)).await?;
    Ok(())
}

/// The content comes from a backup; the roles with it, and what is missing of them the primary's agent makes.
async fn restore(words: &[String], staging: &Path) -> Result<(), JobError> {
    tracing::info!("restoring a backup instead of initialising a new cluster");
    let mut restore = command(Path::new(&words[0]), Locale::Inherited, Signal::TERM);
    restore.args(&words[1..]).arg(staging);
    program::run_watched(restore, None, |line| tracing::info!(?line, "restore")).await?;
    Ok(())
}

async fn fill_anew(settings: &ServerSettings, staging: &Path, private: &Path) -> Result<(), JobError> {
    initialise(settings, staging, private).await?;
    conf::release_initdb_defaults(staging)?;
    let mut server = temporary_server::start(settings, staging, private).await?;
    let work = async {
        populate(settings, private).await?;
        initdb_scripts::run(settings, staging, private).await
    };
    server.during(work).await??;
    Ok(server.stop().await?)
}

async fn initialise(settings: &ServerSettings, staging: &Path, private: &Path) -> Result<(), JobError> {
    tracing::info!("initialising a new cluster");
    let mut initdb = command(&settings.program("initdb"), Locale::Inherited, Signal::KILL);
    initdb
        .arg("-D")
        .arg(staging)
        .args(["-U", &settings.superuser.user, "--no-sync", "--data-checksums"]);
    let password_file = private.join("password");
    // The verifier, since initdb's server shows the statement that sets it if that fails.
    if let Some(verifier) = roles::stored_form(&settings.superuser.password) {
        write_private(&password_file, verifier.as_bytes())?;
        let mut option = std::ffi::OsString::from("--pwfile=");
        option.push(&password_file);
        initdb
            .arg(option)
            .args(["--auth-local=scram-sha-256", "--auth-host=scram-sha-256"]);
    } else {
        // Only possible with POSTGRES_HOST_AUTH_METHOD=trust.
        initdb.args(["--auth-local=trust", "--auth-host=trust"]);
    }
    initdb.args(default_locale(
        std::env::var_os("LANG").is_some(),
        &settings.initdb_arguments,
    ));
    initdb.args(&settings.initdb_arguments);
    match program::run(initdb, INITDB_LIMIT).await {
        Err(error) if error.to_string().contains("initdb --help") => {
            tracing::warn!("{error}");
            Err(JobError::InitdbArgument {
                argument: settings.initdb_arguments.join(" "),
                detail: "initdb does not know it",
            })
        }
        ended => Ok(ended.map(drop)?),
    }
}

/// Database and replication role; no password leaves this process but as a SCRAM verifier.
async fn populate(settings: &ServerSettings, sockets: &Path) -> Result<(), JobError> {
    let client = connect(settings, sockets).await?;
    if settings.database != "postgres" {
        let statement = format!("CREATE DATABASE {}", escape_identifier(&settings.database));
        execute(&client, "could not create the database", &statement).await?;
    }
    if settings.replication.user != settings.superuser.user {
        let role = escape_identifier(&settings.replication.user);
        let statement = format!(
            "CREATE ROLE {role} LOGIN REPLICATION PASSWORD {}; GRANT pg_monitor TO {role}",
            password_literal(&settings.replication.password)
        );
        execute(&client, "could not create the replication role", &statement).await?;
        let rights = roles::rights(&settings.replication.user);
        execute(&client, "could not give the replication role its rights", &rights).await?;
    }
    Ok(())
}

async fn connect(settings: &ServerSettings, sockets: &Path) -> Result<Client, JobError> {
    let (client, connection) = tokio_postgres::Config::new()
        .host_path(sockets)
        .port(settings.port)
        .user(&settings.superuser.user)
        .dbname("postgres")
        .application_name("podgres")
        .connect_timeout(CONNECT_LIMIT)
        .connect(NoTls)
        .await
        .map_err(sql("could not connect"))?;
    // Ends with the client.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to the temporary server ended");
        }
    });
    Ok(client)
}

async fn execute(client: &Client, what: &'static str, statement: &str) -> Result<(), JobError> {
    client.batch_execute(statement).await.map_err(sql(what))
}

fn sql(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> JobError {
    move |source| JobError::Sql {
        what,
        source: Box::new(source),
    }
}

/// UTF-8 without a language where neither the image nor the user says anything.
fn default_locale(language_set: bool, arguments: &[String]) -> &'static [&'static str] {
    let asked = arguments.iter().any(|argument| {
        [
            "--locale",
            "--lc-",
            "--no-locale",
            "--encoding",
            "-E",
            "--icu",
            "--builtin",
        ]
        .iter()
        .any(|option| argument.starts_with(option))
    });
    if language_set || asked {
        &[]
    } else {
        &["--encoding=UTF8", "--locale=C"]
    }
}

/// Refuses what would break the staging of the directory or the login.
fn check_arguments(arguments: &[String]) -> Result<(), JobError> {
    for argument in arguments {
        if let Some(index) = own_option(argument) {
            return Err(JobError::InitdbArgument {
                argument: argument.split('=').next().unwrap_or_default().to_owned(),
                detail: OWN_OPTIONS[index].1,
            });
        }
    }
    Ok(())
}

/// The index in [`OWN_OPTIONS`] of the option that `argument` gives, abbreviated as getopt allows or not.
fn own_option(argument: &str) -> Option<usize> {
    if argument.starts_with("--") {
        let name = argument.split('=').next().unwrap_or_default();
        return OWN_OPTIONS
            .iter()
            .position(|(option, _)| name.len() > "--p".len() && option.starts_with(name));
    }
    let letters = argument.strip_prefix('-')?;
    for letter in letters.chars() {
        if let Some((_, index)) = OWN_LETTERS.iter().find(|(own, _)| *own == letter) {
            return Some(*index);
        }
        if LETTERS_WITH_VALUE.contains(letter) {
            return None;
        }
    }
    None
}

fn password_literal(password: &Secret) -> String {
    roles::stored_form(password).map_or_else(|| "NULL".to_owned(), |verifier| escape_literal(&verifier))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_break_the_staging_are_refused() {
        for argument in [
            "-D",
            "-D/x",
            "--pgdata=/x",
            "-kX/wal",
            "--waldir=/w",
            "--wald=/w",
            "-Ubob",
            "--pwfile=/x",
            "-W",
            "-S",
        ] {
            assert!(own_option(argument).is_some(), "{argument} was taken");
        }
        for argument in [
            "--data-checksums",
            "-k",
            "-E",
            "-EUTF8",
            "--encoding=UTF8",
            "--locale=de_DE.UTF-8",
            "-A",
            "--wal-segsize=1",
            "-cwork_mem=DX",
            "UTF8",
            "--allow-group-access",
        ] {
            assert!(own_option(argument).is_none(), "{argument} was refused");
        }
    }

    #[test]
    fn the_users_locale_comes_before_ours() {
        assert_eq!(default_locale(false, &[]), ["--encoding=UTF8", "--locale=C"]);
        assert!(default_locale(true, &[]).is_empty());
        assert!(default_locale(false, &["--lc-collate=C".to_owned()]).is_empty());
    }

    #[test]
    fn passwords_are_never_pasted() {
        let verifier = password_literal(&Secret::new("o'brien".into()));
        assert!(verifier.starts_with("'SCRAM-SHA-256$4096:") && !verifier.contains("brien"));
        assert_eq!(password_literal(&Secret::new(String::new())), "NULL");
    }
}
