//! Ends sessions between two transactions without understanding a byte of them, also under end-to-end TLS.
//!
//! Holds them still: nothing more is read from the client. One whose server spoke last has got its answer; which of
//! these are idle the server itself knows, and ends them with 57P01 before it has read anything more of the
//! client's, and those that stream WAL, whoever spoke last. Those that it is still at work on, because their clients have sent statements ahead, stay as they are until
//! it comes to the end; the others go on, and are asked again a moment later. Who has not come to such a point at the deadline is cut.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::core::operate::Ending;

use super::connection::Endpoint;
use super::session::{Order, Session};

/// How long sessions are held still for the server's answers to come.
const SETTLE_TIMEOUT: Duration = Duration::from_millis(60);
const SETTLE_PAUSE: Duration = Duration::from_millis(2);
/// A server that is idle for so long has nothing more to read; longer than what the question to it takes for a moment.
const QUIET_PAUSE: Duration = Duration::from_millis(4);
/// For the server to end its idle sessions, and for the ends to come through.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
const GONE_TIMEOUT: Duration = Duration::from_millis(100);
/// Between two rounds, in which sessions go on.
const ROUND_PAUSE: Duration = Duration::from_millis(25);

/// Which sessions are still to end; asked again in each round.
pub(super) type Leaving<'a> = Arc<dyn Fn(&Session) -> bool + Send + Sync + 'a>;

/// Ends the sessions for which `leaving` is true, until there are none; cuts each that has been so for the drain timeout.
pub(super) async fn drain(endpoint: &Endpoint, leaving: Leaving<'_>) {
    let (mut since, mut frozen) = (Since::default(), Frozen::default());
    loop {
        let mut sessions = all(endpoint, &leaving);
        if sessions.is_empty() {
            return;
        }
        since.note(&sessions);
        let nobody_to_ask = endpoint.knowledge.end_sessions.is_none();
        let overdue = |session: &Arc<Session>| since.of(session) >= endpoint.limits.drain_timeout;
        let overdue: Vec<_> = sessions
            .extract_if(.., |session| nobody_to_ask || overdue(session))
            .collect();
        if !overdue.is_empty() {
            frozen.hold(&overdue);
            cut(endpoint, &overdue).await;
            continue;
        }
        frozen.hold(&sessions);
        let working = round(endpoint, &sessions).await;
        frozen.release(|session| !working.iter().any(|working| Arc::ptr_eq(working, session)));
        sleep(ROUND_PAUSE).await;
    }
}

fn all(endpoint: &Endpoint, leaving: &Leaving<'_>) -> Vec<Arc<Session>> {
    let mut sessions = endpoint.relayed.all();
    sessions.retain(|session| !session.is_cut() && leaving(session));
    sessions
}

async fn cut(endpoint: &Endpoint, sessions: &[Arc<Session>]) {
    end_busy(endpoint, sessions).await;
    for session in sessions {
        endpoint.cut(session);
    }
    let _ended = timeout(GONE_TIMEOUT, gone(endpoint, sessions)).await;
}

/// Since when each session has had to leave, by the place of its memory.
#[derive(Default)]
struct Since(BTreeMap<usize, (Arc<Session>, Instant)>);

impl Since {
    /// These have to, and no others any more.
    fn note(&mut self, sessions: &[Arc<Session>]) {
        let (now, mut known) = (Instant::now(), std::mem::take(&mut self.0));
        let noted = sessions.iter().map(|session| {
            let place = Arc::as_ptr(session).addr();
            let before = known.remove(&place);
            (place, before.unwrap_or_else(|| (Arc::clone(session), now)))
        });
        self.0 = noted.collect();
    }

    fn of(&self, session: &Arc<Session>) -> Duration {
        let found = self.0.get(&Arc::as_ptr(session).addr());
        found.map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }
}

/// The server is told of those that are cut now: it would finish what it has begun for them.
async fn end_busy(endpoint: &Endpoint, sessions: &[Arc<Session>]) {
    let Some(end) = &endpoint.knowledge.end_sessions else {
        return;
    };
    let asked = by_server(sessions).into_iter().map(|(address, sessions)| {
        let clients = sessions.iter().map(|session| session.local).collect();
        timeout(ANSWER_TIMEOUT, end(address, clients, Ending::All))
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

/// One question to each server. Gives the sessions that need nothing more of their clients to come to an end.
async fn round(endpoint: &Endpoint, sessions: &[Arc<Session>]) -> Vec<Arc<Session>> {
    let settled = || sessions.iter().all(|session| session.is_settled());
    let until = Instant::now() + SETTLE_TIMEOUT;
    while !settled() && Instant::now() < until {
        sleep(SETTLE_PAUSE).await;
    }
    sleep(QUIET_PAUSE).await;
    let (settled, others): (Vec<_>, Vec<_>) = sessions.iter().partition(|session| session.is_settled());
    let asked = [(settled, Ending::Idle), (others, Ending::Streaming)]
        .into_iter()
        .flat_map(|(sessions, which)| {
            let by_server = by_server(sessions).into_iter();
            by_server.map(move |(address, sessions)| end(endpoint, address, sessions, which))
        });
    let working = futures_util::future::join_all(asked).await;
    working.into_iter().flatten().collect()
}

async fn end(
    endpoint: &Endpoint,
    address: SocketAddr,
    mut sessions: Vec<Arc<Session>>,
    which: Ending,
) -> Vec<Arc<Session>> {
    let Some(end) = &endpoint.knowledge.end_sessions else {
        return Vec::new();
    };
    let clients = sessions.iter().map(|session| session.local).collect();
    let asked = match timeout(ANSWER_TIMEOUT, end(address, clients, which)).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(error)) => {
            tracing::debug!(%address, error, "could not end idle sessions");
            return Vec::new();
        }
        Err(_elapsed) => {
            tracing::debug!(%address, "the server did not end its idle sessions in time");
            return Vec::new();
        }
    };
    let mut take = |those: &[SocketAddr]| -> Vec<_> {
        sessions
            .extract_if(.., |session| those.contains(&session.local))
            .collect()
    };
    let (ended, working) = (take(&asked.ended), take(&asked.working));
    for busy in &sessions {
        busy.command(Order::Run);
    }
    endpoint
        .stats
        .drained_total
        .fetch_add(ended.len() as u64, Ordering::Relaxed);
    // Their clients are to hear of it before they are read from again.
    let _in_time = timeout(GONE_TIMEOUT, gone(endpoint, &ended)).await;
    working
}

async fn gone(endpoint: &Endpoint, sessions: &[Arc<Session>]) {
    while endpoint.relayed.count_of(sessions) > 0 {
        sleep(SETTLE_PAUSE).await;
    }
}

/// Sessions that are held still; however the drain ends, none stays so.
#[derive(Default)]
struct Frozen(Vec<Arc<Session>>);

impl Frozen {
    /// These, and no others any more.
    fn hold(&mut self, sessions: &[Arc<Session>]) {
        self.release(|held| !sessions.iter().any(|session| Arc::ptr_eq(session, held)));
        self.0 = sessions.to_vec();
        for session in sessions {
            session.command(Order::Freeze);
        }
    }

    fn release(&mut self, whom: impl Fn(&Arc<Session>) -> bool) {
        for session in self.0.extract_if(.., |session| whom(session)) {
            session.command(Order::Run);
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.release(|_| true);
    }
}
