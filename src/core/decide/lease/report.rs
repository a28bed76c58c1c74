//! What a member tells the others of its part in the leadership.

use crate::core::decision::Decision;
use crate::core::lease::{LeadershipReport, Office};
use crate::core::observation::Observation;
use crate::core::policy::Policy;

use super::office;
use super::standing::{self, Standing};

/// Puts into the decision what the others are told, and notes which confirmation is given hereby, and when. `gives_up`: this holder wants to
/// be rid of the Lease.
pub(super) fn tell(
    policy: &Policy,
    observation: &Observation,
    decision: &mut Decision,
    standing: &Standing,
    gives_up: bool,
) {
    let supervisor = observation.supervisor.as_ref();
    let memory = &mut decision.memory.lease;
    let confirms = office::confirms(policy, observation, standing).filter(|_| !standing.suspects);
    if let Some(office) = confirms {
        memory.confirmation_given = Some((office, observation.at_ms));
    }
    let beat = memory.beats.last().map_or(0, |(beat, _)| *beat);
    let term = standing.term();
    // Also when the Lease is deleted.
    let known = memory.record.as_ref().map_or(0, |record| record.term);
    let in_office = standing.is_holder && (standing.in_right() || beat > 0) && !gives_up;
    decision.report = Some(LeadershipReport {
        term: term.max(known),
        promised_term: standing.promised,
        incarnation: supervisor.and_then(|supervisor| supervisor.incarnation.clone()),
        office: in_office.then_some(Office { term, beat }),
        confirms,
        suspects_term: standing.suspects.then_some(term),
        gives_up_term: gives_up.then_some(term),
        final_position: standing.final_position,
        priority: policy.priority,
        sees_api: standing::sees_api(policy, observation),
    });
}
