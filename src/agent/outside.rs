//! The cluster as somebody sees it who is no member: members by DNS, their words by their streams.
//!
//! For `podgres route` beside an application. Has no rights and no secrets, and changes nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use crate::core::cluster::{ClusterView, PeerEntry, told_read_only};
use crate::core::member::{MemberName, Topology};
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
        let (view_sender, view) = watch::channel(Arc::new(seen(&settings, Vec::new(), false)));
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
        let all_heard = all_heard && !names_others(&settings.topology.cluster, &entries);
        watched::set(&settled, all_heard);
        let next = seen(&settings, entries, view.borrow().read_only);
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

/// Whether members have standbys that are not known here: one that is new, or one that has moved.
fn names_others(cluster: &str, entries: &[PeerEntry]) -> bool {
    let servers = entries
        .iter()
        .filter_map(|entry| entry.live_status()?.server.as_ref());
    let mut standbys = servers.flat_map(|server| &server.replication);
    standbys.any(|standby| {
        let member = MemberName::parse(&standby.application_name);
        let of_cluster = member.is_ok_and(|member| member.cluster == cluster);
        of_cluster && entries.iter().all(|entry| entry.name != standby.application_name)
    })
}

fn seen(settings: &OutsideSettings, peers: Vec<PeerEntry>, read_only: bool) -> ClusterView {
    let cluster = settings.topology.cluster.clone();
    let read_only = switched(&peers, read_only);
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

/// Where the read-only switch stands: while nobody is heard, where it stood.
fn switched(peers: &[PeerEntry], before: bool) -> bool {
    let told: Vec<&MemberStatus> = peers.iter().filter_map(PeerEntry::live_status).collect();
    if told.is_empty() {
        before
    } else {
        told_read_only(&told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cluster::PeerContact;
    use crate::core::cluster::fixtures::{peer, primary, standby};

    /// The one pod's sidecar began anew, and its PostgreSQL, which went on, was served as the primary.
    #[test]
    fn a_route_forgot_the_switch_while_it_heard_no_member() {
        let mut on = primary(0);
        on.read_only = true;
        let heard = [peer(on)];
        let silent = PeerEntry {
            contact: PeerContact::Refused,
            ..heard[0].clone()
        };
        assert!(switched(&heard, false));
        assert!(switched(std::slice::from_ref(&silent), true));
        assert!(!switched(&[silent], false));
        assert!(!switched(&[peer(primary(0))], true), "it was turned off");
    }

    /// DNS was asked every 10 s while all known members were heard.
    #[test]
    fn a_new_member_was_found_by_chance() {
        let names = |entries: &[PeerEntry]| names_others("pg", entries);
        let all = [peer(primary(0)), peer(standby(1)), peer(standby(2))];
        assert!(!names(&all));
        assert!(names(&all[..2]), "pg-2 streams, and is not known");
        assert!(!names_others("other", &all[..2]), "no member of this cluster");
        let silent = PeerEntry {
            contact: PeerContact::TimedOut,
            ..peer(primary(0))
        };
        assert!(!names(&[silent]), "an old word");
        let mut receiver = primary(0);
        let server = receiver.server.as_mut().expect("it runs");
        server.replication.truncate(1);
        "pg_receivewal".clone_into(&mut server.replication[0].application_name);
        assert!(!names(&[peer(receiver)]), "no member at all");
    }
}
