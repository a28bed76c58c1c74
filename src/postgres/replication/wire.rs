//! Frames over a stream: one message out, one message in, each of bounded size.

use bytes::{Buf, Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, Header, Message};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::error::UpstreamError;

/// Before the login; libpq allows 30000 bytes for an error message.
const LOGIN_FRAME_LIMIT_BYTES: usize = 32 << 10;

/// After the login: a timeline history may have thousands of lines; WAL comes in pieces of 128 KiB.
const FRAME_LIMIT_BYTES: usize = 1 << 20;

const READ_BYTES: usize = 8 << 10;

/// While a base backup comes.
const BULK_READ_BYTES: usize = 256 << 10;

/// The answer to `START_REPLICATION`, which [`Message`] does not know.
const COPY_BOTH_RESPONSE_TAG: u8 = b'W';

/// Clear or TLS.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {
    /// The socket itself; `None` if it is not in clear.
    fn into_clear(self: Box<Self>) -> Option<TcpStream>;
}

impl Duplex for TcpStream {
    fn into_clear(self: Box<Self>) -> Option<TcpStream> {
        Some(*self)
    }
}

impl Duplex for TlsStream<TcpStream> {
    fn into_clear(self: Box<Self>) -> Option<TcpStream> {
        None
    }
}

pub(super) struct Wire {
    stream: Box<dyn Duplex>,
    incoming: BytesMut,
    outgoing: BytesMut,
    frame_limit_bytes: usize,
    read_bytes: usize,
}

impl Wire {
    pub(super) fn new(stream: Box<dyn Duplex>) -> Self {
        Self {
            stream,
            incoming: BytesMut::new(),
            outgoing: BytesMut::new(),
            frame_limit_bytes: LOGIN_FRAME_LIMIT_BYTES,
            read_bytes: READ_BYTES,
        }
    }

    /// The server has shown that it knows us: larger frames from now on.
    pub(super) fn logged_in(&mut self) {
        self.frame_limit_bytes = FRAME_LIMIT_BYTES;
    }

    /// Much is to come: larger reads from now on.
    pub(super) fn bulk(&mut self) {
        self.read_bytes = BULK_READ_BYTES;
    }

    /// Where `frontend` functions write what [`Wire::send`] then sends.
    pub(super) fn outgoing(&mut self) -> &mut BytesMut {
        &mut self.outgoing
    }

    pub(super) async fn send(&mut self) -> Result<(), UpstreamError> {
        while self.outgoing.has_remaining() {
            let sent = self.stream.write_buf(&mut self.outgoing).await;
            if sent.map_err(|error| broken(&error))? == 0 {
                return Err(UpstreamError::Closed);
            }
        }
        self.stream.flush().await.map_err(|error| broken(&error))
    }

    /// The next message. Nothing is lost if this is given up half-way and called again.
    pub(super) async fn receive(&mut self) -> Result<Message, UpstreamError> {
        self.fill().await?;
        Message::parse(&mut self.incoming)
            .map_err(|error| UpstreamError::protocol(&error))?
            .ok_or_else(UpstreamError::unexpected_message)
    }

    /// As [`Wire::receive`]; `None` is `CopyBothResponse`.
    pub(super) async fn receive_or_copy_both(&mut self) -> Result<Option<Message>, UpstreamError> {
        self.fill().await?;
        match Header::parse(&self.incoming) {
            Ok(Some(header)) if header.tag() == COPY_BOTH_RESPONSE_TAG => {
                let length = usize::try_from(header.len()).unwrap_or(0);
                self.incoming.advance(1 + length);
                Ok(None)
            }
            _ => self.receive().await.map(Some),
        }
    }

    /// The socket and what was received from it and not yet read; `None` if it is not in clear.
    pub(super) fn into_clear(self) -> Option<(TcpStream, BytesMut)> {
        Some((self.stream.into_clear()?, self.incoming))
    }

    /// Waits until a whole frame has been received.
    async fn fill(&mut self) -> Result<(), UpstreamError> {
        while !self.frame_complete()? {
            self.incoming.reserve(self.read_bytes);
            let received = self.stream.read_buf(&mut self.incoming).await;
            if received.map_err(|error| broken(&error))? == 0 {
                return Err(UpstreamError::Closed);
            }
        }
        Ok(())
    }

    fn frame_complete(&self) -> Result<bool, UpstreamError> {
        let header = Header::parse(&self.incoming).map_err(|error| UpstreamError::protocol(&error))?;
        let Some(header) = header else {
            return Ok(false);
        };
        let length = usize::try_from(header.len()).unwrap_or(usize::MAX);
        if length > self.frame_limit_bytes {
            return Err(UpstreamError::Protocol {
                detail: format!("a message of {length} bytes was announced"),
            });
        }
        Ok(self.incoming.len() > length)
    }
}

/// The cells of a row; `None` is SQL's null.
pub(super) fn cells(body: &DataRowBody) -> Result<Vec<Option<Bytes>>, UpstreamError> {
    let mut cells = Vec::new();
    let mut ranges = body.ranges();
    while let Some(range) = ranges.next().map_err(|error| UpstreamError::protocol(&error))? {
        let cell = range.map(|range| body.buffer_bytes().get(range).map(Bytes::copy_from_slice));
        match cell {
            Some(None) => return Err(UpstreamError::unexpected_message()),
            Some(Some(bytes)) => cells.push(Some(bytes)),
            None => cells.push(None),
        }
    }
    Ok(cells)
}

/// A stream that fails once it is open; TLS reports broken records as invalid data.
fn broken(error: &std::io::Error) -> UpstreamError {
    match error.kind() {
        std::io::ErrorKind::InvalidData => UpstreamError::protocol(error),
        _ => UpstreamError::Closed,
    }
}
