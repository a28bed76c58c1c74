//! The member's own conversation with its local server: one connection, kept open, as superuser.
//!
//! Every call has a time limit; a call that runs into it drops the connection, and the next call makes a new
//! one. What is asked stands beside this file: `status_query`, `roles`, `slots`. Never asks another member's
//! server, and never decides what the answer means.

use std::net::SocketAddr;
use std::time::Duration;

use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, Statement};
use tokio_util::task::AbortOnDropHandle;

use super::Login;
use super::scram::VerifierMemory;
use super::status_query::{self, ServerFacts, Silence};
use crate::clock::boottime_ms;
use crate::core::member::MemberName;
use crate::core::status::ServerStatus;

/// The database that every cluster has.
const DATABASE: &str = "postgres";

/// `application_name` of the connection.
const APPLICATION_NAME: &str = "podgres";

/// Settings of the session; they come with the start-up packet, so that they win over `ALTER ROLE … SET`.
///
/// - Nothing is logged: the status query would fill the log, a password verifier must not reach it.
/// - `synchronous_commit=local`: a role for the standbys must not wait for the standbys.
/// - No JIT and a generic plan, since the same cheap query runs each second.
const SESSION_OPTIONS: &str = "-c statement_timeout=10s -c lock_timeout=5s -c idle_session_timeout=0 \
    -c log_statement=none -c log_duration=off -c log_min_duration_statement=-1 -c log_min_duration_sample=-1 \
    -c log_transaction_sample_rate=0 -c log_min_error_statement=panic -c debug_print_parse=off \
    -c debug_print_rewritten=off -c debug_print_plan=off -c synchronous_commit=local \
    -c default_transaction_read_only=off -c jit=off -c plan_cache_mode=force_generic_plan \
    -c search_path=pg_catalog -c TimeZone=UTC";

/// Why the local server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// Nobody listens, or the network says no.
    #[error("could not connect to PostgreSQL at {address}")]
    Unreachable {
        address: SocketAddr,
        source: tokio_postgres::Error,
    },
    /// SQLSTATE 57P03: starting up, shutting down, or in recovery without hot standby.
    #[error("PostgreSQL does not accept connections yet: {message}")]
    Starting { message: String },
    /// SQLSTATE class 28: a wrong password, a missing role, or no `pg_hba.conf` entry.
    #[error("could not log in to PostgreSQL as role \"{user}\": {message}")]
    AuthenticationFailed { user: String, message: String },
    #[error("PostgreSQL did not answer within {} ms", limit.as_millis())]
    TimedOut { limit: Duration },
    /// The server ended the session, e.g. because it stops.
    #[error("PostgreSQL closed the connection")]
    Closed { source: tokio_postgres::Error },
    /// Only the primary can write.
    #[error("cannot change role \"{role}\" on a standby")]
    InRecovery { role: String },
    /// Any other error that PostgreSQL reported.
    #[error("PostgreSQL reported an error: {message} (SQLSTATE {sqlstate})")]
    Server { sqlstate: String, message: String },
    /// An answer that does not have the expected form.
    #[error("could not read the answer of PostgreSQL: {detail}")]
    Unexpected { detail: String },
}

impl QueryError {
    /// PostgreSQL runs and serves others, and does not let podgres in: a stop would change nothing, since every copy is the same.
    #[must_use]
    pub fn turns_away(&self) -> bool {
        match self {
            Self::AuthenticationFailed { .. } => true,
            // No free connection, no such database, a database that takes no connections, no right to connect.
            Self::Server { sqlstate, .. } => {
                ["53300", "3D000", "55000", "42501"].contains(&sqlstate.as_str())
            }
            _ => false,
        }
    }

    /// What the operator can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::AuthenticationFailed { .. } => Some(
                "If the password in the Secret was changed while no podgres was running, \
                 change it in the database by hand, with ALTER ROLE.",
            ),
            Self::InRecovery { .. } => Some("It is changed on the primary and comes here by replication."),
            _ => None,
        }
    }
}

/// The local server, as its superuser sees it.
pub struct LocalServer {
    address: SocketAddr,
    pub(super) member: Option<MemberName>,
    pub(super) superuser: Login,
    /// What the superuser's login is to become, or has become by replication.
    next_superuser: Option<Login>,
    pub(super) replication: Login,
    /// Whether the verifier that the server stores fits `replication`.
    verifiers: VerifierMemory,
    silence: Silence,
    /// Taken out while a call runs, so that a call that is given up drops it.
    session: Option<Session>,
}

/// One connection with its prepared statement.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) facts: ServerFacts,
    status: Statement,
    /// By itself it would wait for the answer of a server that hangs.
    _driver: AbortOnDropHandle<()>,
}

impl LocalServer {
    /// Connects with the first call.
    #[must_use]
    pub fn at(address: SocketAddr, member: Option<MemberName>, superuser: Login, replication: Login) -> Self {
        Self {
            address,
            member,
            superuser,
            next_superuser: None,
            replication,
            verifiers: VerifierMemory::default(),
            silence: Silence::default(),
            session: None,
        }
    }

    /// The logins were changed. On a standby the new ones come into force some time later, by replication: so
    /// the old login is still the first that is tried.
    pub fn expect_logins(&mut self, superuser: Login, replication: Login) {
        self.next_superuser = Some(superuser);
        self.replication = replication;
    }

    /// What the server says about itself, in one round trip on an open connection.
    ///
    /// `look_for_oldest_wal` lists `pg_wal` for [`ServerStatus::oldest_wal_lsn`]; ask for it only while needed.
    pub async fn status(
        &mut self,
        look_for_oldest_wal: bool,
        limit: Duration,
    ) -> Result<ServerStatus, QueryError> {
        let role = self.replication.user.clone();
        let answer = self
            .run(limit, async |session| {
                let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] =
                    [&look_for_oldest_wal, &role];
                let row = session.client.query_one(&session.status, &parameters).await?;
                status_query::decode(&row, &session.facts)
            })
            .await?;
        let mut status = answer.status;
        status.receiver_silent_ms = self.silence.since(answer.heard, boottime_ms());
        status.replication_role = answer
            .verifier
            .is_some_and(|verifier| self.verifiers.fits(&verifier, &self.replication.password));
        Ok(status)
    }

    /// Runs `operation` on the open connection, or on a new one if there is none or it turns out to be dead.
    ///
    /// `operation` may run twice, so it must look before it writes.
    pub(super) async fn run<T>(
        &mut self,
        limit: Duration,
        operation: impl AsyncFn(&Session) -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        tokio::time::timeout(limit, self.run_without_limit(operation))
            .await
            .unwrap_or(Err(QueryError::TimedOut { limit }))
    }

    async fn run_without_limit<T>(
        &mut self,
        operation: impl AsyncFn(&Session) -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        if let Some(session) = self.session.take().filter(|open| !open.client.is_closed()) {
            match operation(&session).await {
                Err(QueryError::Closed { .. }) => {}
                result => {
                    self.session = Some(session);
                    return result;
                }
            }
        }
        let session = self.connect().await?;
        let result = operation(&session).await;
        if !matches!(result, Err(QueryError::Closed { .. })) {
            self.session = Some(session);
        }
        result
    }

    async fn connect(&mut self) -> Result<Session, QueryError> {
        let refused = match connect(self.address, &self.superuser).await {
            Err(error @ QueryError::AuthenticationFailed { .. }) => error,
            result => return result,
        };
        let next = self.next_superuser.as_ref().ok_or(refused)?;
        let session = connect(self.address, next).await?;
        self.superuser = next.clone();
        Ok(session)
    }
}

/// How to log in as superuser.
pub(super) fn configuration(address: SocketAddr, login: &Login) -> Config {
    let mut config = Config::new();
    config
        .hostaddr(address.ip())
        .port(address.port())
        .user(login.user.as_str())
        .password(login.password.expose())
        .dbname(DATABASE)
        .application_name(APPLICATION_NAME)
        .options(SESSION_OPTIONS)
        .ssl_mode(SslMode::Disable);
    config
}

async fn connect(address: SocketAddr, login: &Login) -> Result<Session, QueryError> {
    let (client, connection) = configuration(address, login)
        .connect(NoTls)
        .await
        .map_err(|error| connect_error(address, &login.user, error))?;
    let driver = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to the local server ended");
        }
    }));
    let (facts, status) = status_query::prepare(&client).await?;
    Ok(Session {
        client,
        facts,
        status,
        _driver: driver,
    })
}

fn connect_error(address: SocketAddr, user: &str, error: tokio_postgres::Error) -> QueryError {
    let Some(reported) = error.as_db_error() else {
        return QueryError::Unreachable {
            address,
            source: error,
        };
    };
    let message = reported.message().to_owned();
    let code = reported.code();
    if *code == SqlState::CANNOT_CONNECT_NOW {
        QueryError::Starting { message }
    } else if code.code().starts_with("28") {
        QueryError::AuthenticationFailed {
            user: user.to_owned(),
            message,
        }
    } else {
        QueryError::Server {
            sqlstate: code.code().to_owned(),
            message,
        }
    }
}

impl From<tokio_postgres::Error> for QueryError {
    /// An error on an open connection.
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(reported) = error.as_db_error() else {
            return if error.is_closed() || is_io_error(&error) {
                Self::Closed { source: error }
            } else {
                Self::Unexpected {
                    detail: error.to_string(),
                }
            };
        };
        // Class 57P: the server is stopping, has crashed, or ended this session.
        if reported.code().code().starts_with("57P") {
            return Self::Closed { source: error };
        }
        Self::Server {
            sqlstate: reported.code().code().to_owned(),
            message: reported.message().to_owned(),
        }
    }
}

fn is_io_error(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<std::io::Error>)
}
