//! One client's way: what it asks for, which server it gets, and how it ends.
//!
//! The order of the protocol is held here; reading is in `client`, choosing in `upstream`, the rest in `relay`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::core::routing::membership::Membership;
use crate::core::routing::options::SessionOptions;
use crate::core::routing::{RouteMode, RoutePolicy, Stay};

use super::Limits;
use super::client::{Client, End};
use super::clients::{ClientCounts, ClientPlace};
use super::direction::Direction;
use super::encryption::Encryption;
use super::forwarded::Network;
use super::knowledge::Knowledge;
use super::reads::Reads;
use super::refusal::Refusal;
use super::relay::Relay;
use super::session::{Entered, Session, Sessions};
use super::startup::{SessionStartup, Startup, StartupError};
use super::stats::{RouteStats, SessionCounts, count_one};
use super::terminated::Came;
use super::total::TotalConnections;
use super::upstream::{Link, Opening, Upstream, Wish};

const SSL: &str = "SSL request";
const GSSAPI: &str = "GSSAPI encryption request";

/// What all connections of one listener share.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) policy: Arc<RoutePolicy>,
    /// By the first label of a host name.
    pub(super) named_policies: BTreeMap<String, Arc<RoutePolicy>>,
    pub(super) limits: Limits,
    pub(super) trusted_proxies: Vec<Network>,
    /// TLS ends here; without it passes through to the servers.
    pub(super) encryption: Option<Arc<Encryption>>,
    /// The client's address goes into `application_name`.
    pub(super) show_clients: bool,
    /// One has, so far.
    pub(super) servers_speak_tls: AtomicBool,
    pub(super) clients: Arc<ClientCounts>,
    pub(super) knowledge: Knowledge,
    /// Who is in and out just now, by the server's name.
    pub(super) memberships: Mutex<BTreeMap<String, Membership>>,
    pub(super) relayed: Arc<Sessions>,
    pub(super) sessions: Arc<SessionCounts>,
    pub(super) reads: Arc<Reads>,
    pub(super) stats: Arc<RouteStats>,
    pub(super) slots: Arc<Semaphore>,
    pub(super) total: Arc<TotalConnections>,
    pub(super) held: Semaphore,
    pub(super) cancels: Semaphore,
    pub(super) stopping: watch::Receiver<bool>,
}

/// A place among the sessions of a listener, of the process, and of the client.
#[derive(Debug)]
pub(super) struct Slot {
    _of_listener: OwnedSemaphorePermit,
    _in_total: Option<OwnedSemaphorePermit>,
    _of_client: ClientPlace,
}

/// Where the talk before a session has got to.
#[derive(Debug, Default)]
struct Talk {
    asked_for_tls: bool,
    asked_for_gss: bool,
    /// A server that does not want TLS, asked already.
    plain: Option<(Upstream, Slot)>,
    /// What the client is to be told as soon as it can read it.
    refusal: Option<Refusal>,
}

/// What a client gets in the end.
#[derive(Debug)]
enum Outcome {
    Session(Box<Upstream>, Slot, Arc<RoutePolicy>),
    Cancel(Vec<u8>),
    /// It speaks TLS from here on, with this endpoint.
    Encrypted(Came, Arc<Encryption>),
}

/// What a relayed session occupies until its client is gone.
#[derive(Debug)]
pub(super) struct Occupied {
    pub(super) listed: Listed,
    pub(super) places: (Slot, OwnedSemaphorePermit),
}

/// A session among the others, until it ends.
#[derive(Debug)]
pub(super) struct Listed {
    stats: Arc<RouteStats>,
    _entered: Entered,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.stats
            .sessions
            .fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Endpoint {
    /// Serves one accepted client: to its end, or until its session is relayed. `open` is its place among all.
    pub(super) async fn serve(self: Arc<Self>, stream: TcpStream, open: OwnedSemaphorePermit) {
        let Ok(mut client) = Client::new(stream, self.limits.startup_timeout) else {
            return;
        };
        let mut stopping = self.stopping.clone();
        let outcome = tokio::select! {
            biased;
            _stop = stopping.wait_for(|stop| *stop) => Err(Refusal::ShuttingDown.into()),
            outcome = self.negotiate(&mut client) => outcome,
        };
        match outcome {
            Ok(Outcome::Session(upstream, slot, policy)) => {
                self.relay(client, *upstream, policy, (slot, open));
            }
            Ok(Outcome::Cancel(packet)) => self.forward_cancel(&packet, None).await,
            Ok(Outcome::Encrypted(came, by)) => self.serve_encrypted(client, came, by, open).await,
            Err(end) => self.send_away(client, &end).await,
        }
    }

    /// Counts a refusal, and tells the client.
    pub(super) async fn send_away<S: AsyncRead + AsyncWrite + Unpin>(&self, client: Client<S>, end: &End) {
        if let End::Refused(refusal) | End::RefusedInTls(refusal) = end {
            self.stats.count_refusal(refusal.reason());
            tracing::debug!(
                client = %client.address,
                policy = self.policy.mode.as_str(),
                reason = refusal.reason().as_str(),
                "refused a routed connection: {refusal}"
            );
        }
        client.farewell(end).await;
    }

    /// From here on the session is a task of its own, so that what the talk before needed is given back.
    fn relay(
        self: Arc<Self>,
        client: Client,
        upstream: Upstream,
        policy: Arc<RoutePolicy>,
        places: (Slot, OwnedSemaphorePermit),
    ) {
        let (session, link) = upstream.into_session(policy);
        let Link::Plain(server) = link else { return };
        let (session, occupied) = self.begin_session(client.address, session, places);
        let (up, down) = (Direction::default(), Direction::default());
        let client = (client.stream, up);
        let relay = Relay::new(client, (server, down), session, Arc::clone(&self.stats));
        tokio::spawn(relay.run(occupied));
    }

    /// Enters a session among the others. What comes back with it lasts as long as the relay.
    pub(super) fn begin_session(
        &self,
        client: IpAddr,
        session: Session,
        places: (Slot, OwnedSemaphorePermit),
    ) -> (Arc<Session>, Occupied) {
        let session = Arc::new(session);
        tracing::debug!(
            %client,
            policy = session.policy.mode.as_str(),
            server = session.server,
            "began a routed session"
        );
        count_one(&self.stats.sessions);
        count_one(&self.stats.sessions_total);
        let listed = Listed {
            stats: Arc::clone(&self.stats),
            _entered: self.relayed.enter(Arc::clone(&session)),
        };
        // The table may have changed since the server was chosen, and the warden looked before this was entered.
        match self.verdict(&session) {
            Stay::Keep if !*self.stopping.borrow() => {}
            Stay::Drain if !*self.stopping.borrow() => self.relayed.come_late.notify_one(),
            _ => self.cut(&session),
        }
        (session, Occupied { listed, places })
    }

    async fn negotiate(&self, client: &mut Client) -> Result<Outcome, End> {
        if self
            .trusted_proxies
            .iter()
            .any(|network| network.contains(client.address))
        {
            client.read_forwarded().await?;
        }
        let mut talk = Talk::default();
        if let Some(by) = &self.encryption
            && client.begins_tls().await?
        {
            return Ok(Outcome::Encrypted(Came::Direct, Arc::clone(by)));
        }
        loop {
            let reading = client.read_startup();
            let (startup, bytes) = self
                .while_it_fits(&mut talk.plain, |(plain, _)| plain, reading)
                .await?;
            match startup {
                Startup::Cancel(packet) => return Ok(Outcome::Cancel(packet)),
                Startup::Session(session) => return self.session(client, talk, &session).await,
                Startup::DirectTls if !talk.asked_for_tls && !talk.asked_for_gss => {
                    return self.direct_tls(client, bytes).await;
                }
                Startup::GssEncRequest if !talk.asked_for_gss => {
                    talk.asked_for_gss = true;
                    client.answer(b'N', GSSAPI).await?;
                }
                Startup::SslRequest if !talk.asked_for_tls => {
                    talk.asked_for_tls = true;
                    if let Some(by) = &self.encryption {
                        client.answer(b'S', SSL).await?;
                        return Ok(Outcome::Encrypted(Came::Asking, Arc::clone(by)));
                    }
                    if let Some(outcome) = self.ask_for_tls(client, &mut talk).await? {
                        return Ok(outcome);
                    }
                }
                Startup::DirectTls => return Err(Refusal::from(StartupError::Length).into()),
                Startup::SslRequest => return Err(unsupported(5679)),
                Startup::GssEncRequest => return Err(unsupported(5680)),
            }
        }
    }

    /// Passes the request on and the answer back. After `S` everything is the server's.
    ///
    /// Without a server the answer is `N`: libpq shows no error that comes in place of it
    /// (CVE-2024-10977), so that the client is told the reason after its startup packet. One
    /// that insists on TLS then leaves.
    async fn ask_for_tls(&self, client: &mut Client, talk: &mut Talk) -> Result<Option<Outcome>, End> {
        let wish = Wish::of_policy(&self.policy, client.address);
        match self.place(client, &wish, Opening::AskForTls, Some(SSL)).await {
            Ok((upstream, slot)) => {
                let answer = upstream.tls_answer.unwrap_or(b'N');
                client.answer(answer, SSL).await?;
                if answer == b'S' {
                    return self.begin_tls(client, upstream, slot).await.map(Some);
                }
                talk.plain = Some((upstream, slot));
            }
            Err(End::Refused(refusal @ Refusal::EarlyData { .. })) => return Err(refusal.into()),
            Err(End::Refused(refusal)) => {
                client.answer(b'N', SSL).await?;
                talk.refusal = Some(refusal);
            }
            Err(end) => return Err(end),
        }
        Ok(None)
    }

    async fn session(
        &self,
        client: &mut Client,
        talk: Talk,
        session: &SessionStartup,
    ) -> Result<Outcome, End> {
        if let Some(refusal) = talk.refusal {
            return Err(refusal.into());
        }
        let (options, policy) = Self::wishes(&self.policy, session)?;
        let wish = Wish {
            policy: &policy,
            options: &options,
            client: client.address,
            unreadable: None,
        };
        let packet = self.packet(session, client.address);
        if let Some((mut upstream, slot)) = talk.plain
            && self.still_serves(&wish, &upstream)
            && self.says_startup(&mut upstream, &packet).await
        {
            return Ok(Outcome::Session(Box::new(upstream), slot, policy));
        }
        let opening = Opening::Startup(&packet);
        let (upstream, slot) = self.place(client, &wish, opening, None).await?;
        Ok(Outcome::Session(Box::new(upstream), slot, policy))
    }

    /// The startup packet as the server gets it.
    pub(super) fn packet<'a>(&self, session: &'a SessionStartup, client: IpAddr) -> Cow<'a, [u8]> {
        if self.show_clients {
            Cow::Owned(session.with_client(client))
        } else {
            Cow::Borrowed(&session.bytes)
        }
    }

    /// What the startup packet asks for, as options and as the policy that they make of `base`.
    pub(super) fn wishes(
        base: &Arc<RoutePolicy>,
        session: &SessionStartup,
    ) -> Result<(SessionOptions, Arc<RoutePolicy>), Refusal> {
        if base.mode == RouteMode::ReadOnly && session.asks_for_replication() {
            return Err(Refusal::Replication);
        }
        let options = SessionOptions::read(session.parameters())?;
        let policy = if options == SessionOptions::default() {
            Arc::clone(base)
        } else {
            Arc::new(options.applied_to(base))
        };
        Ok((options, policy))
    }

    /// The client has been promised TLS: its hello may name another policy, and goes to that one's server.
    async fn begin_tls(&self, client: &mut Client, upstream: Upstream, slot: Slot) -> Result<Outcome, End> {
        let mut asked = Some(upstream);
        let reading = client.read_hello(Vec::new());
        let (hello, name) = self.while_it_fits(&mut asked, |asked| asked, reading).await?;
        let policy = self.policy_of(name.as_deref());
        let wish = Wish::of_policy(&policy, client.address);
        let fits = |asked: &Upstream| policy == self.policy || self.still_serves(&wish, asked);
        let mut upstream = match asked.filter(fits) {
            Some(asked) => asked,
            None => self.find_with_tls(client, &wish).await?,
        };
        if self.passes_on(&mut upstream, &hello).await {
            upstream.unreadable = Some(client.address);
            Ok(Outcome::Session(Box::new(upstream), slot, policy))
        } else {
            Err(End::Gone)
        }
    }

    /// Another server for a client that has been promised TLS.
    async fn find_with_tls(&self, client: &Client, wish: &Wish<'_>) -> Result<Upstream, End> {
        match self.find_for(client, wish, Opening::AskForTls).await {
            Ok(upstream) if upstream.tls_answer == Some(b'S') => Ok(upstream),
            Ok(_) => Err(End::RefusedInTls(Refusal::ServerWithoutTls)),
            Err(End::Refused(refusal)) => Err(End::RefusedInTls(refusal)),
            Err(end) => Err(end),
        }
    }

    async fn direct_tls(&self, client: &mut Client, bytes: Vec<u8>) -> Result<Outcome, End> {
        let (hello, name) = client.read_hello(bytes).await?;
        let policy = self.policy_of(name.as_deref());
        let wish = Wish::of_policy(&policy, client.address);
        match self.place(client, &wish, Opening::Tls(&hello), None).await {
            Ok((mut upstream, slot)) => {
                upstream.unreadable = Some(client.address);
                Ok(Outcome::Session(Box::new(upstream), slot, Arc::clone(&policy)))
            }
            Err(End::Refused(refusal)) => Err(End::RefusedInTls(refusal)),
            Err(end) => Err(end),
        }
    }

    /// The one that is called as the first label of the host name, else the listener's own.
    pub(super) fn policy_of(&self, host_name: Option<&str>) -> Arc<RoutePolicy> {
        let label = host_name.and_then(|name| name.split('.').next());
        let named = label.and_then(|label| self.named_policies.get(label));
        Arc::clone(named.unwrap_or(&self.policy))
    }

    /// A place among the sessions and a server; ends early when the client does.
    async fn place(
        &self,
        client: &Client,
        wish: &Wish<'_>,
        opening: Opening<'_>,
        waits_for: Option<&'static str>,
    ) -> Result<(Upstream, Slot), End> {
        let slot = self.slot(client.address)?;
        let upstream = tokio::select! {
            biased;
            end = client.leaves(waits_for) => return Err(end),
            upstream = self.find_upstream(wish, opening) => upstream?,
        };
        Ok((upstream, slot))
    }

    pub(super) fn slot(&self, client: IpAddr) -> Result<Slot, Refusal> {
        let max_connections = self.limits.max_connections;
        let of_listener = Arc::clone(&self.slots)
            .try_acquire_owned()
            .map_err(|_| Refusal::TooManyConnections { max_connections })?;
        let in_total = self.total.enter()?;
        let max_connections = self.limits.max_connections_per_client;
        let of_client = self.clients.enter(client, max_connections);
        Ok(Slot {
            _of_listener: of_listener,
            _in_total: in_total,
            _of_client: of_client.ok_or(Refusal::TooManyOfClient { max_connections })?,
        })
    }

    /// Another server for a client that has its place already.
    async fn find_for(
        &self,
        client: &Client,
        wish: &Wish<'_>,
        opening: Opening<'_>,
    ) -> Result<Upstream, End> {
        tokio::select! {
            biased;
            end = client.leaves(None) => Err(end),
            upstream = self.find_upstream(wish, opening) => Ok(upstream?),
        }
    }
}

fn unsupported(minor: u16) -> End {
    Refusal::from(StartupError::Protocol { major: 1234, minor }).into()
}
