//! The routing endpoints: TCP listeners that know enough of PostgreSQL's protocol to choose a server.
//!
//! A connection is read up to its startup packet (or TLS), gets a server that fits the listener's
//! policy, and is relayed byte by byte from then on. Who fits is decided in `core::routing`; who
//! the servers are is told by the table. Never logs in, never changes or answers a query, never
//! keeps a password or a key.

mod answer;
mod cancel;
mod causal;
mod certificate;
mod client;
mod clients;
mod connection;
mod copy;
mod direction;
mod drain;
mod encryption;
mod fitting;
mod forwarded;
mod knowledge;
mod listener;
mod pipes;
mod proof;
mod reads;
mod refusal;
mod relay;
mod server_name;
mod session;
mod socket;
pub mod startup;
mod stats;
mod terminated;
mod total;
mod unavailable;
mod upstream;
mod warden;
mod workers;

use std::time::Duration;

pub use certificate::{CertificateError, CertificateFolder};
pub use encryption::{Authority, Encryption};
pub use forwarded::{InvalidHeader, Network, fuzz_forwarded};
pub use knowledge::{AskPosition, EndSessions, Knowledge, WaitForReplay};
pub use listener::{Listener, ListenerError};
pub use reads::Reads;
pub use refusal::{Refusal, RefusalReason};
pub use server_name::fuzz_server_name;
pub use stats::{RouteStats, ServerStats, SessionCounts};
pub use total::TotalConnections;
pub use unavailable::Unavailable;
pub use workers::Workers;

/// How much one listener takes on, and how long it waits for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at a time, held ones included; cancel requests do not count.
    pub max_connections: usize,
    /// Sessions of one client address at a time.
    pub max_connections_per_client: usize,
    /// Connections beyond that: in startup, being refused, cancelling. With all of them open,
    /// further ones wait in the kernel's queue.
    pub max_startups: usize,
    /// Connections that wait for a server at a time.
    pub max_held: usize,
    /// For all startup packets of a client together, waits for a server not included.
    pub startup_timeout: Duration,
    /// How long a connection waits for a server that fits.
    pub hold: Duration,
    /// For one attempt to reach one server.
    pub connect_timeout: Duration,
    /// For a server's first byte, in answer to a request for TLS or to a startup packet.
    pub answer_timeout: Duration,
    /// How long sessions that must leave a server may take to come to the end of a transaction.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 1000,
            max_connections_per_client: usize::MAX,
            max_startups: 100,
            max_held: 1000,
            startup_timeout: Duration::from_secs(10),
            hold: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(1),
            answer_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(5),
        }
    }
}
