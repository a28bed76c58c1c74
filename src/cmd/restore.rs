//! `podgres restore`: a new data directory from a backup, up to a moment.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::backup::restore::{self, Options, Restored};
use crate::config::ProcessEnvironment;
use crate::config::backup::StoreArguments;
use crate::config::server::ServerArguments;
use crate::core::backup::choose::Target;
use crate::core::backup::parent::major;
use crate::core::wal::Lsn;
use crate::postgres::ServerSettings;
use crate::postgres::roles::stored_form;
use crate::store::{Store, StoreSettings};

use super::backing::{self, Opened, RunDirectory};
use super::wal_push::read_settings;
use super::{ExitStatus, Failure};

const SETTINGS_FILE: &str = "restore.json";

/// Which backup, and with what it is restored.
#[derive(Args, Debug)]
pub struct FromArguments {
    /// Where the backups are: a folder, s3://bucket/prefix, azure://container/prefix or gs://bucket/prefix
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
    /// Written by podgres for a new cluster's first pod
    #[arg(long, hide = true, conflicts_with = "from")]
    pub settings: Option<PathBuf>,
}

/// What the first pod of a new cluster restores from; its environment is not the program's.
#[derive(Serialize, Deserialize)]
struct Settings {
    destination: StoreSettings,
    key_file: Option<PathBuf>,
    program_directory: PathBuf,
    superuser: String,
    /// As servers store it.
    superuser_password: Option<String>,
}

/// How far to replay.
#[derive(Args, Debug, Default)]
#[group(multiple = false)]
pub struct TargetArguments {
    /// The last commit before a time: '2026-11-21 17:15:30.5+01'; UTC without a zone
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
pub async fn run(mut arguments: Arguments) -> Result<(), Failure> {
    let mut superuser_password = None;
    let opened = if let Some(path) = &arguments.settings {
        let mut settings: Settings = read_settings(path)?;
        superuser_password = settings.superuser_password.take();
        take_settings(&mut arguments.from, settings)?
    } else {
        let from = &arguments.from;
        backing::open_unprivileged(&from.store, "--from", from.from.as_deref())?
    };
    let run_directory = RunDirectory::create()?;
    let mut options = options(&arguments.from, &opened, &run_directory).await?;
    options.superuser_password = superuser_password;
    options.name = arguments.backup;
    options.target = arguments.target.target();
    options.timeline = arguments.timeline;
    let directory = std::path::absolute(&arguments.pgdata).map_err(|error| {
        Failure::new(
            ExitStatus::Settings,
            format!("invalid value for --pgdata: {error}"),
        )
    })?;
    let restored = restore::restore(&opened.store, &options, &directory).await?;
    backing::print(&told(&restored, &directory))
}

fn told(restored: &Restored, directory: &Path) -> String {
    let Restored { record, reached, gap } = restored;
    let gap = gap
        .as_ref()
        .map(|gap| format!("NOT to the end of the archive: {gap}\n"));
    format!(
        "{}: restored into \"{}\" up to {reached}, ready to be started by PostgreSQL {}\n{}",
        record.name,
        directory.display(),
        major(&record.postgres_version),
        gap.unwrap_or_default(),
    )
}

fn take_settings(from: &mut FromArguments, settings: Settings) -> Result<Opened, Failure> {
    from.program_dir = Some(settings.program_directory);
    from.superuser = settings.superuser;
    from.store.key_file = settings.key_file;
    let store = Store::open(&settings.destination).map_err(|error| backing::failure(error.into()))?;
    Ok(Opened {
        store,
        settings: settings.destination,
    })
}

/// The program that fills a new cluster's first directory, if one is to begin with a backup.
pub(super) fn prepare(
    arguments: &ServerArguments,
    server: &ServerSettings,
) -> Result<Option<Vec<String>>, Failure> {
    let Some(from) = arguments.restore_from.as_deref().filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let settings = Settings {
        destination: arguments
            .store
            .settings("PODGRES_RESTORE_FROM", Some(from), &ProcessEnvironment)?,
        key_file: arguments.store.key_file.clone(),
        program_directory: server.program_directory.clone(),
        superuser: server.superuser.user.clone(),
        superuser_password: stored_form(&server.superuser.password),
    };
    let path = server.run_directory.join(SETTINGS_FILE);
    backing::write_generated(&path, &serde_json::to_vec(&settings).unwrap_or_default())?;
    let binary = std::env::current_exe().map_err(|error| Failure::from_error(ExitStatus::Bug, &error))?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut words = vec![
        text(&binary),
        "restore".to_owned(),
        "--settings".to_owned(),
        text(&path),
    ];
    if let Some(time) = arguments.restore_to_time.as_ref().filter(|time| !time.is_empty()) {
        words.extend(["--to-time".to_owned(), time.clone()]);
    }
    words.push("--pgdata".to_owned());
    Ok(Some(words))
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
        superuser_password: None,
    })
}
