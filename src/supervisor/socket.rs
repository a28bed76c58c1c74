//! The supervisor's unix socket: JSON lines in, JSON lines out, a small bounded number of clients.
//!
//! Each connection is its own task that can only ask the supervisor's loop, so a slow, silent or
//! hostile client holds up nobody. Never decides what a request means.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::core::supervision::{MAX_LINE_BYTES, SupervisorReply, SupervisorRequest};

/// A client more pushes out another: the oldest of the lowest [`standing`].
const MAX_CONNECTIONS: usize = 16;
/// From a line's first byte to its last, and for the client to take its reply.
const LINE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest long poll.
const MAX_WAIT_MS: u64 = 60_000;
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A request on its way to the supervisor's loop. A dropped `reply` closes the connection.
pub(super) struct Call {
    pub(super) request: SupervisorRequest,
    pub(super) reply: oneshot::Sender<SupervisorReply>,
}

/// What a connection needs of the supervisor.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) calls: mpsc::Sender<Call>,
    /// The status version, for long polls.
    pub(super) versions: watch::Receiver<u64>,
    /// The newest version that a client has said it knows.
    pub(super) known: watch::Sender<u64>,
}

/// The bound socket; its file goes when this is dropped.
pub(super) struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Binds `path` with mode 0660 and replaces what is left there from an earlier supervisor.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        // Under another name until the mode is right, so that nobody gets in before.
        let staged = path.with_extension("new");
        match std::fs::remove_file(&staged) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&staged)?;
        std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(0o660))?;
        std::fs::rename(&staged, path)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// Serves clients until dropped.
    pub(super) async fn serve(&self, desk: Desk) -> Infallible {
        let mut clients = Clients::default();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => clients.admit(stream, desk.clone()),
                // Out of file descriptors: they come back, and the next accept would fail at once.
                Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!("could not remove \"{}\": {error}", self.path.display());
        }
    }
}

/// The connections that are open, oldest first; all end with this.
#[derive(Default)]
struct Clients(VecDeque<Client>);

struct Client {
    task: AbortOnDropHandle<()>,
    standing: Arc<AtomicU8>,
}

/// How little a client deserves to be pushed out.
mod standing {
    /// Has sent no valid request yet, sends on without waiting for its reply, or does not take it.
    pub(super) const DOUBTFUL: u8 = 0;
    /// Has taken its last reply.
    pub(super) const IDLE: u8 = 1;
    /// Waits for its reply.
    pub(super) const SERVED: u8 = 2;
}

impl Clients {
    fn admit(&mut self, stream: UnixStream, desk: Desk) {
        self.0.retain(|client| !client.task.is_finished());
        if self.0.len() >= MAX_CONNECTIONS {
            // The first of equals, so the oldest.
            let lowest =
                (0..self.0.len()).min_by_key(|index| self.0[*index].standing.load(Ordering::Relaxed));
            drop(lowest.and_then(|index| self.0.remove(index)));
        }
        let standing = Arc::new(AtomicU8::new(standing::DOUBTFUL));
        let connection = Connection::new(stream, desk, standing.clone());
        let task = AbortOnDropHandle::new(tokio::spawn(connection.serve()));
        self.0.push_back(Client { task, standing });
    }
}

/// What became of reading one line.
enum Line {
    Whole(Vec<u8>),
    /// The client closed, or its connection broke.
    Closed,
    /// Too long or too slow; the text is for the client.
    Bad(String),
}

struct Connection {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    desk: Desk,
    standing: Arc<AtomicU8>,
}

impl Connection {
    fn new(stream: UnixStream, desk: Desk, standing: Arc<AtomicU8>) -> Self {
        let (read, writer) = stream.into_split();
        Self {
            reader: BufReader::with_capacity(1024, read),
            writer,
            desk,
            standing,
        }
    }

    async fn serve(mut self) {
        loop {
            let refusal = match self.read_line().await {
                Line::Closed => return,
                Line::Bad(message) => message,
                Line::Whole(line) => match serde_json::from_slice(&line) {
                    Ok(request) => {
                        let patient = self.reader.buffer().is_empty();
                        let standing = if patient {
                            standing::SERVED
                        } else {
                            standing::DOUBTFUL
                        };
                        self.standing.store(standing, Ordering::Relaxed);
                        match self.answer(request).await {
                            Some(reply) if self.send(&reply).await => continue,
                            _ => return,
                        }
                    }
                    Err(error) => format!("could not read the request: {error}"),
                },
            };
            // What follows on this connection cannot be trusted to begin at a line's start.
            self.send(&SupervisorReply::Refused { message: refusal }).await;
            return;
        }
    }

    /// Idles without a limit before a line's first byte, then takes the rest within [`LINE_TIMEOUT`].
    async fn read_line(&mut self) -> Line {
        match self.reader.fill_buf().await {
            Ok(bytes) if !bytes.is_empty() => {}
            _ => return Line::Closed,
        }
        match tokio::time::timeout(LINE_TIMEOUT, self.read_begun_line()).await {
            Ok(line) => line,
            Err(_) => Line::Bad(format!("line not complete within {} s", LINE_TIMEOUT.as_secs())),
        }
    }

    async fn read_begun_line(&mut self) -> Line {
        let mut line = Vec::new();
        loop {
            let bytes = match self.reader.fill_buf().await {
                Ok(bytes) if !bytes.is_empty() => bytes,
                _ => return Line::Closed,
            };
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(bytes.len());
            if line.len() + taken > MAX_LINE_BYTES {
                return Line::Bad(format!("line longer than {MAX_LINE_BYTES} bytes"));
            }
            line.extend_from_slice(&bytes[..taken]);
            self.reader.consume(taken + usize::from(end.is_some()));
            if end.is_some() {
                return Line::Whole(line);
            }
        }
    }

    /// `None` if the client or the supervisor has gone meanwhile.
    async fn answer(&mut self, request: SupervisorRequest) -> Option<SupervisorReply> {
        let request = match request {
            SupervisorRequest::Wait { version, timeout_ms } => self
                .wait(version, timeout_ms)
                .await
                .then_some(SupervisorRequest::Status)?,
            other => other,
        };
        let (reply, answer) = oneshot::channel();
        self.desk.calls.send(Call { request, reply }).await.ok()?;
        answer.await.ok()
    }

    /// Returns when the version is another one or the time is over; false if the client has gone.
    async fn wait(&mut self, version: u64, timeout_ms: u64) -> bool {
        let limit = Duration::from_millis(timeout_ms.min(MAX_WAIT_MS));
        self.desk.known.send_if_modified(|known| {
            let newer = version > *known;
            *known = version.max(*known);
            newer
        });
        let versions = &mut self.desk.versions;
        let reader = &mut self.reader;
        let client_gone = async {
            // A next request that is already here says nothing about the end of the connection.
            if matches!(reader.fill_buf().await, Ok(bytes) if !bytes.is_empty()) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            changed = versions.wait_for(|now| *now != version) => changed.is_ok(),
            () = tokio::time::sleep(limit) => true,
            () = client_gone => false,
        }
    }

    /// False if the client does not take it.
    async fn send(&mut self, reply: &SupervisorReply) -> bool {
        let Ok(mut line) = serde_json::to_vec(reply) else {
            return false;
        };
        line.push(b'\n');
        self.standing.store(standing::DOUBTFUL, Ordering::Relaxed);
        let sent = tokio::time::timeout(LINE_TIMEOUT, self.writer.write_all(&line)).await;
        self.standing.store(standing::IDLE, Ordering::Relaxed);
        matches!(sent, Ok(Ok(())))
    }
}
