//! Who may serve which routing endpoint: from a table of servers to candidates in order.
//!
//! Never opens a connection and never counts one; the proxy does that and asks here.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::status::Role;

/// One server that accepts connections, as the agent knows it now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    pub name: String,
    /// PostgreSQL itself, not another route.
    pub address: SocketAddr,
    pub role: Role,
    /// A standby whose WAL receiver streams; true for a primary.
    pub streaming: bool,
    /// Bytes behind the primary's newest known position; `None` if that is not known.
    pub lag_bytes: Option<u64>,
    /// Grows when the server behind the address restarts or changes its role: older sessions are cut.
    pub incarnation: u64,
}

/// Every member, for cancel requests, and every server that accepts connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTable {
    pub servers: Vec<Server>,
    /// PostgreSQL addresses of all known members, accepting or not.
    pub members: Vec<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteMode {
    ReadWrite,
    ReadOnly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadOnlyFallback {
    Primary,
    None,
}

/// What one listener promises its clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutePolicy {
    pub mode: RouteMode,
    pub max_lag_bytes: u64,
    pub fallback: ReadOnlyFallback,
}
