//! Reads how far `pg_basebackup --progress` is, and whose WAL it streams.
//!
//! Formats: `progress_report` in `src/bin/pg_basebackup/pg_basebackup.c`, which prints
//! `  1024/40960 kB (2%), 0/1 tablespace`; `XLogLongPageHeaderData` in `access/xlog_internal.h`.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use crate::core::data_directory::SystemIdentifier;
use crate::core::supervision::JobProgress;

/// `xlp_sysid` follows magic and info (2 + 2 bytes), timeline (4), address (8), rest length (4), padding (4).
const SYSTEM_IDENTIFIER_OFFSET: usize = 24;
/// `XLP_LONG_HEADER` in the info word.
const LONG_HEADER: u16 = 0x0002;

/// The figures of a progress line, `None` for any other line. `elapsed` is the time since the job began.
#[must_use]
pub fn parse(line: &str, elapsed: Duration) -> Option<JobProgress> {
    let (done, rest) = line.trim_start().split_once('/')?;
    let (total, _) = rest.split_once(" kB (")?;
    let done_bytes = done.parse::<u64>().ok()?.checked_mul(1024)?;
    let total_bytes = total.parse::<u64>().ok()?.checked_mul(1024)?;
    let elapsed_ms = u64::try_from(elapsed.as_millis()).ok()?.max(1);
    Some(JobProgress {
        done_bytes,
        total_bytes,
        bytes_per_second: done_bytes.saturating_mul(1000) / elapsed_ms,
    })
}

/// The system identifier in the first page of the WAL that arrives beside the copy; `None` until it is there.
#[must_use]
pub fn streamed_system_identifier(staging: &Path) -> Option<SystemIdentifier> {
    fs::read_dir(staging.join("pg_wal"))
        .ok()?
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            name.len() == 24
                && name
                    .to_string_lossy()
                    .bytes()
                    .all(|byte| byte.is_ascii_hexdigit())
        })
        .find_map(|entry| segment_system_identifier(&entry.path()))
}

fn segment_system_identifier(segment: &Path) -> Option<SystemIdentifier> {
    let mut header = [0; SYSTEM_IDENTIFIER_OFFSET + 8];
    File::open(segment).ok()?.read_exact(&mut header).ok()?;
    let info = u16::from_ne_bytes([header[2], header[3]]);
    let identifier = header.last_chunk::<8>().map(|bytes| u64::from_ne_bytes(*bytes))?;
    // A segment is created full of zeros.
    (info & LONG_HEADER != 0 && identifier != 0).then_some(SystemIdentifier(identifier))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_lines_are_read_and_others_are_not() {
        let progress = parse("  2048/40960 kB (5%), 0/1 tablespace", Duration::from_secs(2));
        let expected = JobProgress {
            done_bytes: 2 << 20,
            total_bytes: 40 << 20,
            bytes_per_second: 1 << 20,
        };
        assert_eq!(progress, Some(expected));
        let long = parse("40960/40960 kB (100%), 1/1 tablespace    ", Duration::ZERO);
        assert_eq!(long.map(|progress| progress.done_bytes), Some(40 << 20));
        for line in [
            "waiting for checkpoint",
            "pg_basebackup: error: could not connect to 1/2",
            "/ kB (",
            "1/x kB (2%)",
        ] {
            assert_eq!(parse(line, Duration::ZERO), None, "{line}");
        }
    }
}
