//! A client of the streaming replication protocol, physical flavour: asks an upstream who it is, keeps a slot on it.
//!
//! Source: PostgreSQL manual, "Streaming Replication Protocol" and "Message Flow". Speaks protocol 3.0, TLS by
//! `SSLRequest`, SCRAM-SHA-256 without channel binding. Trusts nothing that the other side sends: every frame,
//! exchange and wait is bounded. Never sends a password other than through SCRAM.

pub mod base_backup;
mod error;
mod frames;
mod login;
mod manifest;
mod probe;
mod wal_stream;
mod wire;

use std::time::Duration;

use bytes::Bytes;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

pub use error::UpstreamError;
pub use probe::{SlotOutcome, UpstreamFacts, ensure_slot, probe_upstream};
pub use wal_stream::WalStream;

use self::wire::Wire;
use super::Login;
use super::tls::ClientTls;
use crate::core::data_directory::SystemIdentifier;
use crate::core::supervision::Upstream;
use crate::core::units;
use crate::core::wal::{Lsn, TimelineHistory, TimelineId, WalPosition};

/// Messages in one exchange; an answer to the commands here has fewer than ten, a start-up some thirty.
const EXCHANGE_LIMIT_MESSAGES: usize = 200;

/// Rows that a command here can answer with.
const EXCHANGE_LIMIT_ROWS: usize = 4;

/// Where and as whom to connect.
#[derive(Clone, Copy)]
pub struct UpstreamAccess<'a> {
    pub upstream: &'a Upstream,
    pub login: &'a Login,
    /// What `pg_stat_replication` shows: the member's name.
    pub application_name: &'a str,
    /// Verifies the upstream's certificate against [`Upstream::host`]; clear text if `None`.
    pub tls: Option<&'a ClientTls>,
}

/// One connection to a walsender.
pub struct ReplicationClient {
    wire: Wire,
    /// For each command.
    limit: Duration,
    /// The exchange broke off in the middle: the next answer would be somebody else's.
    broken: bool,
    in_recovery: Option<bool>,
    server_version: Option<String>,
}

/// The answer to `IDENTIFY_SYSTEM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    pub system_identifier: SystemIdentifier,
    /// Current timeline and flushed position; on a standby those of what it has replayed or received.
    pub position: WalPosition,
}

/// The answer to `READ_REPLICATION_SLOT` about an existing slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysicalSlot {
    /// `None` if the slot holds no WAL back: it was never reserved, or its WAL has been removed.
    pub restart_lsn: Option<Lsn>,
    pub restart_timeline: Option<TimelineId>,
}

type Row = Vec<Option<Bytes>>;

impl ReplicationClient {
    /// Connects and logs in within `limit`, which then is the limit of each command.
    pub async fn connect(access: &UpstreamAccess<'_>, limit: Duration) -> Result<Self, UpstreamError> {
        Self::open(access, None, limit).await
    }

    /// As [`Self::connect`], to a walsender that also runs simple SQL in `database`; see [`Self::text`].
    pub(super) async fn connect_to_database(
        access: &UpstreamAccess<'_>,
        database: &str,
        limit: Duration,
    ) -> Result<Self, UpstreamError> {
        Self::open(access, Some(database), limit).await
    }

    async fn open(
        access: &UpstreamAccess<'_>,
        database: Option<&str>,
        limit: Duration,
    ) -> Result<Self, UpstreamError> {
        let welcome = tokio::time::timeout(limit, login::open(access, database))
            .await
            .unwrap_or(Err(UpstreamError::TimedOut { limit }))?;
        Ok(Self {
            wire: welcome.wire,
            limit,
            broken: false,
            in_recovery: welcome.in_recovery,
            server_version: welcome.server_version,
        })
    }

    /// Whether the server was in recovery when we connected, as its parameter `in_hot_standby` said.
    #[must_use]
    pub fn in_recovery(&self) -> Option<bool> {
        self.in_recovery
    }

    /// `server_version`, e.g. `16.14`.
    #[must_use]
    pub fn server_version(&self) -> Option<&str> {
        self.server_version.as_deref()
    }

    /// `IDENTIFY_SYSTEM`.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, UpstreamError> {
        let row = self.command("IDENTIFY_SYSTEM").await?;
        Ok(SystemIdentity {
            system_identifier: SystemIdentifier(required(&row, 0, "system identifier")?),
            position: WalPosition {
                timeline: TimelineId(required(&row, 1, "timeline")?),
                lsn: required(&row, 2, "WAL position")?,
            },
        })
    }

    /// `TIMELINE_HISTORY`; timeline 1 has no history and is not asked for.
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<TimelineHistory, UpstreamError> {
        if timeline <= TimelineId(1) {
            let ancestors = Vec::new();
            return Ok(TimelineHistory { timeline, ancestors });
        }
        let row = self.command(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let content: String = required(&row, 1, "timeline history")?;
        TimelineHistory::parse(timeline, &content).map_err(|error| UpstreamError::protocol(&error))
    }

    /// `READ_REPLICATION_SLOT`; `None` if there is no such slot.
    pub async fn read_replication_slot(&mut self, name: &str) -> Result<Option<PhysicalSlot>, UpstreamError> {
        let name = quoted_slot(name)?;
        let row = self.command(&format!("READ_REPLICATION_SLOT {name}")).await?;
        if optional::<String>(&row, 0, "slot type")?.is_none() {
            return Ok(None);
        }
        Ok(Some(PhysicalSlot {
            restart_lsn: optional(&row, 1, "restart position")?,
            restart_timeline: optional(&row, 2, "restart timeline")?.map(TimelineId),
        }))
    }

    /// `CREATE_REPLICATION_SLOT`, physical, permanent, holding WAL back from now on.
    pub async fn create_replication_slot(&mut self, name: &str) -> Result<(), UpstreamError> {
        let name = quoted_slot(name)?;
        let command = format!("CREATE_REPLICATION_SLOT {name} PHYSICAL (RESERVE_WAL)");
        self.command(&command).await.map(|_| ())
    }

    /// `DROP_REPLICATION_SLOT`; PostgreSQL refuses that for a slot in use.
    pub async fn drop_replication_slot(&mut self, name: &str) -> Result<(), UpstreamError> {
        let name = quoted_slot(name)?;
        let command = format!("DROP_REPLICATION_SLOT {name}");
        self.exchange(&command).await.map(|_| ())
    }

    /// `SHOW wal_segment_size`, in bytes.
    pub async fn wal_segment_size_bytes(&mut self) -> Result<u64, UpstreamError> {
        let row = self.command("SHOW wal_segment_size").await?;
        let text: String = required(&row, 0, "wal_segment_size")?;
        units::bytes(&text).map_err(|_| UpstreamError::unreadable("wal_segment_size", &text))
    }

    /// `SHOW summarize_wal`; ask only a server that has it (17 and later).
    pub async fn summarizes_wal(&mut self) -> Result<bool, UpstreamError> {
        let row = self.command("SHOW summarize_wal").await?;
        Ok(required::<String>(&row, 0, "summarize_wal")? == "on")
    }

    /// The one value that an SQL query yields; `None` for NULL.
    pub(super) async fn text(&mut self, query: &str) -> Result<Option<String>, UpstreamError> {
        let row = self.command(query).await?;
        optional(&row, 0, "text")
    }

    /// Runs a statement that yields nothing.
    pub(super) async fn execute(&mut self, statement: &str) -> Result<(), UpstreamError> {
        self.exchange(statement).await.map(drop)
    }

    /// Says goodbye; dropping the client without it is also fine.
    pub async fn close(mut self) {
        frontend::terminate(self.wire.outgoing());
        // The server's opinion of our leaving does not matter.
        drop(tokio::time::timeout(self.limit, self.wire.send()).await);
    }

    /// A command that answers with one row.
    async fn command(&mut self, command: &str) -> Result<Row, UpstreamError> {
        let mut rows = self.exchange(command).await?;
        rows.pop().ok_or_else(|| UpstreamError::Protocol {
            detail: "no row came back".to_owned(),
        })
    }

    async fn exchange(&mut self, command: &str) -> Result<Vec<Row>, UpstreamError> {
        if self.broken {
            return Err(UpstreamError::Closed);
        }
        self.broken = true;
        let limit = self.limit;
        let rows = tokio::time::timeout(limit, self.query(command))
            .await
            .unwrap_or(Err(UpstreamError::TimedOut { limit }))??;
        Ok(rows)
    }

    /// The inner result is the server's own error after which the connection goes on.
    async fn query(&mut self, command: &str) -> Result<Result<Vec<Row>, UpstreamError>, UpstreamError> {
        frontend::query(command, self.wire.outgoing()).map_err(|error| UpstreamError::protocol(&error))?;
        self.wire.send().await?;
        let mut rows = Vec::new();
        let mut failure = None;
        for _ in 0..EXCHANGE_LIMIT_MESSAGES {
            match self.wire.receive().await? {
                Message::DataRow(body) if rows.len() < EXCHANGE_LIMIT_ROWS => rows.push(wire::cells(&body)?),
                Message::ErrorResponse(body) => failure = Some(error::reported(&body)),
                Message::ReadyForQuery(_) => {
                    self.broken = false;
                    return Ok(failure.map_or(Ok(rows), Err));
                }
                Message::RowDescription(_)
                | Message::CommandComplete(_)
                | Message::NoticeResponse(_)
                | Message::ParameterStatus(_) => {}
                _ => return Err(failure.unwrap_or_else(UpstreamError::unexpected_message)),
            }
        }
        Err(UpstreamError::unexpected_message())
    }
}

/// A slot's name as replication commands take it.
fn quoted_slot(name: &str) -> Result<String, UpstreamError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if (1..=63).contains(&name.len()) && name.bytes().all(allowed) {
        Ok(format!("\"{name}\""))
    } else {
        Err(UpstreamError::InvalidSlotName {
            name: name.to_owned(),
        })
    }
}

fn optional<T: std::str::FromStr>(
    row: &Row,
    column: usize,
    what: &'static str,
) -> Result<Option<T>, UpstreamError> {
    let Some(cell) = row.get(column).and_then(Option::as_ref) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(cell);
    text.parse()
        .map(Some)
        .map_err(|_| UpstreamError::unreadable(what, &text))
}

fn required<T: std::str::FromStr>(row: &Row, column: usize, what: &'static str) -> Result<T, UpstreamError> {
    optional(row, column, what)?.ok_or_else(|| UpstreamError::unreadable(what, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_slot_name_goes_into_a_command() {
        assert!(quoted_slot("podgres_pg_0").is_ok());
        for name in [
            "",
            "A",
            "a b",
            "a\"; DROP_REPLICATION_SLOT b",
            "a-b",
            &"a".repeat(64),
        ] {
            assert!(quoted_slot(name).is_err(), "{name:?}");
        }
    }
}
