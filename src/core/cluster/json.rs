//! `/cluster` and `podgres status -o json`: Patroni's fields and ours in one value.
//!
//! Patroni's: `scope`, `pause`, and per member `api_url`, `host`, `port`, `lsn`, `lag`, `receive_lag`,
//! `receive_lsn`, `replay_lag`, `replay_lsn`. Its `role` says leader and replica; ours says primary and standby.

use serde_json::{Map, Value, json};

use crate::core::member::Ordinal;
use crate::core::policy::Leadership;
use crate::core::status::{MemberState, MemberStatus, Role};

use super::{ClusterView, LagMode, PeerContact, PeerEntry};

/// The whole cluster; members in the order of their ordinals, this one included.
#[must_use]
pub fn cluster_json(view: &ClusterView) -> Value {
    let mut members: Vec<(Ordinal, Value)> = view
        .peers
        .iter()
        .map(|p| (p.ordinal, peer_json(view, p)))
        .collect();
    members.push((
        view.me.ordinal,
        member_json(view, &view.me, PeerContact::Connected, Some(0)),
    ));
    members.sort_by_key(|(ordinal, _)| *ordinal);
    let members: Vec<Value> = members.into_iter().map(|(_, member)| member).collect();
    let mut value = json!({
        "cluster": view.cluster,
        "scope": view.cluster,
        "system_identifier": view.system_identifier(),
        "term": view.term,
        "leadership": view.leadership.map_or("", Leadership::as_str),
        "durability": view.durability,
        "lease_holder": view.lease_holder,
        "read_only": view.read_only,
        "read_only_switch": view.read_only_switch,
        "read_only_default": view.live_members().any(|member| member.read_only_default),
        "paused": view.paused,
        "observer": view.me.name,
        "synchronous": synchronous(view),
        "request": view.lease.as_ref().and_then(|record| record.request.as_ref()),
        "history": view.lease.as_ref().map(|record| &record.history),
        "primary_lsn": view.primary_position().map(|position| position.lsn),
        "primary_lsn_known_ms_ago": known_ms_ago(view),
        "members": members,
    });
    // Patroni shows this key only while it is true.
    if let (true, Value::Object(fields)) = (view.paused, &mut value) {
        fields.insert("pause".to_owned(), Value::Bool(true));
    }
    value
}

/// The recorded set by name: whose confirmations commits wait for, and how many of them.
fn synchronous(view: &ClusterView) -> Value {
    let Some(record) = &view.lease else {
        return Value::Null;
    };
    let members = record.synchronous.members.keys();
    let names: Vec<String> = members
        .map(|member| format!("{}-{member}", view.cluster))
        .collect();
    json!({ "members": names, "quorum": record.synchronous.quorum })
}

/// As Patroni has them: what sets this member apart; none that says nothing.
fn tags(status: &MemberStatus) -> Value {
    let mut tags = Map::new();
    if let Some(report) = &status.leadership {
        match report.priority {
            Some(priority) => tags.insert("priority".to_owned(), json!(priority)),
            None => tags.insert("never_primary".to_owned(), Value::Bool(true)),
        };
    }
    if status.no_reads {
        tags.insert("no_reads".to_owned(), Value::Bool(true));
    }
    Value::Object(tags)
}

/// How old the knowledge of the primary's position is; `None` if there is none.
#[must_use]
pub fn known_ms_ago(view: &ClusterView) -> Option<u64> {
    view.primary_position()
        .map(|position| position.known_ms_ago)
        .filter(|age| *age != u64::MAX)
}

fn peer_json(view: &ClusterView, peer: &PeerEntry) -> Value {
    match &peer.status {
        Some(status) => member_json(view, status, peer.contact, peer.heard_ms_ago),
        None => json!({
            "name": peer.name,
            "ordinal": peer.ordinal,
            "role": null,
            "state": MemberState::Unreachable,
            "situation": null,
            "contact": peer.contact,
            "heard_ms_ago": peer.heard_ms_ago,
            "timeline": null,
            "flush_lsn": null,
            "replay_lsn": null,
            "lag_bytes": null,
            "lag": "unknown",
            "sync": false,
        }),
    }
}

fn member_json(view: &ClusterView, status: &MemberStatus, contact: PeerContact, heard: Option<u64>) -> Value {
    let connected = contact == PeerContact::Connected;
    let server = status.server.as_ref();
    let state = if connected {
        status.state
    } else {
        MemberState::Unreachable
    };
    let sync = matches!(view.sync_state(&status.name), Some("sync" | "quorum"));
    let mut member = json!({
        "name": status.name,
        "ordinal": status.ordinal,
        "uid": status.uid,
        "role": status.role,
        "state": state,
        "situation": status.situation,
        "message": status.message,
        "contact": contact,
        "heard_ms_ago": heard,
        "system_identifier": status.system_identifier,
        "timeline": server.map(|s| s.timeline),
        "flush_lsn": server.map(|s| s.flush_lsn),
        "replay_lsn": server.map(|s| s.replay_lsn),
        "lag_bytes": if connected { view.lag_bytes(status, LagMode::Apply) } else { None },
        "sync": connected && sync,
        "accepting": connected && status.accepting,
        "writable": connected && status.writable,
        "host": status.host,
        "port": status.postgres_port,
        "postgres_port": status.postgres_port,
        "http_port": status.http_port,
        "read_write_port": status.read_write_port,
        "read_only_port": status.read_only_port,
        "api_url": api_url(status),
        "version": status.version,
        "clones_total": status.clones_total,
        "promised_term": status.leadership.as_ref().map(|report| report.promised_term),
        "tags": tags(status),
    });
    if let Value::Object(fields) = &mut member {
        add_optional(fields, view, status, connected);
    }
    member
}

fn add_optional(fields: &mut Map<String, Value>, view: &ClusterView, status: &MemberStatus, connected: bool) {
    if let Some(pids) = &status.pids {
        fields.insert("pids".to_owned(), json!(pids));
    }
    if let Some(job) = &status.job {
        fields.insert("job".to_owned(), json!(job));
    }
    if status.role == Some(Role::Primary) {
        if let Some(server) = &status.server {
            fields.insert("lsn".to_owned(), json!(server.flush_lsn));
        }
        return;
    }
    let lag = |mode| match view.lag_bytes(status, mode) {
        Some(bytes) if connected => json!(bytes),
        _ => json!("unknown"),
    };
    fields.insert("lag".to_owned(), lag(LagMode::Apply));
    fields.insert("replay_lag".to_owned(), lag(LagMode::Apply));
    fields.insert("receive_lag".to_owned(), lag(LagMode::Write));
    if let Some(server) = &status.server {
        fields.insert("receive_lsn".to_owned(), json!(server.flush_lsn));
    }
}

/// Where Patroni's clients ask the member: `http://host:8008/patroni`.
#[must_use]
pub fn api_url(status: &MemberStatus) -> String {
    let address = std::net::SocketAddr::new(status.host, status.http_port);
    format!("http://{address}/patroni")
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{cut_off, peer, primary, standby, view};
    use super::*;

    #[test]
    fn members_come_in_order_with_the_fields_that_were_promised() {
        let value = cluster_json(&view(standby(1), vec![peer(standby(2)), peer(primary(0))]));
        for key in [
            "cluster",
            "system_identifier",
            "term",
            "leadership",
            "durability",
            "lease_holder",
            "read_only",
            "read_only_default",
            "paused",
        ] {
            assert!(value.get(key).is_some(), "{key}");
        }
        let members = value["members"].as_array().expect("members");
        let names: Vec<_> = members
            .iter()
            .map(|m| m["name"].as_str().expect("name"))
            .collect();
        assert_eq!(names, ["pg-0", "pg-1", "pg-2"]);
        for member in members {
            for key in [
                "name",
                "ordinal",
                "role",
                "state",
                "situation",
                "timeline",
                "flush_lsn",
                "replay_lsn",
                "lag_bytes",
                "sync",
                "host",
                "postgres_port",
                "http_port",
                "read_write_port",
                "read_only_port",
                "api_url",
                "port",
            ] {
                assert!(member.get(key).is_some(), "{key}");
            }
            assert!(member.get("pids").is_none(), "pids mean nothing outside a demo");
        }
        assert_eq!(members[0]["role"], "primary");
        assert_eq!(members[0]["lag_bytes"], 0);
        assert_eq!(members[1]["state"], "streaming");
        assert_eq!(
            (&members[1]["sync"], &members[2]["sync"]),
            (&json!(true), &json!(false))
        );
        assert_eq!(members[1]["api_url"], "http://10.0.0.1:8008/patroni");
        assert_eq!(value["system_identifier"], "7412345678901234567");
    }

    #[test]
    fn a_lost_member_is_unreachable_with_its_last_known_fields() {
        let mut lost = peer(primary(0));
        (lost.contact, lost.heard_ms_ago) = (PeerContact::TimedOut, Some(5000));
        let mut never = lost.clone();
        (never.ordinal, never.name, never.status) = (Ordinal(2), "pg-2".to_owned(), None);
        let value = cluster_json(&view(cut_off(standby(1)), vec![never, lost]));
        let members = value["members"].as_array().expect("members");
        assert_eq!(members[0]["state"], "unreachable");
        assert_eq!(members[0]["role"], "primary");
        assert_eq!(members[0]["flush_lsn"], "0/3000100");
        assert_eq!(members[0]["lag_bytes"], Value::Null);
        assert_eq!(members[0]["writable"], false);
        assert_eq!(members[1]["state"], "running");
        assert_eq!(members[1]["sync"], false);
        assert_eq!(
            (&members[2]["state"], &members[2]["role"]),
            (&json!("unreachable"), &Value::Null)
        );
        assert_eq!(value["primary_lsn_known_ms_ago"], 5000);
    }
}
