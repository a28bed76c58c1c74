//! The one file through which libpq learns the replication password, and lines for other such files.
//!
//! Mode 0600 in the run directory, since libpq ignores a passfile that the group may read, which a
//! mounted Secret under `fsGroup` is. The manual's "The Password File" fixes the escaping.

use std::path::PathBuf;

use super::ServerSettings;
use super::error::ConfigurationError;
use crate::files::{FileError, create_private_directory, write_generated};

/// Where the passfile is: `<run directory>/passfile`.
#[must_use]
pub fn path(settings: &ServerSettings) -> PathBuf {
    settings.run_directory.join("passfile")
}

/// Writes the replication login for every host, port and database.
///
/// # Errors
/// The file cannot be written, or the login contains a line break, which the format cannot say.
pub fn write(settings: &ServerSettings) -> Result<(), ConfigurationError> {
    let (user, password) = (&settings.replication.user, settings.replication.password.expose());
    check("replication user", user)?;
    check("replication password", password)?;
    create_private_directory(&settings.run_directory)?;
    write_generated(&path(settings), &line(user, password.as_bytes())).map_err(FileError::into)
}

fn check(what: &'static str, text: &str) -> Result<(), ConfigurationError> {
    if text.contains(['\n', '\r', '\0']) {
        return Err(ConfigurationError::LineBreak { what });
    }
    Ok(())
}

/// A login for every host, port and database as one line; neither may contain a line break.
#[must_use]
pub fn line(user: &str, password: &[u8]) -> Vec<u8> {
    [
        b"*:*:*:",
        escape(user.as_bytes()).as_slice(),
        b":",
        &escape(password),
        b"\n",
    ]
    .concat()
}

fn escape(text: &[u8]) -> Vec<u8> {
    text.iter()
        .flat_map(|byte| {
            let escaped = matches!(byte, b':' | b'\\').then_some(b'\\');
            escaped.into_iter().chain([*byte])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_71_ugly_passwords_are_escaped() {
        let line = line("repl:a", r#"a'b\c:d "e ü#"#.as_bytes());
        assert_eq!(
            String::from_utf8_lossy(&line),
            "*:*:*:repl\\:a:a'b\\\\c\\:d \"e ü#\n"
        );
    }

    #[test]
    fn row_71_a_line_break_is_refused_without_showing_the_password() {
        let error = check("replication password", "geheim\nzwei").expect_err("line break");
        assert_eq!(error.to_string(), "replication password contains a line break");
    }
}
