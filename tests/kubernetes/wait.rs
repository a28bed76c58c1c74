//! Waiting for a condition, with a limit and with the last thing seen when it runs out.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(200);

/// Looks until `enough` says so; how long it took, and what was seen then.
pub(crate) fn until<T: Debug>(
    what: &str,
    look: impl Fn() -> T,
    enough: impl Fn(&T) -> bool,
) -> (Duration, T) {
    within(LIMIT, what, look, enough)
}

/// As [`until`], with a limit of one's own.
pub(crate) fn within<T: Debug>(
    limit: Duration,
    what: &str,
    look: impl Fn() -> T,
    enough: impl Fn(&T) -> bool,
) -> (Duration, T) {
    let begun = Instant::now();
    loop {
        let seen = look();
        if enough(&seen) {
            return (begun.elapsed(), seen);
        }
        assert!(
            begun.elapsed() < limit,
            "not within {limit:?}: {what}; last seen: {seen:#?}"
        );
        std::thread::sleep(PAUSE);
    }
}
