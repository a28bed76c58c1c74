//! `podgres wal-fetch FILE PATH`: PostgreSQL's `restore_command`.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::backup::wal::{self, FetchSettings};
use crate::config::backup::StoreArguments;
use crate::core::backup::wal_file::WalFile;
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
        },
    };
    let key = StoreArguments {
        key_file: settings.key_file.clone(),
        ..StoreArguments::default()
    }
    .key()?;
    let store = Store::open(&settings.destination).map_err(|error| backing::failure(error.into()))?;
    Ok(wal::fetch(
        &store,
        settings.system_identifier,
        key.as_ref(),
        arguments.file,
        &arguments.path,
    )
    .await?)
}
