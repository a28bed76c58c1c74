//! Monotonic reads at the endpoints: where each client reads, and how far the server of its next session must be.
//!
//! What is remembered, and what follows from it, is `core::routing::monotonic`'s; here the members are asked.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use crate::core::routing::freshness::Position;
use crate::core::routing::monotonic::{Floor, Place, Question, Readers};
use crate::core::routing::{RouteTable, Server};
use crate::core::status::Role;

use super::connection::Endpoint;

/// For one member's answer.
const ASK_LIMIT: Duration = Duration::from_millis(500);

/// What the clients of all listeners of a process may have read.
#[derive(Debug, Default)]
pub struct Reads(Mutex<Readers>);

impl Reads {
    /// A session that may read there, until the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>, client: IpAddr, place: Place) -> Reading {
        self.lock().began(client, place.clone());
        Reading {
            reads: Arc::clone(self),
            client,
            place,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Readers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One session of a client.
#[derive(Debug)]
pub(super) struct Reading {
    reads: Arc<Reads>,
    client: IpAddr,
    place: Place,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.reads.lock().ended(self.client, self.place.clone());
    }
}

impl Endpoint {
    /// A position that covers what the client's sessions can have read up to now; `None` if nobody is there to tell.
    pub(super) async fn floor(&self, client: IpAddr, seen: &RouteTable) -> Option<Floor> {
        let question = self.reads.lock().question(client);
        let asked = question.places.iter().map(|place| self.ask_place(place, seen));
        let answers: BTreeMap<Place, Position> = join_all(asked).await.into_iter().flatten().collect();
        let primary = if self.needs_primary(&question, &answers) {
            self.ask_primary(seen).await
        } else {
            None
        };
        let floor = question.resolved(&answers, primary)?;
        self.reads.lock().answered(client, &question, floor);
        Some(floor)
    }

    /// A place has not answered, or all that is known is of an earlier timeline than the servers'.
    fn needs_primary(&self, question: &Question, answers: &BTreeMap<Place, Position>) -> bool {
        let floor = Some(question.floor.timeline).filter(|_| question.floor != Floor::default());
        let newest = answers.values().map(|answer| answer.timeline).chain(floor).max();
        let old = newest.is_some_and(|newest| newest < self.knowledge.timeline());
        answers.len() < question.places.len() || old
    }

    async fn ask_place(&self, place: &Place, seen: &RouteTable) -> Option<(Place, Position)> {
        let there = |server: &&Server| server.name == place.server && server.incarnation == place.incarnation;
        let position = self.ask(seen.servers.iter().find(there)?).await?;
        // It may have been started again before it answered.
        let still = self
            .knowledge
            .table
            .borrow()
            .servers
            .iter()
            .any(|server| there(&server));
        still.then(|| (place.clone(), position))
    }

    async fn ask_primary(&self, seen: &RouteTable) -> Option<Position> {
        let primary = seen.servers.iter().find(|server| server.role == Role::Primary)?;
        self.ask(primary).await.filter(|position| position.primary)
    }

    async fn ask(&self, server: &Server) -> Option<Position> {
        let ask = self.knowledge.ask_position.as_ref()?;
        timeout(ASK_LIMIT, ask(server.http_address)).await.ok().flatten()
    }
}
