//! `podgres restore`: a new data directory from a backup, up to a moment.

use std::path::PathBuf;

use clap::Args;

use crate::backup::restore::{self, Options};
use crate::config::backup::StoreArguments;
use crate::core::backup::choose::Target;
use crate::core::wal::Lsn;

use super::backing::{self, Opened, RunDirectory};
use super::{ExitStatus, Failure};

/// Which backup, and with what it is restored.
#[derive(Args, Debug)]
pub struct FromArguments {
    /// Where the backups are: a folder, or s3://bucket/prefix
    #[arg(long, env = "PODGRES_BACKUP_DESTINATION")]
    pub from: Option<String>,
    #[command(flatten)]
    pub store: StoreArguments,
    /// Folder with PostgreSQL's programs, of the backup's version [default: found on PATH and in the usual places]
    #[arg(long, env = "PG_BINDIR")]
    pub program_dir: Option<PathBuf>,
    /// The cluster's superuser
    #[arg(long, env = "POSTGRES_USER", default_value = "postgres")]
    pub superuser: String,
}

#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pub from: FromArguments,
    /// This backup [default: the newest that ends before the target]
    #[arg(long)]
    pub backup: Option<String>,
    #[command(flatten)]
    pub target: TargetArguments,
    /// latest, current (that of the backup) or a number
    #[arg(long, default_value = "latest", value_parser = timeline)]
    pub timeline: String,
    /// The new data directory, absent or empty
    #[arg(long, env = "PGDATA")]
    pub pgdata: PathBuf,
}

/// How far to replay.
#[derive(Args, Debug, Default)]
#[group(multiple = false)]
pub struct TargetArguments {
    /// The last commit before a time: '2026-11-21 17:15:30.5+01'
    #[arg(long)]
    pub to_time: Option<String>,
    /// A WAL position: 0/3000060
    #[arg(long)]
    pub to_lsn: Option<Lsn>,
    /// A point made by pg_create_restore_point
    #[arg(long)]
    pub to_name: Option<String>,
    /// All archived WAL (default)
    #[arg(long)]
    pub latest: bool,
    /// The end of the backup itself
    #[arg(long)]
    pub to_backup: bool,
}

impl TargetArguments {
    fn target(&self) -> Target {
        match self {
            Self {
                to_time: Some(time), ..
            } => Target::Time(time.clone()),
            Self {
                to_lsn: Some(lsn), ..
            } => Target::Lsn(*lsn),
            Self {
                to_name: Some(name), ..
            } => Target::Name(name.clone()),
            Self { to_backup: true, .. } => Target::Backup,
            Self { .. } => Target::Latest,
        }
    }
}

fn timeline(text: &str) -> Result<String, String> {
    let fits = matches!(text, "latest" | "current") || text.parse::<u32>().is_ok_and(|number| number > 0);
    fits.then(|| text.to_owned())
        .ok_or_else(|| "write latest, current, or a timeline's number".to_owned())
}

/// Restores, and says what it restored.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let opened = backing::open_unprivileged(&arguments.from.store, "--from", arguments.from.from.as_deref())?;
    let run_directory = RunDirectory::create()?;
    let mut options = options(&arguments.from, &opened, &run_directory).await?;
    options.name = arguments.backup;
    options.target = arguments.target.target();
    options.timeline = arguments.timeline;
    let directory = std::path::absolute(&arguments.pgdata).map_err(|error| {
        Failure::new(
            ExitStatus::Settings,
            format!("invalid value for --pgdata: {error}"),
        )
    })?;
    let record = restore::restore(&opened.store, &options, &directory).await?;
    backing::print(&format!(
        "{}: restored into \"{}\", ready to be started by PostgreSQL {}\n",
        record.name,
        directory.display(),
        record.postgres_version.split('.').next().unwrap_or_default(),
    ))
}

/// For a restore of the newest backup; the caller fills in what was asked.
pub(super) async fn options(
    arguments: &FromArguments,
    opened: &Opened,
    run_directory: &RunDirectory,
) -> Result<Options, Failure> {
    let binary = std::env::current_exe().map_err(|error| Failure::from_error(ExitStatus::Bug, &error))?;
    Ok(Options {
        destination: opened.settings.clone(),
        name: None,
        target: Target::Latest,
        timeline: "latest".to_owned(),
        key: arguments.store.key()?,
        key_file: arguments.store.key_file.clone(),
        program_directory: backing::program_directory(arguments.program_dir.as_deref()).await?,
        run_directory: run_directory.path().to_owned(),
        binary,
        superuser: arguments.superuser.clone(),
    })
}
