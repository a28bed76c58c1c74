//! Watches over the sessions of a listener: when the table changes, some must end, at once or between transactions.
//!
//! Also keeps note of who is in and out, so that a standby at its limit does not flap.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::clock::boottime_ms;
use crate::core::routing::membership::Membership;
use crate::core::routing::{RouteTable, Server, Stay, stay};

use super::connection::Endpoint;
use super::drain::drain;
use super::session::{Order, Session};
use super::stats::count_one;

/// Between two looks at whether the peers of the sessions have room.
const LOOK_PAUSE: Duration = Duration::from_secs(15);

impl Endpoint {
    /// Runs until the listener stops, and ends what is left then.
    pub(super) async fn watch_over(self: Arc<Self>) {
        let (mut knowledge, mut stopping) = (self.knowledge.clone(), self.stopping.clone());
        let mut draining = None;
        let mut next_look = Instant::now() + LOOK_PAUSE;
        loop {
            knowledge.mark_seen();
            let table = knowledge.now();
            self.look_at_members(&table);
            let leave = self.to_drain(&table);
            if leave.is_empty() {
                draining = None;
            } else if draining.is_none() {
                draining = Some(Box::pin(drain(
                    &self,
                    Arc::new(|session| self.verdict(session) == Stay::Drain),
                )));
            }
            let drained = async {
                match &mut draining {
                    Some(draining) => draining.as_mut().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                stopped = stopping.wait_for(|stop| *stop) => {
                    drop(stopped);
                    break;
                }
                () = drained => draining = None,
                () = knowledge.changed() => {}
                () = self.relayed.come_late.notified() => {}
                () = sleep_until(next_look) => {
                    next_look = Instant::now() + LOOK_PAUSE;
                    self.relayed.all().iter().for_each(|session| session.look());
                }
            }
        }
        drop(draining);
        drain(&self, Arc::new(|_| true)).await;
    }

    /// Cuts what must end at once; gives what is to end between transactions.
    fn to_drain(&self, table: &RouteTable) -> Vec<Arc<Session>> {
        let mut leave = self.relayed.all();
        leave.retain(|session| {
            let verdict = stay(&session.policy, table, session.opened());
            if verdict == Stay::Cut {
                self.cut(session);
            }
            verdict == Stay::Drain
        });
        leave
    }

    /// What becomes of a session by the newest table.
    pub(super) fn verdict(&self, session: &Session) -> Stay {
        let table = self.knowledge.table.borrow();
        stay(&session.policy, &table, session.opened())
    }

    pub(super) fn cut(&self, session: &Session) {
        if session.command(Order::Cut) {
            count_one(&self.stats.cut_total);
            tracing::debug!(server = session.server, "cut a routed session");
        }
    }

    fn look_at_members(&self, table: &RouteTable) {
        let now_ms = boottime_ms();
        let mut memberships = self.memberships.lock().unwrap_or_else(PoisonError::into_inner);
        let looked = table.servers.iter().map(|server| {
            let before = memberships.get(&server.name).copied();
            let next = Membership::next(before, &self.policy, table, server, now_ms);
            (server.name.clone(), next)
        });
        let looked: BTreeMap<_, _> = looked.collect();
        *memberships = looked;
    }

    /// Whether the server is in, and how warm it is; one that was not looked at yet is.
    pub(super) fn membership(&self, server: &Server) -> (bool, u8) {
        let memberships = self.memberships.lock().unwrap_or_else(PoisonError::into_inner);
        let found = memberships.get(&server.name);
        found.map_or((true, 100), |membership| {
            (membership.is_in(), membership.warm_percent(boottime_ms()))
        })
    }
}
