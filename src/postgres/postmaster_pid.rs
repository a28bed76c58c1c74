//! Reads `postmaster.pid`, in which a running postmaster says who and how far it is.
//!
//! Format: `src/include/utils/pidfile.h` of PostgreSQL. Removes the file only where its process id
//! provably belongs to no PostgreSQL, which happens to process ids that a new container uses again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::ServerSettings;
use super::leftovers;
use crate::files::{FileContext as _, FileError};

/// How far a postmaster is (`LOCK_FILE_LINE_PM_STATUS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostmasterStatus {
    Starting,
    Stopping,
    /// Accepts connections.
    Ready,
    /// In recovery and not accepting connections: `hot_standby` is off.
    Standby,
    /// The file is not complete yet.
    Unknown,
}

/// The lines of `postmaster.pid` that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PostmasterPid {
    pub pid: u32,
    /// Seconds since 1970.
    pub started_at_s: Option<u64>,
    pub status: PostmasterStatus,
}

impl PostmasterPid {
    /// Whether both speak of the same server: process ids alone come again in a new container.
    #[must_use]
    pub fn is_of(&self, other: &Self) -> bool {
        (self.pid, self.started_at_s) == (other.pid, other.started_at_s)
    }
}

/// What the file says; `None` if there is none or it is not readable as one.
///
/// A killed postmaster leaves its file behind, so compare the process id with the child's.
#[must_use]
pub fn read_postmaster_pid(settings: &ServerSettings) -> Option<PostmasterPid> {
    parse(&fs::read_to_string(path(settings)).ok()?)
}

/// Whether the server of a data directory is shutting down, for a program that knows no more than its place.
#[must_use]
pub fn is_stopping(data_directory: &Path) -> bool {
    let text = fs::read_to_string(data_directory.join("postmaster.pid")).unwrap_or_default();
    parse(&text).is_some_and(|read| read.status == PostmasterStatus::Stopping)
}

/// Removes a `postmaster.pid` whose process id now belongs to a program that is not PostgreSQL: the
/// postmaster would take that for its predecessor and refuse to start.
///
/// # Errors
/// The file cannot be removed.
pub fn clear_stale(settings: &ServerSettings) -> Result<(), FileError> {
    let Some(PostmasterPid { pid, .. }) = read_postmaster_pid(settings) else {
        return Ok(());
    };
    let alive = PathBuf::from(format!("/proc/{pid}")).exists();
    if !alive || leftovers::is_postgresql(pid) {
        return Ok(());
    }
    tracing::info!(
        pid,
        "removing a postmaster.pid whose process id belongs to another program now"
    );
    match fs::remove_file(path(settings)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).file("remove file", &path(settings))
        }
        _ => Ok(()),
    }
}

fn path(settings: &ServerSettings) -> PathBuf {
    settings.data_directory.join("postmaster.pid")
}

pub(super) fn parse(text: &str) -> Option<PostmasterPid> {
    let mut lines = text.lines();
    // A stand-alone backend writes its process id with a minus sign.
    let pid = lines.next()?.trim().trim_start_matches('-').parse().ok()?;
    // The data directory stands between.
    let started_at_s = lines.nth(1).and_then(|line| line.trim().parse().ok());
    let status = match lines.nth(4).map_or("", str::trim) {
        "starting" => PostmasterStatus::Starting,
        "stopping" => PostmasterStatus::Stopping,
        "ready" => PostmasterStatus::Ready,
        "standby" => PostmasterStatus::Standby,
        _ => PostmasterStatus::Unknown,
    };
    Some(PostmasterPid {
        pid,
        started_at_s,
        status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eighth_line_is_the_status() {
        let text = "4711\n/data\n1700000000\n5432\n/run\n127.0.0.1\n  123456  0\nready   \n";
        let read = parse(text).expect("pid");
        assert_eq!((read.pid, read.status), (4711, PostmasterStatus::Ready));
        assert_eq!(parse("-7\n").expect("pid").status, PostmasterStatus::Unknown);
        assert_eq!(parse(""), None);
    }

    /// The file that a killed container had left made the next one's postmaster, which had the same process id, ready at once.
    #[test]
    fn an_earlier_postmaster_of_the_same_process_id_is_another_one() {
        let file = |started: u32| format!("27\n/data\n{started}\n5432\n/run\n\n\nready   \n");
        let [earlier, again, now] = [100, 100, 200].map(|started| parse(&file(started)).expect("pid"));
        assert!(again.is_of(&earlier) && !now.is_of(&earlier));
    }
}
