//! Sockets: listens, bounds what a stranger can hold, and hands requests to the router.
//!
//! Limits per listener, so that a flood over TCP leaves the pod's own socket alone. Never trusts a
//! client to end: heads, idle connections and writes each have a time limit. On a port that has a certificate, a client that begins
//! with TLS gets TLS, and the kubelet's plain probes are answered all the same.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::authorise::{Challenge, Origin};
use super::deadline::WriteDeadline;

/// The certificate and key to show, as of now.
pub type ServerTls = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// The first byte of a TLS handshake (RFC 8446, 5.1), and of no request in HTTP.
const HANDSHAKE: u8 = 0x16;

/// A socket that listens.
pub enum Listener {
    Tcp(TcpListener, Option<ServerTls>),
    Unix(UnixListener),
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(listener, _) => listener.fmt(f),
            Self::Unix(listener) => listener.fmt(f),
        }
    }
}

/// What one client, and all together, may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections per listener; more wait in the backlog.
    pub connections: usize,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Until a head has arrived; also the longest rest between two requests.
    pub head_timeout: Duration,
    /// How long a client may take nothing of what it is sent.
    pub write_timeout: Duration,
    /// After the shutdown, for requests under way.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            head_bytes: 16 * 1024,
            head_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(1),
        }
    }
}

/// Why a listener could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("could not listen on \"{address}\"")]
    Tcp { address: SocketAddr, source: io::Error },
    #[error("could not listen on unix socket \"{path}\"")]
    Unix { path: String, source: io::Error },
    #[error("cannot listen on unix socket \"{path}\": another process answers there")]
    InUse { path: String },
}

impl Listener {
    /// Listens on TCP.
    pub async fn tcp(address: SocketAddr) -> Result<Self, ListenError> {
        let bound = TcpListener::bind(address).await;
        bound
            .map(|listener| Self::Tcp(listener, None))
            .map_err(|source| ListenError::Tcp { address, source })
    }

    /// With a certificate for those who ask for TLS.
    #[must_use]
    pub fn with_tls(self, tls: Option<ServerTls>) -> Self {
        match self {
            Self::Tcp(listener, _) => Self::Tcp(listener, tls),
            Self::Unix(_) => self,
        }
    }

    /// Listens on a unix socket for its owner and group, in place of one that a dead process left behind.
    pub async fn unix(path: &Path) -> Result<Self, ListenError> {
        let shown = || path.display().to_string();
        if UnixStream::connect(path).await.is_ok() {
            return Err(ListenError::InUse { path: shown() });
        }
        let bind = || {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(path)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
            Ok(listener)
        };
        bind().map(Self::Unix).map_err(|source| ListenError::Unix {
            path: shown(),
            source,
        })
    }

    async fn accept(&self, limits: Limits) -> io::Result<(Accepted, Origin)> {
        match self {
            Self::Tcp(listener, tls) => {
                let (socket, address) = listener.accept().await?;
                // A line is worth more early than full.
                socket.set_nodelay(true)?;
                // A machine that vanished takes nothing either, though the kernel's buffer does for long.
                let limit = u32::try_from(limits.write_timeout.as_millis()).unwrap_or(u32::MAX);
                rustix::net::sockopt::set_tcp_user_timeout(&socket, limit)?;
                Ok((Accepted::Tcp(socket, tls.clone()), Origin::Tcp(address)))
            }
            Self::Unix(listener) => {
                let (socket, _) = listener.accept().await?;
                Ok((Accepted::Unix(socket), Origin::UnixSocket))
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}
type Socket = Box<dyn Stream>;

enum Accepted {
    Tcp(TcpStream, Option<ServerTls>),
    Unix(UnixStream),
}

impl Accepted {
    /// Ready for HTTP: plain, or behind a handshake if the client begins one.
    async fn open(self) -> io::Result<Socket> {
        match self {
            Self::Unix(socket) => Ok(Box::new(socket)),
            Self::Tcp(socket, None) => Ok(Box::new(socket)),
            Self::Tcp(socket, Some(tls)) => {
                let mut first = [0];
                if socket.peek(&mut first).await? == 1 && first[0] == HANDSHAKE {
                    Ok(Box::new(TlsAcceptor::from(tls()).accept(socket).await?))
                } else {
                    Ok(Box::new(socket))
                }
            }
        }
    }
}

/// Serves `router` on all listeners until `shutdown` ends, then for at most the drain timeout.
pub async fn serve(
    listeners: Vec<Listener>,
    router: Router,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let (stop, stopped) = watch::channel(false);
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(accept(listener, router.clone(), limits, stopped.clone()));
    }
    shutdown.await;
    stop.send_replace(true);
    while accepting.join_next().await.is_some() {}
}

async fn accept(listener: Listener, router: Router, limits: Limits, mut stopped: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let slot = slots.clone().acquire_owned().await;
            (slot, listener.accept(limits).await)
        };
        tokio::select! {
            (slot, accepted) = next => match (slot, accepted) {
                (Ok(slot), Ok((socket, origin))) => {
                    connections.spawn(connection(socket, origin, router.clone(), limits, stopped.clone(), slot));
                }
                (_, Err(error)) => pause_after(&error).await,
                (Err(_), _) => break,
            },
            Some(_) = connections.join_next() => {}
            () = told_to(&mut stopped) => break,
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.drain_timeout, drained).await.is_err() {
        connections.shutdown().await;
    }
}

/// Ends with the word, or with the one who would have given it.
async fn told_to(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

/// Out of descriptors or memory: nothing tells when there are some again.
async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "could not accept an HTTP connection");
    tokio::time::sleep(Duration::from_millis(50)).await;
}

async fn connection(
    accepted: Accepted,
    origin: Origin,
    router: Router,
    limits: Limits,
    mut stopped: watch::Receiver<bool>,
    _slot: OwnedSemaphorePermit,
) {
    let socket = tokio::select! {
        opened = tokio::time::timeout(limits.head_timeout, accepted.open()) => match opened {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => return tracing::debug!(?origin, %error, "no HTTP connection"),
            Err(_) => return,
        },
        () = told_to(&mut stopped) => return,
    };
    let inner = TowerToHyperService::new(router);
    let challenge = Challenge::default();
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(origin);
        request.extensions_mut().insert(challenge.clone());
        inner.call(request)
    });
    let io = TokioIo::new(WriteDeadline::new(socket, limits.write_timeout));
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head_timeout)
            .max_buf_size(limits.head_bytes.max(8192))
            .serve_connection(io, service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = told_to(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::trace!(?origin, %error, "HTTP connection ended");
    }
}
