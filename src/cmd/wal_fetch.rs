//! `podgres wal-fetch FILE PATH`: PostgreSQL's `restore_command`.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;

use crate::backup::wal::{self, FetchSettings};
use crate::backup::wal_ahead::{Ahead, Archive};
use crate::config::backup::StoreArguments;
use crate::core::wal_file::WalFile;
use crate::store::Store;

use super::{ExitStatus, Failure, backing};

#[derive(Args, Debug)]
pub struct Arguments {
    /// Name of the WAL file, %f
    pub file: WalFile,
    /// Where to put it, %p
    pub path: PathBuf,
    /// Where the archive is [default: what --settings says]
    #[arg(long, env = "PODGRES_ARCHIVE_DESTINATION")]
    pub from: Option<String>,
    #[command(flatten)]
    pub store: StoreArguments,
    /// Written by podgres for a server that it starts
    #[arg(long, hide = true, conflicts_with = "from")]
    pub settings: Option<PathBuf>,
    /// A store that does not answer ends the recovery, instead of being taken for the archive's end
    #[arg(long)]
    pub strict: bool,
    /// A folder, best on the data directory's volume, for up to 12 segments that are fetched ahead [default: none]
    #[arg(long, env = "PODGRES_WAL_AHEAD_DIR")]
    pub ahead_dir: Option<PathBuf>,
    /// Fetch what follows FILE, whose segments have this many bytes
    #[arg(long, hide = true)]
    pub fill: Option<u64>,
    /// Nothing but timeline histories, so that only the WAL in the backup is replayed
    #[arg(long, hide = true)]
    pub histories: bool,
}

/// Fetches; exit code 1 if there is no such file, which PostgreSQL takes for the archive's end.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let strict = arguments.strict;
    match fetch(arguments).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::new(ExitStatus::NotThere, "")),
        // PostgreSQL goes on after any code up to 125.
        Err(failure) if strict => Err(Failure {
            status: ExitStatus::NoRetry,
            ..failure
        }),
        Err(failure) => Err(failure),
    }
}

async fn fetch(arguments: Arguments) -> Result<bool, Failure> {
    if arguments.histories && !matches!(arguments.file, WalFile::History { .. }) {
        return Ok(false);
    }
    let settings = match &arguments.settings {
        Some(path) => super::wal_push::read_settings(path)?,
        None => FetchSettings {
            destination: arguments.store.settings(
                "--from",
                arguments.from.as_deref(),
                &crate::config::ProcessEnvironment,
            )?,
            key_file: arguments.store.key_file.clone(),
            system_identifier: wal::system_identifier(Path::new("."))?,
            ahead: arguments.ahead_dir.clone(),
        },
    };
    let key = StoreArguments {
        key_file: settings.key_file.clone(),
        ..StoreArguments::default()
    }
    .key()?;
    let archive = Archive {
        store: Store::open(&settings.destination).map_err(|error| backing::failure(error.into()))?,
        system_identifier: settings.system_identifier,
        key,
    };
    let ahead = settings.ahead.clone().map(|folder| Ahead { folder });
    match (ahead, arguments.fill) {
        (Some(ahead), Some(segment_bytes)) => {
            ahead.fill(&archive, arguments.file, segment_bytes).await?;
            Ok(true)
        }
        (Some(ahead), None) if matches!(arguments.file, WalFile::Segment { .. }) => {
            let found =
                ahead.take(arguments.file, &arguments.path).await? || fetch_one(&archive, &arguments).await?;
            if found && ahead.wants_more()? {
                begin_to_fill(&arguments);
            }
            Ok(found)
        }
        _ => fetch_one(&archive, &arguments).await,
    }
}

async fn fetch_one(archive: &Archive, arguments: &Arguments) -> Result<bool, Failure> {
    let Archive {
        store,
        system_identifier,
        key,
    } = archive;
    let (file, into) = (arguments.file, &arguments.path);
    Ok(wal::fetch(store, *system_identifier, key.as_ref(), file, into).await?)
}

/// Starts a process that goes on when this one has ended. If it cannot be started, nothing is fetched ahead.
fn begin_to_fill(arguments: &Arguments) {
    let (Ok(binary), Ok(segment)) = (std::env::current_exe(), std::fs::metadata(&arguments.path)) else {
        return;
    };
    let mut command = Command::new(binary);
    command
        .arg("wal-fetch")
        .arg(arguments.file.to_string())
        .arg(&arguments.path);
    command.args(["--fill", &segment.len().to_string()]);
    for (flag, value) in [
        ("--settings", arguments.settings.as_deref()),
        ("--from", arguments.from.as_deref().map(Path::new)),
        ("--ahead-dir", arguments.ahead_dir.as_deref()),
        ("--key-file", arguments.store.key_file.as_deref()),
        (
            "--s3-credentials-file",
            arguments.store.s3_credentials_file.as_deref(),
        ),
        ("--s3-ca-file", arguments.store.s3_ca_file.as_deref()),
    ] {
        if let Some(value) = value {
            command.arg(flag).arg(value);
        }
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Err(error) = command.process_group(0).spawn() {
        tracing::debug!(%error, "nothing is fetched ahead");
    }
}
