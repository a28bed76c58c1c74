//! The user that PostgreSQL runs as in tests: it refuses root.

#![allow(
    clippy::expect_used,
    reason = "clippy takes a test's helpers for code that ships"
)]
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// User and group id of `postgres`, or of `nobody` where there is none; `None` if this is not root and no change is needed.
pub(crate) fn server_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    let line = ["postgres:", "nobody:"]
        .iter()
        .find_map(|name| users.lines().find(|line| line.starts_with(name)))
        .expect("a user to run PostgreSQL as");
    let number = |field: usize| {
        let text = line.split(':').nth(field);
        text.and_then(|text| text.parse().ok()).expect("a number")
    };
    Some((number(2), number(3)))
}

/// Makes `path` that user's.
pub(crate) fn give_away(path: &Path) {
    if let Some((user, group)) = server_user() {
        chown(path, Some(user), Some(group)).expect("chown");
    }
}

/// A folder of that user's.
pub(crate) fn temporary_directory() -> TempDir {
    let directory = tempfile::Builder::new()
        .prefix("podgres")
        .tempdir()
        .expect("directory");
    give_away(directory.path());
    directory
}

/// Lets `command` run as that user.
pub(crate) fn run_as_server_user(command: &mut Command) -> &mut Command {
    if let Some((user, group)) = server_user() {
        command.uid(user).gid(group);
    }
    command
}
