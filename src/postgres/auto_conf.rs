//! Takes podgres' own settings out of `postgresql.auto.conf`, where `ALTER SYSTEM` or `pg_basebackup -R`
//! put them and where they would win over every other file. Everything else there stays byte for byte.

use std::fs;
use std::io;
use std::path::Path;

use super::ServerSettings;
use crate::files::{FileContext as _, FileError, sync_directory, write_private};

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

/// Podgres' while the read-only switch gives it.
pub(super) const READ_ONLY: &str = "default_transaction_read_only";

/// Rewrites `postgresql.auto.conf` in `directory` if it holds a setting that podgres owns.
///
/// # Errors
/// The file cannot be read or written.
pub fn strip(settings: &ServerSettings, directory: &Path) -> Result<(), FileError> {
    let tls = settings.tls.is_some();
    take_out(directory, |name, _| {
        OWNED.contains(&name) || (tls && OWNED_WITH_TLS.contains(&name))
    })
}

/// Takes out what would let every session of a primary write that is to be read-only by default.
///
/// # Errors
/// The file cannot be read or written.
pub(super) fn strip_read_only_off(directory: &Path) -> Result<(), FileError> {
    take_out(directory, |name, value| name == READ_ONLY && !is_on(value))
}

fn take_out(directory: &Path, ours: impl Fn(&str, &[u8]) -> bool) -> Result<(), FileError> {
    let path = directory.join("postgresql.auto.conf");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).file("read file", &path),
    };
    let (kept, taken) = split(&text, ours);
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

/// The content without the lines that are `ours` by name and what follows it, and the names of these.
fn split(text: &[u8], ours: impl Fn(&str, &[u8]) -> bool) -> (Vec<u8>, Vec<String>) {
    let mut kept = Vec::with_capacity(text.len());
    let mut taken = Vec::new();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        match name(line).filter(|(name, value)| ours(name, value)) {
            Some((name, _)) => taken.push(name),
            None => kept.extend_from_slice(line),
        }
    }
    (kept, taken)
}

/// The setting that a line gives, in lower case as PostgreSQL compares it, and the rest of the line.
fn name(line: &[u8]) -> Option<(String, &[u8])> {
    let line = line.trim_ascii_start();
    let end = line
        .iter()
        .position(|byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'$')))
        .unwrap_or(line.len());
    let name = std::str::from_utf8(&line[..end]).ok()?;
    (!name.is_empty()).then(|| (name.to_ascii_lowercase(), &line[end..]))
}

/// ` = 'on'` in the spellings of a Boolean that `ALTER SYSTEM` leaves in the file.
fn is_on(value: &[u8]) -> bool {
    let plain = |byte: &u8| !(byte.is_ascii_whitespace() || b"='".contains(byte));
    let value: Vec<u8> = value.iter().copied().filter(plain).collect();
    [&b"on"[..], b"true", b"yes", b"1"].contains(&value.to_ascii_lowercase().as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_owned_settings_go() {
        let text = b"# Do not edit\nwork_mem = '8MB'\n  Primary_ConnInfo = 'password=x'\nport 6000\n\
            portal = '1'\nmy.port = 1\nssl = 'on'\n\xff bytes\nprimary_slot_name='a'";
        let (kept, taken) = split(text, |name, _| OWNED.contains(&name));
        assert_eq!(
            kept,
            b"# Do not edit\nwork_mem = '8MB'\nportal = '1'\nmy.port = 1\nssl = 'on'\n\xff bytes\n"
        );
        assert_eq!(taken, ["primary_conninfo", "port", "primary_slot_name"]);
    }

    #[test]
    fn what_makes_sessions_read_only_anyway_is_the_users_and_stays() {
        for (line, stays) in [
            ("default_transaction_read_only = 'off'\n", false),
            ("Default_Transaction_Read_Only=false", false),
            ("default_transaction_read_only = 'on'\n", true),
            ("default_transaction_read_only = true\n", true),
            ("default_transaction_deferrable = 'off'\n", true),
        ] {
            let folder = tempfile::tempdir().expect("folder");
            let path = folder.path().join("postgresql.auto.conf");
            fs::write(&path, line).expect("write");
            strip_read_only_off(folder.path()).expect("strip");
            assert_eq!(!fs::read(&path).expect("read").is_empty(), stays, "{line}");
        }
    }
}
