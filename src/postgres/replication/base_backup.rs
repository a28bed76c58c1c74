//! `BASE_BACKUP`: the server's files as tar archives, its WAL and its manifest, over one connection.
//!
//! Source: PostgreSQL manual, "Streaming Replication Protocol", `BASE_BACKUP` (the form of version 15 and later). A
//! temporary slot of the same connection keeps the WAL that the backup needs until it has been sent. Never writes a file.

use std::time::Duration;

use bytes::{Buf as _, Bytes};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::{ReplicationClient, Row, UpstreamError, error, required, wire};
use crate::core::wal::{Lsn, TimelineId, WalPosition};

/// The checkpoint before the first byte; on a standby the restartpoint.
const CHECKPOINT_LIMIT: Duration = Duration::from_mins(30);
/// Between two pieces, also on a slow disk or with a low rate.
const SILENCE_LIMIT: Duration = Duration::from_mins(5);
const MOST_TABLESPACES: usize = 10_000;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct BaseBackupRequest {
    /// Shown in `backup_label`.
    pub label: String,
    /// Of the temporary slot.
    pub slot: String,
    /// Only what has changed since the backup whose manifest was sent before.
    pub incremental: bool,
}

/// What comes, in this order: archives each with their data, then the manifest with its data, then the end.
#[derive(Debug)]
pub enum Piece {
    /// `None`: the data directory itself; else the tablespace's number and location.
    Archive(Option<(u32, String)>),
    Manifest,
    Data(Bytes),
    End(WalPosition),
}

/// A backup under way.
pub struct BaseBackup {
    client: ReplicationClient,
    /// Where replay begins.
    pub start: WalPosition,
    /// What the server thinks the files come to.
    pub estimate_bytes: u64,
    /// The answer's second half: no more data.
    data_ended: bool,
    stop: Option<Row>,
}

impl ReplicationClient {
    /// Begins; returns after the checkpoint.
    ///
    /// # Errors
    /// Among others: no walsender or slot is left, or the server is older than 15.
    pub async fn base_backup(mut self, request: &BaseBackupRequest) -> Result<BaseBackup, UpstreamError> {
        let slot = super::quoted_slot(&request.slot)?;
        self.exchange(&format!(
            "CREATE_REPLICATION_SLOT {slot} TEMPORARY PHYSICAL (RESERVE_WAL)"
        ))
        .await?;
        self.wire.bulk();
        let command = command(request);
        frontend::query(&command, self.wire.outgoing()).map_err(|error| UpstreamError::protocol(&error))?;
        self.wire.send().await?;
        let head = tokio::time::timeout(CHECKPOINT_LIMIT, self.backup_head());
        let (start, estimate_bytes) = head.await.unwrap_or(Err(UpstreamError::TimedOut {
            limit: CHECKPOINT_LIMIT,
        }))?;
        Ok(BaseBackup {
            client: self,
            start,
            estimate_bytes,
            data_ended: false,
            stop: None,
        })
    }

    /// The start position, the tablespaces with their sizes, and `CopyOutResponse`.
    async fn backup_head(&mut self) -> Result<(WalPosition, u64), UpstreamError> {
        let mut start = None;
        let mut estimate_kilobytes = 0;
        for _ in 0..MOST_TABLESPACES {
            match self.wire.receive().await? {
                Message::DataRow(body) if start.is_none() => start = Some(position(&wire::cells(&body)?)?),
                Message::DataRow(body) => {
                    estimate_kilobytes +=
                        required::<u64>(&wire::cells(&body)?, 2, "tablespace size").unwrap_or(0);
                }
                Message::CopyOutResponse(_) => {
                    let start = start.ok_or_else(UpstreamError::unexpected_message)?;
                    return Ok((start, estimate_kilobytes << 10));
                }
                Message::ErrorResponse(body) => return Err(error::reported(&body)),
                Message::RowDescription(_)
                | Message::CommandComplete(_)
                | Message::NoticeResponse(_)
                | Message::ParameterStatus(_) => {}
                _ => return Err(UpstreamError::unexpected_message()),
            }
        }
        Err(UpstreamError::unexpected_message())
    }
}

fn command(request: &BaseBackupRequest) -> String {
    let label = request.label.replace('\'', "''");
    let mut options = format!(
        "LABEL '{label}', PROGRESS true, CHECKPOINT 'fast', WAL true, WAIT false, TABLESPACE_MAP true, \
         MANIFEST 'yes', TARGET 'client'"
    );
    if request.incremental {
        options.push_str(", INCREMENTAL true");
    }
    format!("BASE_BACKUP ({options})")
}

fn position(row: &Row) -> Result<WalPosition, UpstreamError> {
    let lsn: Lsn = required(row, 0, "WAL position")?;
    Ok(WalPosition {
        timeline: TimelineId(required(row, 1, "timeline")?),
        lsn,
    })
}

impl BaseBackup {
    /// The next piece; nothing comes after [`Piece::End`].
    ///
    /// # Errors
    /// The server broke off, e.g. because it was promoted or stopped, or sent nothing for five minutes.
    pub async fn next(&mut self) -> Result<Piece, UpstreamError> {
        loop {
            let message = tokio::time::timeout(SILENCE_LIMIT, self.client.wire.receive()).await;
            match message.unwrap_or(Err(UpstreamError::TimedOut { limit: SILENCE_LIMIT }))? {
                Message::CopyData(body) if !self.data_ended => {
                    if let Some(piece) = piece(body.into_bytes())? {
                        return Ok(piece);
                    }
                }
                Message::CopyDone if !self.data_ended => self.data_ended = true,
                Message::DataRow(body) if self.data_ended => self.stop = Some(wire::cells(&body)?),
                Message::ReadyForQuery(_) => {
                    let stop = self.stop.take().ok_or_else(UpstreamError::unexpected_message)?;
                    return Ok(Piece::End(position(&stop)?));
                }
                Message::ErrorResponse(body) => return Err(error::reported(&body)),
                Message::RowDescription(_)
                | Message::CommandComplete(_)
                | Message::NoticeResponse(_)
                | Message::ParameterStatus(_) => {}
                _ => return Err(UpstreamError::unexpected_message()),
            }
        }
    }
}

/// The content of a `CopyData`; `None` for a progress report.
fn piece(mut body: Bytes) -> Result<Option<Piece>, UpstreamError> {
    let unexpected = UpstreamError::unexpected_message;
    if body.is_empty() {
        return Err(unexpected());
    }
    match body.get_u8() {
        b'd' => Ok(Some(Piece::Data(body))),
        b'm' => Ok(Some(Piece::Manifest)),
        b'p' => Ok(None),
        b'n' => {
            let mut texts = body
                .split(|byte| *byte == 0)
                .map(|text| String::from_utf8_lossy(text).into_owned());
            let name = texts.next().ok_or_else(unexpected)?;
            let location = texts.next().unwrap_or_default();
            if location.is_empty() {
                return Ok(Some(Piece::Archive(None)));
            }
            let oid = name
                .strip_suffix(".tar")
                .and_then(|oid| oid.parse().ok())
                .ok_or_else(unexpected)?;
            Ok(Some(Piece::Archive(Some((oid, location)))))
        }
        _ => Err(unexpected()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_leave_its_quotes() {
        let request = BaseBackupRequest {
            label: "it's', WAL false".to_owned(),
            ..BaseBackupRequest::default()
        };
        let command = command(&request);
        assert!(
            command.starts_with("BASE_BACKUP (LABEL 'it''s'', WAL false', PROGRESS"),
            "{command}"
        );
        assert!(command.ends_with("TARGET 'client')"), "{command}");
    }

    #[test]
    fn pieces() {
        let of = |bytes: &'static [u8]| piece(Bytes::from_static(bytes));
        assert!(matches!(of(b"nbase.tar\0\0"), Ok(Some(Piece::Archive(None)))));
        let Ok(Some(Piece::Archive(Some((oid, location))))) = of(b"n16400.tar\0/mnt/fast\0") else {
            panic!("no tablespace");
        };
        assert_eq!((oid, location.as_str()), (16_400, "/mnt/fast"));
        assert!(matches!(of(b"dxyz"), Ok(Some(Piece::Data(data))) if data.as_ref() == b"xyz"));
        assert!(matches!(of(b"p\0\0\0\0\0\0\0\x01"), Ok(None)));
        for bad in [b"".as_slice(), b"?", b"nx.tar\0/mnt\0"] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }
}
