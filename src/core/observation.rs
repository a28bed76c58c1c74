//! Everything that a decision may rest on, gathered in one turn of the agent's loop.
//!
//! A value of plain data: it can be printed as JSON, kept, and decided upon again by `podgres replay`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::cluster::PeerContact;
use super::data_directory::SystemIdentifier;
use super::decision::PostgresAction;
use super::lease::{LeadershipReport, LeaseView};
use super::member::Ordinal;
use super::status::{HeldData, MemberStatus, ServerStatus, SlotStatus};
use super::supervision::{ServerRole, SupervisorStatus};
use super::wal::{Lsn, TimelineHistory, TimelineId};

/// One turn's view of the world. `at_ms` is this machine's `CLOCK_BOOTTIME` in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    pub at_ms: u64,
    /// `None`: the supervisor's socket does not answer.
    pub supervisor: Option<SupervisorStatus>,
    /// Why it does not answer.
    #[serde(default)]
    pub supervisor_error: Option<String>,
    /// `None`: PostgreSQL does not run or does not answer the query in time.
    pub server: Option<ServerStatus>,
    /// Why PostgreSQL, which runs and answers, does not let podgres in: then nothing is known of it.
    #[serde(default)]
    pub login_refused: Option<String>,
    /// The roles on the primary have been brought up to the secrets' present contents.
    pub roles_current: bool,
    /// DNS has answered at least once: a peer that it does not name is not there.
    pub dns_answered: bool,
    pub peers: BTreeMap<Ordinal, PeerView>,
    /// The server to clone from and to follow; only looked at where this member is to be a standby.
    pub upstream: UpstreamView,
    /// This member's slot name on the upstream.
    pub own_slot: String,
    /// The last action, if it could not be carried out.
    #[serde(default)]
    pub failed_action: Option<FailedAction>,
    /// With `leadership=lease`.
    #[serde(default)]
    pub lease: LeaseView,
    /// Since when which `synchronous_standby_names` is in force.
    #[serde(default)]
    pub barrier: Option<Barrier>,
    /// What the operator asked of this member itself.
    #[serde(default)]
    pub request: Option<MemberRequest>,
    /// A checkpoint that this member asked for has ended at this time.
    #[serde(default)]
    pub checkpointed_at_ms: Option<u64>,
    /// The read-only switch is on, by the Lease and by what the members tell each other.
    #[serde(default)]
    pub read_only: bool,
    /// No member's route has a session here, and none begins one while this member hands over.
    #[serde(default)]
    pub drained: bool,
}

/// Every commit that waited under another setting lies before `lsn`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Barrier {
    pub synchronous_standby_names: String,
    pub lsn: Lsn,
    /// When it was asked for. The setting may have been another one since, and this one again.
    #[serde(default)]
    pub at_ms: u64,
}

/// An operator's request to one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberRequest {
    /// Stop and start PostgreSQL.
    Restart,
    /// Clone this standby afresh.
    Reinit,
}

/// An action that came to nothing: it is not tried again at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedAction {
    pub action: PostgresAction,
    pub message: String,
    pub at_ms: u64,
}

impl Observation {
    /// PostgreSQL here, while it answers and accepts writes.
    #[must_use]
    pub fn writable_server(&self) -> Option<&ServerStatus> {
        self.server.as_ref().filter(|server| !server.in_recovery)
    }

    /// The role that a server here was started in, while it runs.
    #[must_use]
    pub fn running_role(&self) -> Option<&ServerRole> {
        self.supervisor.as_ref()?.postmaster.running_role()
    }

    /// DNS has answered, and every peer that it names has been tried at least once.
    #[must_use]
    pub fn peers_asked(&self) -> bool {
        let tried = |peer: &PeerView| !peer.named || peer.contact != PeerContact::Unknown;
        self.dns_answered && self.peers.values().all(tried)
    }
}

/// One other member, as far as decisions need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// DNS lists it now.
    pub named: bool,
    pub contact: PeerContact,
    pub held_data: HeldData,
    pub system_identifier: Option<SystemIdentifier>,
    pub timeline: Option<TimelineId>,
    /// It said so over a connection that is still open.
    pub writable: bool,
    /// This member's slot there.
    pub slot: Option<SlotStatus>,
    pub oldest_wal_lsn: Option<Lsn>,
    pub wal_segment_size_bytes: u64,
    /// Milliseconds since its last line; `None` if it was never heard.
    #[serde(default)]
    pub heard_ms_ago: Option<u64>,
    /// It said last that its WAL receiver streams, or that it is a primary that accepts connections.
    #[serde(default)]
    pub running: bool,
    /// Of its own words, kept when the contact is lost.
    #[serde(default)]
    pub flush_lsn: Option<Lsn>,
    /// All its slots, where it says.
    #[serde(default)]
    pub slots: Vec<SlotStatus>,
    #[serde(default)]
    pub uid: String,
    #[serde(default)]
    pub leadership: Option<LeadershipReport>,
}

impl PeerView {
    /// Its stream is open: what it says counts now.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.contact == PeerContact::Connected
    }

    /// What it says now of its part in the leadership.
    #[must_use]
    pub fn live_report(&self) -> Option<&LeadershipReport> {
        self.leadership.as_ref().filter(|_| self.connected())
    }

    /// A peer that DNS names and that has not answered yet.
    #[must_use]
    pub fn untried() -> Self {
        Self {
            named: true,
            contact: PeerContact::Unknown,
            held_data: HeldData::Unknown,
            system_identifier: None,
            timeline: None,
            writable: false,
            slot: None,
            oldest_wal_lsn: None,
            wal_segment_size_bytes: 0,
            heard_ms_ago: None,
            running: false,
            flush_lsn: None,
            slots: Vec::new(),
            uid: String::new(),
            leadership: None,
        }
    }

    /// What matters of a peer's own words; `own_slot` is this member's slot name.
    #[must_use]
    pub fn from_status(named: bool, contact: PeerContact, status: &MemberStatus, own_slot: &str) -> Self {
        let connected = contact == PeerContact::Connected;
        let server = status.server.as_ref().filter(|_| connected);
        Self {
            named,
            contact,
            held_data: status.held_data,
            system_identifier: status.system_identifier,
            timeline: status.server.as_ref().map(|s| s.timeline),
            writable: connected && status.writable,
            slot: server.and_then(|s| s.slots.iter().find(|slot| slot.slot_name == own_slot).cloned()),
            oldest_wal_lsn: server.and_then(|s| s.oldest_wal_lsn),
            wal_segment_size_bytes: server.map_or(0, |s| s.wal_segment_size_bytes),
            heard_ms_ago: None,
            running: connected && (status.streaming() || (status.accepting && status.writable)),
            flush_lsn: status.server.as_ref().map(|s| s.flush_lsn),
            slots: server.map_or_else(Vec::new, |s| s.slots.clone()),
            uid: status.uid.clone(),
            leadership: status.leadership.clone(),
        }
    }
}

/// The primary's name in DNS, and what a replication connection to it found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamView {
    /// The member that this is about; `None`: the first ordinal.
    #[serde(default)]
    pub of: Option<Ordinal>,
    /// `<pod>.<service>.<namespace>.svc.<domain>`.
    pub host: String,
    pub port: u16,
    /// When this look began: what it says may be older than what was done since.
    pub looked_at_ms: u64,
    pub name: NameState,
    pub probe: ProbeState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum NameState {
    Unasked,
    /// DNS answered that there is no such name (yet).
    Missing,
    /// DNS did not answer properly.
    Failed {
        message: String,
    },
    Resolved {
        addresses: Vec<IpAddr>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "probe", rename_all = "snake_case")]
pub enum ProbeState {
    /// Not tried since the name was last resolved, or not needed.
    Untried,
    Failed {
        message: String,
    },
    Ready {
        facts: UpstreamFacts,
    },
}

/// What `IDENTIFY_SYSTEM` and `TIMELINE_HISTORY` said (manual, "Streaming Replication Protocol").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamFacts {
    pub address: IpAddr,
    pub system_identifier: SystemIdentifier,
    pub flush_lsn: Lsn,
    pub history: TimelineHistory,
    /// The server is itself a standby; `None` where the server does not say.
    pub in_recovery: Option<bool>,
}
