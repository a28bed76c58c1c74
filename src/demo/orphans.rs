//! Processes without a parent who cares: those that the demo inherits, and those of a demo that was killed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Signal, WaitOptions, waitpid};

use super::tree::{processes, raw, send};

/// Rounds of killing what is left over; a process that waits for a disk can outlast them.
const KILL_ROUNDS: u32 = 1000;
const ROUND_PAUSE: Duration = Duration::from_millis(3);

/// Reaps the ended children of this process, except those in `awaited`, for which somebody else waits.
pub(super) fn reap(awaited: &BTreeSet<u32>) {
    let own = std::process::id();
    for process in processes().values() {
        if process.ended() && process.parent == own && !awaited.contains(&process.pid) {
            // Fails only if somebody else has reaped it.
            raw(process.pid).map(|pid| waitpid(Some(pid), WaitOptions::NOHANG).ok());
        }
    }
}

/// Kills what an earlier demo, itself killed, has left running in its folders: processes of one of these
/// programs (or of a program in one of these folders) that work in one of `directories` or nowhere special.
pub(super) async fn kill_leftovers(directories: &[PathBuf], own_program: &Path, programs: &Path) {
    let left = || -> Vec<u32> {
        processes()
            .values()
            .filter(|process| !process.ended())
            .filter(|process| {
                let link = |name| fs::read_link(format!("/proc/{}/{name}", process.pid)).unwrap_or_default();
                let (program, cwd) = (link("exe"), link("cwd"));
                let inside = directories.iter().any(|directory| cwd.starts_with(directory));
                program == own_program || (inside && program.starts_with(programs))
            })
            .map(|process| process.pid)
            .collect()
    };
    for _ in 0..KILL_ROUNDS {
        let left = left();
        if left.is_empty() {
            return;
        }
        send(&left, Signal::KILL);
        tokio::time::sleep(ROUND_PAUSE).await;
    }
}
