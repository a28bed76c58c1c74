//! `podgres backup`: a backup of the cluster to a folder or a bucket.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::backup::Server;
use crate::backup::run::{Options, Outcome, Source, locked_backup};
use crate::config::backup::StoreArguments;
use crate::config::{Environment as _, ProcessEnvironment, units};
use crate::core::backup::retention::Keep;
use crate::core::backup::source::{self, Candidate, From};
use crate::core::cluster::table::size_text;
use crate::core::member::Ordinal;
use crate::postgres::tls::{AUTHORITY_FILE, ClientTls};

use super::backing::{self, RunDirectory};
use super::backup_options::{Logins, logins, options};
use super::names::Names;
use super::place::Place;
use super::{ExitStatus, Failure};

/// Members that are tried, one after the other, when one fails in the middle.
const TRIES: usize = 5;
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pub place: Place,
    /// Where to: a folder, s3://bucket/prefix, azure://container/prefix or gs://bucket/prefix
    #[arg(long, env = "PODGRES_BACKUP_DESTINATION")]
    pub to: Option<String>,
    #[command(flatten)]
    pub store: StoreArguments,
    /// The whole server's files, or dumps of databases
    #[arg(long, env = "PODGRES_BACKUP_KIND", value_enum, default_value_t = KindArgument::Physical)]
    pub kind: KindArgument,
    /// Only what has changed since an earlier backup (PostgreSQL 17+): its name, newest, or auto for a full one where none
    /// fits [without a value: newest]
    #[arg(
        long,
        env = "PODGRES_BACKUP_INCREMENTAL",
        value_name = "PARENT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "newest"
    )]
    pub incremental: Option<String>,
    /// primary, standby, or a member's name [default: the freshest standby, else the primary]
    #[arg(long, env = "PODGRES_BACKUP_FROM", value_name = "MEMBER")]
    pub from: Option<String>,
    /// A database for a logical backup; may be repeated [default: all]
    #[arg(long = "database", env = "PODGRES_BACKUP_DATABASES", value_delimiter = ',')]
    pub databases: Vec<String>,
    /// How pg_dump writes a database [default: custom, or directory with --jobs]
    #[arg(long, env = "PODGRES_BACKUP_FORMAT", value_enum)]
    pub format: Option<FormatArgument>,
    /// Jobs that dump a database at once, in directory format
    #[arg(long, env = "PODGRES_BACKUP_JOBS", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub jobs: Option<u32>,
    /// Where such a dump's files stand until they are sent [default: TMPDIR]
    #[arg(long, env = "PODGRES_SCRATCH_DIR")]
    pub scratch_dir: Option<PathBuf>,
    /// Which backups stay after this one: 7, 30d, or daily=7,weekly=4,monthly=12,yearly=3
    #[arg(long, env = "PODGRES_BACKUP_KEEP")]
    pub keep: Option<Keep>,
    /// Bytes a second to the destination, at most
    #[arg(long, env = "PODGRES_BACKUP_MAX_RATE", value_parser = units::bytes)]
    pub max_rate: Option<u64>,
    /// How much of the tables is read to record what verification compares, the smallest first
    #[arg(long, env = "PODGRES_BACKUP_PROOF_SIZE", value_parser = units::bytes, default_value = "256MB")]
    pub proof_size: u64,
    /// What a piece of a physical backup has at least, before compression; a file of PostgreSQL's has at most 1 GiB
    #[arg(long, hide = true, value_parser = units::bytes, default_value = "256MB")]
    pub piece_size: u64,
    /// Of zstd, 1 to 19
    #[arg(long, env = "PODGRES_BACKUP_LEVEL", default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=19))]
    pub level: i32,
    /// Threads that compress
    #[arg(long, env = "PODGRES_BACKUP_THREADS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub threads: u32,
    /// Folder with pg_dump [default: found on PATH and in the usual places]
    #[arg(long, env = "PG_BINDIR")]
    pub program_dir: Option<PathBuf>,
    /// Mounted folder with ca.crt, where the servers have TLS
    #[arg(long, env = "PODGRES_TLS_DIR")]
    pub tls_dir: Option<PathBuf>,
    #[command(flatten)]
    pub names: Names,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KindArgument {
    Physical,
    Logical,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArgument {
    Custom,
    Directory,
    Tar,
}

/// Makes a backup and says what it made.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    arguments.names.check()?;
    let opened = backing::create(&arguments.store, "--to", arguments.to.as_deref())?;
    let run_directory = RunDirectory::create()?;
    let logins = logins(&arguments.place)?;
    let mut options = options(&arguments, &logins, &run_directory).await?;
    let who = format!("podgres backup on {}, process {}", hostname(), std::process::id());
    for tried in 1.. {
        let (failure, again) = match aim(&arguments, &logins, &mut options, tried).await {
            Ok(source) => match locked_backup(&opened.store, &who, &source, &options).await {
                Ok(outcome) => return backing::print(&told(&outcome)),
                Err(error) => {
                    let again = error.retriable();
                    (backing::failure(error), again)
                }
            },
            // After a failure in the middle: a moment later there may be somebody again.
            Err(failure) => {
                let again = tried > 1 && failure.status == ExitStatus::Overdue;
                (failure, again)
            }
        };
        if !again || tried >= TRIES {
            return Err(failure);
        }
        let detail = failure.detail.unwrap_or_default();
        tracing::warn!(detail, "{}; trying again", failure.message);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Looks at the cluster, for whom to read now.
async fn aim(
    arguments: &Arguments,
    logins: &Logins,
    options: &mut Options,
    tried: usize,
) -> Result<Source, Failure> {
    let cluster = arguments.place.cluster().await?;
    cluster["cluster"]
        .as_str()
        .unwrap_or_default()
        .clone_into(&mut options.cluster);
    options.term = cluster["term"].as_u64().unwrap_or(0);
    choose(arguments, &cluster, logins, tried)
}

/// The best candidate; after a failure the next one.
fn choose(arguments: &Arguments, cluster: &Value, logins: &Logins, tried: usize) -> Result<Source, Failure> {
    let from = arguments
        .from
        .as_ref()
        .map_or(From::Any, |from| match from.parse() {
            Ok(from) => from,
            Err(impossible) => match impossible {},
        });
    let candidates = source::sources(cluster, &from).map_err(|error| {
        let status = match &error {
            source::SourceError::Unknown { .. } => ExitStatus::Settings,
            _ => ExitStatus::Overdue,
        };
        Failure::from_error(status, &error)
    })?;
    let chosen = &candidates[(tried - 1) % candidates.len()];
    let tls = arguments
        .tls_dir
        .as_deref()
        .filter(|folder| folder.join(AUTHORITY_FILE).exists());
    let tls = match tls {
        Some(folder) => {
            let tls =
                ClientTls::open(folder).map_err(|error| Failure::from_error(ExitStatus::Settings, &error))?;
            Some((Arc::new(tls), folder.join(AUTHORITY_FILE)))
        }
        None => None,
    };
    // Of which name each member's certificate must be.
    let name = cluster["cluster"].as_str().unwrap_or_default();
    let service_host = arguments.names.topology(name, Ordinal(0)).service_host();
    let server = |candidate: &Candidate| Server {
        name: candidate.name.clone(),
        role: candidate.role.clone(),
        host: format!("{}.{service_host}", candidate.name),
        address: candidate.address,
        port: candidate.port,
        superuser: logins.superuser.clone(),
        replication: logins.replication.clone(),
        tls: tls.as_ref().map(|(tls, _)| Arc::clone(tls)),
        authority: tls.as_ref().map(|(_, file)| file.clone()),
    };
    let primary = source::primary(cluster).filter(|primary| primary.name != chosen.name);
    Ok(Source {
        server: server(chosen),
        primary: primary.as_ref().map(server),
    })
}

fn told(outcome: &Outcome) -> String {
    let record = &outcome.record;
    let mut text = format!(
        "{}: {} of {} ({}), {} stored, timeline {} up to {}\n",
        record.name,
        record.kind.as_str(),
        record.source,
        record.source_role,
        size_text(record.stored_bytes()),
        record.timeline,
        record.stop_lsn,
    );
    if let Some(parent) = &record.parent {
        text.extend([record.name.as_str(), ": adds to ", parent, "\n"]);
    }
    for name in &outcome.pruned {
        text.extend([name, ": deleted\n"]);
    }
    if outcome.pruned_wal > 0 {
        text.extend([&outcome.pruned_wal.to_string(), " archived WAL files deleted\n"]);
    }
    text
}

fn hostname() -> String {
    ProcessEnvironment
        .get("POD_NAME")
        .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}
