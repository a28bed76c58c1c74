//! The two errands to an upstream before following it: who it is, and this member's slot on it.

use std::time::Duration;

use super::{ReplicationClient, SystemIdentity, UpstreamAccess, UpstreamError};
use crate::core::wal::TimelineHistory;

/// What an upstream says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamFacts {
    pub identity: SystemIdentity,
    /// Of the identity's timeline.
    pub history: TimelineHistory,
    /// `None` if the server did not say (before version 14).
    pub in_recovery: Option<bool>,
    /// `server_version`, e.g. `16.14`.
    pub server_version: Option<String>,
}

/// What became of this member's slot on the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotOutcome {
    /// It was there and holds WAL back.
    Present,
    Created,
    /// It was there but held nothing back any more; made anew.
    Renewed,
}

/// Asks who the upstream is, all within `limit`.
pub async fn probe_upstream(
    access: &UpstreamAccess<'_>,
    limit: Duration,
) -> Result<UpstreamFacts, UpstreamError> {
    within(limit, async {
        let mut client = ReplicationClient::connect(access, limit).await?;
        let identity = client.identify_system().await?;
        let history = client.timeline_history(identity.position.timeline).await?;
        let facts = UpstreamFacts {
            identity,
            history,
            in_recovery: client.in_recovery(),
            server_version: client.server_version().map(str::to_owned),
        };
        client.close().await;
        Ok(facts)
    })
    .await
}

/// Sees to it that the upstream has the slot of [`crate::core::supervision::Upstream::slot`], all within `limit`.
///
/// A slot without a position has lost its WAL (or never held any back) and is made anew. A slot that
/// PostgreSQL 18 gave up for idleness keeps its position and looks sound from here; the upstream's own
/// reconciliation sees to that one.
///
/// # Errors
/// Among others [`UpstreamError::Server`] with SQLSTATE 55006 if a lost slot is in use.
pub async fn ensure_slot(access: &UpstreamAccess<'_>, limit: Duration) -> Result<SlotOutcome, UpstreamError> {
    let name = &access.upstream.slot;
    within(limit, async {
        let mut client = ReplicationClient::connect(access, limit).await?;
        let outcome = match client.read_replication_slot(name).await? {
            Some(slot) if slot.restart_lsn.is_some() => SlotOutcome::Present,
            Some(_) => {
                client.drop_replication_slot(name).await?;
                client.create_replication_slot(name).await?;
                SlotOutcome::Renewed
            }
            None => {
                client.create_replication_slot(name).await?;
                SlotOutcome::Created
            }
        };
        client.close().await;
        Ok(outcome)
    })
    .await
}

async fn within<T>(
    limit: Duration,
    errand: impl Future<Output = Result<T, UpstreamError>>,
) -> Result<T, UpstreamError> {
    tokio::time::timeout(limit, errand)
        .await
        .unwrap_or(Err(UpstreamError::TimedOut { limit }))
}
