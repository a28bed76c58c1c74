//! What can go wrong with a question to DNS: above all, absence is not silence.

use hickory_resolver::net::{DnsError as AnswerError, NetError};

/// Why the client could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    #[error("could not read the DNS settings from \"/etc/resolv.conf\"")]
    Settings(#[source] NetError),
    #[error("\"/etc/resolv.conf\" names no DNS server")]
    NoServer,
    #[error("could not set up the DNS client")]
    Client(#[source] NetError),
}

/// Why a name has no addresses.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DnsError {
    /// NXDOMAIN: the server says that there is no such name.
    #[error("host \"{host}\" does not exist in DNS")]
    NotFound { host: String },
    /// The name exists, but not with what was asked for.
    #[error("host \"{host}\" has no {records} records in DNS")]
    NoRecords { host: String, records: &'static str },
    /// No server answered in time, or not in DNS.
    #[error("could not resolve host \"{host}\": no DNS server answered ({reason})")]
    Unreachable { host: String, reason: String },
    /// SERVFAIL, REFUSED and their like.
    #[error("could not resolve host \"{host}\": the DNS server answered \"{code}\"")]
    ServerFailure { host: String, code: String },
    #[error("cannot resolve host \"{host}\": not a valid DNS name")]
    InvalidName { host: String },
}

impl DnsError {
    /// DNS did answer: the name, or what was asked of it, is not there.
    #[must_use]
    pub fn absent(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::NoRecords { .. })
    }
}

pub(super) fn explain(host: &str, records: &'static str, error: &NetError) -> DnsError {
    let host_owned = || host.to_owned();
    if error.is_nx_domain() {
        return DnsError::NotFound { host: host_owned() };
    }
    match error {
        NetError::Dns(AnswerError::NoRecordsFound(_)) => DnsError::NoRecords {
            host: host_owned(),
            records,
        },
        NetError::Dns(AnswerError::ResponseCode(code)) => DnsError::ServerFailure {
            host: host_owned(),
            code: code.to_string(),
        },
        NetError::Timeout => unreachable(host, "timed out"),
        other => unreachable(host, &other.to_string()),
    }
}

pub(super) fn unreachable(host: &str, reason: &str) -> DnsError {
    DnsError::Unreachable {
        host: host.to_owned(),
        reason: reason.to_owned(),
    }
}
