//! A superuser's SQL session with any server of the cluster, or with a scratch server over its socket.
//!
//! Knows nothing of what is asked; see [`super::table_facts`]. Dropping it ends the session.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::config::SslMode;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls, Row};
use tokio_util::task::AbortOnDropHandle;

use super::Login;
use super::tls::ClientTls;
use crate::core::wal::Lsn;

/// How rows look as text must not depend on the role's or the database's own settings.
const OPTIONS: &str = "-c statement_timeout=0 -c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0 \
    -c lock_timeout=60s -c log_statement=none -c search_path=pg_catalog -c TimeZone=UTC -c DateStyle=ISO,YMD \
    -c IntervalStyle=postgres -c extra_float_digits=1 -c lc_monetary=C -c bytea_output=hex -c xmlbinary=base64 \
    -c row_security=off -c jit=off -c synchronous_commit=local -c default_transaction_read_only=off";
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Address {
    Tcp {
        host: String,
        address: IpAddr,
        port: u16,
    },
    /// The folder of its socket.
    Socket { folder: PathBuf, port: u16 },
}

/// Why a server did not answer.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("could not connect to database \"{database}\"")]
    Connect {
        database: String,
        source: tokio_postgres::Error,
    },
    #[error("could not {action}")]
    Query {
        action: &'static str,
        source: tokio_postgres::Error,
    },
    #[error("could not {action} within {} s", limit.as_secs())]
    TimedOut { action: &'static str, limit: Duration },
}

impl SessionError {
    /// Ended because replay on a standby needed what the session was using (SQLSTATE 40001, or 40P01 from locks).
    #[must_use]
    pub fn conflict(&self) -> bool {
        let (Self::Query { source, .. } | Self::Connect { source, .. }) = self else {
            return false;
        };
        source
            .as_db_error()
            .is_some_and(|error| matches!(error.code().code(), "40001" | "40P01" | "57P01"))
    }
}

/// Whom to log in as, and where.
#[derive(Clone, Copy)]
pub struct Access<'a> {
    pub address: &'a Address,
    pub login: &'a Login,
    pub tls: Option<&'a ClientTls>,
    pub application_name: &'a str,
}

/// One session.
pub struct Session {
    client: Client,
    _driver: AbortOnDropHandle<()>,
}

impl Session {
    /// Connects within `limit`.
    pub async fn connect(access: &Access<'_>, database: &str, limit: Duration) -> Result<Self, SessionError> {
        let failed = |source| SessionError::Connect {
            database: database.to_owned(),
            source,
        };
        let late = |_| SessionError::TimedOut {
            action: "connect",
            limit,
        };
        let config = config(access, database);
        match access.tls {
            None => {
                let connected = tokio::time::timeout(limit, config.connect(NoTls)).await;
                let (client, connection) = connected.map_err(late)?.map_err(failed)?;
                Ok(Self {
                    client,
                    _driver: AbortOnDropHandle::new(tokio::spawn(async { drop(connection.await) })),
                })
            }
            Some(tls) => {
                let connected = tokio::time::timeout(limit, config.connect(tls.postgres_connector())).await;
                let (client, connection) = connected.map_err(late)?.map_err(failed)?;
                Ok(Self {
                    client,
                    _driver: AbortOnDropHandle::new(tokio::spawn(async { drop(connection.await) })),
                })
            }
        }
    }

    /// Runs statements that yield nothing.
    pub async fn execute(&self, action: &'static str, sql: &str) -> Result<(), SessionError> {
        self.client
            .batch_execute(sql)
            .await
            .map_err(|source| SessionError::Query { action, source })
    }

    pub(super) async fn rows(
        &self,
        action: &'static str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, SessionError> {
        self.client
            .query(sql, parameters)
            .await
            .map_err(|source| SessionError::Query { action, source })
    }

    /// The one text that a query yields.
    pub async fn text(&self, action: &'static str, sql: &str) -> Result<String, SessionError> {
        let row = self
            .client
            .query_one(sql, &[])
            .await
            .map_err(|source| SessionError::Query { action, source })?;
        row.try_get(0)
            .map_err(|source| SessionError::Query { action, source })
    }

    /// Begins a transaction that sees one moment, and gives the name under which others can see the same.
    pub async fn export_snapshot(&self) -> Result<String, SessionError> {
        let action = "take a snapshot";
        self.execute(action, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await?;
        self.text(action, "SELECT pg_export_snapshot()").await
    }

    /// The end of the WAL that is visible here: what a primary has inserted, what a standby has replayed.
    pub async fn position(&self) -> Result<Lsn, SessionError> {
        let sql = "SELECT coalesce(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
                   ELSE pg_current_wal_insert_lsn() END, '0/0')::text";
        let text = self.text("ask for the WAL position", sql).await?;
        Ok(text.parse().unwrap_or_default())
    }

    /// Waits until the server shows what was written before `lsn`.
    pub async fn wait_for(&self, lsn: Lsn, limit: Duration) -> Result<(), SessionError> {
        let replayed = async {
            while self.position().await? < lsn {
                tokio::time::sleep(LOOK_PAUSE).await;
            }
            Ok(())
        };
        let late = SessionError::TimedOut {
            action: "see the primary's newest WAL replayed",
            limit,
        };
        tokio::time::timeout(limit, replayed).await.unwrap_or(Err(late))
    }
}

fn config(access: &Access<'_>, database: &str) -> Config {
    let mut config = Config::new();
    config
        .user(access.login.user.as_str())
        .password(access.login.password.expose())
        .dbname(database)
        .application_name(access.application_name)
        .options(OPTIONS)
        .ssl_mode(if access.tls.is_some() {
            SslMode::Require
        } else {
            SslMode::Disable
        });
    match access.address {
        Address::Tcp { host, address, port } => config.host(host.as_str()).hostaddr(*address).port(*port),
        Address::Socket { folder, port } => config.host_path(folder).port(*port),
    };
    config
}
