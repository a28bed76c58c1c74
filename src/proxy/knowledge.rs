//! What a listener knows of the servers, and whom it may ask: handed down by the floor above.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::clock::boottime_ms;
use crate::core::operate::{EndedSessions, Ending};
use crate::core::routing::RouteTable;
use crate::core::routing::freshness::{Freshness, Position};
use crate::core::status::Role;
use crate::core::wal::{Lsn, TimelineId};

/// Asks the member at that HTTP address to answer once it has replayed so far; false if it has not in time.
pub type WaitForReplay = Arc<dyn Fn(SocketAddr, Lsn, Duration) -> BoxFuture<'static, bool> + Send + Sync>;

/// Asks the member at that HTTP address how far its server is now; `None` if it does not say.
pub type AskPosition = Arc<dyn Fn(SocketAddr) -> BoxFuture<'static, Option<Position>> + Send + Sync>;

/// Asks the member at the first (HTTP) address to end some of these sessions of its server's, which are told by the client's address as
/// the server sees it.
pub type EndSessions = Arc<
    dyn Fn(SocketAddr, Vec<SocketAddr>, Ending) -> BoxFuture<'static, Result<EndedSessions, String>>
        + Send
        + Sync,
>;

/// What is known, and who can be asked.
#[derive(Clone)]
pub struct Knowledge {
    /// The newest table. If its sender goes away the last table stays in force.
    pub table: watch::Receiver<Arc<RouteTable>>,
    /// How fresh the standbys are; without it the table's own word counts.
    pub freshness: Option<watch::Receiver<Arc<Freshness>>>,
    pub wait_for_replay: Option<WaitForReplay>,
    pub ask_position: Option<AskPosition>,
    pub end_sessions: Option<EndSessions>,
}

impl fmt::Debug for Knowledge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Knowledge")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

impl Knowledge {
    /// A table alone.
    #[must_use]
    pub fn of_table(table: watch::Receiver<Arc<RouteTable>>) -> Self {
        Self {
            table,
            freshness: None,
            wait_for_replay: None,
            ask_position: None,
            end_sessions: None,
        }
    }

    /// The table as of now, with the age of what each standby has.
    #[must_use]
    pub fn now(&self) -> RouteTable {
        let mut table = RouteTable::clone(&self.table.borrow());
        if let Some(freshness) = &self.freshness {
            let (freshness, now_ms) = (freshness.borrow(), boottime_ms());
            let standbys = table
                .servers
                .iter_mut()
                .filter(|server| server.role == Role::Standby);
            for server in standbys {
                server.staleness_ms = freshness.staleness_ms(&server.name, now_ms);
                server.lag_bytes = freshness.lag_bytes(&server.name).or(server.lag_bytes);
            }
        }
        table
    }

    /// Whether that server is known to have replayed up to a client's token.
    pub(super) fn has_reached(&self, name: &str, token: Lsn) -> bool {
        let freshness = self.freshness.as_ref();
        freshness.is_some_and(|freshness| freshness.borrow().has_reached(name, token))
    }

    /// The newest timeline that is known.
    pub(super) fn timeline(&self) -> TimelineId {
        let freshness = self.freshness.as_ref();
        freshness.map_or(TimelineId::default(), |freshness| freshness.borrow().timeline())
    }

    /// Takes note of what is there now; [`Knowledge::changed`] waits for what comes after.
    pub fn mark_seen(&mut self) {
        self.table.mark_unchanged();
        if let Some(freshness) = &mut self.freshness {
            freshness.mark_unchanged();
        }
    }

    /// Returns when there is something new; never once nobody is left to tell it.
    pub async fn changed(&mut self) {
        let freshness = async {
            match &mut self.freshness {
                Some(freshness) => changed(freshness).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed(&mut self.table) => {}
            () = freshness => {}
        }
    }
}

async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
