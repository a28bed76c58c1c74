//! A supervisor that meets its own bug must not leave PostgreSQL behind unwatched.

use std::panic;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use rustix::time::Timespec;

use super::reaper;

/// The postmaster's process id; 0 while there is none.
static POSTMASTER: AtomicI32 = AtomicI32::new(0);

/// How long each kind of stop may take before the next one.
const FAST_LIMIT: Duration = Duration::from_secs(5);
const IMMEDIATE_LIMIT: Duration = Duration::from_secs(2);

/// Tells the hook whom to stop.
pub(super) fn record_postmaster(pid: Option<Pid>) {
    POSTMASTER.store(pid.map_or(0, |pid| pid.as_raw_nonzero().get()), Ordering::SeqCst);
}

/// Adds to the panic hook: after what was there before, PostgreSQL is stopped (fast, then
/// immediate, then killed, within 7 s) and the process aborts.
pub fn stop_on_panic() {
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        previous(info);
        stop_postmaster();
        std::process::abort();
    }));
}

fn stop_postmaster() {
    // Taken, so that a second panic does not wait again.
    let Some(pid) = Pid::from_raw(POSTMASTER.swap(0, Ordering::SeqCst)) else {
        return;
    };
    for (signal, limit) in [(Signal::INT, FAST_LIMIT), (Signal::QUIT, IMMEDIATE_LIMIT)] {
        reaper::send(pid, signal);
        if ends_within(pid, limit) {
            return;
        }
    }
    for child in reaper::children_of(pid) {
        reaper::send(child, Signal::KILL);
    }
    reaper::send(pid, Signal::KILL);
}

/// Waits without the async runtime, which may be what panicked.
fn ends_within(pid: Pid, limit: Duration) -> bool {
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return false;
    };
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        match poll(&mut ended, timeout.as_ref()) {
            Ok(count) => return count > 0,
            Err(_) if left.is_zero() => return false,
            Err(_) => {}
        }
    }
}
