//! Members and views for tests, healthy by default, so that a case shows only what matters.

use crate::core::data_directory::SystemIdentifier;
use crate::core::lease::{Durability, Identity, Incarnation, LeaseRecord, SynchronousSet};
use crate::core::member::Ordinal;
use crate::core::policy::Leadership;
use crate::core::status::{HeldData, MemberState, MemberStatus, ReplicationStatus, Role, ServerStatus};
use crate::core::wal::{Lsn, TimelineId};

use super::{ClusterView, PeerContact, PeerEntry};

/// A primary of "pg" that accepts writes; members 1 and 2 stream from it, 1 as a quorum standby.
pub(crate) fn primary(ordinal: u32) -> MemberStatus {
    let mut status = member(ordinal, Role::Primary, MemberState::Running, "primary_running");
    status.writable = true;
    if let Some(server) = &mut status.server {
        server.in_recovery = false;
        server.receiver_streaming = false;
        server.upstream_lsn = None;
        server.replay_age_ms = None;
        server.replication = vec![replication("pg-1", "quorum"), replication("pg-2", "async")];
    }
    status
}

/// A standby of "pg" that streams and has replayed everything.
pub(crate) fn standby(ordinal: u32) -> MemberStatus {
    member(
        ordinal,
        Role::Standby,
        MemberState::Streaming,
        "standby_streaming",
    )
}

/// A peer that is connected.
pub(crate) fn peer(status: MemberStatus) -> PeerEntry {
    PeerEntry {
        ordinal: status.ordinal,
        name: status.name.clone(),
        status: Some(status),
        contact: PeerContact::Connected,
        heard_ms_ago: Some(200),
    }
}

/// The view of `me`, under fixed leadership.
pub(crate) fn view(me: MemberStatus, peers: Vec<PeerEntry>) -> ClusterView {
    ClusterView {
        cluster: "pg".to_owned(),
        leadership: Some(Leadership::Fixed),
        durability: "async".to_owned(),
        term: 1,
        lease_holder: None,
        read_only: false,
        read_only_switch: None,
        paused: false,
        lease: None,
        me,
        peers,
    }
}

/// The same under a Lease that `holder` has in term 3, with a quorum of one.
pub(crate) fn led(mut view: ClusterView, holder: &str, members: &[u32]) -> ClusterView {
    let synchronous = members
        .iter()
        .map(|member| (Ordinal(*member), Incarnation::default()));
    let record = LeaseRecord {
        holder: Some(Identity::parse(&format!("{holder}/uid"))),
        term: 3,
        durability: Durability::Majority,
        members: members.iter().copied().map(Ordinal).collect(),
        synchronous: SynchronousSet {
            members: synchronous.skip(1).collect(),
            quorum: 1,
        },
        ..LeaseRecord::default()
    };
    (view.leadership, view.durability) = (Some(Leadership::Lease), "majority".to_owned());
    (view.term, view.lease_holder) = (3, Some(holder.to_owned()));
    view.lease = Some(record);
    view
}

/// The server of a standby is up, but its WAL receiver is not.
pub(crate) fn cut_off(mut status: MemberStatus) -> MemberStatus {
    status.state = MemberState::Running;
    if let Some(server) = &mut status.server {
        server.receiver_streaming = false;
        server.upstream_lsn = None;
    }
    status
}

/// The server does not answer.
pub(crate) fn down(mut status: MemberStatus) -> MemberStatus {
    status.state = MemberState::Stopped;
    (status.accepting, status.writable, status.server) = (false, false, None);
    status
}

fn member(ordinal: u32, role: Role, state: MemberState, situation: &str) -> MemberStatus {
    MemberStatus {
        name: format!("pg-{ordinal}"),
        cluster: "pg".to_owned(),
        ordinal: Ordinal(ordinal),
        uid: format!("uid-{ordinal}"),
        role: Some(role),
        state,
        situation: situation.to_owned(),
        message: format!("member {ordinal} is well"),
        held_data: HeldData::Some,
        system_identifier: Some(SystemIdentifier(7_412_345_678_901_234_567)),
        server: Some(server()),
        accepting: true,
        was_streaming: role == Role::Standby,
        writable: false,
        job: None,
        host: std::net::IpAddr::from([10, 0, 0, u8::try_from(ordinal).unwrap_or(255)]),
        postgres_port: 5432,
        http_port: 8008,
        read_write_port: 6432,
        read_only_port: 6433,
        pids: None,
        version: "0.1.0".to_owned(),
        clones_total: u64::from(role == Role::Standby),
        no_reads: false,
        leadership: None,
        leaving: false,
        routes_left: None,
        routes_term: None,
        switch: crate::core::switch::SwitchPosition::default(),
        read_only: false,
        read_only_default: false,
    }
}

fn server() -> ServerStatus {
    ServerStatus {
        server_version: 150_018,
        system_identifier: SystemIdentifier(7_412_345_678_901_234_567),
        timeline: TimelineId(1),
        in_recovery: true,
        receiver_streaming: true,
        flush_lsn: Lsn(0x300_0100),
        replay_lsn: Lsn(0x300_0100),
        upstream_lsn: Some(Lsn(0x300_0100)),
        replay_age_ms: Some(1500),
        postmaster_start_time: "2026-01-01 00:00:00.000000+00".to_owned(),
        replication: Vec::new(),
        slots: Vec::new(),
        oldest_wal_lsn: None,
        wal_segment_size_bytes: 16 * 1024 * 1024,
        replication_role: true,
        receiver_present: true,
        receiver_silent_ms: None,
        replay_waiting: false,
        synchronous_standby_names: String::new(),
        superseded_slots: Vec::new(),
        archive: None,
    }
}

fn replication(name: &str, sync_state: &str) -> ReplicationStatus {
    ReplicationStatus {
        application_name: name.to_owned(),
        client_addr: Some(std::net::IpAddr::from([10, 0, 0, 9])),
        state: "streaming".to_owned(),
        sent_lsn: Some(Lsn(0x300_0100)),
        flush_lsn: Some(Lsn(0x300_0100)),
        replay_lsn: Some(Lsn(0x300_00F0)),
        sync_state: sync_state.to_owned(),
        sync_priority: i32::from(sync_state != "async"),
        usename: "podgres_replication".to_owned(),
        pid: 4711,
    }
}
