//! Connection strings of a demo, as libpq reads them (manual, "Connection URIs").

use std::fmt::Write;

use super::DemoError;
use super::state::DemoState;
use crate::core::member::Ordinal;

/// Longer than a routing endpoint holds a connection while there is no primary; then the next host's turn.
const CONNECT_TIMEOUT_SECONDS: u32 = 15;

/// Which endpoint a connection string leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The read-write routes of all pods; the first that answers is taken.
    ReadWrite,
    /// The read-only routes of all pods.
    ReadOnly,
    /// PostgreSQL itself in one pod.
    Member(Ordinal),
}

/// One connection string with the superuser and the password, for libpq and its kin.
///
/// # Errors
/// There is no such pod, or the password file is not readable.
pub fn dsn(state: &DemoState, target: Target) -> Result<String, DemoError> {
    let path = &state.password_file;
    let bytes = std::fs::read(path).map_err(DemoError::file("read", path))?;
    let password = percent_encoded(without_line_ends(&bytes));
    uri(state, target, Some(&password), "")
}

/// The same with the password left in its file, so that it may be shown.
///
/// # Errors
/// There is no such pod.
pub fn dsn_with_passfile(
    state: &DemoState,
    target: Target,
    passfile: &std::path::Path,
) -> Result<String, DemoError> {
    let passfile = percent_encoded(passfile.as_os_str().as_encoded_bytes());
    uri(state, target, None, &format!("&passfile={passfile}"))
}

fn uri(state: &DemoState, target: Target, password: Option<&str>, more: &str) -> Result<String, DemoError> {
    let ports = &state.ports;
    let (port, pods) = match target {
        Target::ReadWrite => (ports.read_write, state.pods.iter().collect()),
        Target::ReadOnly => (ports.read_only, state.pods.iter().collect()),
        Target::Member(ordinal) => {
            let pod = state
                .pod(ordinal)
                .ok_or_else(|| DemoError::no_pod(state, ordinal))?;
            (ports.postgres, vec![pod])
        }
    };
    if pods.is_empty() {
        return Err(DemoError::no_pod(state, state.first_ordinal));
    }
    let hosts: Vec<String> = pods.iter().map(|pod| format!("{}:{port}", pod.address)).collect();
    let user = percent_encoded(state.superuser.as_bytes());
    let password = password
        .map(|password| format!(":{password}"))
        .unwrap_or_default();
    Ok(format!(
        "postgresql://{user}{password}@{}/{}?connect_timeout={CONNECT_TIMEOUT_SECONDS}{more}",
        hosts.join(","),
        percent_encoded(state.database.as_bytes()),
    ))
}

/// As the official image's `$(< file)` reads it.
pub(super) fn without_line_ends(password: &[u8]) -> &[u8] {
    let end = password
        .iter()
        .rposition(|byte| *byte != b'\n')
        .map_or(0, |last| last + 1);
    &password[..end]
}

/// Everything but the unreserved characters of RFC 3986 as `%XX`.
fn percent_encoded(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len()), |mut text, byte| {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    text.push(char::from(*byte));
                }
                // Writing to a string cannot fail.
                other => drop(write!(text, "%{other:02X}")),
            }
            text
        })
}
