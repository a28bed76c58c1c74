//! How long a container that ended waits for its next start: a kubelet's rule with shorter times.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(5);
/// A container that ran so long begins anew with the first pause.
const FORGIVEN_AFTER: Duration = Duration::from_secs(10);

/// The pauses of one container.
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The pause after a run of this length.
    pub(super) fn next(&mut self, ran: Duration) -> Duration {
        let pause = if ran >= FORGIVEN_AFTER { FIRST } else { self.next };
        self.next = (pause * 2).min(LONGEST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_a_limit_and_are_forgiven() {
        let mut backoff = Backoff::default();
        let soon = Duration::from_secs(1);
        let pauses: Vec<u128> = (0..7).map(|_| backoff.next(soon).as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.next(FORGIVEN_AFTER).as_millis(), 200);
        assert_eq!(backoff.next(soon).as_millis(), 400);
    }
}
