//! What a member tells the others and the operator about itself.
//!
//! Names follow `pg_stat_replication`, `pg_stat_wal_receiver`, `pg_replication_slots` and Patroni's
//! `/cluster`. The same value is streamed to the peers, shown by `podgres status` and used for routing.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::data_directory::SystemIdentifier;
use super::lease::LeadershipReport;
use super::member::Ordinal;
use super::supervision::{JobKind, JobProgress};
use super::switch::SwitchPosition;
use super::wal::{Lsn, TimelineId};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Primary,
    Standby,
}

impl Role {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// Accepts connections; on a standby: but does not stream.
    Running,
    /// A standby whose WAL receiver streams.
    Streaming,
    Cloning,
    Rewinding,
    Starting,
    Stopped,
    Fenced,
    Unreachable,
}

impl MemberState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Streaming => "streaming",
            Self::Cloning => "cloning",
            Self::Rewinding => "rewinding",
            Self::Starting => "starting",
            Self::Stopped => "stopped",
            Self::Fenced => "fenced",
            Self::Unreachable => "unreachable",
        }
    }
}

/// Whether a member has data that a new cluster must not ignore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldData {
    /// Its data directory is empty.
    None,
    /// It holds something, complete or not.
    Some,
    /// It has not looked yet, or its supervisor does not answer.
    Unknown,
}

/// One row of `pg_replication_slots` that matters to the members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotStatus {
    pub slot_name: String,
    pub active: bool,
    pub restart_lsn: Option<Lsn>,
    /// `wal_status = 'lost'`: the WAL that it held back has been removed.
    pub lost: bool,
    /// Bytes until the slot is at risk; `None` if unlimited or unknown.
    pub safe_wal_size_bytes: Option<i64>,
}

/// One row of `pg_stat_replication`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicationStatus {
    pub application_name: String,
    pub client_addr: Option<IpAddr>,
    /// `startup`, `catchup`, `streaming`, `backup`, `stopping`.
    pub state: String,
    pub sent_lsn: Option<Lsn>,
    pub flush_lsn: Option<Lsn>,
    pub replay_lsn: Option<Lsn>,
    /// `async`, `potential`, `sync`, `quorum`.
    pub sync_state: String,
    /// Its turn among synchronous standbys; 0 for the others.
    #[serde(default)]
    pub sync_priority: i32,
    /// The role that it has logged in as.
    #[serde(default)]
    pub usename: String,
    pub pid: i32,
}

/// What a running server answers to the agent's one query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// `server_version_num`, e.g. 150018.
    pub server_version: u32,
    pub system_identifier: SystemIdentifier,
    pub timeline: TimelineId,
    pub in_recovery: bool,
    /// The WAL receiver exists and is `streaming`.
    pub receiver_streaming: bool,
    /// Primary: written and flushed. Standby: received and flushed.
    pub flush_lsn: Lsn,
    /// Standby: applied. Primary: the same as `flush_lsn`.
    pub replay_lsn: Lsn,
    /// Standby: the newest position that the upstream reported (`latest_end_lsn`).
    pub upstream_lsn: Option<Lsn>,
    /// Standby: milliseconds since the commit time of the last replayed transaction.
    pub replay_age_ms: Option<u64>,
    /// `pg_postmaster_start_time()` as text, for `/patroni`.
    pub postmaster_start_time: String,
    /// Primary only.
    pub replication: Vec<ReplicationStatus>,
    pub slots: Vec<SlotStatus>,
    /// The oldest WAL segment that still exists; looked up only while a member is not streaming.
    pub oldest_wal_lsn: Option<Lsn>,
    pub wal_segment_size_bytes: u64,
    /// The login role for replication exists with the right password verifier.
    pub replication_role: bool,
    /// Standby: a WAL receiver process exists, streaming or not.
    #[serde(default)]
    pub receiver_present: bool,
    /// Standby: milliseconds since the WAL receiver heard from its upstream.
    #[serde(default)]
    pub receiver_silent_ms: Option<u64>,
    /// Standby: replay has reached the end of all WAL that is here and waits for more.
    #[serde(default)]
    pub replay_waiting: bool,
    /// Standby that synchronizes logical slots (`sync_replication_slots`, PostgreSQL 17): its own failover slots from when it
    /// was the primary. The primary's of the same name cannot come here while they exist (the manual, "Replication Slot
    /// Synchronization").
    #[serde(default)]
    pub superseded_slots: Vec<String>,
    /// The setting as this session sees it.
    #[serde(default)]
    pub synchronous_standby_names: String,
    /// Primary with an archive only.
    #[serde(default)]
    pub archive: Option<ArchiveStatus>,
}

impl ServerStatus {
    /// How far the WAL here leads: a server that starts may replay from files more than its WAL receiver has flushed.
    #[must_use]
    pub fn end_of_wal(&self) -> Lsn {
        self.flush_lsn.max(self.replay_lsn)
    }
}

/// How far WAL is archived (`pg_stat_archiver`, and what waits in `pg_wal`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveStatus {
    /// Since the server's statistics began.
    pub archived_files: u64,
    pub failed_attempts: u64,
    /// Complete, and not archived yet: they stay in `pg_wal` until they are.
    pub waiting_files: u64,
    /// How long the oldest of them has waited.
    pub waiting_ms: u64,
}

/// Process ids, given only where they mean something outside the pod: in a demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberPids {
    pub supervisor: Option<u32>,
    pub postgres: Option<u32>,
    pub sidecar: Option<u32>,
}

/// A clone under way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobReport {
    pub kind: JobKind,
    #[serde(flatten)]
    pub progress: JobProgress,
}

/// One member, as it describes itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    pub name: String,
    pub cluster: String,
    pub ordinal: Ordinal,
    /// The pod's UID, or another text that changes with each incarnation of the pod.
    pub uid: String,
    /// `None` while it has no data and no task.
    pub role: Option<Role>,
    pub state: MemberState,
    /// The name of the situation that its last decision rests on.
    pub situation: String,
    /// The situation as a sentence with its particulars.
    pub message: String,
    pub held_data: HeldData,
    pub system_identifier: Option<SystemIdentifier>,
    /// What the server that runs said last; whether it answers now is `accepting`.
    pub server: Option<ServerStatus>,
    /// Accepts client connections now.
    pub accepting: bool,
    /// Standby: the WAL receiver has streamed since this server started, and nothing since then has shown
    /// that its WAL is of no use (WAL gone, histories diverged, another cluster's).
    pub was_streaming: bool,
    /// Accepts writes now: not in recovery. Whether it has the right to is its role.
    pub writable: bool,
    pub job: Option<JobReport>,
    pub host: IpAddr,
    pub postgres_port: u16,
    pub http_port: u16,
    pub read_write_port: u16,
    pub read_only_port: u16,
    pub pids: Option<MemberPids>,
    /// podgres' own version.
    pub version: String,
    /// Clones this member has made since its volume was new, by reason, are metrics; this one is for tests and status.
    pub clones_total: u64,
    /// The read-only routes and `/replica` leave this member out.
    #[serde(default)]
    pub no_reads: bool,
    /// With `leadership=lease`.
    #[serde(default)]
    pub leadership: Option<LeadershipReport>,
    /// PostgreSQL is about to be stopped for a planned move: routes end their sessions and begin none.
    #[serde(default)]
    pub leaving: bool,
    /// The leaving servers that this member's routes have left altogether; `None` where nothing routes.
    #[serde(default)]
    pub routes_left: Option<BTreeSet<String>>,
    /// This member's routes have no session left with a primary of a term before this one; `None` where nothing
    /// routes, or no term is known.
    #[serde(default)]
    pub routes_term: Option<u64>,
    /// The read-only switch as it follows it.
    #[serde(default)]
    pub switch: SwitchPosition,
    /// The cluster is switched to read-only, as far as it knows.
    #[serde(default)]
    pub read_only: bool,
    /// Its server is a primary whose sessions are read-only by default, because of the switch.
    #[serde(default)]
    pub read_only_default: bool,
}

impl MemberStatus {
    /// Of somebody who is no member and has nothing to tell.
    #[must_use]
    pub fn outsider(cluster: String, host: IpAddr) -> Self {
        Self {
            name: String::new(),
            cluster,
            ordinal: Ordinal(0),
            uid: String::new(),
            role: None,
            state: MemberState::Stopped,
            situation: String::new(),
            message: String::new(),
            held_data: HeldData::None,
            system_identifier: None,
            server: None,
            accepting: false,
            was_streaming: false,
            writable: false,
            job: None,
            host,
            postgres_port: 0,
            http_port: 0,
            read_write_port: 0,
            read_only_port: 0,
            pids: None,
            version: String::new(),
            clones_total: 0,
            no_reads: false,
            leadership: None,
            leaving: false,
            routes_left: None,
            routes_term: None,
            switch: SwitchPosition::default(),
            read_only: false,
            read_only_default: false,
        }
    }

    /// A standby that accepts connections and whose WAL receiver streams.
    #[must_use]
    pub fn streaming(&self) -> bool {
        self.accepting && self.state == MemberState::Streaming
    }
}
