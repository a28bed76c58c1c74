//! Builders with defaults, and every combination of the values that decisions rest on.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use podgres::core::cluster::PeerContact;
use podgres::core::data_directory::{ControlState, DataDirectory, DataDirectoryFacts, SystemIdentifier};
use podgres::core::lease::{Durability, Identity, Incarnation, LeaseView};
use podgres::core::member::{Ordinal, slot_name};
use podgres::core::observation::{NameState, Observation, PeerView, ProbeState, UpstreamFacts, UpstreamView};
use podgres::core::policy::{Leadership, LeaseTimes, Policy};
use podgres::core::status::{HeldData, ServerStatus};
use podgres::core::supervision::{Licence, Postmaster, ServerRole, SupervisorStatus, Terms, Upstream};
use podgres::core::switch::SwitchPosition;
use podgres::core::wal::{Lsn, TimelineHistory, TimelineId, WalPosition};

pub(crate) const OWN: SystemIdentifier = SystemIdentifier(7_000_000_000_000_000_001);
pub(crate) const FOREIGN: SystemIdentifier = SystemIdentifier(7_000_000_000_000_000_002);
/// Later than every wait that `policy` allows.
pub(crate) const LATE_MS: u64 = 1_000_000;
pub(crate) const HERE: Lsn = Lsn(0x500_0000);

pub(crate) fn policy(ordinal: u32) -> Policy {
    Policy {
        leadership: Leadership::Fixed,
        cluster: "pg".to_owned(),
        ordinal: Ordinal(ordinal),
        first_ordinal: Ordinal(0),
        new_cluster: false,
        reclone: true,
        discovery_timeout_ms: 10_000,
        stall_timeout_ms: 5_000,
        slot_retention_ms: 600_000,
        identity: Identity {
            pod: format!("pg-{ordinal}"),
            uid: format!("uid-{ordinal}"),
        },
        durability: Durability::Async,
        gate: true,
        read_only_default: false,
        priority: Some(0),
        times: LeaseTimes::default(),
    }
}

pub(crate) fn facts() -> DataDirectoryFacts {
    DataDirectoryFacts {
        system_identifier: OWN,
        major_version: 15,
        timeline: TimelineId(1),
        control_lsn: HERE,
        control_state: ControlState::ShutDown,
        standby_signal: false,
        recovery_signal: false,
        backup_label: false,
        half_rewound: false,
    }
}

pub(crate) fn standby_facts() -> DataDirectoryFacts {
    DataDirectoryFacts {
        control_state: ControlState::ShutDownInRecovery,
        standby_signal: true,
        ..facts()
    }
}

pub(crate) fn supervisor(data_directory: DataDirectory) -> SupervisorStatus {
    SupervisorStatus {
        version: 1,
        pid: 1,
        postmaster: Postmaster::Stopped { last_exit: None },
        job: None,
        data_directory,
        licence: Licence::None,
        major_version: 15,
        stopping: false,
        fenced: false,
        outdated: false,
        terms: Terms::default(),
        incarnation: Some(Incarnation("a".into())),
        disk_failing_since_ms: None,
        diverged: None,
        switch: SwitchPosition::default(),
    }
}

pub(crate) fn server(in_recovery: bool, receiver_streaming: bool) -> ServerStatus {
    ServerStatus {
        server_version: 150_018,
        system_identifier: OWN,
        timeline: TimelineId(1),
        in_recovery,
        receiver_streaming,
        flush_lsn: HERE,
        replay_lsn: HERE,
        upstream_lsn: None,
        replay_age_ms: None,
        postmaster_start_time: String::new(),
        replication: Vec::new(),
        slots: Vec::new(),
        oldest_wal_lsn: None,
        wal_segment_size_bytes: 16 << 20,
        replication_role: true,
        receiver_present: receiver_streaming,
        receiver_silent_ms: None,
        replay_waiting: false,
        synchronous_standby_names: String::new(),
        superseded_slots: Vec::new(),
        archive: None,
    }
}

pub(crate) fn peer(contact: PeerContact, held_data: HeldData) -> PeerView {
    PeerView {
        contact,
        held_data,
        wal_segment_size_bytes: 16 << 20,
        ..PeerView::untried()
    }
}

pub(crate) fn holder() -> PeerView {
    PeerView {
        system_identifier: Some(OWN),
        timeline: Some(TimelineId(1)),
        ..peer(PeerContact::Connected, HeldData::Some)
    }
}

pub(crate) const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 10));
pub(crate) const OLD_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));

pub(crate) fn upstream_facts() -> UpstreamFacts {
    UpstreamFacts {
        address: ADDRESS,
        system_identifier: OWN,
        flush_lsn: Lsn(HERE.0 + 0x100),
        history: TimelineHistory {
            timeline: TimelineId(1),
            ancestors: Vec::new(),
        },
        in_recovery: Some(false),
    }
}

pub(crate) fn upstream(name: NameState, probe: ProbeState) -> UpstreamView {
    UpstreamView {
        of: None,
        host: "pg-0.pg.default.svc.cluster.local".to_owned(),
        port: 5432,
        looked_at_ms: LATE_MS,
        name,
        probe,
    }
}

pub(crate) fn resolved(probe: ProbeState) -> UpstreamView {
    let addresses = vec![ADDRESS];
    upstream(NameState::Resolved { addresses }, probe)
}

pub(crate) fn ready(facts: UpstreamFacts) -> UpstreamView {
    resolved(ProbeState::Ready { facts })
}

pub(crate) fn observation(ordinal: u32, supervisor: SupervisorStatus) -> Observation {
    Observation {
        drained: true,
        at_ms: 1_000,
        supervisor: Some(supervisor),
        supervisor_error: None,
        server: None,
        login_refused: None,
        roles_current: true,
        dns_answered: true,
        peers: BTreeMap::new(),
        upstream: upstream(NameState::Unasked, ProbeState::Untried),
        own_slot: slot_name("pg", Ordinal(ordinal)),
        failed_action: None,
        lease: LeaseView::default(),
        barrier: None,
        request: None,
        read_only: false,
        checkpointed_at_ms: None,
    }
}

pub(crate) fn standby_of(address: Option<IpAddr>) -> ServerRole {
    ServerRole::Standby {
        upstream: address.map(|address| Upstream {
            host: "pg-0.pg.default.svc.cluster.local".to_owned(),
            address,
            port: 5432,
            slot: slot_name("pg", Ordinal(1)),
            application_name: None,
        }),
    }
}

pub(crate) fn running(role: ServerRole, ready: bool) -> Postmaster {
    Postmaster::Running { pid: 9, role, ready }
}

/// A primary that the read-only switch was made known to.
pub(crate) fn read_only_by_default() -> ServerRole {
    ServerRole::Primary {
        synchronous_standby_names: String::new(),
        read_only: true,
    }
}

pub(crate) fn running_standby() -> Postmaster {
    running(standby_of(Some(ADDRESS)), true)
}

/// A primary that lacks what the directory here holds.
pub(crate) fn behind() -> UpstreamFacts {
    UpstreamFacts {
        flush_lsn: Lsn(HERE.0 - 1),
        ..upstream_facts()
    }
}

/// A primary whose history branched off before what the directory here holds.
pub(crate) fn forked() -> UpstreamFacts {
    UpstreamFacts {
        flush_lsn: Lsn(HERE.0 + 0x100),
        history: TimelineHistory {
            timeline: TimelineId(2),
            ancestors: vec![WalPosition {
                timeline: TimelineId(1),
                lsn: Lsn(HERE.0 - 1),
            }],
        },
        ..upstream_facts()
    }
}
