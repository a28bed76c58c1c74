//! The duties of a container's first process: takes in orphans and collects every dead child.
//!
//! PostgreSQL's tools are children of the async runtime, which collects them itself. So foreign
//! children are collected only while no tool runs; until then a dead orphan just keeps its number.

use std::time::Duration;

use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, set_child_subreaper, wait, waitpid,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

/// Programs that must not outlive their parent: they hold or write a data directory.
const PROGRAMS: [&str; 4] = ["postgres", "initdb", "pg_basebackup", "pg_rewind"];

/// Time for leftovers to end by themselves after SIGQUIT. The log collector ignores that signal
/// and ends when it has written what it still has.
const QUIT_GRACE: Duration = Duration::from_millis(500);

/// Makes orphans of this process' descendants its own children.
pub(super) fn adopt_orphans() -> std::io::Result<()> {
    let own = getpid();
    if own != Pid::INIT {
        set_child_subreaper(Some(own))?;
    }
    Ok(())
}

/// Collects `pid` if it is dead.
pub(super) fn collect(pid: Pid) -> Option<WaitStatus> {
    waitpid(Some(pid), WaitOptions::NOHANG)
        .ok()
        .flatten()
        .map(|(_, status)| status)
}

/// Collects every dead child.
pub(super) fn collect_all() -> Vec<(Pid, WaitStatus)> {
    std::iter::from_fn(|| wait(WaitOptions::NOHANG).ok().flatten()).collect()
}

/// `exited with code 1` or `killed by signal 9`.
pub(super) fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// Ends what a dead postmaster or tool left behind: adopted processes of PostgreSQL's programs.
///
/// SIGQUIT, then SIGKILL; gives up after `limit` and then returns how many are still there.
pub(super) async fn end_leftovers(limit: Duration) -> usize {
    let Ok(mut child_died) = signal(SignalKind::child()) else {
        return 0;
    };
    // Orphans come to this process at the moment of their parent's end: nobody is left where none is seen now.
    let mut left = leftovers();
    let begun = Instant::now();
    let steps = [(Signal::QUIT, QUIT_GRACE.min(limit)), (Signal::KILL, limit)];
    for (kill_signal, until) in steps {
        for pid in &left {
            send(*pid, kill_signal);
        }
        let mut over = false;
        while !left.is_empty() && !over {
            tokio::select! {
                _ = child_died.recv() => {}
                () = sleep_until(begun + until) => over = true,
            }
            left = leftovers();
        }
    }
    left.len()
}

/// Sends a signal; a process that is gone already is no error.
pub(super) fn send(pid: Pid, kill_signal: Signal) {
    if let Err(error) = kill_process(pid, kill_signal)
        && error != rustix::io::Errno::SRCH
    {
        tracing::warn!("could not signal process {pid}: {error}");
    }
}

/// Whether the process shows `part` in its title.
pub(super) fn has_title(pid: Pid, part: &str) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|title| String::from_utf8_lossy(&title).contains(part))
}

fn leftovers() -> Vec<Pid> {
    children_of(getpid())
}

/// Living children of `parent` that run one of PostgreSQL's programs.
pub(super) fn children_of(parent: Pid) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw)?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let process = ProcessStat::parse(&stat)?;
            let ours = process.parent == parent.as_raw_nonzero().get() && process.alive;
            (ours && PROGRAMS.contains(&process.program)).then_some(pid)
        })
        .collect()
}

/// The first fields of `/proc/<pid>/stat` (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct ProcessStat<'a> {
    program: &'a str,
    alive: bool,
    parent: i32,
}

impl<'a> ProcessStat<'a> {
    fn parse(stat: &'a str) -> Option<Self> {
        // A program's name may itself hold blanks and parentheses.
        let (head, tail) = stat.rsplit_once(')')?;
        let (_, program) = head.split_once('(')?;
        let mut fields = tail.split_ascii_whitespace();
        let state = fields.next()?;
        Some(Self {
            program,
            alive: !matches!(state, "Z" | "X"),
            parent: fields.next()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_with_an_odd_name_reads_right() {
        let stat = ProcessStat::parse("12 (a) b (c) Z 7 12 12 0").unwrap();
        assert_eq!((stat.program, stat.alive, stat.parent), ("a) b (c", false, 7));
        assert!(ProcessStat::parse("12 (postgres) S 7 1").unwrap().alive);
        for bad in ["", "12", "12 (x", "12 (x)", "12 (x) S", "12 (x) S y"] {
            assert_eq!(ProcessStat::parse(bad), None, "{bad:?}");
        }
    }
}
