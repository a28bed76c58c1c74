//! `/patroni`, and the body of the role checks: this member in the words of Patroni's REST API.
//!
//! Positions are byte counts here, as Patroni gives them; `role` is ours (`primary`, `standby`).

use serde_json::{Value, json};

use crate::core::lease::HistoryEntry;
use crate::core::status::{MemberState, MemberStatus, ServerStatus};

use super::ClusterView;

/// This member for Patroni's exporters and dashboards.
#[must_use]
pub fn patroni_json(view: &ClusterView) -> Value {
    let me = &view.me;
    let mut value = json!({
        "state": patroni_state(me),
        "role": me.role,
        "situation": me.situation,
        "message": me.message,
        "database_system_identifier": me.system_identifier,
        "patroni": { "version": me.version, "scope": view.cluster, "name": me.name },
    });
    let Value::Object(fields) = &mut value else {
        return value;
    };
    if let Some(server) = &me.server {
        fields.insert("server_version".to_owned(), json!(server.server_version));
        fields.insert(
            "postmaster_start_time".to_owned(),
            json!(server.postmaster_start_time),
        );
        fields.insert("timeline".to_owned(), json!(server.timeline));
        fields.insert("xlog".to_owned(), xlog(server));
        if me.streaming() {
            fields.insert("replication_state".to_owned(), json!("streaming"));
        }
        if !server.replication.is_empty() {
            fields.insert("replication".to_owned(), replication(server));
        }
    }
    match view.sync_state(&me.name) {
        Some("sync") => fields.insert("sync_standby".to_owned(), Value::Bool(true)),
        Some("quorum") => fields.insert("quorum_standby".to_owned(), Value::Bool(true)),
        _ => None,
    };
    // Patroni shows these keys only while they are true.
    if view.live_members().all(|member| !member.writable) {
        fields.insert("cluster_unlocked".to_owned(), Value::Bool(true));
    }
    if view.paused {
        fields.insert("pause".to_owned(), Value::Bool(true));
    }
    value
}

/// Patroni says "running" of a server that answers and keeps streaming apart.
fn patroni_state(me: &MemberStatus) -> &'static str {
    match me.state {
        MemberState::Streaming => "running",
        state => state.as_str(),
    }
}

fn xlog(server: &ServerStatus) -> Value {
    if !server.in_recovery {
        return json!({ "location": server.flush_lsn.0 });
    }
    json!({
        "received_location": server.flush_lsn.0,
        "replayed_location": server.replay_lsn.0,
        "latest_end_location": server.upstream_lsn.map(|lsn| lsn.0),
        // The commit time itself is another machine's clock; its age is what this member measured.
        "replayed_timestamp": null,
        "replayed_age_ms": server.replay_age_ms,
        // Whether replay is paused is not looked up.
        "paused": null,
    })
}

fn replication(server: &ServerStatus) -> Value {
    let rows = server.replication.iter().map(|row| {
        json!({
            "usename": row.usename,
            "application_name": row.application_name,
            "client_addr": row.client_addr,
            "state": row.state,
            "sync_state": row.sync_state,
            "sync_priority": row.sync_priority,
            "flush_lsn": row.flush_lsn,
            "replay_lsn": row.replay_lsn,
        })
    });
    Value::Array(rows.collect())
}

/// `/history`: Patroni's rows, each `[timeline, lsn, reason, timestamp, new leader]`, oldest first; null where nobody knew.
#[must_use]
pub fn history_json(entries: &[HistoryEntry]) -> Value {
    let rows = entries.iter().map(|entry| {
        json!([
            entry.timeline,
            entry.lsn.map(|lsn| lsn.0),
            entry.reason,
            entry.at,
            entry.new_leader
        ])
    });
    Value::Array(rows.collect())
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{down, peer, primary, standby, view};
    use super::*;
    use crate::core::wal::{Lsn, TimelineId};

    #[test]
    fn a_primary_reads_as_patroni_shows_one() {
        let value = patroni_json(&view(primary(0), vec![peer(standby(1))]));
        assert_eq!(value["state"], "running");
        assert_eq!(value["role"], "primary");
        assert_eq!(value["server_version"], 150_018);
        assert_eq!(value["xlog"]["location"], 0x300_0100);
        assert_eq!(value["patroni"]["scope"], "pg");
        assert_eq!(value["patroni"]["name"], "pg-0");
        assert_eq!(value["database_system_identifier"], "7412345678901234567");
        let row = &value["replication"][0];
        assert_eq!(row["application_name"], "pg-1");
        assert_eq!(
            (&row["usename"], &row["sync_priority"]),
            (&json!("podgres_replication"), &json!(1))
        );
        assert!(value.get("cluster_unlocked").is_none());
    }

    #[test]
    fn a_standby_tells_what_it_received_and_whether_anybody_leads() {
        let value = patroni_json(&view(standby(1), vec![peer(primary(0))]));
        assert_eq!(
            (value["state"].as_str(), value["role"].as_str()),
            (Some("running"), Some("standby"))
        );
        assert_eq!(value["xlog"]["received_location"], 0x300_0100);
        assert_eq!(value["xlog"]["replayed_location"], 0x300_0100);
        assert_eq!(value["replication_state"], "streaming");
        assert_eq!(value["quorum_standby"], true);
        let value = patroni_json(&view(standby(1), vec![peer(down(primary(0)))]));
        assert_eq!(value["cluster_unlocked"], true);
        let value = patroni_json(&view(down(standby(1)), vec![]));
        assert_eq!(value["state"], "stopped");
        assert!(value.get("xlog").is_none());
    }

    #[test]
    fn history_rows_are_patronis_lists() {
        let row = HistoryEntry {
            term: 2,
            timeline: Some(TimelineId(1)),
            lsn: Some(Lsn(0x500_0000)),
            reason: "switchover".to_owned(),
            at: "2026-01-01T00:00:00Z".to_owned(),
            new_leader: "pg-1".to_owned(),
        };
        let value = history_json(&[row]);
        assert_eq!(
            value.to_string(),
            r#"[[1,83886080,"switchover","2026-01-01T00:00:00Z","pg-1"]]"#
        );
        assert_eq!(history_json(&[]).to_string(), "[]");
    }
}
