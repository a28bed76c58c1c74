//! What the metrics page shows of the agent beyond the view: clones by reason, and how it stands with the Lease.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::core::decision::PostgresAction;
use crate::core::observation::Observation;
use crate::core::supervision::{CloneReason, JobKind, JobRequest, JobState};

/// What the agent counts for the metrics page.
#[derive(Clone, Default)]
pub struct Counters {
    clones: Arc<Mutex<BTreeMap<CloneReason, u64>>>,
    standing: Arc<Mutex<Standing>>,
}

/// How this member stands with the Lease; times are `CLOCK_BOOTTIME` in milliseconds.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// `None` with fixed leadership, or while the Lease has not been read.
    pub changed_at_ms: Option<u64>,
    pub answered_at_ms: Option<u64>,
    /// Until when the gate may confirm; 0: not at all.
    pub gate_until_ms: u64,
    /// `None` where there is no gate.
    pub gate_attached: Option<bool>,
    /// Times that the API server did not answer, or refused, after it had answered.
    pub errors: u64,
    /// Of what was kept aside when this member was last rewound or replaced.
    pub diverged: Option<(u64, u64)>,
}

impl Counters {
    /// Clones that this process saw to their end, by reason.
    pub fn clones(&self) -> Vec<(CloneReason, u64)> {
        let clones = self.clones.lock().unwrap_or_else(PoisonError::into_inner);
        clones.iter().map(|(reason, count)| (*reason, *count)).collect()
    }

    /// As of the last turn.
    pub fn standing(&self) -> Standing {
        self.lock().clone()
    }

    /// Notes a turn.
    pub(super) fn turned(&self, observation: &Observation, gate: (u64, Option<bool>)) {
        let lease = &observation.lease;
        let read = lease.stored.is_some() || lease.missing;
        let mut standing = self.lock();
        standing.changed_at_ms = read.then_some(lease.changed_at_ms);
        standing.answered_at_ms = lease.answered_at_ms;
        (standing.gate_until_ms, standing.gate_attached) = gate;
        if let Some(supervisor) = &observation.supervisor {
            let diverged = supervisor.diverged.as_ref();
            standing.diverged = diverged.map(|diverged| (diverged.commits, diverged.bytes));
        }
    }

    pub(super) fn lease_failed(&self) {
        self.lock().errors += 1;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn cloned(&self, reason: CloneReason) {
        let mut clones = self.clones.lock().unwrap_or_else(PoisonError::into_inner);
        *clones.entry(reason).or_default() += 1;
    }
}

/// Counts the clones of this process, each job once.
#[derive(Default)]
pub(super) struct Clones {
    asked: Option<CloneReason>,
    counted_job: u64,
    pub(super) total: u64,
}

impl Clones {
    pub(super) fn note(&mut self, action: &PostgresAction) {
        if let PostgresAction::Run {
            job: JobRequest::Clone { reason, .. },
        } = action
        {
            self.asked = Some(*reason);
        }
    }

    /// The reason of a clone that has just come to its end.
    pub(super) fn ended(&mut self, observation: &Observation) -> Option<CloneReason> {
        let job = observation
            .supervisor
            .as_ref()
            .and_then(|supervisor| supervisor.job.as_ref())?;
        let news = job.id != self.counted_job && job.kind == JobKind::Clone && job.state == JobState::Done;
        if !news {
            return None;
        }
        self.counted_job = job.id;
        self.total += 1;
        self.asked.take()
    }
}
