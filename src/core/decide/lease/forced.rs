//! A forced failover: the operator takes it upon himself that commits may be lost, and nothing else.

use crate::core::decision::Decision;
use crate::core::lease::{LeaseRecord, MoveRequest};
use crate::core::situation::Situation;

use super::standing::Standing;
use super::{Turn, failover};

pub(super) fn is_asked(turn: &Turn<'_>, record: &LeaseRecord) -> bool {
    matches!(record.request, Some(MoveRequest::Failover { to, .. }) if to == turn.policy.ordinal)
}

/// The operator has asked for this member although commits may be lost; even then never beside a primary with a right.
pub(super) fn take_over(turn: Turn<'_>, standing: &Standing, record: &LeaseRecord) -> Decision {
    let holder = standing
        .holder_elsewhere
        .and_then(|holder| turn.observation.peers.get(&holder));
    let in_office = holder.is_some_and(|peer| {
        let office = peer.live_report().and_then(|report| report.office);
        office.is_some_and(|office| office.term == record.term)
    });
    if in_office {
        return turn
            .row(
                Situation::BetterCandidate,
                "the primary hands over itself".to_owned(),
            )
            .soon();
    }
    let term = failover::next_term(&turn, record);
    if standing.promised < term {
        return turn.detach(Situation::Detaching, "forced by the operator".to_owned(), term);
    }
    let Some(own) = standing.final_position else {
        return turn
            .row(Situation::Comparing, "waiting for replay to end".to_owned())
            .soon();
    };
    if !failover::right_over(&turn, standing, record) || kept_by_others(&turn, standing, record) {
        return turn
            .row(Situation::Comparing, failover::not_over(standing))
            .soon();
    }
    let write = failover::claim(&turn, standing, record, term, Some(own), "forced by the operator");
    turn.lease_row(Situation::Standing, "forced by the operator".to_owned(), write)
}

/// Another has said that it confirmed the primary, which may still count on that.
fn kept_by_others(turn: &Turn<'_>, standing: &Standing, record: &LeaseRecord) -> bool {
    let lasts_ms = turn.policy.times.renew_deadline_ms;
    let mut said = turn.memory.lease.confirmed_by_others.values();
    said.any(|(office, heard_ms)| office.term == record.term && standing.at_ms < heard_ms + lasts_ms)
}
