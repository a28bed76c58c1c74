//! Why an upstream could not be used, told apart by what the operator would do about it.

use std::net::SocketAddr;
use std::time::Duration;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorResponseBody;

/// Longest part of a foreign server's text that goes into a message.
const FOREIGN_TEXT_LIMIT_CHARS: usize = 400;

/// Why an upstream could not be asked, or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("connection to upstream {address} was refused")]
    Refused {
        address: SocketAddr,
        source: std::io::Error,
    },
    /// The network failed in another way, e.g. no route.
    #[error("could not reach upstream {address}")]
    Unreachable {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("upstream did not answer within {} ms", limit.as_millis())]
    TimedOut { limit: Duration },
    /// SQLSTATE 57P03; also said by a server that shuts down.
    #[error("upstream does not accept connections yet: {message}")]
    Starting { message: String },
    /// SQLSTATE 28P01; with SCRAM this is also what a missing role gets.
    #[error("upstream refused the password: {message}")]
    WrongPassword { message: String },
    /// SQLSTATE 28000, from the rules of `pg_hba.conf`.
    #[error("upstream has no pg_hba.conf entry for this connection: {message}")]
    NoHbaEntry { message: String },
    /// SQLSTATE 28000, about the role: it does not exist or may not log in.
    #[error("upstream does not know the replication role: {message}")]
    RoleMissing { message: String },
    /// SQLSTATE 42501.
    #[error("upstream denies replication to the role: {message}")]
    NotPermitted { message: String },
    /// SQLSTATE 53300: `max_wal_senders` or `max_connections`.
    #[error("upstream has no connection left: {message}")]
    TooManyConnections { message: String },
    #[error("could not verify or set up TLS with upstream \"{host}\"")]
    Tls { host: String, source: std::io::Error },
    #[error("upstream \"{host}\" does not speak TLS")]
    TlsUnavailable { host: String },
    #[error("cannot log in to upstream: it asks for {method} authentication")]
    AuthenticationMethod { method: &'static str },
    #[error("upstream closed the connection")]
    Closed,
    #[error("upstream does not speak PostgreSQL's protocol: {detail}")]
    Protocol { detail: String },
    #[error("invalid replication slot name \"{name}\"")]
    InvalidSlotName { name: String },
    /// Any other error that the upstream reported.
    #[error("upstream reported an error: {message} (SQLSTATE {sqlstate})")]
    Server { sqlstate: String, message: String },
}

impl UpstreamError {
    /// One word for metrics and logs.
    #[must_use]
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "refused",
            Self::Unreachable { .. } => "unreachable",
            Self::TimedOut { .. } => "timed_out",
            Self::Starting { .. } => "starting",
            Self::WrongPassword { .. } => "wrong_password",
            Self::NoHbaEntry { .. } => "no_hba_entry",
            Self::RoleMissing { .. } => "role_missing",
            Self::NotPermitted { .. } => "not_permitted",
            Self::TooManyConnections { .. } => "too_many_connections",
            Self::Tls { .. } => "tls",
            Self::TlsUnavailable { .. } => "tls_unavailable",
            Self::AuthenticationMethod { .. } => "authentication_method",
            Self::Closed => "closed",
            Self::Protocol { .. } => "protocol",
            Self::InvalidSlotName { .. } => "invalid_slot_name",
            Self::Server { .. } => "server",
        }
    }

    /// What the operator can do about it, as a sentence; `None` if waiting is all.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Refused { .. } => "PostgreSQL may not be running there, or may listen on another address.",
            Self::Unreachable { .. } | Self::TimedOut { .. } => {
                "Check that a NetworkPolicy or firewall lets the members of the cluster reach each other."
            }
            Self::WrongPassword { .. } => {
                "The password in this pod's Secret is not the one that the primary has set, \
                 or the primary has not made the replication role yet."
            }
            Self::NoHbaEntry { .. } => {
                "A line of the user's own pg_hba.conf may reject replication, or the connection lacks TLS."
            }
            Self::RoleMissing { .. } => "The primary makes the role when its podgres runs; look at its log.",
            Self::NotPermitted { .. } => "The role needs the attribute REPLICATION.",
            Self::TooManyConnections { .. } => "Raise max_wal_senders or max_connections on the upstream.",
            Self::Tls { .. } => {
                "The certificate must be signed by ca.crt and carry the upstream's host name \
                 as subject alternative name."
            }
            Self::TlsUnavailable { .. } => "Mount the TLS folder in every pod of the cluster.",
            Self::AuthenticationMethod { .. } => {
                "Use scram-sha-256 in pg_hba.conf and as password_encryption."
            }
            Self::Protocol { .. } => "Check that the port is PostgreSQL's own.",
            Self::Starting { .. } | Self::Closed | Self::InvalidSlotName { .. } | Self::Server { .. } => {
                return None;
            }
        })
    }

    pub(super) fn protocol(error: &dyn std::error::Error) -> Self {
        Self::Protocol {
            detail: shown(&error.to_string()),
        }
    }

    pub(super) fn unreadable(what: &str, text: &str) -> Self {
        Self::Protocol {
            detail: format!("invalid {what} \"{}\"", shown(text)),
        }
    }

    pub(super) fn encrypted() -> Self {
        Self::Protocol {
            detail: "WAL is streamed in clear only".to_owned(),
        }
    }

    pub(super) fn unexpected_message() -> Self {
        Self::Protocol {
            detail: "a message came that does not belong there".to_owned(),
        }
    }
}

/// The error that the server sent.
///
/// The SQLSTATE alone does not tell a missing role from a missing `pg_hba.conf` entry, and the message may be
/// translated; the name of the reporting function (field `R`) is not.
pub(super) fn reported(body: &ErrorResponseBody) -> UpstreamError {
    let (mut sqlstate, mut message, mut routine) = (String::new(), String::new(), String::new());
    let mut fields = body.fields();
    while let Ok(Some(field)) = fields.next() {
        let text = shown(&String::from_utf8_lossy(field.value_bytes()));
        match field.type_() {
            b'C' => sqlstate = text,
            b'M' => message = text,
            b'R' => routine = text,
            _ => {}
        }
    }
    match sqlstate.as_str() {
        "57P03" => UpstreamError::Starting { message },
        "28P01" => UpstreamError::WrongPassword { message },
        "28000" if routine == "ClientAuthentication" => UpstreamError::NoHbaEntry { message },
        "28000" => UpstreamError::RoleMissing { message },
        "42501" => UpstreamError::NotPermitted { message },
        "53300" => UpstreamError::TooManyConnections { message },
        _ => UpstreamError::Server { sqlstate, message },
    }
}

/// A foreign text without control characters, and not too much of it.
fn shown(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(FOREIGN_TEXT_LIMIT_CHARS)
        .collect()
}
