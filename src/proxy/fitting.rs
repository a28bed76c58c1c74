//! Whether a server that was chosen fits still, before the session on it begins; from then on the warden looks.

use std::pin::pin;

use crate::core::routing::{Opened, RoutePolicy, Stay, stay};

use super::connection::Endpoint;
use super::upstream::Upstream;

impl Endpoint {
    pub(super) fn keeps(&self, policy: &RoutePolicy, opened: Opened<'_>) -> bool {
        let table = self.knowledge.table.borrow();
        stay(policy, &table, opened) == Stay::Keep
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
