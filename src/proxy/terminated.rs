//! A client whose TLS ends here: handshake, startup packet, and a server reached in TLS of the endpoint's own.
//!
//! From the startup packet on everything is as without TLS: options, limits, holding, cancel requests. Plain clients
//! are not seen here: they are passed on as they are, and the server's `pg_hba.conf` decides about them.

use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use crate::core::routing::{RoutePolicy, candidates};

use super::certificate::Shown;
use super::client::{Client, End};
use super::connection::{Endpoint, Slot};
use super::copy::Copy;
use super::encryption::Encryption;
use super::refusal::Refusal;
use super::relay::Relay;
use super::session::Side;
use super::startup::{Startup, StartupError};
use super::upstream::{Link, Opening, Upstream, Wish};

type TlsClient = Client<TlsStream<TcpStream>>;

/// How a client came to TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    Asking,
    /// `sslnegotiation=direct`.
    Direct,
}

/// What such a client gets.
enum Outcome {
    Session(Box<Upstream>, Slot, Arc<RoutePolicy>),
    Cancel(Vec<u8>),
}

impl Endpoint {
    /// As `serve`, from the handshake on.
    pub(super) async fn serve_encrypted(
        self: Arc<Self>,
        client: Client,
        came: Came,
        encryption: Arc<Encryption>,
        open: OwnedSemaphorePermit,
    ) {
        let mut stopping = self.stopping.clone();
        if encryption.is_behind() {
            // Clients that trust the new certificate alone would never get as far as to a server.
            self.look_at_a_server(&encryption).await;
        }
        let shown = encryption.to_show();
        let Some(mut client) = client.encrypt(&shown).await else {
            return;
        };
        // Sent before there was anybody to take it.
        let mut early = Vec::new();
        let outcome = tokio::select! {
            biased;
            _stop = stopping.wait_for(|stop| *stop) => Err(Refusal::ShuttingDown.into()),
            outcome = self.negotiate_encrypted(&mut client, came, (&encryption, &shown), &mut early) => outcome,
        };
        match outcome {
            Ok(Outcome::Session(upstream, slot, policy)) => {
                self.relay_encrypted(client, early, *upstream, policy, (slot, open));
            }
            Ok(Outcome::Cancel(packet)) => {
                self.forward_cancel(&packet, Some(&encryption)).await;
                client.close(&[]).await;
            }
            Err(end) => self.send_away(client, &end).await,
        }
    }

    /// Which certificate the first candidate has.
    async fn look_at_a_server(&self, encryption: &Encryption) {
        let table = self.knowledge.now();
        let Some(server) = candidates(&self.policy, &table).first().copied() else {
            return;
        };
        let looking = async {
            let stream = TcpStream::connect(server.address).await?;
            encryption.encrypt(stream, &server.name).await
        };
        if let Ok(Err(error)) = timeout(self.limits.connect_timeout, looking).await {
            tracing::debug!(server = server.name, %error, "could not look at a server's certificate");
        }
    }

    async fn negotiate_encrypted(
        &self,
        client: &mut TlsClient,
        came: Came,
        (by, shown): (&Encryption, &Shown),
        early: &mut Vec<u8>,
    ) -> Result<Outcome, End> {
        if came == Came::Direct && !client.has_alpn() {
            return Err(Refusal::WithoutAlpn.into());
        }
        let session = match client.read_startup().await?.0 {
            Startup::Cancel(packet) => return Ok(Outcome::Cancel(packet)),
            Startup::Session(session) => session,
            // TLS in TLS.
            Startup::DirectTls | Startup::SslRequest | Startup::GssEncRequest => {
                return Err(Refusal::from(StartupError::Length).into());
            }
        };
        let base = self.policy_of(client.server_name().as_deref());
        let (options, policy) = Self::wishes(&base, &session)?;
        let wish = Wish {
            policy: &policy,
            options: &options,
            client: client.address,
            unreadable: None,
        };
        let packet = self.packet(&session, client.address);
        let opening = Opening::Encrypted {
            by,
            certificate: &shown.certificate,
            startup: &packet,
        };
        let slot = self.slot(client.address)?;
        let upstream = tokio::select! {
            biased;
            end = client.leaves_tls(early) => return Err(end),
            upstream = self.find_upstream(&wish, opening) => upstream?,
        };
        Ok(Outcome::Session(Box::new(upstream), slot, policy))
    }

    fn relay_encrypted(
        self: Arc<Self>,
        client: TlsClient,
        early: Vec<u8>,
        upstream: Upstream,
        policy: Arc<RoutePolicy>,
        places: (Slot, OwnedSemaphorePermit),
    ) {
        let (session, link) = upstream.into_session(policy);
        let Link::Tls(server) = link else { return };
        let (session, occupied) = self.begin_session(client.address, session, places);
        session.spoke(Side::Server);
        let (up, down) = (Copy::after(early), Copy::after(server.said));
        let relay = Relay::new(
            (client.stream, up),
            (server.stream, down),
            session,
            Arc::clone(&self.stats),
        );
        tokio::spawn(relay.run(occupied));
    }
}
