//! The licence to run PostgreSQL writable, on a clock that cannot be set and counts suspension.
//!
//! Holds a deadline on `CLOCK_BOOTTIME` and a kernel timer for it. Never stops anything itself and
//! never compares another machine's clock.

use std::io;
use std::os::fd::OwnedFd;

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use crate::core::supervision::Licence;

const NANOSECONDS_PER_SECOND: u64 = 1_000_000_000;
const NANOSECONDS_PER_MILLISECOND: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Unlimited,
    /// Nanoseconds on `CLOCK_BOOTTIME`.
    Until(u64),
    None,
}

/// What the supervisor holds now; none at first.
pub(super) struct LicenceClock {
    held: Held,
    timer: AsyncFd<OwnedFd>,
}

impl LicenceClock {
    #[expect(
        deprecated,
        reason = "its successor is unsafe for types whose descriptor may change; OwnedFd's cannot"
    )]
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
        Ok(Self {
            held: Held::None,
            timer: AsyncFd::new(timer)?,
        })
    }

    /// Replaces what was held by a licence until `until_ms` on `CLOCK_BOOTTIME`, or one without an end.
    pub(super) fn grant(&mut self, until_ms: Option<u64>) -> io::Result<()> {
        let held = match until_ms {
            None => Held::Unlimited,
            Some(ms) => Held::Until(ms.saturating_mul(NANOSECONDS_PER_MILLISECOND)),
        };
        self.arm(held)?;
        self.held = held;
        Ok(())
    }

    /// Turns a licence whose deadline has passed into none; true if it did so.
    pub(super) fn lapse(&mut self) -> bool {
        let over = matches!(self.held, Held::Until(deadline) if boottime_ns() >= deadline);
        if over {
            self.held = Held::None;
        }
        over
    }

    /// Whether a primary may be started or go on now.
    pub(super) fn allows_primary(&self) -> bool {
        self.current() != Licence::None
    }

    pub(super) fn current(&self) -> Licence {
        match self.held {
            Held::Unlimited => Licence::Unlimited,
            Held::None => Licence::None,
            Held::Until(deadline) => match deadline.saturating_sub(boottime_ns()) {
                0 => Licence::None,
                _ => Licence::Limited {
                    until_ms: deadline / NANOSECONDS_PER_MILLISECOND,
                },
            },
        }
    }

    /// Returns when the deadline may have passed; [`Self::lapse`] knows. Never, if there is none.
    pub(super) async fn deadline(&self) {
        if !matches!(self.held, Held::Until(_)) {
            return std::future::pending().await;
        }
        loop {
            // An error here would mean that the runtime is gone; the caller's check is by the clock anyway.
            let Ok(mut guard) = self.timer.readable().await else {
                return;
            };
            let mut expirations = [0_u8; 8];
            match guard.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut expirations)?)) {
                Ok(_) => return,
                Err(_would_block) => {}
            }
        }
    }

    fn arm(&self, held: Held) -> io::Result<()> {
        let at = match held {
            // One, not zero: zero would disarm.
            Held::Until(deadline) => deadline.max(1),
            Held::Unlimited | Held::None => 0,
        };
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let value = Timespec {
            tv_sec: i64::try_from(at / NANOSECONDS_PER_SECOND).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(at % NANOSECONDS_PER_SECOND).unwrap_or(0),
        };
        let new = Itimerspec {
            it_interval: zero,
            it_value: value,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &new)?;
        Ok(())
    }
}

/// Nanoseconds since the machine started, suspension included.
fn boottime_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * NANOSECONDS_PER_SECOND + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(10);

    #[expect(clippy::unnecessary_wraps, reason = "as it is given")]
    fn in_ms(ms: u64) -> Option<u64> {
        Some(boottime_ns() / NANOSECONDS_PER_MILLISECOND + ms)
    }

    async fn deadline_comes(clock: &LicenceClock) -> bool {
        tokio::time::timeout(SOON, clock.deadline()).await.is_ok()
    }

    #[tokio::test]
    async fn a_limited_licence_lapses_by_itself_and_a_renewal_extends_it() {
        let mut clock = LicenceClock::new().unwrap();
        assert!(!clock.allows_primary(), "there is none at first");
        clock.grant(in_ms(50)).unwrap();
        assert!(clock.allows_primary());
        clock.grant(in_ms(400)).unwrap();
        let begun = std::time::Instant::now();
        assert!(deadline_comes(&clock).await);
        assert!(
            begun.elapsed() >= Duration::from_millis(390),
            "the renewal did not count"
        );
        assert!(clock.lapse() && !clock.lapse());
        assert_eq!(clock.current(), Licence::None);
        clock.grant(in_ms(20)).unwrap();
        assert!(deadline_comes(&clock).await, "the timer works only once");
    }

    #[tokio::test]
    async fn zero_and_endless_durations_hold() {
        let mut clock = LicenceClock::new().unwrap();
        clock.grant(Some(0)).unwrap();
        assert!(!clock.allows_primary());
        assert!(deadline_comes(&clock).await);
        clock.grant(Some(u64::MAX)).unwrap();
        assert!(clock.allows_primary() && !clock.lapse());
        clock.grant(None).unwrap();
        assert_eq!(clock.current(), Licence::Unlimited);
    }
}
