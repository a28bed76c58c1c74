//! The demo's control socket: JSON lines over `demo.sock`, one request and one reply each.
//!
//! Only the user that runs the demo, and root, are listened to.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::DemoError;
use super::container::Container;
use super::pod::Phase;
use super::state::DemoState;
use crate::core::member::Ordinal;

const LINE_LIMIT_BYTES: u64 = 4096;
const REPLY_LIMIT_BYTES: u64 = 1 << 20;
/// How long a client may take to send a line, or to take one.
const LINE_TIMEOUT: Duration = Duration::from_secs(10);
/// What a reply may take beyond the grace periods of the pods that it waits for.
const REPLY_TIMEOUT: Duration = Duration::from_mins(1);
const CONNECTIONS: usize = 16;

/// What may be asked of a running demo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// From now on there are this many pods; answered at once.
    Scale {
        replicas: u32,
    },
    /// Answered when the pod is gone; its replacement then comes by itself.
    DeletePod {
        ordinal: Ordinal,
        /// KILL to every process of it, instead of TERM.
        #[serde(default)]
        force: bool,
        /// The replacement begins with an empty volume.
        #[serde(default)]
        wipe_volume: bool,
        /// The replacement gets another address.
        #[serde(default)]
        move_address: bool,
    },
    /// SIGSTOP to every process of the pod; answered when all stand still.
    Freeze {
        ordinal: Ordinal,
    },
    /// SIGCONT to every process of the pod.
    Thaw {
        ordinal: Ordinal,
    },
    /// The API server stops answering, or answers again.
    Api {
        up: bool,
    },
    /// Answered when all pods have ended.
    Stop,
    Status,
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// One sentence about what was done.
    Done {
        message: String,
    },
    Status(DemoStatus),
    /// Why nothing was done.
    Refused {
        message: String,
    },
}

/// The demo as its controller sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DemoStatus {
    pub cluster: String,
    pub replicas: u32,
    /// All wanted pods are ready and no other is there.
    pub settled: bool,
    pub pods: Vec<PodStatus>,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    pub name: String,
    pub ordinal: Ordinal,
    /// Another one for each incarnation.
    pub uid: String,
    pub address: std::net::IpAddr,
    pub phase: Phase,
    pub ready: bool,
    pub frozen: bool,
    /// The containers that run, with the pid of their first process.
    pub pids: Vec<(Container, u32)>,
    /// How often each container ended and was to be started again, in this incarnation.
    pub restarts: Vec<(Container, u32)>,
}

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("no demo runs in directory \"{directory}\"")]
    NotRunning { directory: PathBuf },
    #[error("could not talk to the demo in directory \"{directory}\"")]
    Connection {
        directory: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    State(#[from] DemoError),
}

/// Asks the demo that runs in `directory`.
///
/// # Errors
/// None runs there, or it did not answer in time.
pub async fn request(directory: &Path, request: &Request) -> Result<Reply, ControlError> {
    let not_running = || ControlError::NotRunning {
        directory: directory.to_owned(),
    };
    let state = DemoState::load(directory)?.ok_or_else(not_running)?;
    let stream = UnixStream::connect(&state.control_socket)
        .await
        .map_err(|_| not_running())?;
    let limit = REPLY_TIMEOUT + Duration::from_millis(state.grace_ms) * 2;
    let asked = tokio::time::timeout(limit, exchange(stream, request)).await;
    asked
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|source| ControlError::Connection {
            directory: directory.to_owned(),
            source,
        })
}

async fn exchange(mut stream: UnixStream, request: &Request) -> io::Result<Reply> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut answer = Vec::new();
    BufReader::new(stream.take(REPLY_LIMIT_BYTES))
        .read_until(b'\n', &mut answer)
        .await?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&answer)?)
}

/// A request on its way to the controller, with the way back.
pub(super) struct Call {
    pub request: Request,
    pub reply: oneshot::Sender<Reply>,
}

/// The listening socket, open to its owner alone.
///
/// # Errors
/// The directory cannot be written.
pub(super) fn listen(path: &Path) -> Result<UnixListener, DemoError> {
    use std::os::unix::fs::PermissionsExt;
    // The demo holds the directory's lock, so a socket that is there is a dead demo's.
    drop(std::fs::remove_file(path));
    UnixListener::bind(path)
        .and_then(|listener| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        })
        .map_err(DemoError::file("create", path))
}

/// Serves until the other end of `finished` is dropped, then gives the last replies a moment to leave.
pub(super) async fn serve(
    listener: UnixListener,
    calls: mpsc::Sender<Call>,
    mut finished: oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut finished => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS => {
                if let Ok((stream, _)) = accepted {
                    let calls = calls.clone();
                    // An error ends this connection and nothing else.
                    connections.spawn(async move { drop(serve_connection(stream, calls).await) });
                } else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }
    let last = async { while connections.join_next().await.is_some() {} };
    drop(tokio::time::timeout(Duration::from_secs(1), last).await);
}

async fn serve_connection(stream: UnixStream, calls: mpsc::Sender<Call>) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    if peer != 0 && peer != rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut read).take(LINE_LIMIT_BYTES);
        tokio::time::timeout(LINE_TIMEOUT, limited.read_until(b'\n', &mut line)).await??;
        if line.is_empty() {
            return Ok(());
        }
        let whole = line.last() == Some(&b'\n');
        let reply = match serde_json::from_slice(&line) {
            Ok(request) if whole => call(&calls, request).await,
            Ok(_) => refused("the request does not end with a line end".to_owned()),
            Err(error) => refused(format!("could not read the request: {error}")),
        };
        let mut answer = serde_json::to_vec(&reply)?;
        answer.push(b'\n');
        tokio::time::timeout(LINE_TIMEOUT, write.write_all(&answer)).await??;
        if !whole {
            return Ok(());
        }
    }
}

async fn call(calls: &mpsc::Sender<Call>, request: Request) -> Reply {
    let (reply, answered) = oneshot::channel();
    if calls.send(Call { request, reply }).await.is_err() {
        return refused("the demo is stopping".to_owned());
    }
    answered
        .await
        .unwrap_or_else(|_| refused("the demo is stopping".to_owned()))
}

pub(super) fn refused(message: String) -> Reply {
    Reply::Refused { message }
}

pub(super) fn done(message: &str) -> Reply {
    Reply::Done {
        message: message.to_owned(),
    }
}
