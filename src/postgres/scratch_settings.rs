//! What a scratch server is started with.
//!
//! On its command line: the restored `postgresql.auto.conf` is read after every other file, and would archive a verification's
//! WAL, clean somebody's archive up, or keep the server from starting.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use super::conf;
use super::error::ProgramError;
use super::process::{Locale, command};
use super::program;

pub(super) const PORT: u16 = 5432;
/// `pg_controldata` reads one page.
const CONTROLDATA_LIMIT: Duration = Duration::from_secs(30);
/// Replay may come to a time when the cluster had more than at the backup's.
const LEAST_PREPARED: u64 = 100;

/// How `pg_controldata` calls what replay must have at least as much of (`pg_controldata.c`, same wording in 15 to 18).
const DEMANDS: [(&str, &str, u64); 5] = [
    ("max_connections", "max_connections setting:", 0),
    ("max_worker_processes", "max_worker_processes setting:", 0),
    ("max_wal_senders", "max_wal_senders setting:", 0),
    (
        "max_prepared_transactions",
        "max_prepared_xacts setting:",
        LEAST_PREPARED,
    ),
    ("max_locks_per_transaction", "max_locks_per_xact setting:", 0),
];

/// The same for every directory.
const FIXED: &[(&str, &str)] = &[
    ("listen_addresses", ""),
    ("unix_socket_group", ""),
    ("external_pid_file", ""),
    ("ssl", "off"),
    ("shared_buffers", "128MB"),
    ("huge_pages", "try"),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("hot_standby", "off"),
    ("wal_level", "replica"),
    ("max_wal_size", "4GB"),
    ("synchronous_standby_names", ""),
    ("autovacuum", "off"),
    ("TimeZone", "UTC"),
    // What it writes is nobody's WAL, and what it reads comes from one place.
    ("archive_mode", "off"),
    ("archive_command", ""),
    ("archive_library", ""),
    ("archive_cleanup_command", ""),
    ("recovery_end_command", ""),
    ("restore_command", ""),
    ("primary_conninfo", ""),
    ("primary_slot_name", ""),
    // Each empty one unsets the others: the one that is asked for comes after them.
    ("recovery_target", ""),
    ("recovery_target_lsn", ""),
    ("recovery_target_name", ""),
    ("recovery_target_time", ""),
    ("recovery_target_xid", ""),
    ("recovery_target_inclusive", "on"),
    ("recovery_min_apply_delay", "0"),
    // Its log is read.
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("log_min_messages", "warning"),
    ("log_min_error_statement", "panic"),
    ("log_startup_progress_interval", "10s"),
    ("lc_messages", "C"),
    // A backup's tablespaces come back as directories, which recovery takes for damage otherwise.
    ("allow_in_place_tablespaces", "on"),
];

pub(super) fn fixed(data_directory: &Path, run_directory: &Path) -> Vec<(&'static str, String)> {
    let display = |path: &Path| path.to_string_lossy().into_owned();
    let mut settings = vec![
        ("data_directory", display(data_directory)),
        ("hba_file", display(&run_directory.join("pg_hba.conf"))),
        ("ident_file", display(&run_directory.join("pg_ident.conf"))),
        ("port", PORT.to_string()),
        (
            "unix_socket_directories",
            conf::socket_directories(&[run_directory.to_owned()]),
        ),
    ];
    settings.extend(FIXED.iter().map(|(name, value)| (*name, (*value).to_owned())));
    settings
}

/// What the directory's own WAL demands: a prepared transaction that has no place ends the replay.
pub(super) async fn demanded(
    program_directory: &Path,
    data_directory: &Path,
) -> Result<Vec<(&'static str, String)>, ProgramError> {
    let mut controldata = command(&program_directory.join("pg_controldata"), Locale::C, Signal::KILL);
    controldata.arg("-D").arg(data_directory);
    let lines = program::run(controldata, CONTROLDATA_LIMIT).await?;
    Ok(parse_demands(&lines))
}

fn parse_demands(lines: &[String]) -> Vec<(&'static str, String)> {
    let demand = |(name, key, least): (&'static str, &str, u64)| {
        let value = lines.iter().find_map(|line| line.strip_prefix(key))?.trim();
        let value: u64 = value.parse().ok()?;
        Some((name, value.max(least).to_string()))
    };
    DEMANDS.into_iter().filter_map(demand).collect()
}

/// The lines of the restored cluster's own configuration that it needs to start at all.
pub(super) fn libraries(data_directory: &Path) -> String {
    let mut text = String::new();
    for file in ["postgresql.conf", "postgresql.auto.conf"] {
        let found = std::fs::read_to_string(data_directory.join(file)).unwrap_or_default();
        let preload = found
            .lines()
            .rev()
            .find(|line| line.trim_start().starts_with("shared_preload_libraries"));
        if let Some(line) = preload {
            // Writing to a String cannot fail.
            writeln!(text, "{line}").ok();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepared_transactions_had_no_place_in_a_replay() {
        let lines = [
            "wal_level setting:                    replica",
            "max_connections setting:              300",
            "max_prepared_xacts setting:           0",
            "max_locks_per_xact setting:           64",
        ];
        let lines: Vec<String> = lines.map(str::to_owned).to_vec();
        let expected = [
            ("max_connections", "300".to_owned()),
            ("max_prepared_transactions", "100".to_owned()),
            ("max_locks_per_transaction", "64".to_owned()),
        ];
        assert_eq!(parse_demands(&lines), expected);
        let many = ["max_prepared_xacts setting:           500".to_owned()];
        assert_eq!(
            parse_demands(&many),
            [("max_prepared_transactions", "500".to_owned())]
        );
    }
}
