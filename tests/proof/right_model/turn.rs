//! A turn of a member: the shipped `decide` on an observation made from what the model knows of it, and what becomes of that.

use std::collections::{BTreeMap, HashMap};

use podgres::core::cluster::PeerContact;
use podgres::core::data_directory::DataDirectory;
use podgres::core::decide::decide;
use podgres::core::decision::{Decision, LeaseMemory, Memory, PostgresAction};
use podgres::core::lease::{
    Durability, FinalPosition, LeadershipReport, LeasePurpose, LeaseRecord, LeaseView, LeaseWrite,
    MoveRequest, Office, Renewal, StoredLease,
};
use podgres::core::member::Ordinal;
use podgres::core::observation::{Observation, PeerView, UpstreamView};
use podgres::core::policy::{Leadership, LeaseTimes, Policy};
use podgres::core::status::ServerStatus;
use podgres::core::supervision::{Licence, Postmaster, ServerRole, StopMode, SupervisorStatus, Terms};
use podgres::core::synchronous_names::standby_names;
use podgres::core::wal::TimelineId;

use super::*;
use crate::lease_worlds::{identity, incarnation, member, set, slot, streaming};
use crate::worlds::{
    ADDRESS, HERE, LATE_MS as NOW_MS, OWN, observation, policy, ready, running, server, standby_facts,
    standby_of, supervisor, upstream_facts,
};

const TICK_MS: u64 = 1_000;
/// Longer than any silence that counts.
const SILENT_MS: u64 = 60_000;

/// What is heard of the others in a turn, by ordinal; `None`: the connection is gone.
pub(super) type Words = [Option<Report>; 3];

/// Who takes a turn, as it is and with what it hears.
type Question = (u8, Member, Words);
/// What has become of it, and what it writes into the Lease.
type Outcome = (Member, Option<Record>);

/// Each question is put once.
pub(super) struct Turns {
    bound: Bound,
    policies: [Policy; 3],
    known: HashMap<Question, Outcome, QuickHasher>,
}

fn ago(age: Age) -> u64 {
    NOW_MS - u64::from(age) * TICK_MS
}

fn age(at_ms: u64) -> Option<Age> {
    let ticks = NOW_MS.saturating_sub(at_ms) / TICK_MS;
    u8::try_from(ticks).ok().filter(|age| *age < DEADLINE)
}

/// Ticks until then.
fn left(until_ms: u64) -> u8 {
    u8::try_from(until_ms.saturating_sub(NOW_MS) / TICK_MS).expect("a right is short")
}

impl Turns {
    pub(super) fn new(bound: Bound) -> Self {
        let policy = |me: u32| Policy {
            leadership: Leadership::Lease,
            identity: identity(Ordinal(me)),
            durability: durability(bound),
            times: LeaseTimes {
                lease_duration_ms: u64::from(DURATION) * TICK_MS,
                renew_deadline_ms: u64::from(DEADLINE) * TICK_MS,
                // All that is waited for besides ends within a tick.
                retry_period_ms: 600,
                peer_timeout_ms: 500,
                ..LeaseTimes::default()
            },
            ..policy(me)
        };
        Self {
            bound,
            policies: [policy(0), policy(1), policy(2)],
            known: HashMap::default(),
        }
    }

    /// The member after its turn, and the record that it sends to the API server.
    pub(super) fn turn(&mut self, me: u8, there: &Member, heard: Words) -> (Member, Option<Record>) {
        let question = Member {
            gate: 0,
            newest: true,
            flight: None,
            report: None,
            kept: None,
            ..*there
        };
        let (bound, policies) = (self.bound, &self.policies);
        let answer = self.known.entry((me, question, heard));
        let (next, write) =
            *answer.or_insert_with(|| taken(bound, &policies[usize::from(me)], me, (&question, heard)));
        let confirmed =
            |report: Option<Report>| report.and_then(|report| Some((report.term, report.confirms?)));
        let silent = confirmed(next.report).is_none();
        let next = Member {
            newest: there.newest,
            flight: there.flight,
            kept: confirmed(there.report).or(there.kept).filter(|_| silent),
            ..next
        };
        // A write over a version that is known to be none any more is refused.
        (next, write.filter(|_| there.newest && there.read))
    }
}

fn durability(bound: Bound) -> Durability {
    if bound.quorum == 0 {
        Durability::Async
    } else {
        Durability::Majority
    }
}

impl Bound {
    /// Leaves out what nothing rests on: who holds the last term asks nobody, and with a quorum nobody waits for the Lease.
    fn simplified(self, me: u8, next: &mut Member) {
        if next.holds(me) {
            next.changed = 0;
            if next.renewed.is_some_and(|age| age + next.confirmed <= DEADLINE) {
                // The renewal carries it for at least as long.
                next.confirmed = 0;
            }
            if next.view.term == self.last_term {
                (next.asking, next.confirmed) = (None, 0);
                next.report = next.report.map(|report| Report { beat: None, ..report });
            }
        }
        if self.quorum == 0 {
            next.report = next.report.map(|report| Report {
                suspects: false,
                ..report
            });
        } else {
            (next.changed, next.given) = (0, None);
        }
    }
}

fn taken(
    bound: Bound,
    policy: &Policy,
    me: u8,
    (there, heard): (&Member, Words),
) -> (Member, Option<Record>) {
    let decision = decide(
        policy,
        &remembered(bound, there),
        &observed(bound, me, (there, heard)),
    );
    let mut next = *there;
    let lease = &decision.memory.lease;
    next.gate = left(decision.gate_until_ms);
    next.asking = lease.beats.iter().filter_map(|(_, sent_ms)| age(*sent_ms)).max();
    next.confirmed = left(lease.confirmed_until_ms);
    let given = lease
        .confirmation_given
        .filter(|(office, _)| office.term == u64::from(there.view.term));
    next.given = given.and_then(|(_, given_ms)| age(given_ms));
    next.report = decision.report.as_ref().map(said);
    bound.simplified(me, &mut next);
    let write = decision.lease.as_ref().map(|write| stored(there, write));
    let write = write.filter(|record| record.term <= bound.last_term);
    carried_out(bound, me, &mut next, &decision);
    (next, write)
}

/// What the supervisor makes of the decision.
fn carried_out(bound: Bound, me: u8, next: &mut Member, decision: &Decision) {
    match &decision.postgres {
        Some(PostgresAction::Detach { term }) if *term <= u64::from(bound.last_term) => {
            next.promised = next.promised.max(u8::try_from(*term).expect("few terms"));
            next.role = Role::Detached;
        }
        Some(PostgresAction::Promote { .. }) => {
            next.role = Role::Primary;
        }
        Some(PostgresAction::Reload {
            server: ServerRole::Standby { upstream: Some(_) },
        }) => {
            next.role = Role::Attached { to: next.view.holder };
        }
        Some(PostgresAction::Stop { mode: StopMode::Fast }) if next.role == Role::Primary => {
            // What it was does not matter any more.
            *next = Member {
                role: Role::Down,
                ..Member::first(me, next.view)
            };
            (next.gate, next.renewed, next.newest) = (0, None, false);
        }
        _ => {}
    }
}

/// A change of the set, which this model leaves out, is a renewal like any other.
fn stored(there: &Member, write: &LeaseWrite) -> Record {
    let ordinal = |pod: &str| pod.trim_start_matches("pg-").parse().expect("a pod's name");
    let holder = write.record.holder.as_ref().map(|holder| ordinal(&holder.pod));
    assert!(
        matches!(
            write.purpose,
            LeasePurpose::Claim | LeasePurpose::Renew | LeasePurpose::Record
        ),
        "{write:?}"
    );
    Record {
        holder: holder.expect("a holder"),
        term: u8::try_from(write.record.term).expect("few terms"),
        forced: there.view.forced && write.purpose != LeasePurpose::Claim,
    }
}

fn said(report: &LeadershipReport) -> Report {
    let beat = |office: Option<Office>| {
        office
            .filter(|office| office.beat > 0)
            .and_then(|office| age(office.beat))
    };
    assert_eq!(
        report.gives_up_term, None,
        "nobody's PostgreSQL stops in this model"
    );
    Report {
        promised: u8::try_from(report.promised_term).expect("few terms"),
        term: u8::try_from(report.term).expect("few terms"),
        office: report.office.is_some(),
        beat: beat(report.office),
        confirms: beat(report.confirms),
        suspects: report.suspects_term.is_some(),
        detached: report.final_position.is_some(),
    }
}

fn words(peer: u8, report: &Report) -> LeadershipReport {
    let term = u64::from(report.term);
    let office = |beat: Option<Age>| Office {
        term,
        beat: beat.map_or(0, ago),
    };
    LeadershipReport {
        term,
        promised_term: u64::from(report.promised),
        incarnation: Some(incarnation(Ordinal(u32::from(peer)))),
        office: report.office.then(|| office(report.beat)),
        confirms: report.confirms.map(|beat| office(Some(beat))),
        suspects_term: report.suspects.then_some(term),
        gives_up_term: None,
        final_position: report.detached.then_some(rest()),
        priority: Some(0),
        sees_api: true,
    }
}

fn rest() -> FinalPosition {
    FinalPosition {
        timeline: TimelineId(1),
        flush_lsn: HERE,
    }
}

fn shipped(bound: Bound, record: Record) -> LeaseRecord {
    LeaseRecord {
        holder: Some(identity(Ordinal(u32::from(record.holder)))),
        term: u64::from(record.term),
        lease_duration_ms: u64::from(DURATION) * TICK_MS,
        renewals: 7,
        system_identifier: Some(OWN),
        durability: durability(bound),
        members: vec![Ordinal(0), Ordinal(1), Ordinal(2)],
        synchronous: set(&RECORDED.map(u32::from), u32::from(bound.quorum)),
        request: record.forced.then(|| MoveRequest::Failover {
            to: Ordinal(1),
            id: "r".to_owned(),
        }),
        // This model leaves timelines out: whoever is promoted begins one that nobody is on.
        timeline: TimelineId(2),
        ..LeaseRecord::default()
    }
}

fn remembered(bound: Bound, there: &Member) -> Memory {
    let term = u64::from(there.view.term);
    let beats = there.asking.into_iter().flat_map(|oldest| (0..=oldest).rev());
    Memory {
        began_at_ms: Some(ago(there.began)),
        lease: LeaseMemory {
            record: Some(shipped(bound, there.view).into()),
            beats: beats.map(|age| (ago(age), ago(age))).collect(),
            confirmed_until_ms: if there.confirmed == 0 {
                0
            } else {
                NOW_MS + u64::from(there.confirmed) * TICK_MS
            },
            confirmed_term: term,
            confirmation_given: there.given.map(|age| (Office { term, beat: 1 }, ago(age))),
            // Whatever it waits for besides, it has waited for long enough.
            overtaken_since_ms: Some(ago(1)),
            detached: Some((rest(), ago(1))),
            waiting_since_ms: Some(ago(1)),
            ..LeaseMemory::default()
        },
        ..Memory::default()
    }
}

fn known_lease(bound: Bound, there: &Member) -> LeaseView {
    let term = u64::from(there.view.term);
    LeaseView {
        stored: Some(StoredLease {
            record: shipped(bound, there.view).into(),
            resource_version: "1".to_owned(),
        }),
        changed_at_ms: ago(there.changed),
        answered_at_ms: Some(NOW_MS),
        renewal: there.renewed.map(|age| Renewal {
            term,
            sent_at_ms: ago(age),
        }),
        ..LeaseView::default()
    }
}

fn peer_view(heard: Words, peer: u8) -> PeerView {
    match &heard[usize::from(peer)] {
        Some(report) => member(Ordinal(u32::from(peer)), words(peer, report)),
        None => PeerView {
            contact: PeerContact::TimedOut,
            heard_ms_ago: Some(SILENT_MS),
            running: false,
            ..member(Ordinal(u32::from(peer)), LeadershipReport::default())
        },
    }
}

/// The holder's host as the others know it.
fn host(of: u8) -> String {
    format!("pg-{of}.pg.default.svc.cluster.local")
}

fn postmaster(bound: Bound, me: u8, role: Role) -> Postmaster {
    let role = match role {
        Role::Primary => ServerRole::primary(names(bound, me)),
        Role::Attached { to } => {
            let mut role = standby_of(Some(ADDRESS));
            if let ServerRole::Standby {
                upstream: Some(upstream),
            } = &mut role
            {
                upstream.host = host(to);
            }
            role
        }
        Role::Detached | Role::Down => standby_of(None),
    };
    running(role, true)
}

fn names(bound: Bound, me: u8) -> String {
    let others: Vec<String> = RECORDED
        .iter()
        .filter(|m| **m != me)
        .map(|m| format!("pg-{m}"))
        .collect();
    standby_names(true, &others, u32::from(bound.quorum))
}

fn postgres(bound: Bound, me: u8, (there, heard): (&Member, Words)) -> ServerStatus {
    let others = || {
        (0..MEMBERS)
            .filter(|peer| *peer != me)
            .map(|peer| Ordinal(u32::from(peer)))
    };
    let lost = match there.role {
        Role::Attached { to } => heard[usize::from(to)].is_none(),
        _ => false,
    };
    let status = match there.role {
        Role::Primary => ServerStatus {
            replication: others().map(streaming).collect(),
            synchronous_standby_names: names(bound, me),
            ..server(false, false)
        },
        Role::Attached { .. } => ServerStatus {
            receiver_silent_ms: Some(if lost { SILENT_MS } else { 0 }),
            ..server(true, true)
        },
        Role::Detached | Role::Down => ServerStatus {
            replay_waiting: true,
            ..server(true, false)
        },
    };
    ServerStatus {
        slots: others().map(slot).collect(),
        ..status
    }
}

fn observed(bound: Bound, me: u8, (there, heard): (&Member, Words)) -> Observation {
    let supervised = SupervisorStatus {
        postmaster: postmaster(bound, me, there.role),
        licence: Licence::Limited {
            until_ms: NOW_MS + SILENT_MS,
        },
        terms: Terms {
            promised: u64::from(there.promised),
            held: u64::from(there.view.term),
        },
        incarnation: Some(incarnation(Ordinal(u32::from(me)))),
        ..supervisor(DataDirectory::Complete(standby_facts()))
    };
    let peers: BTreeMap<Ordinal, PeerView> = (0..MEMBERS)
        .filter(|peer| *peer != me)
        .map(|peer| (Ordinal(u32::from(peer)), peer_view(heard, peer)))
        .collect();
    Observation {
        at_ms: NOW_MS,
        server: Some(postgres(bound, me, (there, heard))),
        peers,
        lease: known_lease(bound, there),
        upstream: UpstreamView {
            of: Some(Ordinal(u32::from(there.view.holder))),
            host: host(there.view.holder),
            // A look that began after it let go.
            looked_at_ms: NOW_MS + 1,
            ..ready(upstream_facts())
        },
        ..observation(u32::from(me), supervised)
    }
}
