//! The clock of observations, rights and licences: `CLOCK_BOOTTIME`. Nobody can set it, and it goes on while the machine is suspended.
//!
//! All processes of a pod share it, so that a deadline may be handed from one to the other. It is never
//! compared with another machine's. podgres uses two other clocks, and no right depends on either:
//!
//! - `Instant` (`CLOCK_MONOTONIC`, which stands still during suspension) is for limits, pauses and measured durations inside one
//!   process.
//! - The time of day (`SystemTime`, `kube::time_of_day`) is for people and for the age of backups. It can be set back, so it orders
//!   nothing and ends no right.

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since the machine started.
#[must_use]
pub fn boottime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}
