//! Ends sessions between two transactions without understanding a byte of them, also under end-to-end TLS.
//!
//! Holds them still: nothing more is read from the client. One whose server spoke last has got its answer; which of
//! these are idle the server itself knows, and ends them with 57P01 before it has read anything more of the
//! client's. The others go on and are asked again a moment later. Who has not come to such a point at the deadline is cut.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::connection::Endpoint;
use super::session::{Order, Session};

/// How long sessions are held still for the server's answers to come.
const SETTLE_TIMEOUT: Duration = Duration::from_millis(60);
const SETTLE_PAUSE: Duration = Duration::from_millis(2);
/// For the server to end its idle sessions, and for the ends to come through.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
const GONE_TIMEOUT: Duration = Duration::from_millis(100);
/// Between two rounds, in which sessions go on.
const ROUND_PAUSE: Duration = Duration::from_millis(25);

/// Which sessions are still to end; asked again in each round.
pub(super) type Leaving<'a> = Arc<dyn Fn(&Session) -> bool + Send + Sync + 'a>;

/// Ends the sessions for which `leaving` is true, until there are none; cuts the rest at the drain timeout.
pub(super) async fn drain(endpoint: &Endpoint, leaving: Leaving<'_>) {
    let deadline = Instant::now() + endpoint.limits.drain_timeout;
    loop {
        let sessions = all(endpoint, &leaving);
        if sessions.is_empty() {
            return;
        }
        if Instant::now() >= deadline || endpoint.knowledge.end_sessions.is_none() {
            end_busy(endpoint, &sessions).await;
            for session in &sessions {
                endpoint.cut(session);
            }
            let _ended = timeout(GONE_TIMEOUT, gone(endpoint, &sessions)).await;
            return;
        }
        round(endpoint, &sessions).await;
        sleep(ROUND_PAUSE).await;
    }
}

fn all(endpoint: &Endpoint, leaving: &Leaving<'_>) -> Vec<Arc<Session>> {
    let mut sessions = endpoint.relayed.all();
    sessions.retain(|session| leaving(session));
    sessions
}

/// The server is told of those that are cut now: it would finish what it has begun for them.
async fn end_busy(endpoint: &Endpoint, sessions: &[Arc<Session>]) {
    let Some(end) = &endpoint.knowledge.end_sessions else {
        return;
    };
    let asked = by_server(sessions).into_iter().map(|(address, sessions)| {
        let clients = sessions.iter().map(|session| session.local).collect();
        timeout(ANSWER_TIMEOUT, end(address, clients, true))
    });
    for answer in futures_util::future::join_all(asked).await {
        if !matches!(answer, Ok(Ok(_))) {
            tracing::debug!(?answer, "the server did not end busy sessions");
        }
    }
}

fn by_server<'a>(
    sessions: impl IntoIterator<Item = &'a Arc<Session>>,
) -> BTreeMap<SocketAddr, Vec<Arc<Session>>> {
    let mut by_server: BTreeMap<SocketAddr, Vec<Arc<Session>>> = BTreeMap::new();
    for session in sessions {
        let server = by_server.entry(session.http_address).or_default();
        server.push(Arc::clone(session));
    }
    by_server
}

async fn round(endpoint: &Endpoint, sessions: &[Arc<Session>]) {
    // However this ends, nobody stays frozen.
    let frozen = Frozen(sessions);
    for session in sessions {
        session.command(Order::Freeze);
    }
    let settled = || sessions.iter().all(|session| session.is_settled());
    let until = Instant::now() + SETTLE_TIMEOUT;
    while !settled() && Instant::now() < until {
        sleep(SETTLE_PAUSE).await;
    }
    let settled = sessions.iter().filter(|session| session.is_settled());
    let asked = by_server(settled)
        .into_iter()
        .map(|(address, sessions)| end_idle(endpoint, address, sessions));
    futures_util::future::join_all(asked).await;
    drop(frozen);
}

async fn end_idle(endpoint: &Endpoint, address: SocketAddr, sessions: Vec<Arc<Session>>) {
    let Some(end) = &endpoint.knowledge.end_sessions else {
        return;
    };
    let clients = sessions.iter().map(|session| session.local).collect();
    match timeout(ANSWER_TIMEOUT, end(address, clients, false)).await {
        Ok(Ok(ended)) => {
            let (ended, busy): (Vec<_>, Vec<_>) = sessions
                .into_iter()
                .partition(|session| ended.contains(&session.local));
            for session in &busy {
                session.command(Order::Run);
            }
            endpoint
                .stats
                .drained_total
                .fetch_add(ended.len() as u64, Ordering::Relaxed);
            // Their clients are to hear of it before they are read from again.
            let _in_time = timeout(GONE_TIMEOUT, gone(endpoint, &ended)).await;
        }
        Ok(Err(error)) => tracing::debug!(%address, error, "could not end idle sessions"),
        Err(_elapsed) => tracing::debug!(%address, "the server did not end its idle sessions in time"),
    }
}

async fn gone(endpoint: &Endpoint, sessions: &[Arc<Session>]) {
    while endpoint.relayed.count_of(sessions) > 0 {
        sleep(SETTLE_PAUSE).await;
    }
}

struct Frozen<'a>(&'a [Arc<Session>]);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        for session in self.0 {
            session.command(Order::Run);
        }
    }
}
