//! Who may connect: podgres' own narrow lines first, then the user's, or the official image's default.
//!
//! The first line that fits decides, so the user can widen or narrow everything but the members' own way in.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::ServerSettings;
use super::error::ConfigurationError;
use crate::files::{FileContext as _, create_private_directory, exists, write_generated};

/// The file of this name in the user's folder.
pub(super) const USER_FILE: &str = "pg_hba.conf";

/// Where the generated file is: `<run directory>/pg_hba.conf`.
#[must_use]
pub fn path(settings: &ServerSettings) -> PathBuf {
    settings.run_directory.join("pg_hba.conf")
}

/// Writes the file anew.
///
/// # Errors
/// It cannot be written, or the user's cannot be read.
pub fn write(settings: &ServerSettings) -> Result<(), ConfigurationError> {
    let own = own_lines(settings)?;
    let others = match user_lines(settings.user_configuration.as_deref())? {
        Some((file, lines)) => format!("# From \"{}\".\n{lines}\n", file.display()),
        None => default_lines(settings, operating_system_user().as_deref()),
    };
    create_private_directory(&settings.run_directory)?;
    Ok(write_generated(
        &path(settings),
        format!("{own}\n{others}").as_bytes(),
    )?)
}

fn own_lines(settings: &ServerSettings) -> Result<String, ConfigurationError> {
    let replication = quote("replication user", &settings.replication.user)?;
    let superuser = quote("superuser", &settings.superuser.user)?;
    let here = host_address(settings.local_address);
    let mut lines = vec![
        "# Written by podgres at every start and reload: changes here are lost.".to_owned(),
        "# TYPE  DATABASE  USER  ADDRESS  METHOD".to_owned(),
        // The sidecar of this pod: never leaves the machine.
        format!("host replication {replication} {here} scram-sha-256"),
        format!("host replication {replication} samehost scram-sha-256"),
    ];
    if settings.tls.is_some() {
        lines.push(format!("hostssl replication {replication} all scram-sha-256"));
        lines.push(format!("hostnossl replication {replication} all reject"));
    } else {
        lines.push(format!("host replication {replication} all scram-sha-256"));
    }
    lines.push(format!("host \"postgres\" {replication} all scram-sha-256"));
    lines.push(format!("host all {superuser} {here} scram-sha-256"));
    lines.push(format!("host all {superuser} samehost scram-sha-256"));
    lines.push(String::new());
    Ok(lines.join("\n"))
}

/// The official image trusts everybody on the socket; here the superuser comes in without a password
/// only if the operating system vouches for the same name, which makes `kubectl exec … psql` work.
fn default_lines(settings: &ServerSettings, operating_system_user: Option<&str>) -> String {
    let superuser = &settings.superuser.user;
    let peer = if operating_system_user == Some(superuser) {
        format!("local all \"{superuser}\" peer\n")
    } else {
        String::new()
    };
    let method = &settings.host_auth_method;
    format!("# No pg_hba.conf was given.\n{peer}local all all scram-sha-256\nhost all all all {method}\n")
}

fn user_lines(folder: Option<&Path>) -> Result<Option<(PathBuf, String)>, ConfigurationError> {
    let Some(file) = folder.map(|folder| folder.join(USER_FILE)) else {
        return Ok(None);
    };
    if !exists(&file)? {
        return Ok(None);
    }
    let lines = fs::read_to_string(&file).file("read file", &file)?;
    Ok(Some((file, lines)))
}

fn host_address(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}/32"),
        IpAddr::V6(address) => format!("{address}/128"),
    }
}

/// Quotes take the special meaning from `all`, `+group` and the like.
fn quote(what: &'static str, name: &str) -> Result<String, ConfigurationError> {
    if name.contains(['\n', '\r', '\0']) {
        return Err(ConfigurationError::LineBreak { what });
    }
    Ok(format!("\"{}\"", name.replace('"', "\"\"")))
}

/// The name of our user id in `/etc/passwd`, if it has one.
fn operating_system_user() -> Option<String> {
    let id = rustix::process::geteuid().as_raw().to_string();
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == id).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_their_special_meaning() {
        assert_eq!(quote("superuser", "all").expect("quote"), "\"all\"");
        assert_eq!(quote("superuser", "a\"b").expect("quote"), "\"a\"\"b\"");
        assert!(quote("superuser", "a\nhost all all all trust").is_err());
    }
}
