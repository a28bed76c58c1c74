//! Why a client is sent away, in words and as PostgreSQL's `ErrorResponse`.
//!
//! Every refusal has severity, SQLSTATE, message, detail and hint. Nothing a client sent is
//! repeated in one. Source of the format: the manual's "Error and Notice Message Fields".

use std::time::Duration;

use crate::core::routing::options::InvalidOption;
use crate::core::wal::Lsn;

use super::forwarded::InvalidHeader;
use super::startup::StartupError;
use super::unavailable::Unavailable;

/// Why a connection gets no session. The variant is the log word, its reason the metric label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Startup(#[from] StartupError),
    #[error("startup packet did not arrive within {} s", limit.as_secs())]
    StartupTimeout { limit: Duration },
    /// Bytes behind a request for encryption that was not answered yet.
    #[error("received unencrypted data after {request}")]
    EarlyData { request: &'static str },
    /// Plain bytes after the client was promised TLS.
    #[error("received unencrypted data after the answer to an SSL request")]
    NotTls,
    #[error("the server that fits does not support SSL")]
    ServerWithoutTls,
    /// Direct TLS must say that it is for PostgreSQL, else another protocol could be smuggled in.
    #[error("direct SSL connection without the ALPN protocol \"postgresql\"")]
    WithoutAlpn,
    #[error("server \"{server}\" has another certificate than the routing endpoint")]
    OtherCertificate { server: String },
    #[error(transparent)]
    InvalidOption(#[from] InvalidOption),
    #[error("replication connections are not accepted on a read-only endpoint")]
    Replication,
    #[error("sorry, too many clients already")]
    TooManyConnections { max_connections: usize },
    #[error("sorry, too many clients already on all endpoints together")]
    TooManyInTotal { max_connections: usize },
    #[error("sorry, too many clients already from this address")]
    TooManyOfClient { max_connections: usize },
    #[error(transparent)]
    ProxyHeader(#[from] InvalidHeader),
    #[error("too many connections wait for a server already")]
    TooManyHeld { max_held: usize },
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// No server has replayed what a causal read asks for.
    #[error("no server has replayed up to {min_lsn} within {} ms", wait.as_millis())]
    NotReplayed { min_lsn: Lsn, wait: Duration },
    /// With monotonic reads: nobody is there to tell what the client's earlier sessions may have read.
    #[error("could not find out how far the earlier sessions of this client have read")]
    ReadsUnknown,
    #[error("the routing endpoint is shutting down")]
    ShuttingDown,
}

/// A [`Refusal`] without its particulars: the label of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalReason {
    ProtocolViolation,
    UnsupportedProtocol,
    StartupTimeout,
    EarlyData,
    InvalidOption,
    Replication,
    TooManyConnections,
    TooManyInTotal,
    TooManyOfClient,
    ProxyHeader,
    TooManyHeld,
    OtherCertificate,
    NoServer,
    SeveralPrimaries,
    NotReplayed,
    ShuttingDown,
}

impl RefusalReason {
    pub const ALL: [Self; 16] = [
        Self::ProtocolViolation,
        Self::UnsupportedProtocol,
        Self::StartupTimeout,
        Self::EarlyData,
        Self::InvalidOption,
        Self::Replication,
        Self::TooManyConnections,
        Self::TooManyInTotal,
        Self::TooManyOfClient,
        Self::ProxyHeader,
        Self::TooManyHeld,
        Self::OtherCertificate,
        Self::NoServer,
        Self::SeveralPrimaries,
        Self::NotReplayed,
        Self::ShuttingDown,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ProtocolViolation => "protocol_violation",
            Self::UnsupportedProtocol => "unsupported_protocol",
            Self::StartupTimeout => "startup_timeout",
            Self::EarlyData => "early_data",
            Self::InvalidOption => "invalid_option",
            Self::Replication => "replication",
            Self::TooManyConnections => "too_many_connections",
            Self::TooManyInTotal => "too_many_in_total",
            Self::TooManyOfClient => "too_many_of_client",
            Self::ProxyHeader => "proxy_header",
            Self::TooManyHeld => "too_many_held",
            Self::OtherCertificate => "other_certificate",
            Self::NoServer => "no_server",
            Self::SeveralPrimaries => "several_primaries",
            Self::NotReplayed => "not_replayed",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

impl Refusal {
    #[must_use]
    pub fn reason(&self) -> RefusalReason {
        match self {
            Self::Startup(StartupError::Protocol { .. }) => RefusalReason::UnsupportedProtocol,
            Self::Startup(_) | Self::WithoutAlpn => RefusalReason::ProtocolViolation,
            Self::StartupTimeout { .. } => RefusalReason::StartupTimeout,
            Self::EarlyData { .. } | Self::NotTls => RefusalReason::EarlyData,
            Self::InvalidOption(_) => RefusalReason::InvalidOption,
            Self::Replication => RefusalReason::Replication,
            Self::TooManyConnections { .. } => RefusalReason::TooManyConnections,
            Self::TooManyInTotal { .. } => RefusalReason::TooManyInTotal,
            Self::TooManyOfClient { .. } => RefusalReason::TooManyOfClient,
            Self::ProxyHeader(_) => RefusalReason::ProxyHeader,
            Self::TooManyHeld { .. } => RefusalReason::TooManyHeld,
            Self::OtherCertificate { .. } => RefusalReason::OtherCertificate,
            Self::ServerWithoutTls | Self::Unavailable(Unavailable::NoServer { .. }) => {
                RefusalReason::NoServer
            }
            Self::Unavailable(Unavailable::SeveralPrimaries { .. }) => RefusalReason::SeveralPrimaries,
            Self::NotReplayed { .. } | Self::ReadsUnknown => RefusalReason::NotReplayed,
            Self::ShuttingDown => RefusalReason::ShuttingDown,
        }
    }

    /// From the manual's "PostgreSQL Error Codes".
    #[must_use]
    pub fn sqlstate(&self) -> &'static str {
        match self.reason() {
            RefusalReason::ProtocolViolation
            | RefusalReason::StartupTimeout
            | RefusalReason::EarlyData
            | RefusalReason::ProxyHeader => "08P01",
            RefusalReason::UnsupportedProtocol | RefusalReason::Replication => "0A000",
            RefusalReason::TooManyConnections
            | RefusalReason::TooManyInTotal
            | RefusalReason::TooManyOfClient
            | RefusalReason::TooManyHeld => "53300",
            RefusalReason::InvalidOption => "22023",
            RefusalReason::OtherCertificate
            | RefusalReason::NoServer
            | RefusalReason::SeveralPrimaries
            | RefusalReason::NotReplayed
            | RefusalReason::ShuttingDown => "57P03",
        }
    }

    #[must_use]
    pub fn detail(&self) -> String {
        match self {
            Self::Startup(StartupError::Protocol { .. }) => {
                "The endpoint forwards version 3 of PostgreSQL's frontend/backend protocol only.".into()
            }
            Self::Startup(_) => "The first bytes are not a startup packet of PostgreSQL.".into(),
            Self::StartupTimeout { .. } => "The client connected and did not say what it wants.".into(),
            Self::EarlyData { .. } | Self::NotTls => {
                "This could be either a client-software bug or evidence of an attempted \
                 man-in-the-middle attack."
                    .into()
            }
            Self::ServerWithoutTls => {
                "The host name in TLS asks for another policy, whose server has none.".into()
            }
            Self::WithoutAlpn => {
                "Without it the server on the other side could be taken for another one.".into()
            }
            Self::OtherCertificate { .. } => {
                "SCRAM authentication binds to the certificate that the client was shown, and would fail."
                    .into()
            }
            Self::InvalidOption(_) => "The route reads it in the startup packet.".into(),
            Self::Replication => "It would be balanced over standbys and cut when a server changes.".into(),
            Self::TooManyConnections { max_connections } => {
                format!("This endpoint relays at most {max_connections} sessions.")
            }
            Self::TooManyInTotal { max_connections } => {
                format!("The endpoints of this process together relay at most {max_connections} sessions.")
            }
            Self::TooManyOfClient { max_connections } => {
                format!("This endpoint relays at most {max_connections} sessions of one client address.")
            }
            Self::ProxyHeader(_) => "The balancer in front has sent one that is of neither version.".into(),
            Self::TooManyHeld { max_held } => format!("At most {max_held} connections are held."),
            Self::Unavailable(unavailable) => unavailable.detail(),
            Self::NotReplayed { .. } => {
                "The standbys are further behind, and the primary is not to serve the session.".into()
            }
            Self::ReadsUnknown => "Neither the server that they were on nor the primary answers.".into(),
            Self::ShuttingDown => "The connection was not forwarded to a server yet.".into(),
        }
    }

    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::ServerWithoutTls => "Set up TLS for every member, or connect without it.",
            Self::OtherCertificate { .. } => {
                "Give the endpoint and all members the same tls.crt and tls.key; right after a change connect again."
            }
            Self::Startup(_)
            | Self::StartupTimeout { .. }
            | Self::EarlyData { .. }
            | Self::NotTls
            | Self::WithoutAlpn => {
                "Check that the client speaks PostgreSQL's protocol to this port and nothing in between changes it."
            }
            Self::InvalidOption(invalid) => invalid.hint,
            Self::Replication => "Connect to the read-write endpoint, or to a server itself.",
            Self::ProxyHeader(_) => "Check what the balancer in front sends: PROXY protocol 1 or 2 over TCP.",
            Self::TooManyConnections { .. } | Self::TooManyOfClient { .. } => {
                "Close sessions, use a connection pool, or raise the limit of the endpoint."
            }
            Self::TooManyInTotal { .. } => {
                "Close sessions, use a connection pool, or raise PODGRES_MAX_CONNECTIONS_TOTAL."
            }
            Self::TooManyHeld { .. } => "Connect again once the cluster has a server that fits.",
            Self::Unavailable(unavailable) => unavailable.hint(),
            Self::NotReplayed { .. } => "Allow a longer podgres.wait, or podgres.fallback=primary.",
            Self::ReadsUnknown => {
                "Connect again once the cluster has a primary, or with podgres.monotonic=off."
            }
            Self::ShuttingDown => "Connect again; another endpoint may serve the connection.",
        }
    }

    /// The `ErrorResponse` message, ready to be sent.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut fields = Vec::new();
        for (code, text) in [
            (b'S', "FATAL"),
            (b'V', "FATAL"),
            (b'C', self.sqlstate()),
            (b'M', &self.to_string()),
            (b'D', &self.detail()),
            (b'H', self.hint()),
        ] {
            fields.push(code);
            fields.extend(text.bytes().filter(|byte| *byte != 0));
            fields.push(0);
        }
        fields.push(0);
        let length = u32::try_from(fields.len() + 4).unwrap_or(u32::MAX);
        let mut message = vec![b'E'];
        message.extend(length.to_be_bytes());
        message.extend(fields);
        message
    }
}

#[cfg(test)]
mod tests {
    use super::super::unavailable::tests::server;
    use super::*;
    use crate::core::routing::{RouteMode, RoutePolicy, RouteTable};
    use crate::core::status::Role;

    fn every_refusal() -> Vec<Refusal> {
        let of_table = |table: RouteTable| {
            let policy = RoutePolicy::new(RouteMode::ReadWrite);
            Unavailable::of(&policy, &table, &[], Duration::from_secs(10))
        };
        let split = RouteTable {
            servers: vec![server("a", 1, Role::Primary), server("b", 2, Role::Primary)],
            ..RouteTable::default()
        };
        vec![
            StartupError::Layout.into(),
            StartupError::Protocol { major: 2, minor: 0 }.into(),
            Refusal::StartupTimeout {
                limit: Duration::from_secs(10),
            },
            Refusal::EarlyData {
                request: "SSL request",
            },
            InvalidOption {
                name: "podgres.wait",
                hint: "Write a duration.",
            }
            .into(),
            Refusal::Replication,
            Refusal::TooManyConnections { max_connections: 1 },
            Refusal::TooManyInTotal { max_connections: 1 },
            Refusal::TooManyOfClient { max_connections: 1 },
            InvalidHeader.into(),
            Refusal::TooManyHeld { max_held: 1 },
            Refusal::OtherCertificate {
                server: "a".to_owned(),
            },
            of_table(RouteTable::default()).into(),
            of_table(split).into(),
            Refusal::NotReplayed {
                min_lsn: Lsn(1),
                wait: Duration::from_secs(2),
            },
            Refusal::ReadsUnknown,
            Refusal::ShuttingDown,
        ]
    }

    #[test]
    fn every_reason_has_a_refusal_with_all_fields() {
        let refusals = every_refusal();
        let mut reasons: Vec<_> = refusals.iter().map(Refusal::reason).collect();
        reasons.dedup();
        assert_eq!(reasons, RefusalReason::ALL);
        for refusal in refusals {
            let message = refusal.encode();
            let length = u32::from_be_bytes(message[1..5].try_into().expect("four bytes"));
            assert_eq!(length as usize + 1, message.len());
            let text = String::from_utf8(message[5..].to_vec()).expect("text");
            let fields: Vec<&str> = text.trim_end_matches('\0').split('\0').collect();
            let letters: String = fields.iter().map(|field| &field[..1]).collect();
            assert_eq!(letters, "SVCMDH");
            assert!(fields.iter().all(|field| field.len() > 4), "{fields:?}");
            assert!(!fields[3].ends_with('.') && fields[4].ends_with('.') && fields[5].ends_with('.'));
        }
    }
}
