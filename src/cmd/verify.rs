//! `podgres verify`: the proof that backups can be restored.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::backup::verify::{self, Verified};
use crate::backup::{Repository, catalogue};
use crate::core::backup::catalogue::newest_of_each_kind;
use crate::core::backup::name::sequence_of;
use crate::core::backup::{Entry, Record};

use super::backing::{self, RunDirectory};
use super::restore::{FromArguments, options};
use super::status::Output;
use super::{ExitStatus, Failure};

#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pub from: FromArguments,
    /// These backups [default: the newest of each kind]
    #[arg(conflicts_with = "all")]
    pub names: Vec<String>,
    /// Every backup
    #[arg(long)]
    pub all: bool,
    /// Where to restore to for a while [default: TMPDIR]
    #[arg(long, env = "PODGRES_SCRATCH_DIR")]
    pub scratch_dir: Option<PathBuf>,
    /// Output
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Verifies one after the other; fails if anything differs.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let opened = backing::open_unprivileged(&arguments.from.store, "--from", arguments.from.from.as_deref())?;
    let run_directory = RunDirectory::create()?;
    let mut options = options(&arguments.from, &opened, &run_directory).await?;
    "current".clone_into(&mut options.timeline);
    let scratch = arguments
        .scratch_dir
        .clone()
        .unwrap_or_else(|| run_directory.path().to_owned());
    let found = catalogue(&opened.store).await?;
    let (mut bad, mut cut_off) = (unreadable(&arguments, &found), Vec::new());
    for entry in wanted(&arguments, &found, &bad)? {
        let verified = verify::verify(&opened.store, &found.entries, entry, &options, &scratch).await?;
        let Some(verified) = verified else {
            tracing::warn!(name = entry.record.name, "it was deleted meanwhile");
            continue;
        };
        backing::print(&told(&entry.record, &verified, arguments.output))?;
        if !verified.verification.differences.is_empty() {
            bad.push(entry.record.name.clone());
        } else if verified.gap.is_some() {
            cut_off.push(entry.record.name.clone());
        }
    }
    judged(&bad, &cut_off)
}

fn judged(bad: &[String], cut_off: &[String]) -> Result<(), Failure> {
    let (message, hint) = if !bad.is_empty() {
        (
            format!("backup \"{}\" cannot be trusted", bad.join("\", \"")),
            "Make a new backup now; this one is no longer restored by default.",
        )
    } else if !cut_off.is_empty() {
        (
            format!(
                "archived WAL has a gap after backup \"{}\"",
                cut_off.join("\", \"")
            ),
            "Look for the file in the members' pg_wal and archive it; or make a new backup now, which begins behind the gap.",
        )
    } else {
        return Ok(());
    };
    Err(Failure::new(ExitStatus::Refused, message).hint(hint))
}

/// Those of the backups that are asked for whose record cannot be read, which nobody can restore.
fn unreadable(arguments: &Arguments, found: &Repository) -> Vec<String> {
    let newest = found.entries.last().map_or(0, |entry| entry.record.sequence);
    let asked = |name: &String| {
        let newer = arguments.names.is_empty() && sequence_of(name).is_some_and(|number| number > newest);
        arguments.all || newer || arguments.names.contains(name)
    };
    let names = found.without_record().map(|(name, _)| name.clone());
    names.filter(asked).collect()
}

fn wanted<'a>(
    arguments: &Arguments,
    found: &'a Repository,
    unreadable: &[String],
) -> Result<Vec<&'a Entry>, Failure> {
    let entries = &found.entries;
    if arguments.all {
        return Ok(entries.iter().collect());
    }
    let missing = |message: String| Failure::new(ExitStatus::Refused, message);
    if arguments.names.is_empty() {
        return match newest_of_each_kind(entries) {
            _ if !unreadable.is_empty() => Ok(Vec::new()),
            newest if newest.is_empty() => Err(missing("there is no backup at the destination".to_owned())),
            newest => Ok(newest),
        };
    }
    let find = |name: &String| {
        let found = entries.iter().find(|entry| entry.record.name == *name);
        found.ok_or_else(|| missing(format!("there is no backup \"{name}\" at the destination")))
    };
    let readable = arguments.names.iter().filter(|name| !unreadable.contains(name));
    readable.map(find).collect()
}

fn told(record: &Record, verified: &Verified, output: Output) -> String {
    let Verified { verification, gap } = verified;
    if output == Output::Json {
        return format!(
            "{}\n",
            json!({ "name": record.name, "verification": verification, "gap": gap })
        );
    }
    let word = if verification.differences.is_empty() {
        "verified"
    } else {
        "NOT as it was"
    };
    let mut text = format!("{}: {word}\n", record.name);
    for check in &verification.checks {
        text.extend(["  ok: ", check, "\n"]);
    }
    for difference in &verification.differences {
        text.extend(["  differs: ", difference, "\n"]);
    }
    if let Some(gap) = gap {
        text.extend(["  gap: ", gap, "\n"]);
    }
    text
}
