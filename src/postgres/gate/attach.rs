//! From nothing to a stream on which the gate may confirm.

use std::time::Duration;

use super::GateTarget;
use crate::core::data_directory::SystemIdentifier;
use crate::core::supervision::{GATE_NAME, Upstream};
use crate::core::wal::TimelineId;
use crate::postgres::replication::{ReplicationClient, UpstreamAccess, UpstreamError, WalStream};

/// The database that every cluster has.
const DATABASE: &str = "postgres";

/// Other walsenders under this one's name, which stand in the list from before their login until after their end.
const OTHER_GATES: &str = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_get_wal_senders() AS sender \
     JOIN pg_catalog.pg_stat_get_activity(NULL) AS activity ON activity.pid = sender.pid \
     WHERE sender.pid <> pg_catalog.pg_backend_pid() AND activity.application_name = \
     pg_catalog.current_setting('application_name')";

/// How often a standby is asked whether it has been promoted, and how long on one connection.
const PROMOTION_POLL: Duration = Duration::from_millis(10);
const PROMOTION_POLLS: u32 = 100;

/// Why the gate does not stream.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    #[error("gate could not attach to PostgreSQL: {0}")]
    Attach(#[source] UpstreamError),
    #[error("gate cannot attach to a standby")]
    InRecovery,
    #[error("gate cannot attach to another cluster: found system identifier {found}, expected {expected}")]
    OtherSystem {
        found: SystemIdentifier,
        expected: SystemIdentifier,
    },
    /// Two would pass for a standby.
    #[error("gate could not attach to PostgreSQL: another gate is attached to it")]
    OtherGate,
    #[error("gate could not attach to PostgreSQL: its former walsender has not ended yet")]
    FormerWalsender,
    #[error("gate has lost its stream: {0}")]
    Stream(#[source] UpstreamError),
    /// A walsender does not end, nor the server stop, before all WAL is confirmed: without a right we make way.
    #[error("gate has made way: PostgreSQL asks for a confirmation that may not be given")]
    MadeWay,
}

impl GateError {
    /// The longest pause before the next attempt: short where each costs little and may be the one, long where it costs a
    /// login or a line in the log.
    pub(super) fn longest_pause(&self) -> Duration {
        let milliseconds = match self {
            Self::Attach(
                UpstreamError::Refused { .. } | UpstreamError::Starting { .. } | UpstreamError::Closed,
            )
            | Self::Stream(_)
            | Self::MadeWay
            | Self::InRecovery
            | Self::FormerWalsender => 50,
            Self::OtherGate => 100,
            Self::Attach(_) | Self::OtherSystem { .. } => 1_000,
        };
        Duration::from_millis(milliseconds)
    }
}

/// Connects and starts streaming from the flushed end of the log: commits up to there may wait already, and are
/// released by its confirmation; those after it are in what comes.
pub(super) async fn attach(
    target: &GateTarget,
    attempt_limit: Duration,
) -> Result<(WalStream, TimelineId), GateError> {
    let upstream = Upstream {
        host: target.address.ip().to_string(),
        address: target.address.ip(),
        port: target.address.port(),
        slot: String::new(),
        application_name: None,
    };
    let access = UpstreamAccess {
        upstream: &upstream,
        login: &target.login,
        application_name: GATE_NAME,
        tls: None,
    };
    let mut client = ReplicationClient::connect_to_database(&access, DATABASE, attempt_limit)
        .await
        .map_err(GateError::Attach)?;
    if client.in_recovery() != Some(false) {
        await_promotion(&mut client).await?;
        // Its walsender is one of a standby for good: the next attempt finds a primary.
        return Err(GateError::InRecovery);
    }
    let identity = client.identify_system().await.map_err(GateError::Attach)?;
    if identity.system_identifier != target.system_identifier {
        return Err(GateError::OtherSystem {
            found: identity.system_identifier,
            expected: target.system_identifier,
        });
    }
    if client
        .text(OTHER_GATES)
        .await
        .map_err(GateError::Attach)?
        .as_deref()
        != Some("0")
    {
        return Err(GateError::OtherGate);
    }
    let stream = client
        .start_replication(identity.position)
        .await
        .map_err(GateError::Attach)?;
    Ok((stream, identity.position.timeline))
}

/// A login costs more than a question: asks for up to a second whether the server is still a standby.
async fn await_promotion(client: &mut ReplicationClient) -> Result<(), GateError> {
    for _ in 0..PROMOTION_POLLS {
        let answer = client
            .text("SHOW in_hot_standby")
            .await
            .map_err(GateError::Attach)?;
        if answer.as_deref() == Some("off") {
            break;
        }
        tokio::time::sleep(PROMOTION_POLL).await;
    }
    Ok(())
}
