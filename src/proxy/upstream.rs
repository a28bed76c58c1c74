//! From a table to an open connection: candidates one after the other, and again when the table changes.
//!
//! Everything here happens before the client notices anything; a server that cannot be reached, that
//! does not answer, or that leaves the table before it does, costs the client time and no error.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::core::routing::{RoutePolicy, RouteTable, Server, candidates, choose, keeps};

use super::connection::Endpoint;
use super::refusal::Refusal;
use super::relay::stops_fitting;
use super::stats::{CountedSession, Raised, count_one};
use super::unavailable::{FailedAttempt, Unavailable};
use super::{socket, startup};

/// When every candidate failed and the table stays as it is, they are tried again after this.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// What a server is told first.
#[derive(Clone, Copy, Debug)]
pub(super) enum Opening<'a> {
    /// `SSLRequest`; the server's answer is kept.
    AskForTls,
    /// A startup packet.
    Startup(&'a [u8]),
    /// The beginning of TLS. A server that does not speak it may close without a word.
    Tls(&'a [u8]),
}

/// A connection to a server, counted as a session of it while it lives.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) stream: TcpStream,
    pub(super) name: String,
    pub(super) incarnation: u64,
    /// `S` or `N`, if it was asked for TLS.
    pub(super) tls_answer: Option<u8>,
    _counted: CountedSession,
}

impl Endpoint {
    /// A server that fits `policy`, told the `opening`; waits for one as long as connections are held.
    pub(super) async fn find_upstream(
        &self,
        policy: &RoutePolicy,
        opening: Opening<'_>,
    ) -> Result<Upstream, Refusal> {
        let begun = Instant::now();
        let deadline = begun + self.limits.hold;
        let mut table = self.table.clone();
        let mut place = None;
        loop {
            let seen = Arc::clone(&table.borrow_and_update());
            let failures = match self.try_candidates(policy, &seen, opening).await {
                Ok(upstream) => return Ok(upstream),
                Err(failures) => failures,
            };
            if Instant::now() >= deadline {
                return Err(Unavailable::of(policy, &seen, &failures, begun.elapsed()).into());
            }
            if place.is_none() {
                place = Some(self.place_to_wait()?);
            }
            let pause = if failures.is_empty() {
                deadline
            } else {
                deadline.min(Instant::now() + RETRY_PAUSE)
            };
            tokio::select! {
                () = changed(&mut table) => {}
                () = sleep_until(pause) => {}
            }
        }
    }

    /// Whether a session to that server fits `policy` by the newest table.
    pub(super) fn still_keeps(&self, policy: &RoutePolicy, upstream: &Upstream) -> bool {
        keeps(policy, &self.table.borrow(), &upstream.name, upstream.incarnation)
    }

    async fn try_candidates(
        &self,
        policy: &RoutePolicy,
        table: &RouteTable,
        opening: Opening<'_>,
    ) -> Result<Upstream, Vec<FailedAttempt>> {
        let sessions = |server: &Server| self.sessions.of(&server.name);
        let draws = [fastrand::usize(..), fastrand::usize(..)];
        let mut failures = Vec::new();
        for server in choose(&candidates(policy, table), &sessions, draws) {
            let unfit = stops_fitting(policy, self.table.clone(), &server.name, server.incarnation);
            let opened = tokio::select! {
                opened = self.open(server, opening) => opened.map(Some),
                () = unfit => Ok(None),
            };
            let cause = match opened {
                Ok(Some(upstream)) if self.still_keeps(policy, &upstream) => return Ok(upstream),
                Ok(_) => "it has just left, or its role has changed".to_owned(),
                Err(error) => error.to_string(),
            };
            count_one(&self.stats.connect_failures_total);
            tracing::debug!(server = server.name, cause, "could not open a routed connection");
            failures.push(FailedAttempt {
                server: server.name.clone(),
                cause,
            });
        }
        Err(failures)
    }

    async fn open(&self, server: &Server, opening: Opening<'_>) -> io::Result<Upstream> {
        // Counted from before the attempt, so that many clients at once spread too.
        let counted = self.sessions.open(&server.name);
        let connecting = TcpStream::connect(server.address);
        let mut stream = limited(self.limits.connect_timeout, "connection", connecting).await?;
        socket::prepare(&stream)?;
        let answering = limited(self.limits.answer_timeout, "answer", say(&mut stream, opening));
        let tls_answer = answering.await?;
        Ok(Upstream {
            stream,
            name: server.name.clone(),
            incarnation: server.incarnation,
            tls_answer,
            _counted: counted,
        })
    }

    fn place_to_wait(&self) -> Result<Waiting<'_>, Refusal> {
        let max_held = self.limits.max_held;
        let place = self.held.try_acquire();
        let permit = place.map_err(|_| Refusal::TooManyHeld { max_held })?;
        count_one(&self.stats.held_total);
        Ok(Waiting {
            endpoint: self,
            since: Instant::now(),
            _raised: Raised::new(&self.stats.held),
            _permit: permit,
        })
    }
}

/// A connection that is held.
struct Waiting<'a> {
    endpoint: &'a Endpoint,
    since: Instant,
    _raised: Raised<'a>,
    _permit: tokio::sync::SemaphorePermit<'a>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.endpoint.stats.count_wait(self.since.elapsed());
    }
}

/// Returns when there is a newer table; never once nobody is left to send one.
pub(super) async fn changed(table: &mut watch::Receiver<Arc<RouteTable>>) {
    if table.changed().await.is_err() {
        pending::<()>().await;
    }
}

async fn say(stream: &mut TcpStream, opening: Opening<'_>) -> io::Result<Option<u8>> {
    match opening {
        Opening::Startup(bytes) => say_startup(stream, bytes).await.map(|()| None),
        Opening::Tls(bytes) => {
            stream.write_all(bytes).await?;
            stream.peek(&mut [0]).await.map(|_| None)
        }
        Opening::AskForTls => {
            stream.write_all(&startup::SSL_REQUEST).await?;
            match stream.read_u8().await? {
                answer @ (b'S' | b'N') => Ok(Some(answer)),
                _ => Err(io::Error::other("it answered the request for TLS with an error")),
            }
        }
    }
}

/// Returns when the server has begun to answer, which is left to be read. A kernel takes connections and bytes
/// for a process that is frozen.
pub(super) async fn say_startup(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    match stream.peek(&mut [0]).await? {
        0 => Err(io::Error::other("it closed the connection without an answer")),
        _ => Ok(()),
    }
}

async fn limited<T>(limit: Duration, what: &str, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_elapsed| {
        let text = format!("no {what} within {} ms", limit.as_millis());
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    })
}
