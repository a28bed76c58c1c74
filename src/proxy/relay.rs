//! The session itself: bytes both ways until one side ends, or until it is cut.
//!
//! Understands nothing of them. A cut says nothing to the client: an `ErrorResponse` in the middle
//! of a message, or of TLS, would be worse than a close.

use std::sync::Arc;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::core::routing::{RoutePolicy, RouteTable, keeps};

use super::connection::Endpoint;
use super::stats::{Raised, count_one};
use super::upstream::{Upstream, changed};

const BUFFER_BYTES: usize = 8 * 1024;

impl Endpoint {
    /// Relays until either side is done, the server no longer fits, or the endpoint stops.
    pub(super) async fn relay(&self, mut client: TcpStream, mut upstream: Upstream) {
        let _raised = Raised::new(&self.stats.sessions);
        count_one(&self.stats.sessions_total);
        let mut stopping = self.stopping.clone();
        let unfit = stops_fitting(
            &self.policy,
            self.table.clone(),
            &upstream.name,
            upstream.incarnation,
        );
        let cut = tokio::select! {
            biased;
            _stop = stopping.wait_for(|stop| *stop) => true,
            () = unfit => true,
            _done = copy_bidirectional_with_sizes(&mut client, &mut upstream.stream, BUFFER_BYTES, BUFFER_BYTES) => false,
        };
        if cut {
            count_one(&self.stats.cut_total);
            tracing::debug!(server = upstream.name, "cut a routed session");
            // What is still on its way to a server that must not be written to is thrown away.
            let _reset = upstream.stream.set_zero_linger();
        }
    }
}

/// Returns when the server has left the table, restarted, or changed its role.
pub(super) async fn stops_fitting(
    policy: &RoutePolicy,
    mut table: watch::Receiver<Arc<RouteTable>>,
    name: &str,
    incarnation: u64,
) {
    while keeps(policy, &table.borrow_and_update(), name, incarnation) {
        changed(&mut table).await;
    }
}
