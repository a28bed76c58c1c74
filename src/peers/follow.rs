//! One peer's task: connect, listen, tell, and after an end try again, slower each time.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::sync::watch;

use crate::core::cluster::PeerContact;
use crate::core::cluster::change::{Change, change};
use crate::core::member::Ordinal;
use crate::core::status::MemberStatus;

use super::client::{RequestError, StatusStream};
use super::way::Way;
use super::{PeerSnapshot, Snapshots};

pub(super) struct Follower {
    pub(super) cluster: String,
    pub(super) ordinal: Ordinal,
    pub(super) peer_timeout: Duration,
    pub(super) way: Way,
    pub(super) targets: watch::Receiver<Vec<SocketAddr>>,
    pub(super) snapshots: watch::Sender<Snapshots>,
}

/// 100 ms doubling to 500 ms, plus up to as much again by chance: never more than a second.
fn patience() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_millis(500))
        .with_jitter()
        .without_max_times()
        .build()
}

impl Follower {
    /// Runs until its [`Peers`](super::Peers) drops it.
    pub(super) async fn run(mut self) {
        let mut patience = patience();
        loop {
            let addresses = self.targets.borrow_and_update().clone();
            if addresses.is_empty() {
                self.tell_contact(PeerContact::Unknown);
                if self.targets.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let started = Instant::now();
            let (contact, heard) = self.follow_once(&addresses).await;
            self.tell_contact(contact);
            if heard {
                patience = self::patience();
            }
            if heard && started.elapsed() > self.peer_timeout {
                // A stream that had lasted: whether its process is gone is worth knowing at once.
                continue;
            }
            let pause = patience.next().unwrap_or(Duration::from_secs(1));
            // New addresses end the pause: a peer that came back elsewhere is not waited for.
            if let Ok(Err(_)) = tokio::time::timeout(pause, self.targets.changed()).await {
                return;
            }
        }
    }

    /// Follows the first address that answers; how that ended, and whether anything was heard.
    async fn follow_once(&mut self, addresses: &[SocketAddr]) -> (PeerContact, bool) {
        let mut worst = None;
        for address in addresses {
            let member = self.way.to(&self.name(), *address);
            match StatusStream::open(&member, self.peer_timeout).await {
                Ok(stream) => return self.listen(*address, stream).await,
                Err(error) => worst = worst.max(Some(self.explain(&error))),
            }
        }
        // In the order of the enum, the last is the one that leaves most open.
        (worst.unwrap_or_default(), false)
    }

    async fn listen(&mut self, address: SocketAddr, mut stream: StatusStream) -> (PeerContact, bool) {
        let mut heard = false;
        loop {
            let next = tokio::select! {
                next = stream.next(self.peer_timeout) => next,
                () = moved_from(&mut self.targets, address) => return (PeerContact::Unknown, heard),
            };
            match next {
                Ok(Some(status)) => match self.strangeness(&status) {
                    None => self.tell_status(status),
                    Some(detail) => {
                        tracing::debug!(peer.ordinal = self.ordinal.0, %address, detail, "not the peer that was meant");
                        return (PeerContact::Invalid, heard);
                    }
                },
                // A sign of life counts once it is known whose.
                Ok(None) if heard => self.tell_alive(),
                Ok(None) => continue,
                Err(error) => return (self.explain(&error), heard),
            }
            heard = true;
        }
    }

    fn name(&self) -> String {
        format!("{}-{}", self.cluster, self.ordinal)
    }

    fn explain(&self, error: &RequestError) -> PeerContact {
        let source = std::error::Error::source(error);
        tracing::debug!(peer.ordinal = self.ordinal.0, %error, source, "lost or did not reach a peer");
        error.contact()
    }

    /// Another pod may have been given the address since.
    fn strangeness(&self, status: &MemberStatus) -> Option<&'static str> {
        if status.cluster != self.cluster {
            Some("a member of another cluster")
        } else if status.ordinal != self.ordinal || status.name != self.name() {
            Some("another member")
        } else {
            None
        }
    }

    fn tell_status(&self, status: MemberStatus) {
        self.update(|peer| {
            let known = peer.status.as_ref();
            let news = known.is_none_or(|known| change(known, &status) == Change::News);
            let first = peer.contact != PeerContact::Connected;
            *peer = PeerSnapshot {
                status: Some(status),
                contact: PeerContact::Connected,
                heard_at: Some(Instant::now()),
            };
            news || first
        });
    }

    fn tell_alive(&self) {
        self.update(|peer| {
            peer.heard_at = Some(Instant::now());
            false
        });
    }

    fn tell_contact(&self, contact: PeerContact) {
        self.update(|peer| std::mem::replace(&mut peer.contact, contact) != contact);
    }

    /// Changes what is known; `write` says whether that is news.
    fn update(&self, write: impl FnOnce(&mut PeerSnapshot) -> bool) {
        // No entry: the peer was dropped while this ran.
        self.snapshots
            .send_if_modified(|all| all.get_mut(&self.ordinal).is_some_and(write));
    }
}

/// Ends when `address` is no longer among the targets, though there are some.
async fn moved_from(targets: &mut watch::Receiver<Vec<SocketAddr>>, address: SocketAddr) {
    let moved = targets
        .wait_for(|addresses| !addresses.is_empty() && !addresses.contains(&address))
        .await
        .is_ok();
    if !moved {
        // Nobody gives targets any more; the task is about to be dropped.
        std::future::pending::<()>().await;
    }
}
