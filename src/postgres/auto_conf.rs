//! Takes podgres' own settings out of `postgresql.auto.conf`, where `ALTER SYSTEM` or `pg_basebackup -R`
//! put them and where they would win over every other file. Everything else there stays byte for byte.

use std::fs;
use std::io;
use std::path::Path;

use super::ServerSettings;
use super::error::{FileContext as _, FileError};
use super::files::{sync_directory, write_private};

/// Settings on which the cluster depends, so that podgres alone gives them.
pub(super) const OWNED: &[&str] = &[
    "cluster_name",
    "data_directory",
    "hba_file",
    "hot_standby",
    "listen_addresses",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_target_timeline",
    "synchronous_standby_names",
    "unix_socket_directories",
];
/// Owned as well where a TLS folder is mounted.
pub(super) const OWNED_WITH_TLS: &[&str] = &["ssl", "ssl_ca_file", "ssl_cert_file", "ssl_key_file"];

/// Rewrites `postgresql.auto.conf` in `directory` if it holds a setting that podgres owns.
///
/// # Errors
/// The file cannot be read or written.
pub fn strip(settings: &ServerSettings, directory: &Path) -> Result<(), FileError> {
    let path = directory.join("postgresql.auto.conf");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).file("read file", &path),
    };
    let (kept, taken) = split(&text, settings.tls.is_some());
    if taken.is_empty() {
        return Ok(());
    }
    // The values may hold a password that somebody once put there.
    tracing::info!(
        settings = taken.join(", "),
        "removed settings that podgres owns from postgresql.auto.conf"
    );
    write_private(&path, &kept)?;
    sync_directory(directory)
}

/// The content without the owned lines, and the names of these.
fn split(text: &[u8], tls: bool) -> (Vec<u8>, Vec<String>) {
    let owned = |name: &str| OWNED.contains(&name) || (tls && OWNED_WITH_TLS.contains(&name));
    let mut kept = Vec::with_capacity(text.len());
    let mut taken = Vec::new();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        match name(line).filter(|name| owned(name)) {
            Some(name) => taken.push(name),
            None => kept.extend_from_slice(line),
        }
    }
    (kept, taken)
}

/// The setting that a line gives, in lower case as PostgreSQL compares it.
fn name(line: &[u8]) -> Option<String> {
    let line = line.trim_ascii_start();
    let end = line
        .iter()
        .position(|byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'$')))
        .unwrap_or(line.len());
    let name = std::str::from_utf8(&line[..end]).ok()?;
    (!name.is_empty()).then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_owned_settings_go() {
        let text = b"# Do not edit\nwork_mem = '8MB'\n  Primary_ConnInfo = 'password=x'\nport 6000\n\
            portal = '1'\nmy.port = 1\nssl = 'on'\n\xff bytes\nprimary_slot_name='a'";
        let (kept, taken) = split(text, false);
        assert_eq!(
            kept,
            b"# Do not edit\nwork_mem = '8MB'\nportal = '1'\nmy.port = 1\nssl = 'on'\n\xff bytes\n"
        );
        assert_eq!(taken, ["primary_conninfo", "port", "primary_slot_name"]);
        assert_eq!(split(b"ssl = on\n", true).1, ["ssl"]);
    }
}
