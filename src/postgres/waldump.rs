//! Counts what a stretch of WAL holds, with `pg_waldump`.
//!
//! Formats: `XLogDumpDisplayRecord` and `XLogDumpDisplayStats` of `src/bin/pg_waldump/pg_waldump.c`. The end of WAL is
//! an error to that program; what it printed until then counts.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::timeout;

use super::ServerSettings;
use super::error::ProgramError;
use super::process::{Locale, command};
use super::program::{Event, Line, Program};
use crate::core::wal::{Lsn, WalPosition};

/// Some gigabytes; after that what was counted so far is what there is to say.
const LIMIT: Duration = Duration::from_secs(30);
/// What a server writes without anybody's doing: checkpoints, snapshots of running transactions.
const IDLE_MANAGERS: [&str; 2] = ["XLOG", "Standby"];

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// Records that somebody's doing brought about.
    pub(super) records: u64,
    pub(super) commits: u64,
    /// As PostgreSQL prints them, in UTC.
    pub(super) first_commit: Option<String>,
    pub(super) last_commit: Option<String>,
    /// The last record of a transaction.
    pub(super) last_lsn: Option<Lsn>,
    /// There was more than could be counted in time.
    pub(super) uncounted: bool,
}

/// Reads the WAL in `folder` from `from` on, up to `end` or its own.
///
/// # Errors
/// The program cannot be run.
pub(super) async fn count(
    settings: &ServerSettings,
    folder: &Path,
    from: WalPosition,
    end: Option<Lsn>,
) -> Result<Contents, ProgramError> {
    let mut contents = Contents::default();
    let mut arguments = vec![
        "-t".to_owned(),
        from.timeline.to_string(),
        "-s".to_owned(),
        from.lsn.to_string(),
    ];
    if let Some(end) = end {
        arguments.extend(["-e".to_owned(), end.to_string()]);
    }
    let ended = read(settings, folder, &arguments, "--stats", |line| {
        contents.take_statistics(line);
    })
    .await?;
    contents.uncounted = !ended;
    if contents.records > 0 {
        read(settings, folder, &arguments, "--rmgr=Transaction", |line| {
            contents.take_transaction(line);
        })
        .await?;
    }
    Ok(contents)
}

/// False: it took too long.
async fn read(
    settings: &ServerSettings,
    folder: &Path,
    arguments: &[String],
    kind: &str,
    mut take: impl FnMut(&str),
) -> Result<bool, ProgramError> {
    let mut waldump = command(&settings.program("pg_waldump"), Locale::C, Signal::KILL);
    waldump
        .env("TZ", "UTC")
        .arg(kind)
        .arg("-p")
        .arg(folder)
        .args(arguments);
    let mut program = Program::spawn(waldump)?;
    let mut take_line = |line: Line| {
        if let Line::Out(text) = line {
            take(&text);
        }
    };
    let all = async {
        while let Event::Line(line) = program.next().await? {
            take_line(line);
        }
        program.drain().await.into_iter().for_each(&mut take_line);
        Ok(())
    };
    let Ok(ended) = timeout(LIMIT, all).await else {
        tracing::warn!("the WAL was not counted to its end within {} s", LIMIT.as_secs());
        return Ok(false);
    };
    ended.map(|()| true)
}

impl Contents {
    /// `Heap    12 ( 30.00)  …`
    fn take_statistics(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let (Some(manager), Some(Ok(count))) = (words.next(), words.next().map(str::parse::<u64>)) else {
            return;
        };
        if manager != "Total" && !IDLE_MANAGERS.contains(&manager) {
            self.records += count;
        }
    }

    /// `rmgr: Transaction … lsn: 0/01528B50, prev 0/…, desc: COMMIT 2026-11-21 13:58:56.123456 UTC; …`
    fn take_transaction(&mut self, line: &str) {
        let Some((head, description)) = line.split_once(", desc: ") else {
            return;
        };
        let lsn = head
            .split_once("lsn: ")
            .and_then(|(_, rest)| rest.split(',').next());
        self.last_lsn = lsn.and_then(|lsn| lsn.parse().ok()).or(self.last_lsn);
        let Some((word, rest)) = description.split_once(' ') else {
            return;
        };
        if word != "COMMIT" && word != "COMMIT_PREPARED" {
            return;
        }
        self.commits += 1;
        let Some(at) = commit_time(rest) else {
            return;
        };
        self.first_commit.get_or_insert_with(|| at.clone());
        self.last_commit = Some(at);
    }

    pub(super) fn add(&mut self, later: Self) {
        self.records += later.records;
        self.commits += later.commits;
        self.first_commit = self.first_commit.take().or(later.first_commit);
        self.last_commit = later.last_commit.or(self.last_commit.take());
        self.last_lsn = later.last_lsn.or(self.last_lsn);
        self.uncounted |= later.uncounted;
    }
}

/// The time alone: of a prepared transaction it follows `xid: `.
fn commit_time(text: &str) -> Option<String> {
    let text = text.split(';').next()?;
    let text = text.split_once(": ").map_or(text, |(_, time)| time);
    Some(text.trim().to_owned()).filter(|time| time.starts_with(|first: char| first.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_counted_and_aborts_are_not() {
        let mut contents = Contents::default();
        for line in [
            "rmgr: Transaction len (rec/tot):     34/    34, tx:        741, lsn: 0/03000148, prev 0/03000110, desc: COMMIT 2026-11-21 13:58:56.100000 UTC",
            "rmgr: Transaction len (rec/tot):     34/    34, tx:        742, lsn: 0/03000188, prev 0/03000148, desc: ABORT 2026-11-21 13:58:57.100000 UTC",
            "rmgr: Transaction len (rec/tot):    565/   565, tx:        743, lsn: 0/03000288, prev 0/03000188, desc: COMMIT 2026-11-21 13:58:58.100000 UTC; inval msgs: catcache 80",
            "rmgr: Transaction len (rec/tot):     34/    34, tx:          0, lsn: 0/03000388, prev 0/03000288, desc: COMMIT_PREPARED 744: 2026-11-21 13:58:59.100000 UTC",
            "pg_waldump: error: x",
        ] {
            contents.take_transaction(line);
        }
        assert_eq!(contents.commits, 3);
        assert_eq!(
            contents.first_commit.as_deref(),
            Some("2026-11-21 13:58:56.100000 UTC")
        );
        assert_eq!(
            contents.last_commit.as_deref(),
            Some("2026-11-21 13:58:59.100000 UTC")
        );
        assert_eq!(contents.last_lsn, Some(Lsn(0x300_0388)));
    }

    #[test]
    fn what_an_idle_server_writes_is_nothing() {
        let mut contents = Contents::default();
        for line in [
            "WAL statistics between 0/3000000 and 0/40000A0:",
            "Type                                           N      (%)          Record size      (%)",
            "----                                           -      ---          -----------      ---",
            "XLOG                                           2 ( 50.00)                  150 ( 50.00)",
            "Standby                                        2 ( 50.00)                  150 ( 50.00)",
            "                                        --------                      --------",
            "Total                                          4                           300 [100%]",
        ] {
            contents.take_statistics(line);
        }
        assert_eq!(contents, Contents::default());
        contents.take_statistics("Heap                                           7 ( 50.00)    150 ( 50.00)");
        assert_eq!(contents.records, 7);
    }
}
