//! One client's way: what it asks for, which server it gets, and how it ends.
//!
//! The order of the protocol is held here; reading is in `client`, choosing in `upstream`, the rest in `relay`.

use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use crate::core::routing::{RouteMode, RoutePolicy, RouteTable};

use super::client::{Client, End};
use super::refusal::Refusal;
use super::startup::{SessionStartup, Startup, StartupError};
use super::stats::{RouteStats, SessionCounts};
use super::upstream::{Opening, Upstream, say_startup};
use super::{Limits, socket};

const SSL: &str = "SSL request";
const GSSAPI: &str = "GSSAPI encryption request";

/// What all connections of one listener share.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) policy: RoutePolicy,
    pub(super) limits: Limits,
    pub(super) table: watch::Receiver<Arc<RouteTable>>,
    pub(super) sessions: Arc<SessionCounts>,
    pub(super) stats: Arc<RouteStats>,
    pub(super) slots: Arc<Semaphore>,
    pub(super) held: Semaphore,
    pub(super) cancels: Semaphore,
    pub(super) stopping: watch::Receiver<bool>,
}

/// A place among the sessions of a listener.
type Slot = OwnedSemaphorePermit;

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
    Session(Upstream, Slot),
    Cancel(Vec<u8>),
}

impl Endpoint {
    /// Serves one accepted client to its end.
    pub(super) async fn serve(self: Arc<Self>, stream: TcpStream) {
        if socket::prepare(&stream).is_err() {
            return;
        }
        let mut client = Client::new(stream, self.limits.startup_timeout);
        let mut stopping = self.stopping.clone();
        let outcome = tokio::select! {
            biased;
            _stop = stopping.wait_for(|stop| *stop) => Err(Refusal::ShuttingDown.into()),
            outcome = self.negotiate(&mut client) => outcome,
        };
        match outcome {
            Ok(Outcome::Session(upstream, _slot)) => self.relay(client.stream, upstream).await,
            Ok(Outcome::Cancel(packet)) => self.forward_cancel(&packet).await,
            Err(end) => {
                if let End::Refused(refusal) | End::RefusedInTls(refusal) = &end {
                    self.stats.count_refusal(refusal.reason());
                    tracing::debug!(
                        reason = refusal.reason().as_str(),
                        "refused a routed connection: {refusal}"
                    );
                }
                client.farewell(&end).await;
            }
        }
    }

    async fn negotiate(&self, client: &mut Client) -> Result<Outcome, End> {
        let mut talk = Talk::default();
        loop {
            let (startup, bytes) = client.read_startup().await?;
            match startup {
                Startup::Cancel(packet) => return Ok(Outcome::Cancel(packet)),
                Startup::Session(session) => return self.session(client, talk, &session).await,
                Startup::DirectTls if !talk.asked_for_tls && !talk.asked_for_gss => {
                    return self.direct_tls(client, &bytes).await;
                }
                Startup::GssEncRequest if !talk.asked_for_gss => {
                    talk.asked_for_gss = true;
                    client.answer(b'N', GSSAPI).await?;
                }
                Startup::SslRequest if !talk.asked_for_tls => {
                    talk.asked_for_tls = true;
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
        match self.place(client, Opening::AskForTls, Some(SSL)).await {
            Ok((upstream, slot)) => {
                let answer = upstream.tls_answer.unwrap_or(b'N');
                client.answer(answer, SSL).await?;
                if answer == b'S' {
                    return Ok(Some(Outcome::Session(upstream, slot)));
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
        if self.policy.mode == RouteMode::ReadOnly && session.asks_for_replication() {
            return Err(Refusal::Replication.into());
        }
        if let Some((mut upstream, slot)) = talk.plain
            && self.still_keeps(&self.policy, &upstream)
            && matches!(
                timeout(
                    self.limits.answer_timeout,
                    say_startup(&mut upstream.stream, &session.bytes)
                )
                .await,
                Ok(Ok(()))
            )
        {
            return Ok(Outcome::Session(upstream, slot));
        }
        let opening = Opening::Startup(&session.bytes);
        let (upstream, slot) = self.place(client, opening, None).await?;
        Ok(Outcome::Session(upstream, slot))
    }

    async fn direct_tls(&self, client: &mut Client, bytes: &[u8]) -> Result<Outcome, End> {
        match self.place(client, Opening::Tls(bytes), None).await {
            Ok((upstream, slot)) => Ok(Outcome::Session(upstream, slot)),
            Err(End::Refused(refusal)) => Err(End::RefusedInTls(refusal)),
            Err(end) => Err(end),
        }
    }

    /// A place among the sessions and a server; ends early when the client does.
    async fn place(
        &self,
        client: &Client,
        opening: Opening<'_>,
        waits_for: Option<&'static str>,
    ) -> Result<(Upstream, Slot), End> {
        let max_connections = self.limits.max_connections;
        let slot = Arc::clone(&self.slots)
            .try_acquire_owned()
            .map_err(|_| Refusal::TooManyConnections { max_connections })?;
        let upstream = tokio::select! {
            biased;
            end = client.leaves(waits_for) => return Err(end),
            upstream = self.find_upstream(&self.policy, opening) => upstream?,
        };
        Ok((upstream, slot))
    }
}

fn unsupported(minor: u16) -> End {
    Refusal::from(StartupError::Protocol { major: 1234, minor }).into()
}
