//! Processes of a pod, found in `/proc`, and what is done to all of them at once.
//!
//! What a PID namespace would know must be pieced together here: children by their parent, orphans by
//! the process group, session or working directory that they keep. Source: proc(5).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Rounds of looking and signalling, a few milliseconds each, after which a freeze is given up as complete.
const FREEZE_ROUNDS: u32 = 200;
/// Rounds of looking and killing; a process that waits for a disk can outlast them.
const KILL_ROUNDS: u32 = 1000;
/// Rounds of waiting for the ended to be reaped; milliseconds pass.
const REAP_ROUNDS: u32 = 300;
const ROUND_PAUSE: Duration = Duration::from_millis(3);

/// One line of `/proc/<pid>/stat`, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    pub group: u32,
    pub session: u32,
    /// `R`, `S`, `D`, `T`, `Z`, …
    pub state: char,
}

impl Process {
    /// Ended, and waiting to be reaped.
    pub(super) fn ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    fn stopped(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }
}

/// All processes of this machine that `/proc` shows, by pid.
#[must_use]
pub fn processes() -> BTreeMap<u32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| {
            // A process may end between the listing and the reading.
            let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
            Some((pid, parse_stat(pid, &String::from_utf8_lossy(&stat))?))
        })
        .collect()
}

/// The name stands in parentheses and may itself hold parentheses, spaces and line ends.
fn parse_stat(pid: u32, stat: &str) -> Option<Process> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    Some(Process {
        pid,
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
        session: fields.next()?.parse().ok()?,
    })
}

/// Which processes are meant.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// The first processes of containers, running or ended, each the leader of its own process group.
    pub roots: BTreeSet<u32>,
    /// Folders of the pod alone: a process that works in one of them is the pod's. Absolute, without links.
    pub directories: Vec<PathBuf>,
    /// If given, only descendants of this process count, so that a visitor's shell is never taken for the pod's.
    pub ancestor: Option<u32>,
}

impl Scope {
    /// The living processes that are meant, at this moment.
    #[must_use]
    pub fn members(&self, processes: &BTreeMap<u32, Process>) -> BTreeSet<u32> {
        let own = std::process::id();
        processes
            .values()
            .filter(|process| !process.ended() && process.pid != own && process.pid != 1)
            .filter(|process| {
                let line = line_of(process.pid, processes);
                let descends = self.ancestor.is_none_or(|ancestor| line.contains(&ancestor));
                descends && self.holds_one_of(&line, processes)
            })
            .map(|process| process.pid)
            .collect()
    }

    /// Whether the process or one of its ancestors bears a mark of the pod.
    fn holds_one_of(&self, line: &[u32], processes: &BTreeMap<u32, Process>) -> bool {
        let own = std::process::id();
        line.iter()
            .take_while(|pid| **pid != own && **pid != 1 && Some(**pid) != self.ancestor)
            .filter_map(|pid| processes.get(pid))
            .any(|process| {
                self.roots.contains(&process.group)
                    || self.roots.contains(&process.session)
                    || self.works_inside(process.pid)
            })
    }

    fn works_inside(&self, pid: u32) -> bool {
        if self.directories.is_empty() {
            return false;
        }
        fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| {
            self.directories
                .iter()
                .any(|directory| cwd.starts_with(directory))
        })
    }
}

/// A process, its parent, and so on up.
fn line_of(pid: u32, processes: &BTreeMap<u32, Process>) -> Vec<u32> {
    let mut line = Vec::new();
    let mut next = pid;
    while let Some(process) = processes.get(&next) {
        // The table is read while it changes, so that it could show a circle.
        if line.contains(&next) {
            break;
        }
        line.push(next);
        next = process.parent;
    }
    line
}

/// Stops (SIGSTOP) every process in `scope`, again and again until none runs that could make another.
///
/// Returns how many stand still.
pub async fn freeze(scope: &Scope) -> usize {
    let mut told = BTreeSet::new();
    for _ in 0..FREEZE_ROUNDS {
        let processes = processes();
        let members = scope.members(&processes);
        let still = |process: &Process| {
            // In the kernel (on a disk, or after vfork until its child, stopped too, goes on) it stops on its
            // way out, before it can do anything else.
            process.stopped() || (process.state == 'D' && told.contains(&process.pid))
        };
        let running: Vec<u32> = members
            .iter()
            .copied()
            .filter(|pid| processes.get(pid).is_some_and(|process| !still(process)))
            .collect();
        if running.is_empty() {
            return members.len();
        }
        send(&running, Signal::STOP);
        told.extend(running);
        tokio::time::sleep(ROUND_PAUSE).await;
    }
    scope.members(&processes()).len()
}

/// Lets every process in `scope` go on (SIGCONT); returns how many there are.
pub fn thaw(scope: &Scope) -> usize {
    let members = scope.members(&processes());
    send(&members, Signal::CONT);
    members.len()
}

/// Ends every process in `scope` at once (SIGKILL), and returns when they are gone.
///
/// They are frozen first, so that none sees another one die. Returns whether all are gone.
pub async fn kill(scope: &Scope) -> bool {
    if scope.members(&processes()).is_empty() {
        return true;
    }
    freeze(scope).await;
    let mut killed = BTreeSet::new();
    for _ in 0..KILL_ROUNDS {
        let members = scope.members(&processes());
        if members.is_empty() {
            if scope.ancestor == Some(std::process::id()) {
                until_reaped(&killed).await;
            }
            return true;
        }
        send(&members, Signal::KILL);
        killed.extend(members);
        tokio::time::sleep(ROUND_PAUSE).await;
    }
    false
}

/// A process that has ended but is not reaped still has its pid, and PostgreSQL takes the pid in an old
/// `postmaster.pid` for a server that runs. Only for orphans that this process inherits: another one
/// reaps when it likes.
async fn until_reaped(killed: &BTreeSet<u32>) {
    for _ in 0..REAP_ROUNDS {
        let processes = processes();
        if !killed.iter().any(|pid| processes.contains_key(pid)) {
            return;
        }
        tokio::time::sleep(ROUND_PAUSE).await;
    }
}

/// Sends one signal to one process; false if there is no such process.
pub fn signal(pid: u32, signal: Signal) -> bool {
    raw(pid).is_some_and(|pid| kill_process(pid, signal).is_ok())
}

pub(super) fn send<'a>(pids: impl IntoIterator<Item = &'a u32>, what: Signal) {
    for pid in pids {
        // One that has ended meanwhile needs no signal.
        signal(*pid, what);
    }
}

pub(super) fn raw(pid: u32) -> Option<Pid> {
    // 0 would mean a whole process group.
    i32::try_from(pid)
        .ok()
        .filter(|pid| *pid > 1)
        .and_then(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_be_called_anything() {
        let expected = Process {
            pid: 7,
            parent: 1,
            group: 7,
            session: 7,
            state: 'S',
        };
        for name in ["sh", "a b", ")", "x) S 9 9 9 (y", "line\nend"] {
            let stat = format!("7 ({name}) S 1 7 7 0 -1 4194560 0");
            assert_eq!(parse_stat(7, &stat), Some(expected), "{name:?}");
        }
        for torn in ["", "7 (sh", "7 (sh) S", "7 (sh) S x 7 7"] {
            assert_eq!(parse_stat(7, torn), None, "{torn:?}");
        }
    }

    #[test]
    fn members_are_roots_their_groups_and_descendants() {
        let table = |rows: &[(u32, u32, u32, u32)]| -> BTreeMap<u32, Process> {
            rows.iter()
                .map(|(pid, parent, group, session)| {
                    let (pid, parent, group, session) = (*pid, *parent, *group, *session);
                    (
                        pid,
                        Process {
                            pid,
                            parent,
                            group,
                            session,
                            state: 'S',
                        },
                    )
                })
                .collect()
        };
        let far = 4_000_000;
        let processes = table(&[
            (far, 1, far, far),
            (far + 10, far, far + 10, far),
            (far + 11, far + 10, far + 11, far + 11),
            (far + 12, far + 11, far + 12, far + 12),
            (far + 20, far, far + 20, far),
            (far + 21, far + 20, far + 21, far + 21),
            // An orphan of container 10, and one of a stranger.
            (far + 30, far, far + 10, far),
            (far + 40, 1, far + 40, far + 40),
        ]);
        let scope = Scope {
            roots: [far + 10].into(),
            ancestor: Some(far),
            directories: Vec::new(),
        };
        let members: Vec<u32> = scope
            .members(&processes)
            .into_iter()
            .map(|pid| pid - far)
            .collect();
        assert_eq!(members, [10, 11, 12, 30]);
    }
}
