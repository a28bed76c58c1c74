//! When the loop ends, and how: never by itself in a sidecar, with the first word on the directory in `podgres init`.

use crate::core::decision::{Decision, PostgresAction};
use crate::core::observation::Observation;
use crate::core::policy::{Leadership, Policy};
use crate::core::situation::{Outlook, Situation};
use crate::core::supervision::{FailureKind, JobState};

/// When the loop ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Never by itself: `podgres sidecar`.
    Ended,
    /// With the first decision to start PostgreSQL, or to refuse: `podgres init`.
    DirectoryReady,
}

/// How the loop of `podgres init` ended.
#[derive(Debug)]
pub enum Outcome {
    Ready(Decision),
    /// With what must change.
    Refused(Decision, FailureKind),
    Overdue(Decision),
}

pub(super) fn ended(policy: &Policy, decision: &Decision, observation: &Observation) -> Option<Outcome> {
    let starts = matches!(decision.postgres, Some(PostgresAction::Start { .. }));
    // Who runs which way is the sidecar's business; what is there is enough to begin.
    let whole = observation.supervisor.as_ref().is_some_and(|supervisor| {
        let idle = !matches!(&supervisor.job, Some(job) if matches!(job.state, JobState::Running { .. }));
        idle && supervisor.data_directory.facts().is_some()
    });
    if policy.leadership == Leadership::Lease && whole && decision.situation.outlook() != Outlook::Refused {
        return Some(Outcome::Ready(decision.clone()));
    }
    match decision.situation.outlook() {
        Outlook::Refused => Some(Outcome::Refused(
            decision.clone(),
            refused_job(decision, observation).unwrap_or(FailureKind::Data),
        )),
        Outlook::Overdue => Some(Outcome::Overdue(decision.clone())),
        Outlook::Steady | Outlook::Passing => starts.then(|| Outcome::Ready(decision.clone())),
    }
}

fn refused_job(decision: &Decision, observation: &Observation) -> Option<FailureKind> {
    let job = observation.supervisor.as_ref()?.job.as_ref()?;
    match job.state {
        JobState::Failed { kind, .. } if decision.situation == Situation::JobRefused => Some(kind),
        _ => None,
    }
}
