//! `podgres backups`: what is at a destination.

use clap::Args;

use crate::backup::{catalogue, now, wal};
use crate::config::backup::StoreArguments;
use crate::core::backup::catalogue::{Listing, json, table};

use super::Failure;
use super::backing;
use super::status::Output;

#[derive(Args, Debug)]
pub struct Arguments {
    /// Where the backups are: a folder, s3://bucket/prefix, azure://container/prefix or gs://bucket/prefix
    #[arg(long, env = "PODGRES_BACKUP_DESTINATION")]
    pub from: Option<String>,
    #[command(flatten)]
    pub store: StoreArguments,
    /// Output
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Prints the list, oldest first.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let opened = backing::open(&arguments.store, "--from", arguments.from.as_deref())?;
    let found = catalogue(&opened.store).await?;
    let archive = wal::any(&opened.store).await?;
    let listing = Listing {
        entries: &found.entries,
        now: now(),
        archive,
    };
    match arguments.output {
        Output::Table => backing::print(&table(&listing)),
        Output::Json => backing::print(&format!("{:#}\n", json(&listing))),
    }
}
