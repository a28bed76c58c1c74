//! One port: accepts, bounds how much is open, and stops.
//!
//! Beyond the limit connections wait in the kernel's queue, so that a flood costs no memory here.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::core::routing::RoutePolicy;

use super::Limits;
use super::cancel::MAX_CANCELS;
use super::connection::Endpoint;
use super::encryption::Encryption;
use super::forwarded::Network;
use super::knowledge::Knowledge;
use super::reads::Reads;
use super::stats::{RouteStats, SessionCounts};
use super::total::TotalConnections;
use super::workers::Workers;

/// After an error of `accept` that will not go away at once: out of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// For the connections to end once they are told to.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// A routing endpoint, ready to run.
#[derive(Debug)]
pub struct Listener {
    pub socket: TcpListener,
    pub policy: RoutePolicy,
    /// Policies that a client picks by the first label of the host name that it asks for in TLS.
    pub named_policies: BTreeMap<String, RoutePolicy>,
    pub limits: Limits,
    /// Balancers that may tell the client's address by the PROXY protocol.
    pub trusted_proxies: Vec<Network>,
    /// TLS ends here; without it passes through to the servers.
    pub encryption: Option<Encryption>,
    /// The client's address goes into `application_name`.
    pub show_clients: bool,
    pub knowledge: Knowledge,
    /// Shared by the listeners of one process, so that they balance together.
    pub sessions: Arc<SessionCounts>,
    /// Shared by the listeners of one process.
    pub reads: Arc<Reads>,
    pub stats: Arc<RouteStats>,
    /// Shared by the listeners of one process.
    pub total: Arc<TotalConnections>,
    /// Shared by the listeners of one process.
    pub workers: Arc<Workers>,
}

/// Why a listener could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    #[error("routing endpoint has lost its listening socket")]
    Socket(#[source] io::Error),
}

impl Listener {
    /// Serves until `shutdown` is ready; then accepts no more, refuses what is held, ends the sessions between
    /// transactions as far as they come to one, and cuts the rest.
    ///
    /// Returns within the drain timeout and 3 s of `shutdown`.
    ///
    /// # Errors
    /// If the socket is not a listening one.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ListenerError> {
        self.socket.local_addr().map_err(ListenerError::Socket)?;
        let (stop, stopping) = watch::channel(false);
        let most = self
            .limits
            .max_connections
            .saturating_add(self.limits.max_startups);
        let most = u32::try_from(most.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        let open = Arc::new(Semaphore::new(most as usize));
        let workers = Arc::clone(&self.workers);
        let (socket, endpoint) = self.split(stopping);
        let warden = Arc::clone(&endpoint);
        workers.spawn(async move { warden.watch_over().await });
        tokio::pin!(shutdown);
        let result = loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break Ok(()),
                accepted = accept(&socket, &open) => match accepted {
                    Ok((stream, permit)) => {
                        let endpoint = Arc::clone(&endpoint);
                        workers.spawn(async move {
                            if let Ok(stream) = TcpStream::from_std(stream) {
                                endpoint.serve(stream, permit).await;
                            }
                        });
                    }
                    Err(error) => break Err(ListenerError::Socket(error)),
                },
            }
        };
        drop(socket);
        stop.send_replace(true);
        let limit = endpoint.limits.drain_timeout + STOP_TIMEOUT;
        let _all_ended = timeout(limit, open.acquire_many(most)).await;
        result
    }

    fn split(self, stopping: watch::Receiver<bool>) -> (TcpListener, Arc<Endpoint>) {
        let semaphore = |permits: usize| Semaphore::new(permits.min(Semaphore::MAX_PERMITS));
        let endpoint = Endpoint {
            slots: Arc::new(semaphore(self.limits.max_connections)),
            held: semaphore(self.limits.max_held),
            cancels: semaphore(MAX_CANCELS),
            policy: Arc::new(self.policy),
            named_policies: self
                .named_policies
                .into_iter()
                .map(|(name, policy)| (name, Arc::new(policy)))
                .collect(),
            limits: self.limits,
            trusted_proxies: self.trusted_proxies,
            encryption: self.encryption.map(Arc::new),
            show_clients: self.show_clients,
            servers_speak_tls: AtomicBool::new(false),
            clients: Arc::default(),
            knowledge: self.knowledge,
            memberships: Mutex::default(),
            relayed: Arc::default(),
            sessions: self.sessions,
            reads: self.reads,
            stats: self.stats,
            total: self.total,
            stopping,
        };
        (self.socket, Arc::new(endpoint))
    }
}

/// The next client, once there is room for it. Errors that concern one client or the moment are waited out.
async fn accept(
    socket: &TcpListener,
    open: &Arc<Semaphore>,
) -> io::Result<(std::net::TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(open).acquire_owned().await.map_err(io::Error::other)?;
    loop {
        match socket.accept().await {
            // Another thread's runtime takes it up.
            Ok((stream, _address)) => return Ok((stream.into_std()?, permit)),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "could not accept a routed connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
