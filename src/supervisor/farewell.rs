//! The moment between the end of all that was supervised and the supervisor's own, under a Lease.
//!
//! The sidecar hands over only when it knows where the WAL ended, so the last status waits to be fetched. Bounded, since
//! nobody may be there to fetch it.

use std::time::Duration;

use tokio::time::Instant;

use super::run::Supervisor;

const LIMIT: Duration = Duration::from_secs(1);
/// For what was answered to get out of the socket.
const TOLD_LIMIT: Duration = Duration::from_millis(100);

impl Supervisor {
    /// Whether there is nothing more to supervise.
    pub(super) fn is_down(&self) -> bool {
        self.stopping && self.child.is_none() && self.work.is_none()
    }

    /// How long to stay, all being down; `None`: not at all.
    pub(super) fn farewell(&mut self) -> Option<Instant> {
        let gated = self.inputs.settings.gated;
        let until = *self.farewell_until.get_or_insert_with(|| Instant::now() + LIMIT);
        (gated && Instant::now() < until).then_some(until)
    }

    /// The status was given to somebody.
    pub(super) fn told(&mut self) {
        if let (true, Some(until)) = (self.is_down(), &mut self.farewell_until) {
            *until = (*until).min(Instant::now() + TOLD_LIMIT);
        }
    }
}
