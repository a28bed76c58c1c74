//! One port: accepts, bounds how much is open, and stops.
//!
//! Beyond the limit connections wait in the kernel's queue, so that a flood costs no memory here.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::core::routing::{RoutePolicy, RouteTable};

use super::Limits;
use super::cancel::MAX_CANCELS;
use super::connection::Endpoint;
use super::stats::{RouteStats, SessionCounts};

/// After an error of `accept` that will not go away at once: out of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// For the connections to end once they are told to.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// A routing endpoint, ready to run.
#[derive(Debug)]
pub struct Listener {
    pub socket: TcpListener,
    pub policy: RoutePolicy,
    pub limits: Limits,
    /// The newest table. If its sender goes away the last table stays in force.
    pub table: watch::Receiver<Arc<RouteTable>>,
    /// Shared by the listeners of one process, so that they balance together.
    pub sessions: Arc<SessionCounts>,
    pub stats: Arc<RouteStats>,
}

/// Why a listener could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    #[error("routing endpoint has lost its listening socket")]
    Socket(#[source] io::Error),
}

impl Listener {
    /// Serves until `shutdown` is ready; then accepts no more, refuses what is held and cuts the sessions.
    ///
    /// Returns within 3 s of `shutdown`.
    ///
    /// # Errors
    /// If the socket is not a listening one.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ListenerError> {
        self.socket.local_addr().map_err(ListenerError::Socket)?;
        let (stop, stopping) = watch::channel(false);
        let open = Arc::new(Semaphore::new(
            self.limits
                .max_connections
                .saturating_add(self.limits.max_startups)
                .min(Semaphore::MAX_PERMITS),
        ));
        let (socket, endpoint) = self.split(stopping);
        let mut connections = JoinSet::new();
        tokio::pin!(shutdown);
        let result = loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break Ok(()),
                Some(_ended) = connections.join_next() => {}
                accepted = accept(&socket, &open) => match accepted {
                    Ok((stream, permit)) => {
                        let serving = Arc::clone(&endpoint).serve(stream);
                        connections.spawn(async move {
                            serving.await;
                            drop(permit);
                        });
                    }
                    Err(error) => break Err(ListenerError::Socket(error)),
                },
            }
        };
        drop(socket);
        stop.send_replace(true);
        let ended = timeout(STOP_TIMEOUT, async {
            while connections.join_next().await.is_some() {}
        })
        .await;
        if ended.is_err() {
            connections.shutdown().await;
        }
        result
    }

    fn split(self, stopping: watch::Receiver<bool>) -> (TcpListener, Arc<Endpoint>) {
        let semaphore = |permits: usize| Semaphore::new(permits.min(Semaphore::MAX_PERMITS));
        let endpoint = Endpoint {
            slots: Arc::new(semaphore(self.limits.max_connections)),
            held: semaphore(self.limits.max_held),
            cancels: semaphore(MAX_CANCELS),
            policy: self.policy,
            limits: self.limits,
            table: self.table,
            sessions: self.sessions,
            stats: self.stats,
            stopping,
        };
        (self.socket, Arc::new(endpoint))
    }
}

/// The next client, once there is room for it. Errors that concern one client or the moment are waited out.
async fn accept(
    socket: &TcpListener,
    open: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(open).acquire_owned().await.map_err(io::Error::other)?;
    loop {
        match socket.accept().await {
            Ok((stream, _address)) => return Ok((stream, permit)),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "could not accept a routed connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
