//! Physical streaming: WAL comes, standby status updates go. The WAL itself is thrown away.
//!
//! Source: PostgreSQL manual, "Streaming Replication Protocol", `START_REPLICATION` and `Standby status update`. Never
//! queues an update: it is with the kernel, whole, when the call returns, or it was not made.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::frames::Frames;
use super::{EXCHANGE_LIMIT_MESSAGES, ReplicationClient, UpstreamError, error};
use crate::core::wal::{Lsn, WalPosition};

/// `Terminate`.
const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];

/// PostgreSQL counts time from the year 2000.
const POSTGRES_EPOCH: Duration = Duration::from_hours(24 * 10_957);

const STATUS_UPDATE_BYTES: usize = 39;

/// A walsender that streams to us.
pub struct WalStream {
    stream: TcpStream,
    frames: Frames,
}

impl ReplicationClient {
    /// `START_REPLICATION` without a slot, from a position that the server has flushed.
    ///
    /// # Errors
    /// Among others: the server does not have that WAL, or the connection is not in clear.
    pub async fn start_replication(mut self, from: WalPosition) -> Result<WalStream, UpstreamError> {
        let limit = self.limit;
        tokio::time::timeout(limit, self.copy_both(from))
            .await
            .unwrap_or(Err(UpstreamError::TimedOut { limit }))?;
        let (stream, unread) = self.wire.into_clear().ok_or_else(UpstreamError::encrypted)?;
        let mut frames = Frames::new(from.lsn, &unread)?;
        frames.read(0)?;
        Ok(WalStream { stream, frames })
    }

    async fn copy_both(&mut self, from: WalPosition) -> Result<(), UpstreamError> {
        let command = format!(
            "START_REPLICATION PHYSICAL {} TIMELINE {}",
            from.lsn, from.timeline
        );
        frontend::query(&command, self.wire.outgoing()).map_err(|error| UpstreamError::protocol(&error))?;
        self.wire.send().await?;
        for _ in 0..EXCHANGE_LIMIT_MESSAGES {
            match self.wire.receive_or_copy_both().await? {
                None => return Ok(()),
                Some(Message::ErrorResponse(body)) => return Err(error::reported(&body)),
                Some(Message::NoticeResponse(_) | Message::ParameterStatus(_)) => {}
                Some(_) => return Err(UpstreamError::unexpected_message()),
            }
        }
        Err(UpstreamError::unexpected_message())
    }
}

impl WalStream {
    /// Up to where WAL has come, in whole messages.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.frames.position()
    }

    /// Waits for more, without a limit; says whether the walsender asks for a reply. May be given up at any time.
    ///
    /// # Errors
    /// The stream has ended: [`UpstreamError::Closed`], or what the server said.
    pub async fn receive(&mut self) -> Result<bool, UpstreamError> {
        let received = self.stream.read(self.frames.room()).await;
        match received.map_err(|_| UpstreamError::Closed)? {
            0 => Err(UpstreamError::Closed),
            bytes => self.frames.read(bytes),
        }
    }

    /// Tells the walsender that everything up to `position` is written, flushed and applied; position 0 confirms nothing.
    ///
    /// `false` if the kernel takes nothing now.
    ///
    /// # Errors
    /// The stream has ended, or stands still in the middle of an update.
    pub fn try_confirm(&self, position: Lsn) -> Result<bool, UpstreamError> {
        match self.stream.try_write(&status_update(position)) {
            Ok(STATUS_UPDATE_BYTES) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
            Ok(_) | Err(_) => Err(UpstreamError::Closed),
        }
    }

    /// Ends the stream and waits until the walsender is gone: PostgreSQL leaves a connection open until its process
    /// has ended. May be given up and called again.
    pub async fn end(&mut self) {
        // Whoever does not read any more need not be told either.
        drop(self.stream.try_write(&TERMINATE));
        drop(self.stream.shutdown().await);
        let mut unwanted = [0; 8 << 10];
        while !matches!(self.stream.read(&mut unwanted).await, Ok(0) | Err(_)) {}
    }
}

fn status_update(position: Lsn) -> [u8; STATUS_UPDATE_BYTES] {
    let position = position.0.to_be_bytes();
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = since_1970.saturating_sub(POSTGRES_EPOCH).as_micros();
    let time = u64::try_from(time).unwrap_or(0).to_be_bytes();
    let mut update = [0; STATUS_UPDATE_BYTES];
    update[..6].copy_from_slice(&[b'd', 0, 0, 0, 38, b'r']);
    for (field, value) in update[6..38]
        .chunks_exact_mut(8)
        .zip([position, position, position, time])
    {
        field.copy_from_slice(&value);
    }
    update
}
