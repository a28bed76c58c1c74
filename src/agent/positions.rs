//! How far this member's own server is, for all who ask: the members' routes, and clients that wait.
//!
//! A primary tells a position only while it is one by right: what a deposed one has not seen is not acknowledged by it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

use crate::clock::boottime_ms;
use crate::core::cluster::ClusterView;
use crate::core::routing::freshness::{Freshness, Position};
use crate::core::status::Role;
use crate::core::wal::Lsn;
use crate::postgres::routed::RoutedServer;

use super::Counters;

/// While somebody waits, replay is looked at so often, and at once so many times when nobody waited before.
const WATCH_PAUSE: Duration = Duration::from_millis(1);
const QUICK_LOOKS: u32 = 8;
/// After an error.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// The local server's position.
pub struct Positions {
    server: RoutedServer,
    watched: RoutedServer,
    view: watch::Receiver<Arc<ClusterView>>,
    /// Only with a gate the right has an end.
    right: Option<Counters>,
    /// How fresh the routes of this process find it.
    freshness: OnceLock<watch::Receiver<Arc<Freshness>>>,
    replayed: watch::Sender<Lsn>,
    waiting: AtomicUsize,
    somebody: Notify,
}

impl Positions {
    pub(super) fn new(
        servers: [RoutedServer; 2],
        view: watch::Receiver<Arc<ClusterView>>,
        right: Option<Counters>,
    ) -> Arc<Self> {
        let [server, watched] = servers;
        let positions = Arc::new(Self {
            server,
            watched,
            view,
            right,
            freshness: OnceLock::new(),
            replayed: watch::Sender::new(Lsn(0)),
            waiting: AtomicUsize::new(0),
            somebody: Notify::new(),
        });
        tokio::spawn(watch_replay(Arc::clone(&positions)));
        positions
    }

    /// Now, if it means anything.
    pub async fn position(&self) -> Option<Position> {
        let position = self.server.position().await.ok()?;
        // After the answer: the right must have held when it was given.
        let by_right = || {
            let me = &self.view.borrow().me;
            let lasts = |counters: &Counters| counters.standing().gate_until_ms > boottime_ms();
            me.role == Some(Role::Primary) && me.writable && self.right.as_ref().is_none_or(lasts)
        };
        if position.primary {
            return by_right().then_some(position);
        }
        let name = &self.view.borrow().me.name;
        let freshness = self.freshness.get().map(|freshness| freshness.borrow().clone());
        let measured =
            freshness.and_then(|freshness| freshness.measured(name, position.timeline, boottime_ms()));
        Some(Position { measured, ..position })
    }

    /// From now on others are told how fresh the server is by this.
    pub(super) fn measured_by(&self, freshness: watch::Receiver<Arc<Freshness>>) {
        // Every route of this process measures the same.
        drop(self.freshness.set(freshness));
    }

    /// Whether it has replayed up to `lsn` within `limit`.
    pub async fn wait(&self, lsn: Lsn, limit: Duration) -> bool {
        let _waiting = Waiting::new(self);
        let mut replayed = self.replayed.subscribe();
        // What was seen before may be another server's.
        replayed.mark_unchanged();
        let reached = async {
            loop {
                if replayed.changed().await.is_err() {
                    return false;
                }
                if *replayed.borrow_and_update() >= lsn {
                    return true;
                }
            }
        };
        timeout(limit, reached).await.unwrap_or(false)
    }
}

struct Waiting<'a>(&'a Positions);

impl<'a> Waiting<'a> {
    fn new(positions: &'a Positions) -> Self {
        positions.waiting.fetch_add(1, Ordering::AcqRel);
        positions.somebody.notify_one();
        Self(positions)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One look for all who wait; none while nobody does.
///
/// What was written a moment ago is replayed within a millisecond or two, and a pause takes longer: the first looks follow each other.
async fn watch_replay(positions: Arc<Positions>) {
    loop {
        positions.somebody.notified().await;
        let mut quick = QUICK_LOOKS;
        while positions.waiting.load(Ordering::Acquire) > 0 {
            let Ok(lsn) = positions.watched.replayed().await else {
                sleep(RETRY_PAUSE).await;
                continue;
            };
            positions.replayed.send_replace(lsn);
            if quick > 0 {
                quick -= 1;
                // Who has waited for this goes first.
                yield_now().await;
                continue;
            }
            tokio::select! {
                () = sleep(WATCH_PAUSE) => {}
                () = positions.somebody.notified() => {}
            }
        }
    }
}
