//! From a table to an open connection: candidates one after the other, and again when the table changes.
//!
//! Everything here happens before the client notices anything; a server that cannot be reached, that
//! does not answer, or that leaves the table before it does, costs the client time and no error.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use crate::core::routing::choose::{choose, keep_together};
use crate::core::routing::monotonic::Place;
use crate::core::routing::options::SessionOptions;
use crate::core::routing::{
    Affinity, Opened, ReadOnlyFallback, RouteMode, RoutePolicy, RouteTable, Server, candidates, unfit,
};

use crate::core::status::Role;

use super::connection::Endpoint;
use super::encryption::{Encryption, OtherCertificate, ServerTls};
use super::reads::Reading;
use super::refusal::Refusal;
use super::session::{Ends, Session};
use super::stats::{CountedSession, Raised, count_one};
use super::unavailable::{FailedAttempt, Unavailable};
use super::{answer, socket, startup};

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
    /// TLS of the endpoint's own, and a startup packet in it.
    Encrypted {
        by: &'a Encryption,
        /// What the client was shown.
        certificate: &'a CertificateDer<'static>,
        startup: &'a [u8],
    },
}

impl Opening<'_> {
    /// The client was shown what no client would be shown now: waiting does not help it.
    fn is_outdated(&self) -> bool {
        match self {
            Self::Encrypted { by, certificate, .. } => by.to_show().certificate.as_ref() != *certificate,
            _ => false,
        }
    }
}

/// The connection to a server.
#[derive(Debug)]
pub(super) enum Link {
    Plain(TcpStream),
    Tls(Box<ServerTls>),
}

/// What a session may be given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish<'a> {
    pub(super) policy: &'a RoutePolicy,
    pub(super) options: &'a SessionOptions,
    pub(super) client: IpAddr,
    /// Whose encryption passes through: its sessions may have to be kept together.
    pub(super) unreadable: Option<IpAddr>,
}

impl<'a> Wish<'a> {
    /// Of a client whose own wishes cannot be read.
    pub(super) fn of_policy(policy: &'a RoutePolicy, client: IpAddr) -> Self {
        const NONE: &SessionOptions = &SessionOptions {
            max_staleness_ms: None,
            max_lag_bytes: None,
            fallback: None,
            min_lsn: None,
            wait: None,
            monotonic: None,
        };
        Self {
            policy,
            options: NONE,
            client,
            unreadable: Some(client),
        }
    }
}

/// A connection to a server, counted as a session of it while it lives.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) link: Link,
    /// This end of it.
    local: SocketAddr,
    pub(super) server: String,
    pub(super) incarnation: u64,
    role: Role,
    http_address: SocketAddr,
    /// `S` or `N`, if it was asked for TLS.
    pub(super) tls_answer: Option<u8>,
    /// The client, once its encryption passes through.
    pub(super) unreadable: Option<IpAddr>,
    /// Under a policy of monotonic reads.
    reading: Option<Box<Reading>>,
    counted: CountedSession,
}

impl Upstream {
    pub(super) fn opened(&self) -> Opened<'_> {
        Opened {
            server: &self.server,
            incarnation: self.incarnation,
            role: self.role,
        }
    }

    /// What the warden needs of it, and its connection.
    pub(super) fn into_session(self, policy: Arc<RoutePolicy>) -> (Session, Link) {
        let ends = Ends {
            http_address: self.http_address,
            local: self.local,
            server: self.server,
            incarnation: self.incarnation,
            role: self.role,
            unreadable: self.unreadable,
            reading: self.reading,
        };
        (Session::new(ends, policy, self.counted), self.link)
    }
}

impl Endpoint {
    /// A server that fits the wish, told the `opening`; waits for one as long as connections are held.
    pub(super) async fn find_upstream(
        &self,
        wish: &Wish<'_>,
        opening: Opening<'_>,
    ) -> Result<Upstream, Refusal> {
        let begun = Instant::now();
        let deadline = begun + self.hold(wish);
        let mut knowledge = self.knowledge.clone();
        let mut place = None;
        loop {
            knowledge.mark_seen();
            let seen = knowledge.now();
            let fit = self.with_proof(wish, self.fit(wish, &seen), &seen).await;
            let (causal, unknown) = match self.reach(wish, fit, &seen).await {
                Ok(causal) => (causal, None),
                // There may be a primary to ask in a moment.
                Err(refusal @ Refusal::ReadsUnknown) => (Vec::new(), Some(refusal)),
                Err(refusal) => return Err(refusal),
            };
            let failures = match self.try_servers(wish, (&causal, &seen), opening).await {
                Ok(upstream) => return Ok(self.noted(wish, upstream)),
                Err(failures) => failures,
            };
            let overdue = Instant::now() >= deadline;
            if let Some(refusal) = other_certificate(&failures)
                && (overdue || opening.is_outdated())
            {
                return Err(refusal);
            }
            if overdue {
                let unavailable = || Unavailable::of(wish.policy, &seen, &failures, begun.elapsed()).into();
                return Err(unknown.unwrap_or_else(unavailable));
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
                () = knowledge.changed() => {}
                () = sleep_until(pause) => {}
            }
        }
    }

    /// From here on the client may read there.
    fn noted(&self, wish: &Wish<'_>, mut upstream: Upstream) -> Upstream {
        let place = Place {
            server: upstream.server.clone(),
            incarnation: upstream.incarnation,
        };
        let wanted = wish.policy.monotonic;
        upstream.reading = wanted.then(|| Box::new(self.reads.begin(wish.client, place)));
        upstream
    }

    /// Reads that take nothing but a standby get an error rather than a pause: their clients have another way, or none.
    fn hold(&self, wish: &Wish<'_>) -> Duration {
        let standbys_only =
            wish.policy.mode == RouteMode::ReadOnly && wish.policy.fallback == ReadOnlyFallback::None;
        if standbys_only {
            self.limits.hold.min(wish.options.wait())
        } else {
            self.limits.hold
        }
    }

    /// Whether a server that has not been told anything yet has begun to answer this startup packet.
    pub(super) async fn says_startup(&self, upstream: &mut Upstream, packet: &[u8]) -> bool {
        let Link::Plain(stream) = &mut upstream.link else {
            return false;
        };
        let said = timeout(self.limits.answer_timeout, say_startup(stream, packet)).await;
        matches!(said, Ok(Ok(())))
    }

    /// Whether the server has been given the client's first bytes of TLS.
    pub(super) async fn passes_on(&self, upstream: &mut Upstream, hello: &[u8]) -> bool {
        let Link::Plain(stream) = &mut upstream.link else {
            return false;
        };
        let passed_on = timeout(self.limits.answer_timeout, stream.write_all(hello)).await;
        matches!(passed_on, Ok(Ok(())))
    }

    /// Whether a session to that server may begin, by the newest table.
    pub(super) fn still_serves(&self, wish: &Wish<'_>, upstream: &Upstream) -> bool {
        let seen = self.knowledge.now();
        let fit = self.fit(wish, &seen);
        let fits =
            |server: &&Server| server.name == upstream.server && server.incarnation == upstream.incarnation;
        let far_enough =
            wish.options.min_lsn.is_none() && (!wish.policy.monotonic || upstream.reading.is_some());
        far_enough && fit.iter().any(fits)
    }

    /// The candidates that are in; all of them if none is, or if the client has limits of its own.
    fn fit<'a>(&self, wish: &Wish<'_>, seen: &'a RouteTable) -> Vec<&'a Server> {
        let all = candidates(wish.policy, seen);
        if wish.options.has_limits() {
            return all;
        }
        let mut settled = all.clone();
        settled.retain(|server| self.membership(server).0);
        if settled.is_empty() { all } else { settled }
    }

    async fn try_servers(
        &self,
        wish: &Wish<'_>,
        (servers, seen): (&[&Server], &RouteTable),
        opening: Opening<'_>,
    ) -> Result<Upstream, Vec<FailedAttempt>> {
        let policy = wish.policy;
        // What has proven itself by an answer of its own fits whatever the table says.
        let proven = |server: &Server| unfit(policy, seen, server).is_some();
        let sessions = |server: &Server| self.sessions.of(&server.name);
        let warm = |server: &Server| self.membership(server).1;
        let draws = [fastrand::usize(..), fastrand::usize(..), fastrand::usize(..)];
        let mut order = choose(servers, &sessions, &warm, draws);
        if let Some(client) = self.kept_together(wish) {
            let there = self.relayed.servers_of(client);
            order = keep_together(order, client, &|server| there.contains(&server.name));
        }
        let mut failures = Vec::new();
        for server in order {
            let begun = Instant::now();
            let as_now = Opened {
                server: &server.name,
                incarnation: server.incarnation,
                role: server.role,
            };
            let opened = tokio::select! {
                opened = self.open(server, opening) => opened.map(Some),
                () = self.stops_fitting(policy, as_now) => Ok(None),
            };
            let (cause, other_certificate) = match opened {
                Ok(Some(upstream))
                    if self.keeps(policy, as_now) && (proven(server) || self.fits_now(policy, as_now)) =>
                {
                    self.stats
                        .count_opened(&server.name, begun.elapsed(), server.staleness_ms);
                    return Ok(upstream);
                }
                Ok(_) => ("it has just left, or its role has changed".to_owned(), false),
                Err(error) => (error.to_string(), is_other_certificate(&error)),
            };
            count_one(&self.stats.connect_failures_total);
            tracing::debug!(server = server.name, cause, "could not open a routed connection");
            failures.push(FailedAttempt {
                server: server.name.clone(),
                cause,
                other_certificate,
            });
        }
        Err(failures)
    }

    /// Whose sessions are to be on one server; only where servers speak TLS is anything unreadable.
    fn kept_together(&self, wish: &Wish<'_>) -> Option<IpAddr> {
        let wanted =
            wish.policy.affinity == Affinity::Client && self.servers_speak_tls.load(Ordering::Relaxed);
        wish.unreadable.filter(|_| wanted)
    }

    async fn open(&self, server: &Server, opening: Opening<'_>) -> io::Result<Upstream> {
        // Counted from before the attempt, so that many clients at once spread too.
        let counted = self.sessions.open(&server.name, server.role);
        let connecting = TcpStream::connect(server.address);
        let mut stream = limited(self.limits.connect_timeout, "connection", connecting).await?;
        socket::prepare(&stream)?;
        let local = stream.local_addr()?;
        let answering = async {
            if let Opening::Encrypted {
                by,
                certificate,
                startup,
            } = opening
            {
                let opened = by.open(stream, &server.name, certificate, startup).await?;
                return Ok((Link::Tls(Box::new(opened)), None));
            }
            let tls_answer = say(&mut stream, opening).await?;
            Ok((Link::Plain(stream), tls_answer))
        };
        let (link, tls_answer) = limited(self.limits.answer_timeout, "answer", answering).await?;
        if tls_answer == Some(b'S') {
            self.servers_speak_tls.store(true, Ordering::Relaxed);
        }
        Ok(Upstream {
            link,
            local,
            server: server.name.clone(),
            incarnation: server.incarnation,
            role: server.role,
            http_address: server.http_address,
            tls_answer,
            unreadable: None,
            reading: None,
            counted,
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

async fn say(stream: &mut TcpStream, opening: Opening<'_>) -> io::Result<Option<u8>> {
    match opening {
        Opening::Startup(startup) | Opening::Encrypted { startup, .. } => {
            say_startup(stream, startup).await.map(|()| None)
        }
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
async fn say_startup(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    answer::begun(stream).await
}

fn is_other_certificate(error: &io::Error) -> bool {
    let inner = error.get_ref();
    inner.is_some_and(<dyn std::error::Error + Send + Sync>::is::<OtherCertificate>)
}

/// The reason, if it alone kept the client from a server.
fn other_certificate(failures: &[FailedAttempt]) -> Option<Refusal> {
    let (first, rest) = failures.split_first()?;
    let all = first.other_certificate && rest.iter().all(|failure| failure.other_certificate);
    all.then(|| Refusal::OtherCertificate {
        server: first.server.clone(),
    })
}

async fn limited<T>(limit: Duration, what: &str, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_elapsed| {
        let text = format!("no {what} within {} ms", limit.as_millis());
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    })
}
