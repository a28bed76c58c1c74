//! Carries out a decision. Makes no choice of its own; what came of it shows in the next observation.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::boottime_ms;
use crate::core::decision::PostgresAction;
use crate::core::observation::Barrier;
use crate::core::supervision::{JobRequest, SupervisorRequest};
use crate::core::wal::Lsn;
use crate::postgres::Login;
use crate::postgres::query::LocalServer;
use crate::postgres::slots::SlotChanges;

use super::supervisor::Supervisor;
use super::upstream::Access;

const SQL_LIMIT: Duration = Duration::from_secs(5);

/// Everything that an action may touch.
pub(super) struct Hands<'a> {
    pub(super) supervisor: &'a Supervisor,
    pub(super) server: &'a mut LocalServer,
    pub(super) access: &'a Access,
    pub(super) superuser: &'a Login,
    pub(super) replication: &'a Login,
    /// The term that this member had promised when the action was decided.
    pub(super) promised: Option<u64>,
}

/// What an action brought about beyond what will be observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Done {
    /// From where on a setting is in force.
    pub(super) barrier: Option<Barrier>,
    /// A checkpoint is to be begun, which may take long.
    pub(super) checkpoint: bool,
    /// The roles on the primary fit the secrets now.
    pub(super) roles_ensured: bool,
}

/// Does one action, in bounded time; a failure is looked at by the next turn.
///
/// # Errors
/// The reason in words.
pub(super) async fn execute(action: PostgresAction, hands: Hands<'_>) -> Result<Done, String> {
    let request = match action {
        PostgresAction::GrantLicence { until_ms } => SupervisorRequest::GrantLicence { until_ms },
        PostgresAction::Promote {
            synchronous_standby_names,
            read_only,
            term,
            timeline,
        } => SupervisorRequest::Promote {
            synchronous_standby_names,
            read_only,
            term,
            timeline,
        },
        PostgresAction::Detach { term } => SupervisorRequest::Detach { term },
        PostgresAction::Hold { term } => SupervisorRequest::Hold { term },
        PostgresAction::Cancel => SupervisorRequest::Cancel,
        PostgresAction::Start { server } => SupervisorRequest::Start {
            server,
            promised: hands.promised,
        },
        PostgresAction::Reload { server } => SupervisorRequest::Reload {
            server,
            promised: hands.promised,
        },
        PostgresAction::Stop { mode } => SupervisorRequest::Stop { mode },
        PostgresAction::Run { job } => {
            if let JobRequest::Clone { upstream, .. } = &job {
                hands.access.ensure_slot(upstream).await?;
            }
            SupervisorRequest::Run { job }
        }
        PostgresAction::Barrier {
            synchronous_standby_names,
        } => return mark(hands, synchronous_standby_names).await,
        PostgresAction::Checkpoint => {
            return Ok(Done {
                checkpoint: true,
                ..Done::default()
            });
        }
        PostgresAction::EnsureRoles => return ensure_roles(hands).await,
        PostgresAction::ReconcileSlots { expected, advance } => {
            return reconcile_slots(hands, &expected, &advance).await;
        }
        PostgresAction::DropSlots { names } => return drop_slots(hands, &names).await,
    };
    hands
        .supervisor
        .request(request)
        .await
        .map_err(|error| error.to_string())?;
    Ok(Done::default())
}

async fn ensure_roles(hands: Hands<'_>) -> Result<Done, String> {
    let describe = |error: crate::postgres::query::QueryError| error.to_string();
    let superuser = hands
        .server
        .ensure_superuser_password(hands.superuser, SQL_LIMIT)
        .await
        .map_err(describe)?;
    let replication = hands
        .server
        .ensure_replication_role(hands.replication, SQL_LIMIT)
        .await
        .map_err(describe)?;
    tracing::info!(superuser = ?superuser, replication = ?replication, "the roles fit the secrets");
    Ok(Done {
        roles_ensured: true,
        ..Done::default()
    })
}

async fn mark(hands: Hands<'_>, synchronous_standby_names: String) -> Result<Done, String> {
    let at_ms = boottime_ms();
    let lsn = hands
        .server
        .mark(SQL_LIMIT)
        .await
        .map_err(|error| error.to_string())?;
    Ok(Done {
        barrier: Some(Barrier {
            synchronous_standby_names,
            lsn,
            at_ms,
        }),
        ..Done::default()
    })
}

async fn drop_slots(hands: Hands<'_>, names: &[String]) -> Result<Done, String> {
    let dropped = hands.server.drop_superseded_slots(names, SQL_LIMIT).await;
    let dropped = dropped.map_err(|error| error.to_string())?;
    tracing::info!(?dropped, "logical slots are the primary's from now on");
    Ok(Done::default())
}

async fn reconcile_slots(
    hands: Hands<'_>,
    expected: &[String],
    advance: &BTreeMap<String, Lsn>,
) -> Result<Done, String> {
    let changes = hands
        .server
        .reconcile_slots(expected, SQL_LIMIT)
        .await
        .map_err(|error| error.to_string())?;
    if changes != SlotChanges::default() {
        tracing::info!(created = ?changes.created, dropped = ?changes.dropped, renewed = ?changes.renewed, "replication slots fit the members");
    }
    for failure in &changes.failed {
        tracing::warn!(
            slot = failure.slot_name,
            detail = failure.message,
            "could not bring a replication slot about"
        );
    }
    if !advance.is_empty() {
        let moved = hands.server.advance_slots(advance, SQL_LIMIT).await;
        moved.map_err(|error| error.to_string())?;
    }
    Ok(Done::default())
}
