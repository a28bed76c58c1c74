//! `UPLOAD_MANIFEST`: tells the server what an incremental backup adds to (17 and later).
//!
//! Source: PostgreSQL manual, "Streaming Replication Protocol". The manifest goes by pieces, so that it is never in memory as
//! a whole.

use std::time::Duration;

use bytes::Bytes;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::sync::mpsc;

use super::{EXCHANGE_LIMIT_MESSAGES, ReplicationClient, UpstreamError, error};

/// For the whole, and for the server's own look at it.
const LIMIT: Duration = Duration::from_mins(10);

impl ReplicationClient {
    /// Sends a manifest; the connection's next base backup adds to it.
    ///
    /// # Errors
    /// Among others: the server does not know the command, or finds the manifest no good.
    pub async fn upload_manifest(&mut self, pieces: mpsc::Receiver<Bytes>) -> Result<(), UpstreamError> {
        self.broken = true;
        let late = UpstreamError::TimedOut { limit: LIMIT };
        tokio::time::timeout(LIMIT, self.send_manifest(pieces))
            .await
            .unwrap_or(Err(late))?;
        self.broken = false;
        Ok(())
    }

    async fn send_manifest(&mut self, mut pieces: mpsc::Receiver<Bytes>) -> Result<(), UpstreamError> {
        let failed = |error: std::io::Error| UpstreamError::protocol(&error);
        frontend::query("UPLOAD_MANIFEST", self.wire.outgoing()).map_err(failed)?;
        self.wire.send().await?;
        self.answer(|message| matches!(message, Message::CopyInResponse(_)))
            .await?;
        while let Some(piece) = pieces.recv().await {
            frontend::CopyData::new(piece)
                .map_err(failed)?
                .write(self.wire.outgoing());
            self.wire.send().await?;
        }
        frontend::copy_done(self.wire.outgoing());
        self.wire.send().await?;
        self.answer(|message| matches!(message, Message::ReadyForQuery(_)))
            .await
    }

    async fn answer(&mut self, is_end: impl Fn(&Message) -> bool) -> Result<(), UpstreamError> {
        for _ in 0..EXCHANGE_LIMIT_MESSAGES {
            match self.wire.receive().await? {
                Message::ErrorResponse(body) => return Err(error::reported(&body)),
                message if is_end(&message) => return Ok(()),
                Message::CommandComplete(_) | Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
                _ => break,
            }
        }
        Err(UpstreamError::unexpected_message())
    }
}
