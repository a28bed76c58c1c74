//! The first moments of a cluster, and of one whose Lease was deleted.

use std::collections::BTreeMap;

use crate::core::data_directory::DataDirectoryFacts;
use crate::core::decision::{Decision, PostgresAction};
use crate::core::lease::{HistoryEntry, LeadershipReport, LeasePurpose, LeaseRecord, SynchronousSet};
use crate::core::observation::PeerView;
use crate::core::situation::Situation;
use crate::core::status::HeldData;
use crate::core::supervision::{JobRequest, ServerRole};
use crate::core::sync::Told;
use crate::core::wal::TimelineId;

use super::super::first;
use super::standing::Standing;
use super::{Turn, failover, told, unread};

/// No record: none is known, or there is none.
pub(super) fn without_lease(
    turn: Turn<'_>,
    standing: &Standing,
    facts: Option<&DataDirectoryFacts>,
) -> Decision {
    if let Some(facts) = facts.filter(|facts| !facts.was_primary() && !facts.half_rewound) {
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
    let against = later_term(&turn).or_else(|| first::behind(&turn, facts));
    if let Some(detail) = against {
        return turn.row(Situation::LeaseMissing, detail);
    }
    let terms = turn.supervisor.terms;
    if terms.promised > terms.held || !everybody_heard(&turn) {
        let detail = "not every member has been heard".to_owned();
        return turn.row(Situation::LeaseMissing, detail).soon();
    }
    create(turn, standing, Some(facts), "the Lease was deleted")
}

/// What this member remembers, or another says, of a later term than the one in which it was primary.
fn later_term(turn: &Turn<'_>) -> Option<String> {
    let held = turn.supervisor.terms.held;
    let remembered = turn.memory.lease.record.as_ref();
    if remembered.is_some_and(|record| record.term > held && !record.held_by(&turn.policy.identity)) {
        return Some("another member has begun a later term".to_owned());
    }
    let (ordinal, _) = turn.observation.peers.iter().find(|(_, peer)| {
        let report = peer.leadership.as_ref();
        report.is_some_and(|report| report.newest_term() > held)
    })?;
    let cluster = &turn.policy.cluster;
    Some(format!("{cluster}-{ordinal} knows of a later term than {held}"))
}

/// Whether every member that DNS names or the last record lists has said what it has and has promised.
fn everybody_heard(turn: &Turn<'_>) -> bool {
    let peers = &turn.observation.peers;
    let silent = peers.values().any(|peer| {
        // Without its supervisor a member does not know what it has promised.
        let heard = peer.live_report().is_some();
        peer.named && (!heard || peer.held_data == HeldData::Unknown)
    });
    let members_heard = match &turn.memory.lease.record {
        Some(record) => {
            let mut others = record
                .members
                .iter()
                .filter(|member| **member != turn.policy.ordinal);
            others.all(|member| peers.get(member).is_some_and(PeerView::connected))
        }
        // In a new pod nothing is remembered: DNS is given time to name the others.
        None => !peers.is_empty() || turn.waited_ms() >= turn.policy.discovery_timeout_ms,
    };
    turn.observation.dns_answered && !silent && members_heard
}

/// A primary in office whose Lease was deleted writes it again as it was: while its last renewal is valid, and nobody is
/// heard to know of a later term.
pub(super) fn write_again(turn: Turn<'_>, standing: &Standing) -> Decision {
    let known = turn.memory.lease.record.as_deref().cloned();
    let own = |record: &LeaseRecord| record.held_by(&turn.policy.identity);
    let valid = |record: &LeaseRecord| renewal_valid(&turn, standing, record);
    let unclaimed = |record: &LeaseRecord| surely_unclaimed(&turn, record);
    match known.filter(|record| standing.missing && own(record) && valid(record) && unclaimed(record)) {
        Some(mut record) => {
            record.renewals += 1;
            let write = standing.write(LeasePurpose::Claim, record);
            turn.lease_row(Situation::LeaseMissing, "written again".to_owned(), write)
        }
        None => turn.row(unread(standing), String::new()),
    }
}

/// Whether the right from the last renewal in the record's term still lasts.
fn renewal_valid(turn: &Turn<'_>, standing: &Standing, record: &LeaseRecord) -> bool {
    let renewal = turn.observation.lease.renewal;
    renewal.is_some_and(|renewal| {
        let until_ms = renewal.sent_at_ms + turn.policy.times.renew_deadline_ms;
        renewal.term == record.term && standing.at_ms < until_ms
    })
}

/// Whether nobody can have claimed a later term: nobody says so, and too few are left to prove it without those who are heard.
fn surely_unclaimed(turn: &Turn<'_>, record: &LeaseRecord) -> bool {
    let earlier = |report: &LeadershipReport| report.newest_term() <= record.term;
    let peers = &turn.observation.peers;
    let mut reports = peers.values().filter_map(|peer| peer.leadership.as_ref());
    // A claim needs n-k+1 of the recorded ones, which cannot do without one of any k whom commits wait for: those of the setting,
    // since a change of the record may have been stored before it was deleted.
    let waits_for = told_now(turn).unwrap_or_default();
    let others = record.synchronous.members.keys().filter(|member| {
        let report = peers.get(member).and_then(PeerView::live_report);
        let counts = waits_for.quorum == 0 || waits_for.members.contains(member);
        counts
            && report.is_some_and(|report| {
                earlier(report) && record.synchronous.has(**member, report.incarnation.as_ref())
            })
    });
    let needed = record.synchronous.quorum.max(waits_for.quorum);
    reports.all(earlier) && others.count() >= needed as usize
}

/// Whose confirmations the primary that runs here waits for.
fn told_now(turn: &Turn<'_>) -> Option<Told> {
    let role = turn.supervisor.postmaster.running_role()?;
    told::read(turn.policy, role.synchronous_standby_names()?)
}

/// The Lease as it begins; `facts` if there is data already.
fn create(turn: Turn<'_>, standing: &Standing, facts: Option<&DataDirectoryFacts>, reason: &str) -> Decision {
    let mut record = LeaseRecord {
        holder: Some(turn.policy.identity.clone()),
        term: newest_term(&turn) + 1,
        lease_duration_ms: turn.policy.times.lease_duration_ms,
        system_identifier: facts.map(|facts| facts.system_identifier),
        durability: turn.policy.durability,
        members: vec![turn.policy.ordinal],
        synchronous: synchronous_at_first(&turn),
        timeline: newest_timeline(&turn, facts),
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

/// The newest term that anybody knows of, this member included.
fn newest_term(turn: &Turn<'_>) -> u64 {
    let peers = turn.observation.peers.values();
    let reports = peers.filter_map(|peer| peer.leadership.as_ref());
    let remembered = turn.memory.lease.record.as_ref().map(|record| record.term);
    let terms = turn.supervisor.terms;
    let own = terms.held.max(terms.promised);
    let known = reports.map(LeadershipReport::newest_term).chain(remembered);
    known.fold(own, u64::max)
}

/// The newest timeline that anybody knows of, this member included.
fn newest_timeline(turn: &Turn<'_>, facts: Option<&DataDirectoryFacts>) -> TimelineId {
    let peers = turn.observation.peers.values().filter_map(|peer| peer.timeline);
    let remembered = turn.memory.lease.record.as_ref().map(|record| record.timeline);
    let timelines = peers.chain(remembered).chain(facts.map(|facts| facts.timeline));
    timelines.max().unwrap_or_default()
}

/// Of a former primary: only it has everything for certain, until others stream again.
fn synchronous_at_first(turn: &Turn<'_>) -> SynchronousSet {
    let own = turn.supervisor.incarnation.clone();
    match own.filter(|_| turn.supervisor.terms.held > 0) {
        None => SynchronousSet::default(),
        Some(incarnation) => SynchronousSet {
            members: BTreeMap::from([(turn.policy.ordinal, incarnation)]),
            quorum: 1,
        },
    }
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
pub(super) fn take_over(turn: Turn<'_>, standing: &Standing, record: &LeaseRecord) -> Decision {
    if record.holder.is_some() && !standing.expired {
        return turn.row(Situation::AwaitingExpiry, standing.holder_name()).soon();
    }
    let write = failover::claim(&turn, standing, record, record.term + 1, None, "a new cluster");
    turn.lease_row(Situation::Claiming, format!("term {}", record.term + 1), write)
}
