//! The physical replication slots of the members, on this server: made, renewed and dropped.
//!
//! Works on a primary and on a standby. Never touches a slot in use, a temporary one, or one whose
//! name this cluster's members cannot have; of logical ones none but those that keep a standby's from being synchronized.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::query::{LocalServer, QueryError, Session};
use crate::core::member::{MemberName, Ordinal, slot_name};
use crate::core::wal::Lsn;

/// What was done, by slot name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotChanges {
    pub created: Vec<String>,
    /// Dropped, since no member of that number is expected any more.
    pub dropped: Vec<String>,
    /// Dropped and made anew, since the WAL that they held back is gone.
    pub renewed: Vec<String>,
    /// What could not be done, with PostgreSQL's reason, e.g. all slots are in use.
    pub failed: Vec<SlotFailure>,
}

/// One slot that could not be made or dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotFailure {
    pub slot_name: String,
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum SlotAction {
    Create(String),
    Drop(String),
    Renew(String),
}

struct ExistingSlot {
    name: String,
    /// Physical, permanent and not in use: one that may be dropped.
    idle: bool,
    lost: bool,
}

const EXISTING_SLOTS: &str = "
SELECT slot_name::text AS name, slot_type = 'physical' AND NOT temporary AND NOT active AS idle,
       coalesce(wal_status = 'lost', false) AS lost
FROM pg_replication_slots ORDER BY slot_name";

impl LocalServer {
    /// Brings the members' slots to `expected`; a slot that cannot be brought there does not stop the others.
    ///
    /// # Errors
    /// Only what concerns the connection as a whole.
    pub async fn reconcile_slots(
        &mut self,
        expected: &[String],
        limit: Duration,
    ) -> Result<SlotChanges, QueryError> {
        let cluster = self.member.as_ref().map(|member| member.cluster.clone());
        self.run(limit, async |session| {
            let existing = existing_slots(session).await?;
            let mut changes = SlotChanges::default();
            for action in plan(&existing, expected, cluster.as_deref()) {
                carry_out(session, action, &mut changes).await?;
            }
            Ok(changes)
        })
        .await
    }
}

impl LocalServer {
    /// Moves slots forward, on a standby as far as it has replayed; one that is in use or gone is left to the next turn.
    pub async fn advance_slots(
        &mut self,
        targets: &BTreeMap<String, Lsn>,
        limit: Duration,
    ) -> Result<(), QueryError> {
        const ADVANCE: &str = "SELECT pg_replication_slot_advance(slot_name, least($2::text::pg_lsn,
                CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END))
            FROM pg_replication_slots
            WHERE slot_name = $1::text::name AND slot_type = 'physical' AND NOT active
                AND coalesce(restart_lsn < $2::text::pg_lsn, true)";
        self.run(limit, async |session| {
            for (name, lsn) in targets {
                let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [name, &lsn.to_string()];
                if let Err(error) = session
                    .client
                    .query(ADVANCE, &parameters)
                    .await
                    .map_err(QueryError::from)
                {
                    match error {
                        QueryError::Server { message, .. } => {
                            tracing::debug!(
                                slot = name,
                                detail = message,
                                "could not advance a replication slot"
                            );
                        }
                        other => return Err(other),
                    }
                }
            }
            Ok(())
        })
        .await
    }
}

impl LocalServer {
    /// Drops logical slots of a standby that only a primary can have made; those in use are left to the next turn. Gives
    /// what it has dropped.
    ///
    /// # Errors
    /// PostgreSQL refuses, or the connection fails.
    pub async fn drop_superseded_slots(
        &mut self,
        names: &[String],
        limit: Duration,
    ) -> Result<Vec<String>, QueryError> {
        const DROP: &str = "SELECT slot_name::text, pg_drop_replication_slot(slot_name)::text
            FROM pg_replication_slots
            WHERE slot_name = ANY ($1::text[]::name[]) AND slot_type = 'logical' AND NOT active AND pg_is_in_recovery()";
        self.run(limit, async |session| {
            let rows = session.client.query(DROP, &[&names]).await?;
            rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
        })
        .await
    }
}

/// `cluster` is `None` if the member's name is not known: then nothing unexpected is dropped.
fn plan(existing: &[ExistingSlot], expected: &[String], cluster: Option<&str>) -> Vec<SlotAction> {
    let expected: BTreeSet<&str> = expected.iter().map(String::as_str).collect();
    let names: BTreeSet<&str> = existing.iter().map(|slot| slot.name.as_str()).collect();
    let idle = existing.iter().filter(|slot| slot.idle);
    // Drops come first: they make room below max_replication_slots.
    let drops = idle.filter_map(|slot| {
        if expected.contains(slot.name.as_str()) {
            slot.lost.then(|| SlotAction::Renew(slot.name.clone()))
        } else {
            cluster
                .is_some_and(|cluster| belongs_to(&slot.name, cluster))
                .then(|| SlotAction::Drop(slot.name.clone()))
        }
    });
    let missing = expected.iter().filter(|name| !names.contains(*name));
    drops
        .chain(missing.map(|name| SlotAction::Create((*name).to_owned())))
        .collect()
}

/// Whether a member of `cluster` has a slot of this name.
fn belongs_to(slot: &str, cluster: &str) -> bool {
    let digits = slot.rsplit('_').next().unwrap_or_default();
    // Read like a pod's name, so that a leading zero or a sign is nobody's.
    MemberName::parse(&format!("x-{digits}"))
        .is_ok_and(|MemberName { ordinal, .. }: MemberName| slot_name(cluster, Ordinal(ordinal.0)) == slot)
}

async fn existing_slots(session: &Session) -> Result<Vec<ExistingSlot>, QueryError> {
    let rows = session.client.query(EXISTING_SLOTS, &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(ExistingSlot {
                name: row.try_get("name")?,
                idle: row.try_get("idle")?,
                lost: row.try_get("lost")?,
            })
        })
        .collect()
}

async fn carry_out(
    session: &Session,
    action: SlotAction,
    changes: &mut SlotChanges,
) -> Result<(), QueryError> {
    let (name, result) = match action {
        SlotAction::Create(name) => (
            name.clone(),
            create(session, &name).await.map(|()| &mut changes.created),
        ),
        SlotAction::Drop(name) => (
            name.clone(),
            drop(session, &name).await.map(|()| &mut changes.dropped),
        ),
        SlotAction::Renew(name) => {
            let renewed = match drop(session, &name).await {
                Ok(()) => create(session, &name).await,
                Err(error) => Err(error),
            };
            (name, renewed.map(|()| &mut changes.renewed))
        }
    };
    match result {
        Ok(done) => done.push(name),
        Err(QueryError::Server { sqlstate, message }) => {
            if !overtaken(&sqlstate) {
                changes.failed.push(SlotFailure {
                    slot_name: name,
                    message,
                });
            }
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Whether the slot came, went or was taken into use since it was looked at: the next turn sees to it.
fn overtaken(sqlstate: &str) -> bool {
    [
        SqlState::DUPLICATE_OBJECT,
        SqlState::UNDEFINED_OBJECT,
        SqlState::OBJECT_IN_USE,
    ]
    .iter()
    .any(|state| state.code() == sqlstate)
}

/// A standby that begins to clone makes its slot itself, perhaps just now: that is no error for PostgreSQL's log.
async fn create(session: &Session, name: &str) -> Result<(), QueryError> {
    const CREATE: &str = "SELECT pg_create_physical_replication_slot($1::text::name, true)
        WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1::text::name)";
    session.client.query_opt(CREATE, &[&name]).await?;
    Ok(())
}

async fn drop(session: &Session, name: &str) -> Result<(), QueryError> {
    const DROP: &str = "SELECT pg_drop_replication_slot($1::text::name)";
    session.client.query_one(DROP, &[&name]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_belongs_to_the_cluster_whose_member_has_that_name() {
        for (slot, cluster, belongs) in [
            ("podgres_pg_0", "pg", true),
            ("podgres_my_db_12", "my-db", true),
            ("podgres_pg_dr_0", "pg", false),
            ("podgres_pg_01", "pg", false),
            ("podgres_pg_", "pg", false),
            ("podgres_pg", "pg", false),
            ("pg_0", "pg", false),
            ("", "pg", false),
        ] {
            assert_eq!(belongs_to(slot, cluster), belongs, "{slot} of {cluster}");
        }
        let long = "a".repeat(80);
        assert!(belongs_to(&slot_name(&long, Ordinal(1000)), &long));
    }

    #[test]
    fn only_idle_slots_of_this_cluster_are_dropped() {
        let slot = |name: &str, idle, lost| ExistingSlot {
            name: name.to_owned(),
            idle,
            lost,
        };
        let existing = [
            slot("logical", false, false),
            slot("podgres_other_3", true, true),
            slot("podgres_pg_0", true, false),
            slot("podgres_pg_1", true, true),
            slot("podgres_pg_2", false, true),
            slot("podgres_pg_7", true, false),
            slot("podgres_pg_8", false, false),
        ];
        let expected = ["podgres_pg_0", "podgres_pg_1", "podgres_pg_2", "podgres_pg_3"].map(str::to_owned);
        let actions = plan(&existing, &expected, Some("pg"));
        assert_eq!(
            actions,
            [
                SlotAction::Renew("podgres_pg_1".to_owned()),
                SlotAction::Drop("podgres_pg_7".to_owned()),
                SlotAction::Create("podgres_pg_3".to_owned()),
            ]
        );
        let unnamed = plan(&existing, &expected, None);
        assert!(!unnamed.iter().any(|action| matches!(action, SlotAction::Drop(_))));
    }
}
