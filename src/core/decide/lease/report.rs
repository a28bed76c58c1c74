//! What a member tells the others of its part in the leadership.

use crate::core::decision::Memory;
use crate::core::lease::{LeadershipReport, Office};
use crate::core::observation::Observation;
use crate::core::policy::Policy;

use super::standing::{self, Standing};
use super::{hand_over, office};

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
    let beat = memory.lease.beats.last().map_or(0, |(beat, _)| *beat);
    let term = standing.term();
    // Also when the Lease is deleted.
    let known = memory.lease.record.as_ref().map_or(0, |record| record.term);
    let lost = standing.suspects || hand_over::left_untold(policy, observation, memory, standing);
    let in_office = standing.is_holder && (standing.in_right() || beat > 0);
    LeadershipReport {
        term: term.max(known),
        promised_term: standing.promised,
        incarnation: supervisor.and_then(|supervisor| supervisor.incarnation.clone()),
        office: in_office.then_some(Office { term, beat }),
        confirms,
        suspects_term: lost.then_some(term),
        final_position: standing.final_position,
        priority: policy.priority,
        sees_api: standing::sees_api(policy, observation),
    }
}
