//! Whether a server that was chosen fits still, before the session on it begins; from then on the warden looks.

use std::pin::pin;

use crate::core::routing::{Opened, RoutePolicy, Server, Stay, stay, unfit};

use super::connection::Endpoint;
use super::upstream::Upstream;

impl Endpoint {
    pub(super) fn keeps(&self, policy: &RoutePolicy, opened: Opened<'_>) -> bool {
        let table = self.knowledge.table.borrow();
        stay(policy, &table, opened) == Stay::Keep
    }

    /// Whether a session may begin there by what is known now: what was known when it was chosen may be seconds old, in which others were tried or it was
    /// waited for.
    pub(super) fn fits_now(&self, policy: &RoutePolicy, opened: Opened<'_>) -> bool {
        let table = self.knowledge.now();
        let mut servers = table.servers.iter();
        let same =
            |server: &&Server| server.name == opened.server && server.incarnation == opened.incarnation;
        servers
            .find(same)
            .is_some_and(|server| unfit(policy, &table, server).is_none())
    }

    /// Returns when the server has left the table, restarted, or changed its role.
    pub(super) async fn stops_fitting(&self, policy: &RoutePolicy, opened: Opened<'_>) {
        let mut knowledge = self.knowledge.clone();
        loop {
            knowledge.mark_seen();
            if !self.keeps(policy, opened) {
                return;
            }
            knowledge.changed().await;
        }
    }

    /// Reads what the client says next. A server that stops fitting meanwhile is given up: it would wait for a client that
    /// may take its time, or never begin.
    pub(super) async fn while_it_fits<H, T>(
        &self,
        held: &mut Option<H>,
        upstream: impl Fn(&H) -> &Upstream,
        reading: impl Future<Output = T>,
    ) -> T {
        let mut reading = pin!(reading);
        if let Some(its) = held.as_ref() {
            tokio::select! {
                biased;
                read = &mut reading => return read,
                () = self.stops_fitting(&self.policy, upstream(its).opened()) => {}
            }
        }
        *held = None;
        reading.await
    }
}
