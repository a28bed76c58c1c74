//! What a restored server still needs before its directory gets the name, the Secret's password and marks for the archiver;
//! and where it has come to.

use std::fs;
use std::path::Path;

use super::BackupError;
use super::error::FileContext as _;
use super::replay::{connect, scratch_error};
use crate::core::wal_file::WalFile;
use crate::files::write_private;
use crate::postgres::roles;
use crate::postgres::scratch::ScratchServer;

/// The new cluster's Secret need not be that of the one that was backed up.
pub(super) async fn set_password(
    server: &mut ScratchServer,
    superuser: &str,
    stored_form: &str,
) -> Result<(), BackupError> {
    let scratch = server.scratch().clone();
    let statement = roles::password_statement(superuser, stored_form);
    let set = async {
        let session = connect(&scratch, "template1").await?;
        session.execute("set the superuser's password", &statement).await
    };
    server.during(set).await?.map_err(scratch_error)
}

/// Where its replay ended.
pub(super) async fn reached(server: &mut ScratchServer) -> Result<String, BackupError> {
    let scratch = server.scratch().clone();
    let asked = async {
        let session = connect(&scratch, "template1").await?;
        let sql = "SELECT pg_last_wal_replay_lsn() || coalesce(', last commit ' || \
                   to_char(pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS') || '+00', '')";
        session.text("ask where the replay ended", sql).await
    };
    server.during(asked).await?.map_err(scratch_error)
}

/// Where the new timeline has come to.
pub(super) async fn current_segment(server: &mut ScratchServer) -> Result<WalFile, BackupError> {
    let scratch = server.scratch().clone();
    let asked = async {
        let session = connect(&scratch, "template1").await?;
        let sql = "SELECT pg_walfile_name(pg_current_wal_insert_lsn())";
        session.text("ask for the WAL position", sql).await
    };
    let name = server.during(asked).await?.map_err(scratch_error)?;
    Ok(name.parse()?)
}

/// What the scratch server, which archives nothing, has begun: the new timeline's history and the segments before the
/// current one. Without them nobody who reads the archive would find what the restored cluster writes.
pub(super) fn mark_unarchived(directory: &Path, current: WalFile) -> Result<(), BackupError> {
    let wal = directory.join("pg_wal");
    for entry in fs::read_dir(&wal).file("read directory", &wal)? {
        let name = entry.file("read directory", &wal)?.file_name();
        let Some(file) = name.to_str().and_then(|name| name.parse::<WalFile>().ok()) else {
            continue;
        };
        if file.timeline() == current.timeline() && (file.is_history() || file.comes_before(current)) {
            let mark = wal.join("archive_status").join(format!("{file}.ready"));
            write_private(&mark, b"")?;
        }
    }
    Ok(())
}
