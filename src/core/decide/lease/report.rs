//! What a member tells the others of its part in the leadership.

use crate::core::decision::Memory;
use crate::core::lease::{LeadershipReport, Office};
use crate::core::observation::Observation;
use crate::core::policy::Policy;

use super::office;
use super::standing::Standing;

/// After that long without an answer of the API server a member does not count as one that could claim.
const SEES_API_PERIODS: u64 = 3;

/// Also notes which confirmation is given hereby, and when.
pub(super) fn report(
    policy: &Policy,
    observation: &Observation,
    memory: &mut Memory,
    standing: &Standing,
) -> LeadershipReport {
    let supervisor = observation.supervisor.as_ref();
    let confirms = office::confirms(policy, observation, standing).filter(|_| !standing.suspects);
    if let Some(office) = confirms {
        memory.lease.confirmed = Some((office, observation.at_ms));
    }
    let patience_ms = policy.times.retry_period_ms * SEES_API_PERIODS;
    let lease = &observation.lease;
    let answered = lease
        .answered_at_ms
        .is_some_and(|answered| observation.at_ms < answered + patience_ms);
    let beat = memory.lease.beats.last().map_or(0, |(beat, _)| *beat);
    let term = standing.term();
    // Also when the Lease is deleted.
    let known = memory.lease.record.as_ref().map_or(0, |record| record.term);
    let in_office = standing.is_holder && (standing.in_right() || beat > 0);
    LeadershipReport {
        term: term.max(known),
        promised_term: standing.promised,
        incarnation: supervisor.and_then(|supervisor| supervisor.incarnation.clone()),
        office: in_office.then_some(Office { term, beat }),
        confirms,
        suspects_term: standing.suspects.then_some(term),
        final_position: standing.final_position,
        priority: policy.priority,
        sees_api: answered || (lease.error.is_none() && lease.answered_at_ms.is_some()),
    }
}
