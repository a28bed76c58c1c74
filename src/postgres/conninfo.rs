//! The libpq connection string by which a member reaches its upstream.
//!
//! Never holds a password: that is in the passfile. Keywords as in the manual, "Parameter Key Words".

use std::fmt::Write as _;
use std::path::Path;

use super::{ServerSettings, tls_files};
use crate::core::supervision::Upstream;

/// Gives up on an upstream that does not answer: connecting takes 5 s at most; a silent network is
/// noticed after 5 + 2 * 2 s without traffic, or 6 s after sent bytes stay unacknowledged.
const TIMEOUTS: &[(&str, &str)] = &[
    ("connect_timeout", "5"),
    ("keepalives", "1"),
    ("keepalives_idle", "5"),
    ("keepalives_interval", "2"),
    ("keepalives_count", "2"),
    ("tcp_user_timeout", "6000"),
];

/// How long the upstream may hold bytes that the receiver does not take. PostgreSQL cannot end a WAL sender that
/// waits to send its last message, and a checkpoint that wants a slot's WAL away waits for the sender's end.
const UPSTREAM_OPTIONS: &str = "-c tcp_user_timeout=30000";

/// The connection string for the WAL receiver, `primary_conninfo`. It trusts the copy of `ca.crt` in the run directory: a
/// receiver that begins anew must not miss a mounted one.
#[must_use]
pub fn receiver_conninfo(settings: &ServerSettings, upstream: &Upstream) -> String {
    let name = upstream.application_name.as_ref().unwrap_or(&settings.member);
    let text = conninfo(&tls_files::with_copies(settings), upstream, name);
    // The receiver does without a database; what synchronizes logical slots (PostgreSQL 17) asks for one.
    format!("{text} dbname=postgres options={}", quote(UPSTREAM_OPTIONS))
}

/// The connection string for `pg_basebackup`.
///
/// `hostaddr` spares a look-up in a cache that may be stale; `host` is what the certificate must say.
#[must_use]
pub fn conninfo(settings: &ServerSettings, upstream: &Upstream, application_name: &str) -> String {
    let mut text = Conninfo::default();
    text.add("host", &upstream.host);
    text.add("hostaddr", &upstream.address.to_string());
    text.add("port", &upstream.port.to_string());
    text.add("user", &settings.replication.user);
    text.add_path("passfile", &super::passfile::path(settings));
    text.add("application_name", application_name);
    let authority = settings.tls.as_ref().map(|folder| folder.join("ca.crt"));
    text.add_encryption(authority.as_deref(), &settings.run_directory);
    for (key, value) in TIMEOUTS {
        text.add(key, value);
    }
    text.0
}

/// A connection string as it grows.
#[derive(Default)]
pub(super) struct Conninfo(pub(super) String);

impl Conninfo {
    pub(super) fn add(&mut self, key: &str, value: &str) {
        let separator = if self.0.is_empty() { "" } else { " " };
        // Writing to a String cannot fail.
        write!(self.0, "{separator}{key}={}", quote(value)).ok();
    }

    pub(super) fn add_path(&mut self, key: &str, path: &Path) {
        self.add(key, &path.to_string_lossy());
    }

    /// The server's certificate is verified where there is an `authority`; `folder` may be any that libpq can enter.
    pub(super) fn add_encryption(&mut self, authority: Option<&Path>, folder: &Path) {
        if let Some(authority) = authority {
            self.add("sslmode", "verify-full");
            self.add_path("sslrootcert", authority);
        } else {
            self.add("sslmode", "prefer");
        }
        self.add("gssencmode", "disable");
        // Else libpq looks for one in the home directory, and fails if it may not look there.
        self.add_path("sslcert", &folder.join("no-client-certificate"));
    }
}

/// In single quotes unless plain; a backslash takes the meaning from quotes and backslashes.
fn quote(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:".contains(&byte);
    if !value.is_empty() && value.bytes().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_where_needed() {
        assert_eq!(quote("pg-0.pg.default.svc"), "pg-0.pg.default.svc");
        assert_eq!(quote("fe80::1"), "fe80::1");
        assert_eq!(quote(""), "''");
        assert_eq!(quote(r"o'b\r x"), r"'o\'b\\r x'");
    }
}
