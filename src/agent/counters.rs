//! Counts what the metrics page shows of the agent: clones, by reason.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::core::decision::PostgresAction;
use crate::core::observation::Observation;
use crate::core::supervision::{CloneReason, JobKind, JobRequest, JobState};

/// What the agent counts for the metrics page.
#[derive(Clone, Default)]
pub struct Counters {
    clones: Arc<Mutex<BTreeMap<CloneReason, u64>>>,
}

impl Counters {
    /// Clones that this process saw to their end, by reason.
    pub fn clones(&self) -> Vec<(CloneReason, u64)> {
        let clones = self.clones.lock().unwrap_or_else(PoisonError::into_inner);
        clones.iter().map(|(reason, count)| (*reason, *count)).collect()
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
