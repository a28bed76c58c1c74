//! The one file through which libpq learns the replication password.
//!
//! Mode 0600 in the run directory, since libpq ignores a passfile that the group may read, which a
//! mounted Secret under `fsGroup` is. The manual's "The Password File" fixes the escaping.

use std::path::PathBuf;

use super::ServerSettings;
use super::error::{ConfigurationError, FileError};
use super::files::{create_private_directory, write_generated};

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
    let line = line(&settings.replication.user, settings.replication.password.expose())?;
    create_private_directory(&settings.run_directory)?;
    write_generated(&path(settings), line.as_bytes()).map_err(FileError::into)
}

fn line(user: &str, password: &str) -> Result<String, ConfigurationError> {
    for (what, text) in [("replication user", user), ("replication password", password)] {
        if text.contains(['\n', '\r', '\0']) {
            return Err(ConfigurationError::LineBreak { what });
        }
    }
    Ok(format!("*:*:*:{}:{}\n", escape(user), escape(password)))
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace(':', "\\:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_71_ugly_passwords_are_escaped() {
        let line = line("repl:a", r#"a'b\c:d "e ü#"#).expect("line");
        assert_eq!(line, "*:*:*:repl\\:a:a'b\\\\c\\:d \"e ü#\n");
    }

    #[test]
    fn row_71_a_line_break_is_refused_without_showing_the_password() {
        let error = super::line("u", "geheim\nzwei").expect_err("line break");
        assert_eq!(error.to_string(), "replication password contains a line break");
    }
}
