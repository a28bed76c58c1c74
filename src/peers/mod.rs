//! The other members: one open stream from each, its last word, and how the contact stands.
//!
//! A task per peer keeps `GET /peer/stream` open. A closed socket is news at once, silence is news after the peer timeout, and
//! neither loses what the peer last said. Believes nothing: lines are bounded, and what does not come from the member that
//! was meant is treated as garbage. Decides nothing either.

pub mod client;
mod follow;
mod lines;
pub mod order;
mod position;
mod replay;
mod way;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

pub use crate::core::cluster::PeerContact;
use crate::core::cluster::PeerEntry;
use crate::core::member::{MemberName, Ordinal};
use crate::core::status::MemberStatus;
use crate::watched;

pub use client::{RequestError, ask, get_json};
pub use order::{send_order, send_signed_order};
pub use position::PositionAsker;
pub use replay::ReplayWaits;
pub use way::{Authority, Reach, Way};

/// What is known of one peer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeerSnapshot {
    /// Its last word, kept when the contact is lost.
    pub status: Option<MemberStatus>,
    pub contact: PeerContact,
    /// When its last line came, by the monotonic clock.
    pub heard_at: Option<Instant>,
}

impl PeerSnapshot {
    /// The entry of a view made `now`.
    #[must_use]
    pub fn entry(&self, cluster: &str, ordinal: Ordinal, now: Instant) -> PeerEntry {
        let name = MemberName {
            cluster: cluster.to_owned(),
            ordinal,
        };
        let age = self
            .heard_at
            .map(|at| now.saturating_duration_since(at).as_millis());
        PeerEntry {
            ordinal,
            name: name.to_string(),
            status: self.status.clone(),
            contact: self.contact,
            heard_ms_ago: age.map(|age| u64::try_from(age).unwrap_or(u64::MAX)),
        }
    }
}

/// Where a peer may be reached: every address that DNS gave, and the HTTP port.
pub type Target = (Ordinal, Vec<IpAddr>, u16);

type Snapshots = BTreeMap<Ordinal, PeerSnapshot>;

/// The peers of one member. Dropping it ends all streams.
#[derive(Debug)]
pub struct Peers {
    cluster: String,
    peer_timeout: Duration,
    way: Way,
    tasks: BTreeMap<Ordinal, Task>,
    snapshots: watch::Sender<Snapshots>,
    news: watch::Receiver<Snapshots>,
}

#[derive(Debug)]
struct Task {
    addresses: watch::Sender<Vec<SocketAddr>>,
    _follower: AbortOnDropHandle<()>,
}

impl Peers {
    /// Follows nobody yet. `peer_timeout` of silence ends a stream; members of other clusters than `cluster` do not count.
    #[must_use]
    pub fn new(cluster: &str, peer_timeout: Duration, way: Way) -> Self {
        let (snapshots, news) = watch::channel(Snapshots::new());
        Self {
            cluster: cluster.to_owned(),
            peer_timeout,
            way,
            tasks: BTreeMap::new(),
            snapshots,
            news,
        }
    }

    /// Follows exactly these members from now on; cheap if nothing changed.
    ///
    /// An open stream goes on while its address is still listed, and also while the list is empty: a gap in DNS cuts nobody off.
    /// A member that is no longer named is forgotten. Needs a tokio runtime.
    pub fn set_targets(&mut self, targets: Vec<Target>) {
        let mut gone: Vec<Ordinal> = self.tasks.keys().copied().collect();
        for (ordinal, addresses, port) in targets {
            gone.retain(|other| *other != ordinal);
            let mut addresses: Vec<_> = addresses
                .into_iter()
                .map(|ip| SocketAddr::new(ip, port))
                .collect();
            addresses.sort_unstable();
            addresses.dedup();
            match self.tasks.get(&ordinal) {
                Some(task) => drop(watched::set(&task.addresses, addresses)),
                None => self.follow(ordinal, addresses),
            }
        }
        for ordinal in gone {
            self.tasks.remove(&ordinal);
            self.snapshots
                .send_if_modified(|all| all.remove(&ordinal).is_some());
        }
    }

    fn follow(&mut self, ordinal: Ordinal, addresses: Vec<SocketAddr>) {
        self.snapshots.send_if_modified(|all| {
            all.insert(ordinal, PeerSnapshot::default());
            false
        });
        let (addresses, targets) = watch::channel(addresses);
        let follower = follow::Follower {
            cluster: self.cluster.clone(),
            ordinal,
            peer_timeout: self.peer_timeout,
            way: self.way.clone(),
            targets,
            snapshots: self.snapshots.clone(),
        };
        let task = Task {
            addresses,
            _follower: AbortOnDropHandle::new(tokio::spawn(follower.run())),
        };
        self.tasks.insert(ordinal, task);
    }

    /// Every followed peer as it is known now.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<Ordinal, PeerSnapshot> {
        self.snapshots.borrow().clone()
    }

    /// Ends when there is news since the last call: a contact changed, or a status by more than movement and age
    /// ([`Change::News`](crate::core::cluster::change::Change::News)). Can be cancelled without losing any.
    pub async fn changed(&mut self) {
        // The sender lives as long as this receiver.
        drop(self.news.changed().await);
    }
}
