//! What the agent asks of the supervisor, and what the supervisor says of itself.
//!
//! One JSON value a line in each direction over the pod's unix socket. Requests carry only what
//! changes while a pod lives; paths, names and secrets are the supervisor's own settings.

mod job;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::data_directory::DataDirectory;
use super::lease::Incarnation;
use super::switch::SwitchPosition;
use super::wal::TimelineId;

pub use job::{CloneReason, FailureKind, JobKind, JobProgress, JobRequest, JobState, JobStatus};

/// The socket's file name in the pod's run directory.
pub const SOCKET_NAME: &str = "supervisor.sock";

/// The longest line that either side takes, its newline not counted.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// The server that a standby streams or clones from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// The name that its certificate must carry.
    pub host: String,
    /// The address that DNS gave, so that libpq need not ask a cache that may still say NXDOMAIN.
    pub address: IpAddr,
    pub port: u16,
    /// The physical replication slot on the upstream that is this member's.
    pub slot: String,
    /// Under which name the upstream counts this standby's confirmations; the member's name if `None`.
    #[serde(default)]
    pub application_name: Option<String>,
}

/// The commit gate's name in `synchronous_standby_names`.
pub const GATE_NAME: &str = "podgres_gate";

/// How PostgreSQL is to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum ServerRole {
    /// `synchronous_standby_names` is PostgreSQL's setting, empty with fixed leadership. A standby has nothing but
    /// the gate in it under `lease`, so that one promoted by anybody else acknowledges nothing.
    Primary {
        synchronous_standby_names: String,
        /// Transactions that do not say otherwise cannot write (`default_transaction_read_only`).
        #[serde(default)]
        read_only: bool,
    },
    /// `upstream` is `None` while nobody is known: the server then replays and serves what it has.
    Standby { upstream: Option<Upstream> },
}

impl ServerRole {
    /// A primary that waits for nobody's confirmation.
    #[must_use]
    pub fn alone() -> Self {
        Self::primary(String::new())
    }

    /// A primary whose sessions may write, unless `core::decide` says otherwise of it.
    #[must_use]
    pub fn primary(synchronous_standby_names: String) -> Self {
        Self::Primary {
            synchronous_standby_names,
            read_only: false,
        }
    }

    /// Whom a standby follows, if anybody.
    #[must_use]
    pub fn upstream(&self) -> Option<&Upstream> {
        match self {
            Self::Standby { upstream } => upstream.as_ref(),
            Self::Primary { .. } => None,
        }
    }

    /// A primary's setting `synchronous_standby_names`; `None` for a standby.
    #[must_use]
    pub fn synchronous_standby_names(&self) -> Option<&str> {
        match self {
            Self::Standby { .. } => None,
            Self::Primary {
                synchronous_standby_names,
                ..
            } => Some(synchronous_standby_names),
        }
    }

    #[must_use]
    pub fn is_primary(&self) -> bool {
        matches!(self, Self::Primary { .. })
    }
}

/// How to stop PostgreSQL (manual, "Shutting Down the Server").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopMode {
    /// Ends sessions, writes a checkpoint (SIGINT).
    Fast,
    /// Ends at once, crash recovery at the next start (SIGQUIT).
    Immediate,
}

/// The postmaster, as its parent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Postmaster {
    /// `last_exit` says how it ended: `None` if it never ran under this supervisor.
    Stopped { last_exit: Option<PostmasterExit> },
    /// Started; `ready` once `postmaster.pid` says "ready" or "standby".
    Running { pid: u32, role: ServerRole, ready: bool },
    /// `shut_down`: its last checkpoint is written, and the data directory as it was read then is what it leaves. A former primary may still
    /// archive and send for as long as that takes; it writes no more WAL.
    Stopping {
        pid: u32,
        mode: StopMode,
        #[serde(default)]
        shut_down: bool,
    },
}

impl Postmaster {
    /// The role that it runs in, ready or not.
    #[must_use]
    pub fn running_role(&self) -> Option<&ServerRole> {
        match self {
            Self::Running { role, .. } => Some(role),
            Self::Stopped { .. } | Self::Stopping { .. } => None,
        }
    }

    /// Runs as the primary and has become ready.
    #[must_use]
    pub fn ready_primary(&self) -> bool {
        matches!(self, Self::Running { role, ready: true, .. } if role.is_primary())
    }

    /// Whether nothing writes WAL here any more: it does not run, or has written its last checkpoint.
    #[must_use]
    pub fn writes_no_more(&self) -> bool {
        match self {
            Self::Stopped { .. } => true,
            Self::Stopping { shut_down, .. } => *shut_down,
            Self::Running { .. } => false,
        }
    }
}

/// How a postmaster ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostmasterExit {
    /// Asked for by the agent, by TERM or by the fence.
    pub requested: bool,
    /// `exited with code 1`, `killed by signal 9`.
    pub description: String,
    /// Whether it had become ready before it ended.
    pub was_ready: bool,
}

/// Whether PostgreSQL may run writable, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "licence", rename_all = "snake_case")]
pub enum Licence {
    /// No deadline: fixed leadership.
    Unlimited,
    /// Ends by itself at a time on this machine's `CLOCK_BOOTTIME`, in milliseconds.
    Limited { until_ms: u64 },
    /// Never given, or run out: a primary is stopped and not started.
    None,
}

/// What the supervisor answers to every request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SupervisorStatus {
    /// Grows with every change; handed back in [`SupervisorRequest::Wait`].
    pub version: u64,
    pub pid: u32,
    pub postmaster: Postmaster,
    pub job: Option<JobStatus>,
    /// As read while PostgreSQL was last stopped, before the start of a server that runs now; read again
    /// every few seconds while it is stopped.
    pub data_directory: DataDirectory,
    pub licence: Licence,
    /// Major version of the PostgreSQL programs in this container.
    pub major_version: u32,
    /// TERM came: nothing is started any more.
    pub stopping: bool,
    /// The licence ran out while PostgreSQL was writable, and it was stopped because of that.
    pub fenced: bool,
    /// The mounted files (TLS, secrets, configuration) are no longer those that the running server was given.
    #[serde(default)]
    pub outdated: bool,
    /// What is written down beside PGDATA and never goes back.
    #[serde(default)]
    pub terms: Terms,
    /// Of the directory at PGDATA; `None` while there is none.
    #[serde(default)]
    pub incarnation: Option<Incarnation>,
    /// The volume has not taken an fsync since this time (`CLOCK_BOOTTIME`, milliseconds).
    #[serde(default)]
    pub disk_failing_since_ms: Option<u64>,
    /// What was kept aside of WAL that only this member had, when it was last rewound or replaced.
    #[serde(default)]
    pub diverged: Option<DivergedWal>,
    /// The read-only switch as it is kept, or about to be, beside PGDATA.
    #[serde(default)]
    pub switch: SwitchPosition,
}

/// What a member has bound itself to, kept beside the data directory and written to disk before it is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Terms {
    /// It takes no WAL from a primary of an earlier term.
    pub promised: u64,
    /// The last term in which PostgreSQL ran here as primary; 0: never under a Lease.
    pub held: u64,
}

/// WAL of a former primary that no other member has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DivergedWal {
    /// The folder beside PGDATA.
    pub kept_in: String,
    pub from_lsn: String,
    pub to_lsn: String,
    pub commits: u64,
    pub bytes: u64,
    /// Commit times of the first and the last, as PostgreSQL prints them.
    pub first_commit: Option<String>,
    pub last_commit: Option<String>,
}

/// The timeline that a promotion begins: `next`, or a later one if PostgreSQL knows of one itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextTimeline {
    /// The one that the standby is on.
    pub own: TimelineId,
    /// The numbers between the two are passed over.
    pub next: TimelineId,
}

/// One request, one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum SupervisorRequest {
    Status,
    /// Answers when the version is no longer `version`, or after `timeout_ms`.
    Wait {
        version: u64,
        timeout_ms: u64,
    },
    /// Starts a stopped postmaster; writes podgres' configuration files first. An upstream is refused if another term was promised
    /// than the one that whoever asks knows of, if it says so.
    Start {
        server: ServerRole,
        #[serde(default)]
        promised: Option<u64>,
    },
    /// Writes the configuration anew for `server` (same kind of role) and reloads; `promised` as for a start.
    Reload {
        server: ServerRole,
        #[serde(default)]
        promised: Option<u64>,
    },
    /// Makes a running standby the primary; refused without a licence. Writes the configuration for the new role and
    /// has it read first.
    Promote {
        synchronous_standby_names: String,
        /// As in [`ServerRole::Primary`].
        #[serde(default)]
        read_only: bool,
        /// Written down as [`Terms::held`] first.
        term: u64,
        timeline: NextTimeline,
    },
    /// Writes down that no WAL is taken from a primary of an earlier term than `term`; then ends the WAL receiver
    /// of a running standby by a reload without an upstream.
    Detach {
        term: u64,
    },
    /// Writes down that PostgreSQL is to run here as the primary of `term`.
    Hold {
        term: u64,
    },
    Stop {
        mode: StopMode,
    },
    Run {
        job: JobRequest,
    },
    /// Ends the running job and cleans its staging directory.
    Cancel,
    /// Until a time on this machine's `CLOCK_BOOTTIME`, in milliseconds; `None` for no deadline. An absolute time,
    /// so that a request that was held up grants nothing more.
    GrantLicence {
        until_ms: Option<u64>,
    },
    /// Keeps the position of the read-only switch beside PGDATA, unless a newer one is kept there.
    KeepSwitch {
        position: SwitchPosition,
    },
}

/// One reply, one line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum SupervisorReply {
    /// Done, or begun; the status as it is now.
    Status(Box<SupervisorStatus>),
    /// The request does not fit the state (e.g. a second job) or could not be read.
    Refused { message: String },
}
