//! The demo's Kubernetes API server: `coordination.k8s.io/v1` Leases, `discovery.k8s.io/v1` EndpointSlices and nothing else, over
//! plain HTTP.
//!
//! Speaks the real protocol (get, list, watch, create, update, merge patch, delete; resource versions, `Status`
//! bodies), so that the shipped client is what is tried. Keeps its objects while it is down, and its Leases in a file for the
//! next run. Knows nothing of pods: whoever has the token may do anything.

mod handlers;
mod kubeconfig;
mod objects;
mod resource;
mod status;
mod watch;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

pub use kubeconfig::write_kubeconfig;
use objects::Objects;
use resource::{ENDPOINT_SLICES, EVENTS, LEASES};

use super::DemoError;

/// Open connections; more wait in the backlog.
const CONNECTIONS: usize = 512;
/// Until a request's head has arrived.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// What the handlers share; outlives each listener.
#[derive(Clone)]
struct Shared {
    leases: Arc<Objects>,
    slices: Arc<Objects>,
    events: Arc<Objects>,
    /// Asked for as a bearer token.
    token: Arc<Mutex<Option<String>>>,
}

/// A running server; ends soon after it is dropped.
pub struct ApiServer {
    address: SocketAddr,
    shared: Shared,
    /// `None` while it is down.
    listener: Option<AbortOnDropHandle<()>>,
}

impl ApiServer {
    /// Listens on `address` and serves what `state_path` holds from an earlier run. `None`: nothing is kept on disk.
    ///
    /// # Errors
    /// The address is taken, or the file could not be read.
    pub async fn start(address: SocketAddr, state_path: Option<PathBuf>) -> Result<Self, DemoError> {
        let leases = Objects::open(&LEASES, state_path)?;
        let slices = Objects::open(&ENDPOINT_SLICES, None)?;
        let events = Objects::open(&EVENTS, None)?;
        let shared = Shared {
            leases: Arc::new(leases),
            slices: Arc::new(slices),
            events: Arc::new(events),
            token: Arc::default(),
        };
        let mut server = Self {
            address,
            shared,
            listener: None,
        };
        server
            .up()
            .await
            .map_err(|source| DemoError::Address { address, source })?;
        Ok(server)
    }

    /// Stops listening and cuts all connections; what is stored stays. Its address is free when this returns.
    pub async fn down(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.abort();
            // Cancelled, as asked.
            drop(listener.await);
        }
    }

    /// Listens again, at the same address.
    ///
    /// # Errors
    /// Somebody else has taken it.
    pub async fn up(&mut self) -> io::Result<()> {
        if self.listener.is_none() {
            let listener = TcpListener::bind(self.address).await?;
            self.address = listener.local_addr()?;
            self.listener = Some(AbortOnDropHandle::new(tokio::spawn(serve(
                listener,
                self.shared.clone(),
            ))));
        }
        Ok(())
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on, requests must bear this token; `None`: anybody may ask. For tests of the client: the demo asks for none.
    pub fn require_token(&self, token: Option<&str>) {
        *self.shared.token.lock().unwrap_or_else(PoisonError::into_inner) = token.map(str::to_owned);
    }

    /// Forgets past changes, as etcd's compaction does: who watches from an earlier version must list again.
    pub fn compact(&self) {
        self.shared.leases.compact();
    }

    /// Ends it.
    pub async fn shutdown(mut self) {
        self.down().await;
    }
}

/// Accepts until it is aborted; its connections end with it.
async fn serve(listener: TcpListener, shared: Shared) {
    let router = handlers::router(shared);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            // A client that has gone is its own loss.
            drop(connection.await);
            drop(place);
        });
    }
}
