//! HTTP requests to other members: connect, ask one thing, read a bounded answer within a limit.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::core::cluster::PeerContact;
use crate::core::status::MemberStatus;

use super::lines::Lines;
use super::way::Reach;

/// The longest answer that [`get_json`] reads.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// Why a member gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("could not connect to \"{target}\"")]
    Connect { target: String, source: io::Error },
    #[error("could not read from \"{target}\"")]
    Transfer { target: String, source: hyper::Error },
    #[error("\"{target}\" did not answer within {limit:?}")]
    TimedOut { target: String, limit: Duration },
    #[error("\"{target}\" answered with status {status}: {reason}")]
    Status {
        target: String,
        status: StatusCode,
        reason: String,
    },
    #[error("\"{target}\" answered what is no status of a podgres member: {detail}")]
    Invalid { target: String, detail: String },
    #[error("invalid address \"{url}\": expected http://HOST[:PORT] or unix:PATH")]
    Url { url: String },
    #[error("could not find an address of host \"{host}\"")]
    Name { host: String },
    #[error("\"{target}\" ended the stream")]
    Ended { target: String },
}

impl RequestError {
    /// What it says about whether somebody is there.
    #[must_use]
    pub fn contact(&self) -> PeerContact {
        match self {
            Self::Connect { source, .. } => match source.kind() {
                io::ErrorKind::ConnectionRefused => PeerContact::Refused,
                io::ErrorKind::TimedOut => PeerContact::TimedOut,
                // Somebody listened, and ended while the connection was young.
                io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => PeerContact::Closed,
                _ => PeerContact::Unreachable,
            },
            Self::TimedOut { .. } => PeerContact::TimedOut,
            Self::Transfer { source, .. } if source.is_parse() => PeerContact::Invalid,
            Self::Transfer { .. } | Self::Ended { .. } => PeerContact::Closed,
            Self::Status { .. } | Self::Invalid { .. } => PeerContact::Invalid,
            Self::Url { .. } | Self::Name { .. } => PeerContact::Unknown,
        }
    }
}

/// Asks a member for its status once, all within `limit`.
pub async fn ask(member: impl Into<Reach>, limit: Duration) -> Result<MemberStatus, RequestError> {
    let mut stream = StatusStream::open(&member.into(), limit).await?;
    loop {
        if let Some(status) = stream.next(limit).await? {
            return Ok(status);
        }
    }
}

/// The JSON value at `path` of the server at `url` (`http://HOST[:PORT]`, port 8008 by default, or `unix:PATH`), within `limit`.
pub async fn get_json(url: &str, path: &str, limit: Duration) -> Result<Value, RequestError> {
    let deadline = Instant::now() + limit;
    let late = || RequestError::TimedOut {
        target: url.to_owned(),
        limit,
    };
    let answer = async {
        let (mut connection, host) = connect_url(url).await?;
        let response = connection.get(path, &host).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await;
        let invalid = |detail: String| RequestError::Invalid {
            target: url.to_owned(),
            detail,
        };
        let body = body.map_err(|error| invalid(error.to_string()))?.to_bytes();
        if status != StatusCode::OK {
            return Err(unexpected_status(url, status, &body));
        }
        serde_json::from_slice(&body).map_err(|error| invalid(error.to_string()))
    };
    timeout_at(deadline, answer).await.map_err(|_| late())?
}

fn unexpected_status(target: &str, status: StatusCode, body: &[u8]) -> RequestError {
    let said: Option<Value> = serde_json::from_slice(body).ok();
    let said = said.and_then(|value| {
        let text = value.get("error").or_else(|| value.get("reason"))?.as_str()?;
        Some(text.chars().filter(|c| !c.is_control()).take(300).collect())
    });
    RequestError::Status {
        target: target.to_owned(),
        status,
        reason: said.unwrap_or_else(|| "no reason given".to_owned()),
    }
}

pub(super) async fn connect_url(url: &str) -> Result<(Connection, String), RequestError> {
    let failed = |source| RequestError::Connect {
        target: url.to_owned(),
        source,
    };
    if let Some(path) = url.strip_prefix("unix:") {
        let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
        let socket = UnixStream::connect(path).await.map_err(failed)?;
        return Ok((Connection::start(socket, url).await?, "localhost".to_owned()));
    }
    let invalid = || RequestError::Url { url: url.to_owned() };
    let uri: Uri = url.parse().map_err(|_| invalid())?;
    let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(invalid());
    };
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    let found = tokio::net::lookup_host((host.as_str(), authority.port_u16().unwrap_or(8008))).await;
    let addresses: Vec<SocketAddr> = found
        .map_err(|_| RequestError::Name { host: host.clone() })?
        .collect();
    let socket = TcpStream::connect(addresses.as_slice()).await.map_err(failed)?;
    Ok((Connection::start(socket, url).await?, authority.to_string()))
}

/// One HTTP connection; its driver ends with it.
pub(super) struct Connection {
    target: String,
    sender: SendRequest<Full<Bytes>>,
    _driver: AbortOnDropHandle<()>,
}

impl Connection {
    pub(super) async fn start<S>(socket: S, target: &str) -> Result<Self, RequestError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(64 * 1024);
        let started = builder.handshake(TokioIo::new(socket)).await;
        let (sender, driver) = started.map_err(|source| RequestError::Transfer {
            target: target.to_owned(),
            source,
        })?;
        Ok(Self {
            target: target.to_owned(),
            sender,
            _driver: AbortOnDropHandle::new(tokio::spawn(async { drop(driver.await) })),
        })
    }

    pub(super) async fn get(&mut self, path: &str, host: &str) -> Result<Response<Incoming>, RequestError> {
        let request = Request::get(path)
            .header(hyper::header::HOST, host)
            .body(Full::default());
        let request = request.map_err(|_| RequestError::Url { url: path.to_owned() })?;
        self.send(request).await
    }

    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, RequestError> {
        let sent = self.sender.send_request(request).await;
        sent.map_err(|source| RequestError::Transfer {
            target: self.target.clone(),
            source,
        })
    }

    /// A bounded JSON body, whatever the status.
    pub(super) async fn json(
        &self,
        response: Response<Incoming>,
    ) -> Result<(StatusCode, Value), RequestError> {
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await;
        let invalid = |detail: String| RequestError::Invalid {
            target: self.target.clone(),
            detail,
        };
        let body = body.map_err(|error| invalid(error.to_string()))?.to_bytes();
        let value = serde_json::from_slice(&body).map_err(|error| invalid(error.to_string()))?;
        Ok((status, value))
    }
}

/// An open `/peer/stream`.
pub(super) struct StatusStream {
    connection: Connection,
    body: Incoming,
    lines: Lines,
    heard_at: Instant,
}

impl StatusStream {
    /// Connects and asks, within `limit` in all.
    pub(super) async fn open(member: &Reach, limit: Duration) -> Result<Self, RequestError> {
        let target = member.target();
        let opened = async {
            let mut connection = member.connect().await?;
            let response = connection.get("/peer/stream", &target).await?;
            match response.status() {
                StatusCode::OK => Ok((connection, response.into_body())),
                status => Err(unexpected_status(&target, status, b"")),
            }
        };
        let (connection, body) =
            tokio::time::timeout(limit, opened)
                .await
                .map_err(|_| RequestError::TimedOut {
                    target: target.clone(),
                    limit,
                })??;
        Ok(Self {
            connection,
            body,
            lines: Lines::default(),
            heard_at: Instant::now(),
        })
    }

    /// The next line, which must end within `limit` of the one before: a status, or `None` for a sign of life.
    pub(super) async fn next(&mut self, limit: Duration) -> Result<Option<MemberStatus>, RequestError> {
        let line = timeout_at(self.heard_at + limit, self.line()).await;
        let late = |_| RequestError::TimedOut {
            target: self.connection.target.clone(),
            limit,
        };
        let line = line.map_err(late)??;
        self.heard_at = Instant::now();
        if matches!(line.as_slice(), b"{}" | b"{}\r") {
            return Ok(None);
        }
        let status = serde_json::from_slice(&line).map_err(|error| self.invalid(error.to_string()))?;
        Ok(Some(status))
    }

    async fn line(&mut self) -> Result<Vec<u8>, RequestError> {
        loop {
            match self.lines.next() {
                Ok(Some(line)) => return Ok(line),
                Ok(None) => {}
                Err(_) => return Err(self.invalid("a line is too long".to_owned())),
            }
            let target = &self.connection.target;
            let frame = self.body.frame().await.ok_or_else(|| RequestError::Ended {
                target: target.clone(),
            })?;
            let frame = frame.map_err(|source| RequestError::Transfer {
                target: target.clone(),
                source,
            })?;
            if let Some(chunk) = frame.data_ref() {
                self.lines.push(chunk);
            }
        }
    }

    fn invalid(&self, detail: String) -> RequestError {
        RequestError::Invalid {
            target: self.connection.target.clone(),
            detail,
        }
    }
}
