//! The first moments of a cluster, and of one whose Lease was deleted.

use crate::core::data_directory::DataDirectoryFacts;
use crate::core::decision::{Decision, PostgresAction};
use crate::core::lease::{HistoryEntry, LeadershipReport, LeasePurpose, LeaseRecord, SynchronousSet};
use crate::core::observation::PeerView;
use crate::core::situation::Situation;
use crate::core::status::HeldData;
use crate::core::supervision::{JobRequest, ServerRole};
use crate::core::sync::Told;

use super::super::first;
use super::standing::Standing;
use super::{Turn, stand, told, unread, was_primary};

/// No record: none is known, or there is none.
pub(super) fn without_lease(
    turn: Turn<'_>,
    standing: &Standing,
    facts: Option<&DataDirectoryFacts>,
) -> Decision {
    if let Some(facts) = facts.filter(|facts| !was_primary(facts) && !facts.half_rewound) {
        // It serves what it has, detached, until there is somebody to follow.
        let detail = format!("timeline {}, without an upstream", facts.timeline);
        let server = ServerRole::Standby { upstream: None };
        return turn.act(
            Situation::ReadyAsStandby,
            detail,
            PostgresAction::Start { server },
        );
    }
    if !standing.missing {
        let detail = turn.observation.lease.error.clone().unwrap_or_default();
        return turn.row(Situation::LeaseUnread, detail).soon();
    }
    let terms = turn.supervisor.terms;
    match facts {
        None if turn.policy.first() => new_cluster(turn, standing),
        Some(facts) if terms.held == 0 && turn.policy.first() => from_fixed(turn, standing, facts),
        Some(facts) if terms.held > 0 => lost_lease(turn, standing, facts),
        _ => turn.row(Situation::LeaseMissing, String::new()),
    }
}

/// An empty first ordinal takes the Lease before it makes a new cluster, so that nobody else does.
fn new_cluster(turn: Turn<'_>, standing: &Standing) -> Decision {
    if let Some((situation, message)) = turn.failed_job() {
        return turn.row(situation, message);
    }
    if let Some((situation, detail)) = first::against_new_cluster(&turn) {
        return turn.row_while_asking(situation, detail);
    }
    create(turn, standing, None, "a new cluster")
}

/// A cluster that had a fixed primary until now.
fn from_fixed(turn: Turn<'_>, standing: &Standing, facts: &DataDirectoryFacts) -> Decision {
    if let Some((situation, detail)) = first::contested(&turn, facts) {
        return turn.row(situation, detail);
    }
    create(turn, standing, Some(facts), "there was no Lease")
}

/// Somebody deleted the Lease. Who was primary last makes it anew if nobody can know of a later term.
fn lost_lease(turn: Turn<'_>, standing: &Standing, facts: &DataDirectoryFacts) -> Decision {
    let terms = turn.supervisor.terms;
    let own = turn.memory.lease.record.as_ref();
    if own.is_some_and(|record| record.term > terms.held && !record.held_by(&turn.policy.identity)) {
        let detail = "another member has begun a later term".to_owned();
        return turn.row(Situation::LeaseMissing, detail);
    }
    let later = turn.observation.peers.iter().find(|(_, peer)| {
        let report = peer.leadership.as_ref();
        report.is_some_and(|report| report.term > terms.held || report.promised_term > terms.held)
    });
    if let Some((ordinal, _)) = later {
        let detail = format!(
            "{}-{ordinal} knows of a later term than {}",
            turn.policy.cluster, terms.held
        );
        return turn.row(Situation::LeaseMissing, detail);
    }
    let silent = turn.observation.peers.iter().find(|(_, peer)| {
        // Without its supervisor a member does not know what it has promised.
        let heard = peer.live_report().is_some();
        peer.named && (!heard || peer.held_data == HeldData::Unknown)
    });
    let remembered = turn.memory.lease.record.as_ref();
    let unheard = remembered.is_some_and(|record| {
        let others = record
            .members
            .iter()
            .filter(|member| **member != turn.policy.ordinal);
        let heard = |member| {
            let peer = turn.observation.peers.get(member);
            peer.is_some_and(PeerView::connected)
        };
        !others.into_iter().all(heard)
    });
    if let Some(detail) = first::behind(&turn, facts) {
        return turn.row(Situation::LeaseMissing, detail);
    }
    // In a new pod nothing is remembered: DNS is given time to name the others.
    let alone = remembered.is_none()
        && turn.observation.peers.is_empty()
        && turn.waited_ms() < turn.policy.discovery_timeout_ms;
    let silent = silent.is_some() || alone;
    if terms.promised > terms.held || silent || unheard || !turn.observation.dns_answered {
        return turn
            .row(
                Situation::LeaseMissing,
                "not every member has been heard".to_owned(),
            )
            .soon();
    }
    create(turn, standing, Some(facts), "the Lease was deleted")
}

/// A primary in office whose Lease was deleted writes it again as it was: while its last renewal is valid, and nobody is
/// heard to know of a later term.
pub(super) fn again(turn: Turn<'_>, standing: &Standing) -> Decision {
    let known = turn.memory.lease.record.as_deref().cloned();
    let times = turn.policy.times;
    let valid = |record: &LeaseRecord| {
        let renewal = turn.observation.lease.renewal;
        renewal.is_some_and(|renewal| {
            renewal.term == record.term && standing.at_ms < renewal.sent_at_ms + times.renew_deadline_ms
        })
    };
    let unknown_later = |record: &LeaseRecord| {
        let earlier = |report: &LeadershipReport| report.term.max(report.promised_term) <= record.term;
        let mut reports = turn
            .observation
            .peers
            .values()
            .filter_map(|peer| peer.leadership.as_ref());
        // A claim needs n-k+1 of the recorded ones, which cannot do without one of any k whom commits wait for: those of the setting,
        // since a change of the record may have been stored before it was deleted.
        let waits_for = told_now(&turn).unwrap_or_default();
        let others = record.synchronous.members.keys().filter(|member| {
            let report = turn.observation.peers.get(member).and_then(PeerView::live_report);
            let counts = waits_for.quorum == 0 || waits_for.members.contains(member);
            counts
                && report.is_some_and(|report| {
                    earlier(report) && record.synchronous.has(**member, report.incarnation.as_ref())
                })
        });
        let needed = record.synchronous.quorum.max(waits_for.quorum);
        reports.all(earlier) && others.count() >= needed as usize
    };
    let own = |record: &LeaseRecord| record.held_by(&turn.policy.identity);
    match known.filter(|record| standing.missing && own(record) && valid(record) && unknown_later(record)) {
        Some(mut record) => {
            record.renewals += 1;
            let write = standing.write(LeasePurpose::Claim, record);
            turn.lease_row(Situation::LeaseMissing, "written again".to_owned(), write)
        }
        None => turn.row(unread(standing), String::new()),
    }
}

/// Whose confirmations the primary that runs here waits for.
fn told_now(turn: &Turn<'_>) -> Option<Told> {
    let role = turn.supervisor.postmaster.running_role()?;
    told::read(turn.policy, role.synchronous_standby_names()?)
}

/// The Lease as it begins; `facts` if there is data already.
fn create(turn: Turn<'_>, standing: &Standing, facts: Option<&DataDirectoryFacts>, reason: &str) -> Decision {
    let peers = turn
        .observation
        .peers
        .values()
        .filter_map(|peer| peer.leadership.as_ref());
    let known = peers
        .map(|report| report.term.max(report.promised_term))
        .chain(turn.memory.lease.record.as_ref().map(|record| record.term))
        .max()
        .unwrap_or(0);
    let terms = turn.supervisor.terms;
    let peers = turn.observation.peers.values().filter_map(|peer| peer.timeline);
    let remembered = turn.memory.lease.record.as_ref().map(|record| record.timeline);
    let timelines = peers.chain(remembered).chain(facts.map(|facts| facts.timeline));
    let mut synchronous = SynchronousSet::default();
    if let Some(incarnation) = turn.supervisor.incarnation.clone().filter(|_| terms.held > 0) {
        // Only this member has everything for certain, until others stream again.
        synchronous.members.insert(turn.policy.ordinal, incarnation);
        synchronous.quorum = 1;
    }
    let mut record = LeaseRecord {
        holder: Some(turn.policy.identity.clone()),
        term: known.max(terms.held).max(terms.promised) + 1,
        lease_duration_ms: turn.policy.times.lease_duration_ms,
        system_identifier: facts.map(|facts| facts.system_identifier),
        durability: turn.policy.durability,
        members: vec![turn.policy.ordinal],
        synchronous,
        timeline: timelines.max().unwrap_or_default(),
        ..LeaseRecord::default()
    };
    record.remember(HistoryEntry {
        term: record.term,
        timeline: facts.map(|facts| facts.timeline),
        lsn: facts.map(|facts| facts.control_lsn),
        reason: reason.to_owned(),
        at: String::new(),
        new_leader: turn.policy.identity.pod.clone(),
    });
    let detail = format!("term {}: {reason}", record.term);
    let write = standing.write(LeasePurpose::Claim, record);
    turn.lease_row(Situation::Claiming, detail, write)
}

/// The holder of a Lease without an identifier: the only way to initdb.
pub(super) fn initdb(turn: Turn<'_>, standing: &Standing) -> Decision {
    if let Some((situation, message)) = turn.failed_job() {
        return turn.row(situation, message);
    }
    if !turn.policy.first() || !standing.in_right() {
        return turn
            .row(Situation::Claiming, "the Lease is being renewed".to_owned())
            .soon();
    }
    // The Lease may have been there before this member, made or emptied by hand.
    if let Some((situation, detail)) = first::against_new_cluster(&turn) {
        return turn.row_while_asking(situation, detail);
    }
    let detail = format!("term {}", standing.term());
    turn.act(
        Situation::NewCluster,
        detail,
        PostgresAction::Run {
            job: JobRequest::Initdb,
        },
    )
}

/// The Lease of a cluster that was never made: its maker, an earlier pod of this name, has gone.
pub(super) fn take_over(turn: Turn<'_>, standing: &Standing) -> Decision {
    let Some(record) = standing.record else {
        return turn.row(unread(standing), String::new());
    };
    if record.holder.is_some() && !standing.expired {
        return turn.row(Situation::AwaitingExpiry, standing.holder_name()).soon();
    }
    let write = stand::claim(&turn, standing, record, record.term + 1, None, "a new cluster");
    turn.lease_row(Situation::Claiming, format!("term {}", record.term + 1), write)
}
