//! What the routes ask of the local server, as superuser, on a connection of their own: how far it is, and to end
//! idle sessions. Each question has a time limit, and one that runs into it drops the connection.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, NoTls, Row};
use tokio_util::task::AbortOnDropHandle;

use super::ReadLogins;
use super::query::{QueryError, configuration};
use crate::core::operate::{EndedSessions, Ending};
use crate::core::routing::freshness::Position;
use crate::core::wal::{Lsn, TimelineId};

const LIMIT: Duration = Duration::from_millis(800);
/// After a connection that could not be made or was lost: logging in costs the server more than an answer.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// Positions first: what is asked later is on the disk of a primary that has acknowledged it.
const POSITION: &str = "
SELECT in_recovery,
       CASE WHEN in_recovery THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END AS lsn,
       CASE WHEN NOT in_recovery THEN pg_current_wal_insert_lsn() END AS insert_lsn,
       CASE WHEN NOT in_recovery THEN left(pg_walfile_name(pg_current_wal_flush_lsn()), 8) END AS primary_timeline,
       coalesce(receiver.received_tli, (SELECT timeline_id FROM pg_control_checkpoint())) AS timeline,
       coalesce(receiver.status = 'streaming', false) AS streaming
FROM (SELECT pg_is_in_recovery() AS in_recovery OFFSET 0) server
LEFT JOIN LATERAL (SELECT status, received_tli FROM pg_stat_wal_receiver WHERE in_recovery) receiver ON true";

const REPLAYED: &str = "
SELECT CASE WHEN in_recovery THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END AS lsn
FROM (SELECT pg_is_in_recovery() AS in_recovery OFFSET 0) server";

/// `idle` is outside of a transaction, with everything that was read answered; but not in the moment between two
/// transactions that were sent ahead. A session that has just changed its state, or is active without waiting for its client, goes on by itself.
/// Just now is by the time before anything was looked at, and never in the future: the clock may have been set back.
/// One that streams WAL is in no transaction, and would go on until the server stops; a base backup is left to come to its end.
/// Materialised, since a planner that ends sessions before it looks at the other conditions would end all of them.
/// All: a server sees that its client has gone only when it next sends something; a long statement would go on, and commit.
const END: &str = "
WITH named AS MATERIALIZED (
    SELECT pid, host(client_addr) AS address, client_port, state, wait_event,
           state_change BETWEEN statement_timestamp() - interval '2 milliseconds' AND clock_timestamp() AS just_now,
           backend_type = 'walsender' AND query ~* '^\\s*START_REPLICATION\\M' AS streams
    FROM pg_stat_activity
    WHERE backend_type IN ('client backend', 'walsender')
      AND (host(client_addr), client_port) IN (SELECT * FROM unnest($1::text[], $2::int4[])))
SELECT address, client_port,
       CASE WHEN streams OR $3::text = 'all' OR ($3 = 'idle' AND state = 'idle' AND NOT just_now)
            THEN pg_terminate_backend(pid) ELSE false END AS ended,
       just_now OR (state = 'active' AND coalesce(wait_event, '') NOT IN ('ClientRead', 'ClientWrite')) AS working
FROM named";

enum Question<'a> {
    Position,
    Replayed,
    /// Of these clients' sessions.
    End(&'a [SocketAddr], Ending),
}

/// The local server.
pub struct RoutedServer {
    address: SocketAddr,
    logins: ReadLogins,
    session: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    session: Option<Session>,
    /// The last login.
    connected_at: Option<Instant>,
}

struct Session {
    client: Client,
    _driver: AbortOnDropHandle<()>,
}

impl RoutedServer {
    /// Connects with the first question.
    #[must_use]
    pub fn new(address: SocketAddr, logins: ReadLogins) -> Self {
        Self {
            address,
            logins,
            session: Mutex::default(),
        }
    }

    /// How far it is. Whether it is the primary by right is not known here: `primary` says that it is not in recovery.
    ///
    /// # Errors
    /// It cannot be asked, or does not answer in time.
    pub async fn position(&self) -> Result<Position, QueryError> {
        let rows = self.ask(Question::Position).await?;
        let row = rows.first().ok_or_else(|| unexpected("no row"))?;
        read_position(row)
    }

    /// What it has replayed; on a primary, all that there is.
    ///
    /// # Errors
    /// As [`RoutedServer::position`].
    pub async fn replayed(&self) -> Result<Lsn, QueryError> {
        let rows = self.ask(Question::Replayed).await?;
        let row = rows.first().ok_or_else(|| unexpected("no row"))?;
        Ok(lsn(row, "lsn")?.unwrap_or_default())
    }

    /// Ends those of these clients' sessions that `which` says.
    ///
    /// # Errors
    /// As [`RoutedServer::position`].
    pub async fn end_sessions(
        &self,
        clients: &[SocketAddr],
        which: Ending,
    ) -> Result<EndedSessions, QueryError> {
        let rows = self.ask(Question::End(clients, which)).await?;
        let of = |column: &str| {
            let is = |row: &&Row| row.try_get(column).is_ok_and(|is: Option<bool>| is == Some(true));
            rows.iter().filter(is).filter_map(client_of).collect()
        };
        Ok(EndedSessions {
            ended: of("ended"),
            working: of("working"),
        })
    }

    async fn ask(&self, question: Question<'_>) -> Result<Vec<Row>, QueryError> {
        let late = |_| QueryError::TimedOut { limit: LIMIT };
        tokio::time::timeout(LIMIT, self.ask_without_limit(question))
            .await
            .map_err(late)?
    }

    async fn ask_without_limit(&self, question: Question<'_>) -> Result<Vec<Row>, QueryError> {
        let mut kept = self.session.lock().await;
        // Taken out, so that a question that is given up drops it.
        let open = kept.session.take().filter(|session| !session.client.is_closed());
        let session = match open {
            Some(session) => session,
            None => self.connect(&mut kept).await?,
        };
        let rows = match question {
            Question::Position => session.client.query_typed(POSITION, &[]).await,
            Question::Replayed => session.client.query_typed(REPLAYED, &[]).await,
            Question::End(clients, which) => end(&session.client, clients, which).await,
        };
        if rows.is_ok() {
            kept.session = Some(session);
        }
        Ok(rows?)
    }

    async fn connect(&self, kept: &mut Kept) -> Result<Session, QueryError> {
        if kept.connected_at.is_some_and(|at| at.elapsed() < RECONNECT_PAUSE) {
            return Err(unexpected("the connection has just been lost"));
        }
        kept.connected_at = Some(Instant::now());
        let (superuser, _) = (self.logins)().map_err(|why| unexpected(&why))?;
        let connecting = configuration(self.address, &superuser).connect(NoTls).await;
        let (client, connection) = connecting.map_err(|source| QueryError::Unreachable {
            address: self.address,
            source,
        })?;
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Session {
            client,
            _driver: AbortOnDropHandle::new(driver),
        })
    }
}

fn client_of(row: &Row) -> Option<SocketAddr> {
    let address: String = row.try_get("address").ok()?;
    let port: i32 = row.try_get("client_port").ok()?;
    let address: IpAddr = address.parse().ok()?;
    Some(SocketAddr::new(address, u16::try_from(port).ok()?))
}

async fn end(
    client: &Client,
    clients: &[SocketAddr],
    which: Ending,
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let addresses: Vec<String> = clients
        .iter()
        .map(|client| client.ip().to_canonical().to_string())
        .collect();
    let ports: Vec<i32> = clients.iter().map(|client| i32::from(client.port())).collect();
    let which = match which {
        Ending::Idle => "idle",
        Ending::Streaming => "streaming",
        Ending::All => "all",
    };
    client.query(END, &[&addresses, &ports, &which]).await
}

fn read_position(row: &Row) -> Result<Position, QueryError> {
    let in_recovery: bool = get(row, "in_recovery")?;
    let position = lsn(row, "lsn")?.unwrap_or_default();
    let written: Option<String> = get(row, "primary_timeline")?;
    if let (false, Some(digits)) = (in_recovery, written) {
        let timeline = u32::from_str_radix(&digits, 16).map_err(|error| unexpected(&error.to_string()))?;
        let insert_lsn = lsn(row, "insert_lsn")?.unwrap_or_default();
        return Ok(Position::of_primary(TimelineId(timeline), position, insert_lsn));
    }
    let timeline: i32 = get(row, "timeline")?;
    Ok(Position {
        timeline: TimelineId(timeline.cast_unsigned()),
        lsn: position,
        primary: false,
        streaming: get(row, "streaming")?,
        measured: None,
    })
}

fn lsn(row: &Row, column: &str) -> Result<Option<Lsn>, QueryError> {
    Ok(get::<Option<PgLsn>>(row, column)?.map(|lsn| Lsn(u64::from(lsn))))
}

fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, column: &str) -> Result<T, QueryError> {
    row.try_get(column)
        .map_err(|error| unexpected(&error.to_string()))
}

fn unexpected(detail: &str) -> QueryError {
    QueryError::Unexpected {
        detail: detail.to_owned(),
    }
}
