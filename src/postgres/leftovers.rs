//! Finds and ends PostgreSQL programs that still work on a directory whose job is over.
//!
//! A killed supervisor takes its direct children along, but not `pg_basebackup`'s own WAL receiver,
//! which would go on writing and keep the replication slot busy. Looks only at programs of ours
//! by name that name the directory as an argument or work inside it; touches nothing else.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

const PROGRAMS: &[&str] = &["initdb", "pg_basebackup", "pg_rewind", POSTGRES];
/// Ends at once on SIGQUIT too, and takes its shared memory along.
const POSTGRES: &str = "postgres";
/// A killed process is gone within milliseconds unless its disk hangs.
const ROUNDS: u32 = 100;
const ROUND: Duration = Duration::from_millis(50);
/// How many rounds a server gets for an orderly end.
const ORDERLY_ROUNDS: u32 = 20;

/// Ends every program that works on `directory` and waits (blocking, 5 s at most) until they are gone.
pub(super) fn end_programs_in(directory: &Path) {
    for round in 0..ROUNDS {
        let found = programs_in(directory);
        if found.is_empty() {
            return;
        }
        for pid in found {
            let orderly = round < ORDERLY_ROUNDS && program_of(pid) == Some(POSTGRES);
            end(pid, if orderly { Signal::QUIT } else { Signal::KILL });
        }
        thread::sleep(ROUND);
    }
}

fn end(pid: u32, signal: Signal) {
    tracing::debug!(
        pid,
        ?signal,
        "ending a program that an interrupted job left behind"
    );
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // Gone in the meantime is as good; not allowed shows in the next step.
        kill_process(pid, signal).ok();
    }
}

/// The process ids of PostgreSQL programs that work on `directory`.
pub(super) fn programs_in(directory: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| works_on(*pid, directory))
        .collect()
}

/// Whether the process is one of PostgreSQL's programs.
pub(super) fn is_postgresql(pid: u32) -> bool {
    program_of(pid).is_some()
}

/// The name of the process if it is one of PostgreSQL's; a zombie has none any more.
fn program_of(pid: u32) -> Option<&'static str> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = program.file_name()?.as_bytes();
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    PROGRAMS.iter().copied().find(|known| known.as_bytes() == name)
}

fn works_on(pid: u32, directory: &Path) -> bool {
    if !is_postgresql(pid) {
        return false;
    }
    let inside = fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| {
        let cwd = cwd.as_os_str().as_bytes();
        let cwd = cwd.strip_suffix(b" (deleted)").unwrap_or(cwd);
        Path::new(OsStr::from_bytes(cwd)).starts_with(directory)
    });
    let named = || {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let wanted = directory.as_os_str().as_bytes();
        arguments
            .split(|byte| *byte == 0)
            .any(|argument| argument == wanted)
    };
    inside || named()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_postgresql_programs_count() {
        let folder = tempfile::tempdir().expect("tempdir");
        let mut shell = std::process::Command::new("sleep")
            .arg("60")
            .current_dir(folder.path())
            .spawn()
            .expect("sleep");
        end_programs_in(folder.path());
        assert!(shell.try_wait().expect("wait").is_none(), "a stranger was ended");
        shell.kill().expect("kill");
        shell.wait().expect("wait");
    }
}
