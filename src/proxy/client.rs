//! The client's side of a connection until it is relayed: reading packets, sending it away.
//!
//! Reads not one byte more than the packet that it reads, and never waits without a limit.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::certificate::{ALPN, Shown};
use super::forwarded::{Forwarded, InvalidHeader, begins_header, read_header};
use super::refusal::Refusal;
use super::server_name::{Hello, read_hello};
use super::startup::{Parsed, Startup, TLS_HANDSHAKE, parse};

/// For the last words to a client and for the client to read them.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);
/// What a client may still send while it is sent away.
const FAREWELL_BYTES: u64 = 64 * 1024;
/// A fatal `internal_error` alert of TLS 1.2 (RFC 8446, 6.2): a client that began with TLS reads nothing else.
const TLS_ALERT: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 80];

/// How a connection ends that gets no session.
#[derive(Debug)]
pub(super) enum End {
    /// The client left, or nothing is left to say to it.
    Gone,
    Refused(Refusal),
    /// As `Refused`, to a client that speaks TLS already.
    RefusedInTls(Refusal),
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A client, and the time that it may still take for its startup packets.
#[derive(Debug)]
pub(super) struct Client<S = TcpStream> {
    pub(super) stream: S,
    /// Its own, or what a balancer told.
    pub(super) address: IpAddr,
    limit: Duration,
    left: Duration,
}

impl Client {
    pub(super) fn new(stream: TcpStream, startup_timeout: Duration) -> io::Result<Self> {
        super::socket::prepare(&stream)?;
        Ok(Self {
            address: stream.peer_addr()?.ip(),
            stream,
            limit: startup_timeout,
            left: startup_timeout,
        })
    }

    /// The header that a balancer in front sends first, if it does.
    pub(super) async fn read_forwarded(&mut self) -> Result<(), End> {
        let begun = Instant::now();
        let read = timeout_at(begun + self.left, read_forwarded(&mut self.stream)).await;
        self.left = self.left.saturating_sub(begun.elapsed());
        match read {
            Ok(Ok(Some(Forwarded::From(address)))) => self.address = address,
            Ok(Ok(Some(Forwarded::Unknown))) => {}
            Ok(Ok(None)) => return Err(End::Gone),
            Ok(Err(invalid)) => return Err(Refusal::from(invalid).into()),
            Err(_elapsed) => return Err(Refusal::StartupTimeout { limit: self.limit }.into()),
        }
        Ok(())
    }

    /// Whether the client begins with TLS, without asking first. Takes nothing from what it sends.
    pub(super) async fn begins_tls(&mut self) -> Result<bool, End> {
        let begun = Instant::now();
        let mut first = [0];
        let peeked = timeout_at(begun + self.left, self.stream.peek(&mut first)).await;
        self.left = self.left.saturating_sub(begun.elapsed());
        match peeked {
            Ok(Ok(1..)) => Ok(first[0] == TLS_HANDSHAKE),
            Ok(Ok(_) | Err(_)) => Err(End::Gone),
            Err(_elapsed) => Err(Refusal::StartupTimeout { limit: self.limit }.into()),
        }
    }

    /// The TLS handshake with the client, which is shown `certificate`. `None` if it fails: TLS has told the client why.
    pub(super) async fn encrypt(self, certificate: &Shown) -> Option<Client<TlsStream<TcpStream>>> {
        let begun = Instant::now();
        let accepting = TlsAcceptor::from(certificate.config.clone()).accept(self.stream);
        let stream = timeout_at(begun + self.left, accepting).await.ok()?.ok()?;
        Some(Client {
            stream,
            address: self.address,
            limit: self.limit,
            left: self.left.saturating_sub(begun.elapsed()),
        })
    }

    /// A whole ClientHello, of which `bytes` have come already, and the host name in it.
    pub(super) async fn read_hello(&mut self, bytes: Vec<u8>) -> Result<(Vec<u8>, Option<String>), End> {
        let begun = Instant::now();
        let read = timeout_at(begun + self.left, read_whole_hello(&mut self.stream, bytes)).await;
        self.left = self.left.saturating_sub(begun.elapsed());
        read.unwrap_or(Err(End::RefusedInTls(Refusal::StartupTimeout {
            limit: self.limit,
        })))
    }

    /// Answers a request for encryption with one byte, unless the client did not wait for it.
    pub(super) async fn answer(&mut self, answer: u8, request: &'static str) -> Result<(), End> {
        if super::socket::has_bytes(&self.stream) {
            return Err(Refusal::EarlyData { request }.into());
        }
        let written = timeout(FAREWELL_TIMEOUT, self.stream.write_all(&[answer])).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(End::Gone),
        }
    }

    /// Returns when the client closes, or sends bytes although `waits_for` was not answered.
    ///
    /// Without such a request, bytes of the client say nothing and stay where they are.
    pub(super) async fn leaves(&self, waits_for: Option<&'static str>) -> End {
        match self.stream.peek(&mut [0_u8; 1]).await {
            Ok(0) | Err(_) => End::Gone,
            Ok(_) => match waits_for {
                Some(request) => Refusal::EarlyData { request }.into(),
                None => std::future::pending().await,
            },
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// The next startup packet; for direct TLS with the bytes that were read of it.
    pub(super) async fn read_startup(&mut self) -> Result<(Startup, Vec<u8>), End> {
        let begun = Instant::now();
        let packet = timeout_at(begun + self.left, read_packet(&mut self.stream)).await;
        self.left = self.left.saturating_sub(begun.elapsed());
        packet.unwrap_or_else(|_elapsed| Err(Refusal::StartupTimeout { limit: self.limit }.into()))
    }

    /// Tells the client why, and closes so that it can read it: a close with unread bytes would
    /// reset the connection and could take the message with it.
    pub(super) async fn farewell(self, end: &End) {
        match end {
            End::Gone => {}
            End::Refused(refusal) => self.close(&refusal.encode()).await,
            End::RefusedInTls(_) => self.close(&TLS_ALERT).await,
        }
    }

    /// Closes after these last words.
    pub(super) async fn close(self, words: &[u8]) {
        let _in_time = timeout(FAREWELL_TIMEOUT, async move {
            let mut stream = self.stream;
            stream.write_all(words).await?;
            stream.shutdown().await?;
            tokio::io::copy(&mut stream.take(FAREWELL_BYTES), &mut tokio::io::sink()).await
        })
        .await;
    }
}

impl Client<TlsStream<TcpStream>> {
    /// The host name that it asked for, in lower case.
    pub(super) fn server_name(&self) -> Option<String> {
        self.stream.get_ref().1.server_name().map(str::to_ascii_lowercase)
    }

    /// It has named PostgreSQL's protocol.
    pub(super) fn has_alpn(&self) -> bool {
        self.stream.get_ref().1.alpn_protocol() == Some(ALPN)
    }

    /// Returns when the client closes. What it sends meanwhile is added to `early`.
    pub(super) async fn leaves_tls(&mut self, early: &mut Vec<u8>) -> End {
        match self.stream.read_buf(early).await {
            Ok(0) | Err(_) => End::Gone,
            Ok(_) => std::future::pending().await,
        }
    }
}

async fn read_forwarded(stream: &mut TcpStream) -> Result<Option<Forwarded>, InvalidHeader> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(0) | Err(_) => Ok(None),
        Ok(_) if begins_header(first[0]) => read_header(stream).await,
        Ok(_) => Ok(Some(Forwarded::Unknown)),
    }
}

async fn read_whole_hello(
    stream: &mut TcpStream,
    mut bytes: Vec<u8>,
) -> Result<(Vec<u8>, Option<String>), End> {
    loop {
        let needed = match read_hello(&bytes) {
            Hello::Whole(name) => return Ok((bytes, name)),
            Hello::Other if bytes.first() == Some(&TLS_HANDSHAKE) => return Ok((bytes, None)),
            Hello::Other => return Err(Refusal::NotTls.into()),
            Hello::Needs(needed) => needed,
        };
        let missing = u64::try_from(needed.saturating_sub(bytes.len())).unwrap_or(0);
        match stream.take(missing).read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return Err(End::Gone),
            Ok(_) => {}
        }
    }
}

async fn read_packet<S: AsyncRead + Unpin>(stream: &mut S) -> Result<(Startup, Vec<u8>), End> {
    let mut bytes = Vec::new();
    loop {
        let needed = match parse(&bytes).map_err(Refusal::from)? {
            Parsed::Complete(startup) => return Ok((startup, bytes)),
            Parsed::Needs(needed) => needed,
        };
        let missing = u64::try_from(needed.saturating_sub(bytes.len())).unwrap_or(0);
        match stream.take(missing).read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return Err(End::Gone),
            Ok(_) => {}
        }
    }
}
