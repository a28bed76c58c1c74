//! The two moments of an end under a Lease in which the sidecar has something left to do.
//!
//! Before the stop of a primary: a checkpoint, so that the stop is short, and the routes' farewell; the sidecar then orders the
//! stop. After it: the sidecar hands over only when it knows where the WAL ended, so the last status waits to be fetched. Both are
//! bounded, since nobody may be there.

use std::time::Duration;

use tokio::time::Instant;

use super::run::Supervisor;
use crate::core::supervision::{ServerRole, StopMode};

const LIMIT: Duration = Duration::from_secs(1);
/// For what was answered to get out of the socket, and for a successor that still receives the last of the WAL.
const TOLD_LIMIT: Duration = Duration::from_millis(600);
/// For the sidecar to show that it has heard of the end.
const HEARD_LIMIT: Duration = Duration::from_secs(1);
/// For its checkpoint and the routes. What is not written by then is written by the stop.
const LEAVE_LIMIT: Duration = Duration::from_secs(15);

/// TERM has come, and PostgreSQL goes on for the sidecar to order its stop.
pub(super) struct Leave {
    begun: Instant,
    /// Of the first status that told of it.
    version: u64,
    heard: bool,
}

impl Leave {
    pub(super) fn until(&self) -> Instant {
        self.begun + if self.heard { LEAVE_LIMIT } else { HEARD_LIMIT }
    }
}

impl Supervisor {
    /// TERM: a primary under a Lease is left to its sidecar for a while, everything else stops at once.
    pub(super) fn begin_to_leave(&mut self) {
        let serves = self.child.as_ref().is_some_and(|child| {
            child.ready && !child.is_stopping() && matches!(child.role, ServerRole::Primary { .. })
        });
        if !(serves && self.inputs.settings.gated && self.licence.allows_primary()) {
            return self.stop(StopMode::Fast, None, "termination requested");
        }
        tracing::info!("termination requested: PostgreSQL stops when the sidecar says so");
        self.leave = Some(Leave {
            begun: Instant::now(),
            version: self.version + 1,
            heard: false,
        });
    }

    /// A client has said which version it knows: the status that tells of the end has arrived somewhere.
    pub(super) fn heard(&mut self, version: u64) {
        if let Some(leave) = &mut self.leave {
            leave.heard |= version >= leave.version;
        }
    }

    /// Nobody has ordered the stop.
    pub(super) fn left_alone(&mut self) {
        let heard = self.leave.take().is_some_and(|leave| leave.heard);
        let reason = if heard {
            "the sidecar has not ordered it in time"
        } else {
            "no sidecar has heard of the termination"
        };
        self.stop(StopMode::Fast, None, reason);
    }

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
