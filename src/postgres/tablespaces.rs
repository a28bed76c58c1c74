//! Refuses to clone an upstream with tablespaces: `pg_basebackup` writes them to their absolute paths,
//! outside the directory that is made and renamed as a whole.
//!
//! Looks only; touches nothing there.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::ServerSettings;
use super::error::JobError;
use super::replication::{ReplicationClient, UpstreamAccess, UpstreamError};
use super::tls::ClientTls;
use crate::core::supervision::Upstream;

/// To connect, and for the answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Every cluster has it.
const DATABASE: &str = "postgres";
/// Their names in one row, NULL if there are none. A path that is not absolute lies inside the data
/// directory (`allow_in_place_tablespaces`); that of `pg_default` and `pg_global` is empty.
const TABLESPACES: &str = "\
SELECT string_agg(quote_ident(spcname), ', ' ORDER BY spcname) FROM pg_catalog.pg_tablespace \
WHERE pg_catalog.pg_tablespace_location(oid) LIKE '/%'";

/// Asks the upstream before anything is copied.
///
/// # Errors
/// [`JobError::Tablespaces`] if it has any; [`JobError::Upstream`] if it cannot be asked.
pub(super) async fn refuse(
    settings: &ServerSettings,
    upstream: &Upstream,
    application_name: &str,
) -> Result<(), JobError> {
    let could_not_ask = |source: UpstreamError| JobError::Upstream {
        upstream: upstream.host.clone(),
        source,
    };
    let tls = match &settings.tls {
        Some(folder) => Some(ClientTls::open(folder)?),
        None => None,
    };
    let access = UpstreamAccess {
        upstream,
        login: &settings.replication,
        application_name,
        tls: tls.as_ref(),
    };
    let mut client = match ReplicationClient::connect_to_database(&access, DATABASE, LIMIT).await {
        Ok(client) => client,
        // An upstream that podgres did not configure may admit replication alone; the finished copy is looked at too.
        Err(error @ UpstreamError::NoHbaEntry { .. }) => {
            tracing::warn!(%error, "could not ask the upstream for its tablespaces; cloning all the same");
            return Ok(());
        }
        Err(error) => return Err(could_not_ask(error)),
    };
    let names = client.text(TABLESPACES).await.map_err(could_not_ask)?;
    client.close().await;
    names.map_or(Ok(()), |names| Err(found(upstream, names)))
}

/// As [`refuse`], for a finished copy: one may have been made meanwhile.
pub(super) fn refuse_copied(copy: &Path, upstream: &Upstream) -> Result<(), JobError> {
    let Ok(entries) = fs::read_dir(copy.join("pg_tblspc")) else {
        return Ok(());
    };
    let links: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().is_symlink())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    if links.is_empty() {
        return Ok(());
    }
    Err(found(upstream, links.join(", ")))
}

fn found(upstream: &Upstream, names: String) -> JobError {
    JobError::Tablespaces {
        upstream: upstream.host.clone(),
        names,
    }
}
