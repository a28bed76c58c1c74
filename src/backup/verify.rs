//! The proof of a backup: restore it where nobody sees it, start it, and compare.
//!
//! Physical: `pg_verifybackup` (every byte against PostgreSQL's manifest, of every backup of a chain and of what they make
//! together), replay to the backup's end, the recorded tables,
//! `pg_amcheck`. Logical: all dumps into an empty server, the recorded tables. What was found is remembered at the
//! destination; a backup that failed is neither restored by default nor counted by retention.

use std::path::Path;

use super::assemble::Assembly;
use super::files::blocking;
use super::own_folder::OwnFolder;
use super::replay::{connect, replay, scratch_error};
use super::repository::{is_there, remember};
use super::restore::{self, check_key, check_programs, records};
use super::{BackupError, extract, facts, now, wal};
use crate::core::backup::archive::Reach;
use crate::core::backup::choose::Target;
use crate::core::backup::{Content, Entry, Kind, Record, Verification};
use crate::files::{create_private_directory, remove_any};
use crate::postgres::scratch::{Scratch, ScratchServer, StartError};
use crate::postgres::{dump, table_facts, verify as pg_verifybackup};
use crate::store::Store;

const JOBS: usize = 2;
const PREFIX: &str = "podgres-verify-";

/// What was done and found so far.
#[derive(Default)]
struct Findings {
    checks: Vec<String>,
    differences: Vec<String>,
}

/// A verification's end.
#[derive(Debug)]
pub struct Verified {
    pub verification: Verification,
    /// What archived WAL lacks that should follow the backup: no fault of the backup's, so it is not remembered.
    pub gap: Option<String>,
}

/// Verifies one of the destination's backups in `scratch_directory`, which is removed afterwards, and remembers the result;
/// `None` if the backup was deleted meanwhile, as `--keep` does it.
///
/// # Errors
/// It could not be found out: the destination, the programs or this machine are at fault, not the backup. What was
/// remembered of it stays.
pub async fn verify(
    store: &Store,
    entries: &[Entry],
    entry: &Entry,
    options: &restore::Options,
    scratch_directory: &Path,
) -> Result<Option<Verified>, BackupError> {
    let record = &entry.record;
    check_key(record, options.key.as_ref())?;
    check_programs(record, &options.program_directory).await?;
    let mut findings = Findings::default();
    let before = archived(store, entry, options).await?;
    let own = OwnFolder::create(scratch_directory, PREFIX)?;
    let place = own.path().join("data");
    let result = match record.kind {
        Kind::Physical => match records(entries, entry) {
            Ok(chain) => physical(store, &chain, options, &place, &mut findings).await,
            Err(broken) => Err(broken.into()),
        },
        Kind::Logical => logical(store, record, options, &place, &mut findings).await,
    };
    blocking(move || {
        extract::clear(&place)?;
        drop(own);
        Ok(())
    })
    .await?;
    if !is_there(store, &record.name).await? {
        return Ok(None);
    }
    match result {
        Ok(()) => {}
        Err(error) => findings.differences.push(blame(error)?),
    }
    let gap = match before {
        Archived::Nothing => None,
        Archived::Unknown(why) => Some(why),
        Archived::To(before) => follow(before, store, entry, options, &mut findings).await?,
    };
    let verification = Verification {
        at: now(),
        differences: findings.differences,
        checks: findings.checks,
    };
    remember(store, &record.name, &verification).await?;
    Ok(Some(Verified { verification, gap }))
}

/// What is archived behind a backup.
enum Archived {
    /// Nothing, or the backup is not on its way.
    Nothing,
    To(Reach),
    /// The timelines' history is no good.
    Unknown(String),
}

async fn archived(store: &Store, entry: &Entry, options: &restore::Options) -> Result<Archived, BackupError> {
    if entry.record.kind == Kind::Logical {
        return Ok(Archived::Nothing);
    }
    let (cluster, key) = (entry.record.system_identifier, options.key.as_ref());
    match wal::archive(store, cluster, key, None).await {
        Ok(archive) => Ok(archive.reach(entry).map_or(Archived::Nothing, Archived::To)),
        Err(error @ BackupError::Damaged { .. }) => Ok(Archived::Unknown(error.to_string())),
        Err(error) => Err(error),
    }
}

/// Looks once more for what was missing: files are archived several at a time, not in their order.
async fn follow(
    before: Reach,
    store: &Store,
    entry: &Entry,
    options: &restore::Options,
    findings: &mut Findings,
) -> Result<Option<String>, BackupError> {
    if before.gap.is_some()
        && let Archived::To(still) = archived(store, entry, options).await?
        && still.gap == before.gap
    {
        return Ok(still.gap_text());
    }
    let Reach { lsn, timeline, .. } = before;
    if lsn <= entry.record.stop_lsn {
        return Ok(None);
    }
    findings.checks.push(format!(
        "archived WAL follows without a gap up to {lsn} of timeline {timeline}"
    ));
    Ok(None)
}

/// Whether an error speaks against the backup; the sentence if it does. In doubt it does not: a backup that is blamed
/// counts for nothing when the next run deletes expired ones.
fn blame(error: BackupError) -> Result<String, BackupError> {
    let against = match &error {
        BackupError::Damaged { .. }
        | BackupError::ForeignDirectory { .. }
        | BackupError::Tar(_)
        | BackupError::Choose(_)
        | BackupError::Scratch(StartError::Replaying(_)) => true,
        BackupError::Program(program) => pg_verifybackup::differs(program) || dump::corrupt(program),
        _ => false,
    };
    if against {
        Ok(error.to_string())
    } else {
        Err(error)
    }
}

async fn physical(
    store: &Store,
    chain: &[Record],
    options: &restore::Options,
    directory: &Path,
    findings: &mut Findings,
) -> Result<(), BackupError> {
    let Some(record) = chain.last() else {
        return Err(BackupError::Broken);
    };
    let assembly = Assembly {
        store,
        chain,
        options,
        prove: true,
    };
    assembly.fill(directory).await?;
    let objects: usize = chain.iter().map(|record| record.objects.len()).sum();
    findings
        .checks
        .push(format!("{objects} objects have the recorded SHA-256"));
    if chain.len() > 1 {
        let backups = chain.len();
        findings
            .checks
            .push(format!("pg_combinebackup made one of {backups} backups"));
    }
    findings
        .checks
        .push("pg_verifybackup found every file as in the manifest".to_owned());
    let mut server = replay(record, options, directory, &Target::Backup).await?;
    findings
        .checks
        .push(format!("replay reached the backup's end, {}", record.stop_lsn));
    compare(record, &mut server, findings).await?;
    server.stop().await?;
    Ok(())
}

async fn logical(
    store: &Store,
    record: &Record,
    options: &restore::Options,
    directory: &Path,
    findings: &mut Findings,
) -> Result<(), BackupError> {
    let mut server = empty_server(options, directory).await?;
    load(store, record, options, directory, &mut server).await?;
    findings.checks.push(format!(
        "{} objects have the recorded SHA-256 and were loaded",
        record.objects.len()
    ));
    compare(record, &mut server, findings).await?;
    server.stop().await?;
    Ok(())
}

async fn empty_server(options: &restore::Options, directory: &Path) -> Result<ScratchServer, BackupError> {
    create_private_directory(&options.run_directory)?;
    create_private_directory(directory)?;
    let scratch = Scratch {
        program_directory: options.program_directory.clone(),
        data_directory: directory.join("data"),
        run_directory: options.run_directory.clone(),
        superuser: options.superuser.clone(),
        settings: Vec::new(),
    };
    scratch.initdb().await?;
    Ok(scratch.start().await?)
}

/// Loads the globals and every dump.
async fn load(
    store: &Store,
    record: &Record,
    options: &restore::Options,
    directory: &Path,
    server: &mut ScratchServer,
) -> Result<(), BackupError> {
    let client = server.scratch().client();
    for object in &record.objects {
        let path = directory.join(&object.path);
        extract::file(store, record, object, options.key.as_ref(), path.clone()).await?;
        match &object.content {
            Content::Globals => server.during(client.load_globals(&path)).await??,
            Content::Dump { format, .. } => {
                let jobs = if format.parallel_restore() { JOBS } else { 1 };
                server.during(client.load_new(&path, jobs)).await??;
            }
            Content::Base | Content::Tablespace { .. } | Content::Manifest => {}
        }
        let loaded = path.clone();
        blocking(move || Ok(remove_any(&loaded)?)).await?;
    }
    Ok(())
}

async fn compare(
    record: &Record,
    server: &mut ScratchServer,
    findings: &mut Findings,
) -> Result<(), BackupError> {
    let scratch = server.scratch().clone();
    let compared = facts::differences(&record.tables, async |database: &str| {
        connect(&scratch, database).await
    });
    let differences = server.during(compared).await?.map_err(scratch_error)?;
    if differences.is_empty() {
        findings.checks.push(format!(
            "{} tables have the recorded rows and checksums",
            record.tables.len()
        ));
    }
    findings.differences.extend(differences);
    let client = scratch.client();
    let check = match server.during(client.check_relations(JOBS)).await? {
        Ok(()) => "pg_amcheck found nothing wrong",
        Err(error) if error.to_string().contains("\"amcheck\" is not available") => {
            "pg_amcheck was left out: these programs come without the extension amcheck"
        }
        Err(error) if dump::corrupt(&error) && sorts_otherwise(server).await? => {
            "pg_amcheck was left out: this machine sorts text otherwise than the servers do"
        }
        Err(error) => return Err(error.into()),
    };
    findings.checks.push(check.to_owned());
    Ok(())
}

/// Whether indexes on text may look damaged here only: another libc's or ICU's order.
async fn sorts_otherwise(server: &mut ScratchServer) -> Result<bool, BackupError> {
    let scratch = server.scratch().clone();
    let asked = async {
        let session = connect(&scratch, "template1").await?;
        for database in table_facts::databases(&session).await? {
            let session = connect(&scratch, &database).await?;
            if table_facts::sorts_otherwise(&session).await? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    server.during(asked).await?.map_err(scratch_error)
}
