//! Who may serve which routing endpoint: from a table of servers to candidates in order.
//!
//! Never opens a connection and never counts one; the proxy does that and asks here. How fresh a server is
//! comes from [`freshness`], whether it is in or out just now from [`membership`].

pub mod choose;
pub mod freshness;
pub mod listen;
pub mod membership;
pub mod monotonic;
pub mod options;
pub mod settling;
pub mod slice;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::status::Role;

pub use choose::choose;

/// One server that accepts connections, as the agent knows it now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    pub name: String,
    /// PostgreSQL itself, not another route.
    pub address: SocketAddr,
    /// The HTTP port of the member's podgres.
    pub http_address: SocketAddr,
    pub role: Role,
    /// It answers. One that runs and does not answer gets no new sessions and keeps those it has.
    pub answering: bool,
    /// A standby whose WAL receiver streams; true for a primary.
    pub streaming: bool,
    /// Bytes behind the primary's newest known position; `None` if that is not known.
    pub lag_bytes: Option<u64>,
    /// Milliseconds since the instant of which it is known to contain every acknowledged commit.
    pub staleness_ms: Option<u64>,
    /// It is about to stop in a planned move: its sessions end between transactions, and it gets no new ones.
    pub leaving: bool,
    /// Changes when the server behind the address restarts: older sessions are cut.
    pub incarnation: u64,
}

/// Every member, for cancel requests, and every server that accepts connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTable {
    pub servers: Vec<Server>,
    /// PostgreSQL addresses of all known members by name, accepting or not.
    pub members: BTreeMap<String, SocketAddr>,
    /// Servers that run and are neither now, by name and incarnation: in the middle of a promotion, or without the
    /// right to be what they are.
    pub unclear: BTreeMap<String, u64>,
    /// The newest term that anybody is in office for, or has claimed, with a Lease.
    pub term: Option<u64>,
    /// Members that are there and whose routes have not said yet that they have left the primaries of earlier terms.
    pub waits_for: Vec<String>,
    /// The operator's read-only switch: no session goes to the primary.
    pub read_only: bool,
    /// Nobody who is heard is or follows a primary. One that is cut off from all of them may go on elsewhere.
    pub unheard: bool,
    /// The primary is known to be gone: nothing newer than what the standbys have exists anywhere.
    pub orphaned: bool,
}

impl RouteTable {
    /// The same while no session may begin on the primary; those that read there since it was a standby go on.
    #[must_use]
    pub fn without_primary(&self) -> Self {
        let mut table = self.clone();
        let primaries = table.servers.iter().filter(|server| server.role == Role::Primary);
        let primaries: Vec<_> = primaries
            .map(|server| (server.name.clone(), server.incarnation))
            .collect();
        table.unclear.extend(primaries);
        table.servers.retain(|server| server.role != Role::Primary);
        table
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteMode {
    ReadWrite,
    ReadOnly,
}

impl RouteMode {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
        }
    }
}

/// Who serves reads while no standby is fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadOnlyFallback {
    Primary,
    None,
}

/// What becomes of the bounds on reads while the primary is known to be gone. While it is merely silent they stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnPrimaryLoss {
    /// The standbys go on serving: nothing newer exists.
    Serve,
    /// So long after the newest word of the primary.
    ServeFor { ms: u64 },
    /// Nothing is served.
    Refuse,
}

/// Whether sessions whose encryption passes through are kept together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Affinity {
    /// All of one client address go to the same server, and so do its cancel requests, which cannot be read.
    Client,
    /// Each goes where there is most room.
    None,
}

/// What one listener promises its clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutePolicy {
    pub mode: RouteMode,
    pub max_staleness_ms: u64,
    pub max_lag_bytes: u64,
    pub fallback: ReadOnlyFallback,
    pub on_primary_loss: OnPrimaryLoss,
    /// A read-write endpoint serves standbys while there is no primary.
    pub degrade: bool,
    pub affinity: Affinity,
    /// No session sees older data than an earlier one of the same client address: see [`monotonic`].
    pub monotonic: bool,
    /// The client has set `max_lag_bytes` itself: it holds without a primary too.
    pub own_max_lag: bool,
}

impl RoutePolicy {
    /// The defaults: at most 10 s and 16 MB behind, the primary as fallback.
    #[must_use]
    pub fn new(mode: RouteMode) -> Self {
        Self {
            mode,
            max_staleness_ms: 10_000,
            max_lag_bytes: 16 << 20,
            fallback: ReadOnlyFallback::Primary,
            on_primary_loss: OnPrimaryLoss::Serve,
            degrade: false,
            affinity: Affinity::Client,
            monotonic: false,
            own_max_lag: false,
        }
    }

    /// Whether sessions go to standbys now.
    fn serves_standbys(&self, table: &RouteTable) -> bool {
        let primary = || table.servers.iter().any(|server| server.role == Role::Primary);
        match self.mode {
            RouteMode::ReadOnly => true,
            RouteMode::ReadWrite => table.read_only || (self.degrade && !primary()),
        }
    }

    /// Whether what becomes of reads is `on_primary_loss`'s word now, instead of the bounds.
    ///
    /// Whoever asks for reads has a bound, which only the certainty lifts that nothing newer exists. A read-write endpoint
    /// that serves standbys promises no age, but to go on.
    fn is_orphaned(&self, table: &RouteTable) -> bool {
        match self.mode {
            RouteMode::ReadOnly => table.orphaned,
            RouteMode::ReadWrite => table.orphaned || table.unheard,
        }
    }

    /// Whether sessions may be on the primary now.
    fn takes_primary(&self, table: &RouteTable) -> bool {
        let wanted = self.mode == RouteMode::ReadWrite || self.fallback == ReadOnlyFallback::Primary;
        wanted && !table.read_only
    }
}

/// Why a server gets none of a policy's new sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Only the primary serves this policy.
    Standby,
    /// Only standbys serve this policy.
    Primary,
    /// The read-only switch keeps sessions off the primary.
    ReadOnlySwitch,
    /// Another server says that it is the primary too; neither is believed.
    SeveralPrimaries,
    NotAnswering,
    Leaving,
    NotStreaming,
    StalenessUnknown,
    TooStale {
        staleness_ms: u64,
        max_staleness_ms: u64,
    },
    LagUnknown,
    LagTooLarge {
        lag_bytes: u64,
        max_lag_bytes: u64,
    },
    /// The primary is gone, and the policy serves no more reads then.
    PrimaryLost,
}

impl fmt::Display for Unfit {
    /// Reads on from `server "name"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standby => f.write_str("is a standby"),
            Self::Primary => f.write_str("is the primary"),
            Self::ReadOnlySwitch => f.write_str("is the primary, and the cluster is switched to read-only"),
            Self::SeveralPrimaries => f.write_str("is one of several that say they are the primary"),
            Self::NotAnswering => f.write_str("runs but does not answer"),
            Self::Leaving => f.write_str("is about to stop"),
            Self::NotStreaming => f.write_str("is a standby that does not stream"),
            Self::StalenessUnknown => f.write_str("is a standby of unknown staleness"),
            Self::TooStale {
                staleness_ms,
                max_staleness_ms,
            } => write!(f, "is {staleness_ms} ms stale, {max_staleness_ms} are allowed"),
            Self::LagUnknown => f.write_str("is a standby of unknown lag"),
            Self::LagTooLarge {
                lag_bytes,
                max_lag_bytes,
            } => write!(f, "is {lag_bytes} bytes behind, {max_lag_bytes} are allowed"),
            Self::PrimaryLost => f.write_str("is a standby whose primary is gone"),
        }
    }
}

/// Why `server` may not get a new session under `policy`; `None` if it may.
///
/// Under read-only with fallback a fit primary is only used while no standby is fit: see [`candidates`].
#[must_use]
pub fn unfit(policy: &RoutePolicy, table: &RouteTable, server: &Server) -> Option<Unfit> {
    if !server.answering {
        return Some(Unfit::NotAnswering);
    }
    match server.role {
        Role::Standby if !policy.serves_standbys(table) => Some(Unfit::Standby),
        _ if server.leaving => Some(Unfit::Leaving),
        Role::Standby => unfit_standby(policy, table, server),
        Role::Primary if table.read_only => Some(Unfit::ReadOnlySwitch),
        Role::Primary if !policy.takes_primary(table) => Some(Unfit::Primary),
        Role::Primary => several_primaries(table).then_some(Unfit::SeveralPrimaries),
    }
}

fn unfit_standby(policy: &RoutePolicy, table: &RouteTable, server: &Server) -> Option<Unfit> {
    if !server.streaming {
        return Some(Unfit::NotStreaming);
    }
    if policy.is_orphaned(table) {
        return unfit_orphan(policy, table, server);
    }
    let max_staleness_ms = policy.max_staleness_ms;
    too_far_behind(policy, server.lag_bytes).or(match server.staleness_ms {
        None => Some(Unfit::StalenessUnknown),
        Some(staleness_ms) if staleness_ms > max_staleness_ms => Some(Unfit::TooStale {
            staleness_ms,
            max_staleness_ms,
        }),
        Some(_) => None,
    })
}

/// With the primary gone nothing newer exists than what its standbys have, but one of them may have more than another.
fn unfit_orphan(policy: &RoutePolicy, table: &RouteTable, server: &Server) -> Option<Unfit> {
    let serves = match policy.on_primary_loss {
        OnPrimaryLoss::Serve => true,
        OnPrimaryLoss::ServeFor { ms } => server.staleness_ms.is_some_and(|stale| stale <= ms),
        OnPrimaryLoss::Refuse => false,
    };
    if !serves {
        return Some(Unfit::PrimaryLost);
    }
    if policy.own_max_lag {
        return too_far_behind(policy, server.lag_bytes);
    }
    let standbys = table.servers.iter().filter(|server| server.role == Role::Standby);
    let most_advanced = standbys.filter_map(|standby| standby.lag_bytes).min();
    match (policy.mode, most_advanced) {
        (RouteMode::ReadWrite, _) | (_, None) => None,
        (RouteMode::ReadOnly, Some(least)) => {
            let behind_it = server.lag_bytes.map(|lag_bytes| lag_bytes.saturating_sub(least));
            too_far_behind(policy, behind_it)
        }
    }
}

fn too_far_behind(policy: &RoutePolicy, lag_bytes: Option<u64>) -> Option<Unfit> {
    let max_lag_bytes = policy.max_lag_bytes;
    match lag_bytes {
        None => Some(Unfit::LagUnknown),
        Some(lag_bytes) if lag_bytes > max_lag_bytes => Some(Unfit::LagTooLarge {
            lag_bytes,
            max_lag_bytes,
        }),
        Some(_) => None,
    }
}

/// The servers that may get a new session, best first: standbys by lag, then by name, or the one primary.
///
/// Two primaries are a split brain or a failover half seen: writing to either could lose data, so
/// neither is a candidate, not even as the fallback of read-only (a session there may write too).
/// Fit standbys go on serving read-only.
#[must_use]
pub fn candidates<'a>(policy: &RoutePolicy, table: &'a RouteTable) -> Vec<&'a Server> {
    let mut fit: Vec<&Server> = table
        .servers
        .iter()
        .filter(|server| unfit(policy, table, server).is_none())
        .collect();
    if fit.iter().any(|server| server.role == Role::Standby) {
        fit.retain(|server| server.role == Role::Standby);
    }
    fit.sort_by(|a, b| (a.lag_bytes, &a.name).cmp(&(b.lag_bytes, &b.name)));
    fit
}

/// What becomes of a session that is relayed already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    Keep,
    /// It is to end between two transactions, within a time limit.
    Drain,
    /// Its server is lost: it ends at once.
    Cut,
}

/// What a session was opened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    pub server: &'a str,
    pub incarnation: u64,
    pub role: Role,
}

/// What becomes of a session.
///
/// Cut: the server has vanished from the table, or has restarted, or was the primary and lost the right. Drained: its role no longer fits, it is
/// about to stop, or the read-only switch was turned. Kept: with growing lag, without a WAL receiver
/// (reads outlive the primary), beside a second primary (which of the two is wrong is for the agents to
/// find out; theirs then loses its role), and where a read-only session has fallen back to the primary:
/// it stays when a standby becomes fit, because moving it would break a session to repair nothing.
#[must_use]
pub fn stay(policy: &RoutePolicy, table: &RouteTable, opened: Opened<'_>) -> Stay {
    let same = |server: &&Server| server.name == opened.server && server.incarnation == opened.incarnation;
    let Some(server) = table.servers.iter().find(same) else {
        // A standby that is being promoted still answers the reads that it has begun.
        let unclear = table.unclear.get(opened.server) == Some(&opened.incarnation);
        return if unclear && opened.role == Role::Standby {
            Stay::Keep
        } else {
            Stay::Cut
        };
    };
    let role_fits = match server.role {
        Role::Primary => policy.takes_primary(table),
        Role::Standby => policy.serves_standbys(table),
    };
    if role_fits && !server.leaving {
        Stay::Keep
    } else {
        Stay::Drain
    }
}

fn several_primaries(table: &RouteTable) -> bool {
    let primaries = table.servers.iter().filter(|server| server.role == Role::Primary);
    primaries.count() > 1
}

#[cfg(test)]
#[path = "routing/tests.rs"]
mod tests;
