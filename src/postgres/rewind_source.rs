//! What `pg_rewind` needs of its source, asked and seen to before it runs.
//!
//! The source's control file names its timeline only after a checkpoint on it: before, `pg_rewind` takes it for the
//! old one and finds nothing to do (manual, pg_rewind, "Notes").

use std::time::Duration;

use super::ServerSettings;
use super::error::JobError;
use super::replication::{ReplicationClient, SystemIdentity, UpstreamAccess, UpstreamError};
use super::tls::ClientTls;
use crate::core::supervision::Upstream;
use crate::core::wal::{TimelineHistory, TimelineId};

/// To connect, and for each answer.
const LIMIT: Duration = Duration::from_secs(10);
/// It writes all that is dirty, as fast as it can.
const CHECKPOINT_LIMIT: Duration = Duration::from_mins(5);
/// Every cluster has it.
const DATABASE: &str = "postgres";
const CHECKPOINT_TIMELINE: &str = "SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()";

/// The upstream as it is now.
pub(super) struct Source {
    pub(super) identity: SystemIdentity,
    /// Of the identity's timeline.
    pub(super) history: TimelineHistory,
}

/// Asks who it is.
///
/// # Errors
/// It cannot be asked.
pub(super) async fn ask(settings: &ServerSettings, upstream: &Upstream) -> Result<Source, JobError> {
    let mut client = connect(settings, upstream, LIMIT).await?;
    let asked = async {
        let identity = client.identify_system().await?;
        let history = client.timeline_history(identity.position.timeline).await?;
        Ok(Source { identity, history })
    };
    let source = asked.await.map_err(could_not("ask", upstream))?;
    client.close().await;
    Ok(source)
}

/// Has it write a checkpoint if there was none on its timeline yet.
///
/// # Errors
/// It cannot be asked, or does not do it.
pub(super) async fn checkpoint(
    settings: &ServerSettings,
    upstream: &Upstream,
    timeline: TimelineId,
) -> Result<(), JobError> {
    let mut client = connect(settings, upstream, CHECKPOINT_LIMIT).await?;
    let done = async {
        let written = client.text(CHECKPOINT_TIMELINE).await?;
        if written != Some(timeline.to_string()) {
            client.execute("CHECKPOINT").await?;
        }
        Ok(())
    };
    done.await
        .map_err(could_not("have a checkpoint written by", upstream))?;
    client.close().await;
    Ok(())
}

async fn connect(
    settings: &ServerSettings,
    upstream: &Upstream,
    limit: Duration,
) -> Result<ReplicationClient, JobError> {
    let tls = match &settings.tls {
        Some(folder) => Some(ClientTls::open(folder)?),
        None => None,
    };
    let application_name = application_name(settings);
    let access = UpstreamAccess {
        upstream,
        login: &settings.replication,
        application_name: &application_name,
        tls: tls.as_ref(),
    };
    let connecting = ReplicationClient::connect_to_database(&access, DATABASE, limit);
    match tokio::time::timeout(LIMIT, connecting).await {
        Ok(client) => client.map_err(could_not("connect to", upstream)),
        Err(_) => Err(could_not("connect to", upstream)(UpstreamError::TimedOut {
            limit: LIMIT,
        })),
    }
}

fn could_not(what: &'static str, upstream: &Upstream) -> impl FnOnce(UpstreamError) -> JobError {
    let upstream = upstream.host.clone();
    move |source| JobError::Source {
        what,
        upstream,
        source,
    }
}

/// Not the member's own name, which may be counted as a confirmation.
pub(super) fn application_name(settings: &ServerSettings) -> String {
    format!("{}-rewind", settings.member)
}
