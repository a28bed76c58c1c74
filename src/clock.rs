//! The one clock of podgres: `CLOCK_BOOTTIME`, which cannot be set and counts suspension.
//!
//! All processes of a pod share it, so that a deadline may be handed from one to the other. It is never
//! compared with another machine's.

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since the machine started.
#[must_use]
pub fn boottime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}
