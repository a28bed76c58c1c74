//! The cluster as somebody sees it who is no member: members by DNS, their words by their streams.
//!
//! For `podgres route` beside an application. Has no rights and no secrets, and changes nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use crate::core::cluster::{ClusterView, PeerEntry, told_read_only};
use crate::core::member::Topology;
use crate::core::route_table::{route_table_of_peers, with_unseen};
use crate::core::routing::RouteTable;
use crate::core::status::MemberStatus;
use crate::dns::Resolver;
use crate::peers::{Peers, Way};
use crate::watched;

use super::{AgentError, names};

/// Silence grows without anybody telling.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// Whom to follow.
#[derive(Clone, Debug)]
pub struct OutsideSettings {
    pub topology: Topology,
    pub dns_server: Option<SocketAddr>,
    /// The members' HTTP port.
    pub http_port: u16,
    pub peer_timeout: Duration,
    pub way: Way,
}

/// What is seen, as long as the process runs.
pub struct Outside {
    pub view: watch::Receiver<Arc<ClusterView>>,
    pub routes: watch::Receiver<Arc<RouteTable>>,
}

impl Outside {
    /// Begins to follow; must be called on a tokio runtime.
    ///
    /// # Errors
    /// The resolver's settings cannot be used.
    pub fn follow(settings: OutsideSettings) -> Result<Self, AgentError> {
        let resolver = Resolver::new(settings.dns_server)?;
        let (view_sender, view) = watch::channel(Arc::new(seen(&settings, Vec::new())));
        let (route_sender, routes) = watch::channel(Arc::new(RouteTable::default()));
        tokio::spawn(follow(settings, resolver, view_sender, route_sender));
        Ok(Self { view, routes })
    }
}

async fn follow(
    settings: OutsideSettings,
    resolver: Resolver,
    view: watch::Sender<Arc<ClusterView>>,
    routes: watch::Sender<Arc<RouteTable>>,
) {
    let (settled, settled_receiver) = watch::channel(false);
    let topology = settings.topology.clone();
    let mut names = names::follow(resolver, topology, settled_receiver, Arc::new(Notify::new()));
    let mut peers = Peers::new(
        &settings.topology.cluster,
        settings.peer_timeout,
        settings.way.clone(),
    );
    loop {
        let members = names.borrow_and_update().members.clone();
        let targets = members
            .into_iter()
            .map(|(ordinal, addresses)| (ordinal, addresses, settings.http_port));
        peers.set_targets(targets.collect());
        let now = Instant::now();
        let entries: Vec<PeerEntry> = peers
            .snapshot()
            .iter()
            .map(|(ordinal, peer)| peer.entry(&settings.topology.cluster, *ordinal, now))
            .collect();
        let all_heard = !entries.is_empty() && entries.iter().all(PeerEntry::connected);
        watched::set(&settled, all_heard);
        let next = seen(&settings, entries);
        let table = with_unseen(route_table_of_peers(&next), &routes.borrow(), &next);
        view.send_replace(Arc::new(next));
        watched::set(&routes, Arc::new(table));
        tokio::select! {
            () = peers.changed() => {}
            _ = names.changed() => {}
            () = sleep(LOOK_PAUSE) => {}
        }
    }
}

fn seen(settings: &OutsideSettings, peers: Vec<PeerEntry>) -> ClusterView {
    let cluster = settings.topology.cluster.clone();
    let told = peers.iter().filter_map(PeerEntry::live_status);
    let read_only = told_read_only(&told.collect::<Vec<_>>());
    ClusterView {
        cluster: cluster.clone(),
        leadership: None,
        durability: String::new(),
        term: 0,
        lease_holder: None,
        read_only,
        read_only_switch: None,
        paused: false,
        lease: None,
        me: MemberStatus::outsider(cluster, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        peers,
    }
}
