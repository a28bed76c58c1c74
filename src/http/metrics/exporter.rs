//! What `postgres_exporter` shows too, under its names.

use crate::core::cluster::ClusterView;
use crate::core::status::{ReplicationStatus, ServerStatus, SlotStatus};
use crate::core::wal::Lsn;

use super::family::{Family, Labels, Value, flag, gauges, seconds, whole};

/// The server and its walsenders.
pub(super) fn families(view: &ClusterView) -> Vec<Family> {
    let server = view.me.server.as_ref();
    let replication = server.map_or(&[][..], |server| &server.replication);
    vec![
        flag("pg_up", "Whether PostgreSQL answers", Some(server.is_some())),
        flag(
            "pg_replication_is_replica",
            "Whether the server is in recovery",
            server.map(|s| s.in_recovery),
        ),
        seconds(
            "pg_replication_lag_seconds",
            "Age of the last replayed transaction, 0 once all that was received is replayed; \
             means nothing unless podgres_receiver_connected is 1",
            server.and_then(lag_ms),
        ),
        seconds(
            "pg_replication_last_replay_seconds",
            "Age of the last replayed transaction",
            server.and_then(|s| s.replay_age_ms),
        ),
        gauges(
            "pg_stat_replication_pg_wal_lsn_diff",
            "Bytes that a standby has yet to replay",
            replication
                .iter()
                .filter_map(|row| walsender(row, server?.flush_lsn))
                .collect(),
        ),
    ]
}

/// The exporter's rule, kept so that its dashboards go on working.
fn lag_ms(server: &ServerStatus) -> Option<u64> {
    if !server.in_recovery || server.flush_lsn == server.replay_lsn {
        return Some(0);
    }
    server.replay_age_ms
}

fn walsender(row: &ReplicationStatus, flush_lsn: Lsn) -> Option<(Labels, Value)> {
    let labels = vec![
        ("application_name", row.application_name.clone()),
        (
            "client_addr",
            row.client_addr
                .map(|address| address.to_string())
                .unwrap_or_default(),
        ),
        ("state", row.state.clone()),
        ("sync_state", row.sync_state.clone()),
    ];
    Some((labels, Value::Whole(flush_lsn.bytes_since(row.replay_lsn?))))
}

/// Its replication slots, with two of our own names among theirs.
pub(super) fn slots(server: &ServerStatus) -> Vec<Family> {
    let label = |slot: &SlotStatus| {
        vec![
            ("slot_name", slot.slot_name.clone()),
            ("slot_type", "physical".to_owned()),
        ]
    };
    let each = |value: &dyn Fn(&SlotStatus) -> Option<Value>| -> Vec<(Labels, Value)> {
        let slots = server.slots.iter();
        slots
            .filter_map(|slot| Some((label(slot), value(slot)?)))
            .collect()
    };
    vec![
        gauges(
            "pg_replication_slot_slot_is_active",
            "Whether a receiver uses the slot",
            each(&|slot| Some(whole(slot.active))),
        ),
        gauges(
            "pg_replication_slot_safe_wal_size_bytes",
            "Bytes of WAL until the slot is at risk",
            each(&|slot| slot.safe_wal_size_bytes.map(Value::Signed)),
        ),
        gauges(
            "podgres_slot_retained_bytes",
            "Bytes of WAL from the slot's position to the end",
            each(&|slot| Some(Value::Whole(server.flush_lsn.bytes_since(slot.restart_lsn?)))),
        ),
        gauges(
            "podgres_slot_lost",
            "Whether the WAL that the slot held back has been removed",
            each(&|slot| Some(whole(slot.lost))),
        ),
    ]
}
