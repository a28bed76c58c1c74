//! What may be written into the Lease.

use podgres::core::cluster::PeerContact;
use podgres::core::data_directory::{ControlState, DataDirectory};
use podgres::core::decision::PostgresAction;
use podgres::core::lease::{Durability, Incarnation, LeasePurpose, LeaseRecord, MoveRequest};
use podgres::core::member::Ordinal;
use podgres::core::status::HeldData;
use podgres::core::supervision::ServerRole;
use podgres::core::sync::covers;

use super::case::{Case, read};

pub(super) fn terms_grow(case: &Case<'_>) -> bool {
    let Some(write) = &case.decision.lease else {
        return true;
    };
    let Some(record) = case.record() else {
        // Made anew: no earlier than what is known here and by those who can be heard.
        let known = case.supervisor().map_or(0, |supervisor| supervisor.terms.held);
        return write.record.term >= known;
    };
    let identifier = record.system_identifier;
    let term = match write.purpose {
        LeasePurpose::Claim => write.record.term > record.term,
        LeasePurpose::HandOver => write.record.term == record.term + 1,
        _ => write.record.term == record.term,
    };
    term && (identifier.is_none() || identifier == write.record.system_identifier)
}

pub(super) fn timelines_grow(case: &Case<'_>) -> bool {
    if let Some(PostgresAction::Promote { timeline, .. }) = &case.decision.postgres {
        let server = case.observation.server.as_ref();
        let own =
            server.is_some_and(|server| server.timeline == timeline.own) && timeline.own < timeline.next;
        if !own
            || case
                .record()
                .is_none_or(|record| record.timeline != timeline.next)
        {
            return false;
        }
    }
    let Some((write, record)) = case.decision.lease.as_ref().zip(case.record()) else {
        return true;
    };
    let given = match (write.purpose, case.own_final_position(), case.facts()) {
        // A standby that is to be promoted in the new term, or the one that is named.
        (LeasePurpose::Claim, Some(own), _) if !case.holds() => Some(own.timeline),
        (LeasePurpose::HandOver, _, Some(facts)) => Some(facts.timeline),
        _ => None,
    };
    match given {
        Some(own) => write.record.timeline > record.timeline.max(own),
        None => write.record.timeline >= record.timeline,
    }
}

pub(super) fn claims(case: &Case<'_>) -> bool {
    let Some(write) = case
        .decision
        .lease
        .as_ref()
        .filter(|write| write.purpose == LeasePurpose::Claim)
    else {
        return true;
    };
    let Some(record) = case.record() else {
        return claims_missing(case);
    };
    if write.record.synchronous != record.synchronous {
        return false;
    }
    let running_primary = matches!(case.running_role(), Some(ServerRole::Primary { .. }));
    if case.holds() && running_primary && case.in_right() {
        // Overtaken: it goes on in a newer term.
        return true;
    }
    if record.system_identifier.is_none()
        && case
            .supervisor()
            .is_some_and(|s| s.data_directory == DataDirectory::Empty)
    {
        return case.policy.first() && (record.holder.is_none() || case.expired());
    }
    last_holder(case, record) || stands(case, record, write.record.term)
}

fn claims_missing(case: &Case<'_>) -> bool {
    let known = case.memory.lease.record.as_ref();
    let again = known.is_some_and(|record| {
        record.holder.as_ref() == Some(&case.policy.identity) && nobody_stands(case, record.term)
    });
    let first = case.policy.first()
        && case.supervisor().is_some_and(|supervisor| {
            let empty = supervisor.data_directory == DataDirectory::Empty;
            (empty && nobody_has_data(case)) || (!empty && supervisor.terms.held == 0)
        });
    let last = case.supervisor().is_some_and(|supervisor| {
        let later = case
            .observation
            .peers
            .values()
            .filter_map(|peer| peer.leadership.as_ref());
        supervisor.terms.held > 0
            && supervisor.terms.promised <= supervisor.terms.held
            && later
                .into_iter()
                .all(|report| report.promised_term <= supervisor.terms.held)
    });
    case.observation.lease.missing && (again || first || last)
}

/// So many of those whom this primary's commits wait for have promised nothing later that no candidate can do without one of them.
fn nobody_stands(case: &Case<'_>, term: u64) -> bool {
    let Some(ServerRole::Primary {
        synchronous_standby_names,
        ..
    }) = case.running_role()
    else {
        return false;
    };
    let Some(told) = read(synchronous_standby_names) else {
        return false;
    };
    let free = told.members.iter().filter(|member| {
        let peer = case.observation.peers.get(member);
        let report = peer
            .filter(|peer| peer.contact == PeerContact::Connected)
            .and_then(|peer| peer.leadership.as_ref());
        report.is_some_and(|report| report.term.max(report.promised_term) <= term)
    });
    free.count() >= told.quorum as usize
}

/// As far as anybody can say who is there.
pub(super) fn nobody_has_data(case: &Case<'_>) -> bool {
    let mut peers = case.observation.peers.values();
    case.policy.new_cluster || peers.all(|peer| peer.held_data != HeldData::Some)
}

/// Nobody has begun a newer term than the one in which this directory was written.
fn last_holder(case: &Case<'_>, record: &LeaseRecord) -> bool {
    let Some(facts) = case.facts().filter(|_| case.stopped()) else {
        return false;
    };
    let clean = facts.control_state == ControlState::ShutDown;
    let released = record.released_by == Some(case.policy.ordinal) && clean;
    let identity = record.holder.as_ref();
    let earlier = identity.is_some_and(|holder| holder.pod == case.policy.identity.pod) && !case.holds();
    let held = case.supervisor().map_or(0, |supervisor| supervisor.terms.held);
    let nobody_since = held > 0
        && record
            .history
            .iter()
            .all(|e| e.term <= held || e.new_leader == case.policy.identity.pod);
    let mine = (record.holder.is_none() && (released || (nobody_since && case.expired())))
        || (earlier && case.expired());
    mine && !case.restored() && !facts.half_rewound && case.promised() <= record.term
}

/// Detached under the term that is claimed, with the proof that nothing is missing, or after the old right has ended.
fn stands(case: &Case<'_>, record: &LeaseRecord, term: u64) -> bool {
    let Some(own) = case.own_final_position().filter(|_| case.promised() >= term) else {
        return false;
    };
    let vacant = record.holder.is_none();
    let forced =
        matches!(record.request, Some(MoveRequest::Failover { to, .. }) if to == case.policy.ordinal);
    let behind = case.recorded_peers().filter(|report| {
        report.promised_term >= term && report.final_position.is_some_and(|position| position <= own)
    });
    let proven = record
        .synchronous
        .proof()
        .is_some_and(|proof| behind.count() + 1 >= proof as usize);
    let times = case.policy.times;
    let recently = |since_ms: u64| case.observation.at_ms < since_ms + times.renew_deadline_ms;
    let bound = case
        .memory
        .lease
        .confirmation_given
        .is_some_and(|(office, given)| office.term == record.term && recently(given));
    let young = case.memory.began_at_ms.is_none_or(recently);
    let over = vacant || (case.expired() && !bound && !young);
    if forced {
        return over;
    }
    let unproven = record.synchronous.quorum == 0 && record.durability == Durability::Async;
    case.in_set() && (proven || (unproven && over))
}

pub(super) fn hands_over(case: &Case<'_>) -> bool {
    let Some(write) = case
        .decision
        .lease
        .as_ref()
        .filter(|write| write.purpose == LeasePurpose::HandOver)
    else {
        return true;
    };
    let Some((facts, record)) = case.facts().zip(case.record()).filter(|_| case.writes_no_more()) else {
        return false;
    };
    // While WAL is still being sent nothing is given up.
    let forced = case.stopped() && case.memory.lease.handing_over.is_some_and(|moving| moving.forced);
    let everything = |ordinal: &Ordinal| {
        // After a clean stop the one that hands over has everything itself.
        let own = *ordinal == case.policy.ordinal;
        own || case.observation.peers.get(ordinal).is_some_and(|peer| {
            let has = peer.timeline == Some(facts.timeline) && peer.flush_lsn >= Some(facts.control_lsn);
            peer.contact == PeerContact::Connected && has
        })
    };
    let successor = write.record.holder.as_ref().is_some_and(|holder| {
        let mut peers = case.observation.peers.iter();
        peers.any(|(ordinal, peer)| {
            let named = holder.pod == format!("pg-{ordinal}") && holder.uid == peer.uid;
            let checkpoint = peer.flush_lsn > Some(facts.control_lsn);
            named && !peer.writable && (forced || (everything(ordinal) && checkpoint))
        })
    });
    let witnesses = &write.record.synchronous;
    // Every acknowledged commit is on as many of them as the quorum says; the others are those of the record.
    let holders = witnesses
        .members
        .keys()
        .filter(|member| everything(member))
        .count();
    let known = |(member, incarnation): (&Ordinal, &Incarnation)| {
        *member == case.policy.ordinal || record.synchronous.members.get(member) == Some(incarnation)
    };
    let enough = witnesses.quorum == record.synchronous.quorum
        && holders >= witnesses.quorum as usize
        && witnesses.members.iter().all(known);
    facts.control_state == ControlState::ShutDown && successor && (*witnesses == record.synchronous || enough)
}

pub(super) fn records(case: &Case<'_>) -> bool {
    let Some((write, record)) = case.decision.lease.as_ref().zip(case.record()) else {
        return true;
    };
    let set = &write.record.synchronous;
    if *set == record.synchronous || write.purpose == LeasePurpose::HandOver {
        return true;
    }
    let (
        Some(ServerRole::Primary {
            synchronous_standby_names: names,
            ..
        }),
        Some(server),
    ) = (case.running_role(), &case.observation.server)
    else {
        return false;
    };
    let in_force = server.synchronous_standby_names == *names;
    let covered = read(names).is_some_and(|told| covers(&told, set, case.policy.ordinal));
    let barrier = case
        .observation
        .barrier
        .as_ref()
        .filter(|b| b.synchronous_standby_names == *names);
    let reached = set.quorum == 0
        || barrier.is_some_and(|barrier| {
            let has_it = |member: &Ordinal| {
                let mut rows = server.replication.iter();
                *member == case.policy.ordinal
                    || rows.any(|row| {
                        row.application_name == format!("pg-{member}") && row.flush_lsn >= Some(barrier.lsn)
                    })
            };
            set.members.keys().filter(|member| has_it(member)).count() >= set.quorum as usize
        });
    write.purpose == LeasePurpose::Record && in_force && covered && reached
}
