//! The agent: the only place where deciding meets doing.
//!
//! One loop: observe, ask `core::decide`, record, publish, execute, wait. Events only wake it; nothing
//! reacts to an event directly. `podgres sidecar` runs it for ever, `podgres init` until the data
//! directory is ready.

mod counters;
mod ending;
mod execute;
mod freshness;
mod journal;
mod looking;
mod names;
mod observe;
mod office;
mod operator;
mod ordered;
mod outlets;
mod outside;
mod positions;
mod publish;
mod read_only;
mod run;
mod supervisor;
mod switch;

mod upstream;
mod visitors;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::core::cluster::ClusterView;
use crate::core::member::{MemberName, Topology};
use crate::core::policy::Policy;
use crate::core::routing::RouteTable;
use crate::http::Beat;
use crate::kube::LeaseSettings;
use crate::peers::Way;
use crate::postgres::ReadLogins;

pub use counters::{Counters, Standing};
pub use ending::{Outcome, Until};
pub use freshness::follow_freshness;
pub use journal::Journal;
pub use office::Requests;
pub use operator::{Operator, member_key};
pub use outside::{Outside, OutsideSettings};
pub use positions::Positions;
pub use run::{Agent, AgentError};

/// What the agent needs to know and what does not change while it runs.
pub struct Settings {
    pub policy: Policy,
    pub topology: Topology,
    pub member: MemberName,
    /// Changes with each incarnation of the pod.
    pub uid: String,
    pub supervisor_socket: PathBuf,
    /// Shared by the pod's containers.
    pub run_directory: PathBuf,
    /// Where this pod's own clients reach PostgreSQL.
    pub server_address: SocketAddr,
    /// Where others reach this pod.
    pub host: IpAddr,
    pub postgres_port: u16,
    pub http_port: u16,
    pub read_write_port: u16,
    pub read_only_port: u16,
    /// Superuser and replication role.
    pub logins: ReadLogins,
    pub tls: Option<PathBuf>,
    pub dns_server: Option<SocketAddr>,
    pub peer_timeout: Duration,
    pub report_pids: bool,
    /// This member serves no reads on the read-only routes.
    pub no_reads: bool,
    /// With `leadership=lease`.
    pub lease: Option<LeaseSettings>,
    /// Whether commits wait for the gate of this process: in a sidecar.
    pub gate: bool,
}

/// What the agent tells the rest of the process after each turn.
#[derive(Clone)]
pub struct Published {
    pub view: watch::Receiver<Arc<ClusterView>>,
    pub routes: watch::Receiver<Arc<RouteTable>>,
    pub journal: Journal,
    pub beat: Beat,
    pub counters: Counters,
    /// To be told when another member opens its stream: DNS may know somebody new.
    pub visited: Arc<Notify>,
    /// What carries out the operator's orders.
    pub operator: Arc<Operator>,
    /// How far this member's own server is.
    pub positions: Arc<Positions>,
    /// The routes of this process say here which leaving servers they have left.
    pub routes_left: watch::Sender<Option<BTreeSet<String>>>,
    /// And here the newest term for which they have left the primaries of earlier ones.
    pub routes_term: watch::Sender<Option<u64>>,
    /// How the other members are reached.
    pub way: Way,
}
