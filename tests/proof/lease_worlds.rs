//! One small cluster under a Lease as a member sees it, made of a few choices, each with a handful of values.
//!
//! The member is `pg-1` (or the first, `pg-0`); the record is of term 5, the other holder is `H`, the third member `pg-2`.

use std::collections::BTreeMap;

use podgres::core::cluster::PeerContact;
use podgres::core::data_directory::{ControlState, DataDirectory, DataDirectoryFacts};
use podgres::core::decision::{HandingOver, LeaseMemory, Memory};
use podgres::core::lease::{
    Durability, FinalPosition, HistoryEntry, Identity, Incarnation, LeadershipReport, LeaseRecord, LeaseView,
    MoveRequest, Office, Renewal, StoredLease, SynchronousSet,
};
use podgres::core::member::{Ordinal, slot_name};
use podgres::core::observation::{
    Barrier, MemberRequest, NameState, Observation, PeerView, ProbeState, UpstreamFacts, UpstreamView,
};
use podgres::core::policy::{Leadership, Policy};
use podgres::core::status::{HeldData, ReplicationStatus, ServerStatus, SlotStatus};
use podgres::core::supervision::{
    CloneReason, FailureKind, JobKind, JobProgress, JobState, JobStatus, Licence, Postmaster, PostmasterExit,
    ServerRole, StopMode, SupervisorStatus, Terms,
};
use podgres::core::sync::Told;
use podgres::core::synchronous_names::standby_names;
use podgres::core::wal::{Lsn, TimelineId};

use crate::worlds::*;

pub(crate) const TERM: u64 = 5;
const NOW_MS: u64 = LATE_MS;

/// The choices, in the order in which they stand in a [`Choice`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Of {
    /// `pg-1`, `pg-0`.
    Me,
    /// Me, my earlier pod, another, nobody, nobody after my clean stop, deleted, unread, nobody since my failure.
    Holder,
    /// The record changed a moment ago, or longer ago than it lasts.
    Age,
    /// A second ago, five, eleven, never, in another term.
    Renewal,
    /// The peers' confirmations still count.
    Confirmed,
    /// 0, 5, 6, 7.
    Promised,
    /// Last primary in term 0, 4, 5.
    Held,
    Postmaster,
    /// See [`server_status`]; 6: it does not let podgres in.
    Server,
    Directory,
    Job,
    Stopping,
    /// None, ended, long, unlimited.
    Licence,
    /// See [`sets`].
    Set,
    Durability,
    /// Of this member: as recorded, another, none.
    Incarnation,
    HolderPeer,
    ThirdPeer,
    Paused,
    Request,
    MemberRequest,
    HandingOver,
    Upstream,
    /// Nothing, under way, lost with another set, lost with another holder.
    Write,
    /// Confirmed its primary lately; began lately.
    Bound,
    DiskFails,
    /// For how long a holder's PostgreSQL has not served.
    Down,
    Told,
    /// Known to the record, or not yet.
    Identifier,
    /// May be primary; may not; its directory may not be replaced.
    Wishes,
    Condemned,
    /// As they are; without data; unheard; on a later timeline; DNS has not answered, early or late.
    Peers,
    /// The supervisor answers, or has not for a moment, or for long.
    Blind,
}

pub(crate) const COUNT: usize = Of::Blind as usize + 1;
/// How many values each choice has.
pub(crate) const SIZES: [u8; COUNT] = [
    2, 8, 2, 5, 2, 4, 3, 9, 7, 9, 8, 2, 4, 11, 4, 3, 7, 12, 2, 5, 3, 3, 9, 4, 3, 2, 2, 5, 2, 3, 4, 6, 2,
];

/// One value for each choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice(pub(crate) [u8; COUNT]);

impl Choice {
    /// A standby `pg-1` that streams from `pg-0`, everything in order.
    pub(crate) fn usual() -> Self {
        let mut choice = Self([0; COUNT]);
        for (of, value) in [
            (Of::Holder, 2),
            (Of::Promised, 1),
            (Of::Postmaster, 4),
            (Of::Server, 1),
            (Of::Directory, 4),
            (Of::Set, 5),
            (Of::Durability, 2),
            (Of::ThirdPeer, 2),
            (Of::Upstream, 2),
            (Of::Renewal, 3),
        ] {
            choice.0[of as usize] = value;
        }
        choice
    }

    /// `pg-1` as primary in office.
    pub(crate) fn primary() -> Self {
        Self::usual()
            .with(Of::Holder, 0)
            .with(Of::Renewal, 0)
            .with(Of::Postmaster, 2)
            .with(Of::Server, 5)
            .with(Of::Directory, 3)
            .with(Of::Held, 2)
            .with(Of::Licence, 2)
            .with(Of::HolderPeer, 6)
    }

    #[must_use]
    pub(crate) fn with(mut self, of: Of, value: u8) -> Self {
        assert!(value < SIZES[of as usize], "{of:?} has no value {value}");
        self.0[of as usize] = value;
        self
    }

    fn get(&self, of: Of) -> u8 {
        self.0[of as usize]
    }

    pub(crate) fn me(&self) -> Ordinal {
        Ordinal(1 - u32::from(self.get(Of::Me)))
    }

    pub(crate) fn other(&self) -> Ordinal {
        Ordinal(u32::from(self.get(Of::Me)))
    }
}

pub(crate) fn incarnation(member: Ordinal) -> Incarnation {
    Incarnation(format!("i{member}"))
}

pub(crate) fn set(members: &[u32], quorum: u32) -> SynchronousSet {
    let named = members.iter().map(|m| (Ordinal(*m), incarnation(Ordinal(*m))));
    SynchronousSet {
        members: named.collect(),
        quorum,
    }
}

/// Recorded synchronous sets of up to two members, the holder's own among them.
pub(crate) fn sets() -> [SynchronousSet; 11] {
    [
        set(&[], 0),
        set(&[0], 1),
        set(&[1], 1),
        set(&[2], 1),
        set(&[0, 1], 1),
        set(&[1, 2], 1),
        set(&[0, 2], 1),
        set(&[1, 2], 2),
        set(&[0, 2], 2),
        set(&[1, 2], 0),
        set(&[0, 2], 0),
    ]
}

pub(crate) fn identity(member: Ordinal) -> Identity {
    Identity {
        pod: format!("pg-{member}"),
        uid: format!("uid-{member}"),
    }
}

fn durabilities(choice: &Choice) -> (Durability, Durability) {
    [
        (Durability::Async, Durability::Async),
        (Durability::Preferred, Durability::Preferred),
        (Durability::Majority, Durability::Majority),
        (Durability::Async, Durability::Majority),
    ][usize::from(choice.get(Of::Durability))]
}

pub(crate) fn lease_policy(choice: &Choice) -> Policy {
    let wishes = choice.get(Of::Wishes);
    Policy {
        leadership: Leadership::Lease,
        durability: durabilities(choice).1,
        read_only_default: false,
        priority: (wishes != 1).then_some(0),
        reclone: wishes != 2,
        identity: identity(choice.me()),
        ..policy(choice.me().0)
    }
}

pub(crate) fn record(choice: &Choice) -> LeaseRecord {
    let me = choice.me();
    let earlier = Identity {
        uid: "earlier".to_owned(),
        ..identity(me)
    };
    let holder = match choice.get(Of::Holder) {
        0 => Some(identity(me)),
        1 => Some(earlier),
        2 => Some(identity(choice.other())),
        _ => None,
    };
    let entry = |term, leader: Ordinal| HistoryEntry {
        term,
        timeline: None,
        lsn: None,
        reason: String::new(),
        at: String::new(),
        new_leader: format!("pg-{leader}"),
    };
    let mine = choice.get(Of::Holder) == 7;
    LeaseRecord {
        holder,
        term: TERM,
        lease_duration_ms: 15_000,
        renewals: 7,
        system_identifier: (choice.get(Of::Identifier) == 0).then_some(OWN),
        durability: durabilities(choice).0,
        members: vec![Ordinal(0), Ordinal(1), Ordinal(2)],
        synchronous: sets()[usize::from(choice.get(Of::Set))].clone(),
        released_by: (choice.get(Of::Holder) == 4).then_some(me),
        paused: choice.get(Of::Paused) == 1,
        read_only: None,
        timeline: TimelineId(4),
        request: match choice.get(Of::Request) {
            0 => None,
            1 => Some(MoveRequest::Switchover {
                to: None,
                id: "r".to_owned(),
            }),
            2 => Some(MoveRequest::Switchover {
                to: Some(Ordinal(2)),
                id: "r".to_owned(),
            }),
            3 => Some(MoveRequest::Failover {
                to: me,
                id: "r".to_owned(),
            }),
            _ => Some(MoveRequest::Failover {
                to: Ordinal(2),
                id: "r".to_owned(),
            }),
        },
        order: None,
        history: vec![
            entry(4, choice.other()),
            entry(5, if mine { me } else { choice.other() }),
        ],
    }
}

fn lease(choice: &Choice) -> LeaseView {
    let record = record(choice);
    let renewal = |term, ago_ms| {
        Some(Renewal {
            term,
            sent_at_ms: NOW_MS - ago_ms,
        })
    };
    let uncertain = match choice.get(Of::Write) {
        2 => Some(LeaseRecord {
            synchronous: set(&[0, 2], 1),
            ..record.clone()
        }),
        3 => Some(LeaseRecord {
            holder: Some(identity(Ordinal(2))),
            term: TERM + 1,
            ..record.clone()
        }),
        _ => None,
    };
    let known = !matches!(choice.get(Of::Holder), 5 | 6);
    LeaseView {
        stored: known.then(|| StoredLease {
            record,
            resource_version: "42".to_owned(),
        }),
        missing: choice.get(Of::Holder) == 5,
        changed_at_ms: NOW_MS - if choice.get(Of::Age) == 0 { 1_000 } else { 20_000 },
        answered_at_ms: Some(NOW_MS - 500),
        error: None,
        renewal: match choice.get(Of::Renewal) {
            0 => renewal(TERM, 1_000),
            1 => renewal(TERM, 5_000),
            2 => renewal(TERM, 11_000),
            3 => None,
            _ => renewal(TERM - 1, 1_000),
        },
        writing: choice.get(Of::Write) == 1,
        write_failed_at_ms: None,
        uncertain: uncertain.filter(|_| known),
    }
}

/// The directory; what it was last used for decides much.
fn directory(choice: &Choice) -> DataDirectory {
    let complete = DataDirectory::Complete;
    let control = |control_state| DataDirectoryFacts {
        control_state,
        ..facts()
    };
    match choice.get(Of::Directory) {
        0 => DataDirectory::Empty,
        1 => DataDirectory::Unusable {
            detail: "no pg_control".to_owned(),
        },
        2 => complete(control(ControlState::ShutDown)),
        3 => complete(control(ControlState::InProduction)),
        4 => complete(standby_facts()),
        5 => complete(DataDirectoryFacts {
            backup_label: true,
            ..control(ControlState::InProduction)
        }),
        6 => complete(DataDirectoryFacts {
            half_rewound: true,
            ..control(ControlState::InProduction)
        }),
        7 => complete(DataDirectoryFacts {
            system_identifier: FOREIGN,
            ..standby_facts()
        }),
        _ => complete(DataDirectoryFacts {
            major_version: 16,
            ..standby_facts()
        }),
    }
}

fn told(choice: &Choice) -> String {
    let name = |members: &[u32], quorum| {
        let names: Vec<String> = members.iter().map(|m| format!("pg-{m}")).collect();
        standby_names(true, &names, quorum)
    };
    let plain = Told::plain(&sets()[usize::from(choice.get(Of::Set))], choice.me());
    let plain_members: Vec<u32> = plain.members.iter().map(|m| m.0).collect();
    match choice.get(Of::Told) {
        0 => name(&plain_members, plain.quorum),
        1 => name(&[choice.other().0, 2], 1),
        2 => name(&[choice.other().0, 2], 2),
        3 => name(&[], 0),
        _ => "somebody_elses".to_owned(),
    }
}

fn postmaster(choice: &Choice) -> Postmaster {
    let primary = || ServerRole::primary(told(choice));
    match choice.get(Of::Postmaster) {
        0 => Postmaster::Stopped { last_exit: None },
        1 => Postmaster::Stopped {
            last_exit: Some(PostmasterExit {
                requested: false,
                description: "exited with code 1".to_owned(),
                was_ready: false,
            }),
        },
        2 => running(primary(), true),
        3 => running(primary(), false),
        4 => running(attached(choice), true),
        5 => running(attached(choice), false),
        6 => running(standby_of(None), true),
        7 => running(standby_of(None), false),
        _ => Postmaster::Stopping {
            pid: 9,
            mode: StopMode::Fast,
        },
    }
}

/// A standby's role as this member would be given it.
fn attached(choice: &Choice) -> ServerRole {
    let mut role = standby_of(Some(ADDRESS));
    if let ServerRole::Standby {
        upstream: Some(upstream),
    } = &mut role
    {
        let known = sets()[usize::from(choice.get(Of::Set))]
            .members
            .contains_key(&choice.me());
        let joining = known && choice.get(Of::Incarnation) != 0;
        upstream.application_name = joining.then(|| format!("pg-{}_joining", choice.me()));
    }
    role
}

const REFUSED: u8 = 6;

fn server_status(choice: &Choice) -> Option<ServerStatus> {
    let status = match choice.get(Of::Server) {
        0 | REFUSED => return None,
        1 => server(true, true),
        2 => ServerStatus {
            receiver_present: true,
            ..server(true, false)
        },
        3 => server(true, false),
        4 => ServerStatus {
            replay_waiting: true,
            ..server(true, false)
        },
        _ => {
            let row = |member: Ordinal| ReplicationStatus {
                application_name: format!("pg-{member}"),
                client_addr: None,
                state: "streaming".to_owned(),
                sent_lsn: Some(HERE),
                flush_lsn: Some(HERE),
                replay_lsn: Some(HERE),
                sync_state: "quorum".to_owned(),
                sync_priority: 1,
                usename: "podgres_replication".to_owned(),
                pid: 1,
            };
            ServerStatus {
                replication: vec![row(choice.other()), row(Ordinal(2))],
                synchronous_standby_names: told(choice),
                ..server(false, false)
            }
        }
    };
    let slot = |member| SlotStatus {
        slot_name: slot_name("pg", member),
        active: true,
        restart_lsn: Some(HERE),
        lost: false,
        safe_wal_size_bytes: None,
    };
    let slots = vec![slot(choice.other()), slot(Ordinal(2))];
    Some(ServerStatus { slots, ..status })
}

fn job(choice: &Choice) -> Option<JobStatus> {
    // A rewind from the other holder, a clone from the third member.
    let of = |kind, state| {
        let from = match kind {
            JobKind::Initdb => None,
            JobKind::Rewind => Some(choice.other()),
            JobKind::Clone => Some(Ordinal(2)),
        };
        Some(JobStatus {
            id: 1,
            kind,
            upstream: from.map(|ordinal| format!("pg-{ordinal}.pg.default.svc.cluster.local")),
            state,
        })
    };
    let failed = |refused| JobState::Failed {
        kind: FailureKind::default(),
        refused,
        message: "it failed".to_owned(),
    };
    let progress = JobProgress::default();
    match choice.get(Of::Job) {
        0 => None,
        1 => of(JobKind::Rewind, JobState::Running { progress }),
        2 => of(JobKind::Rewind, failed(true)),
        3 => of(JobKind::Clone, failed(false)),
        4 => of(JobKind::Clone, JobState::Running { progress }),
        5 => of(JobKind::Initdb, JobState::Running { progress }),
        6 => of(JobKind::Clone, failed(true)),
        _ => of(JobKind::Rewind, JobState::Done),
    }
}

fn supervised(choice: &Choice) -> SupervisorStatus {
    SupervisorStatus {
        postmaster: postmaster(choice),
        job: job(choice),
        licence: match choice.get(Of::Licence) {
            0 => Licence::None,
            1 => Licence::Limited { until_ms: NOW_MS - 1 },
            2 => Licence::Limited {
                until_ms: NOW_MS + 60_000,
            },
            _ => Licence::Unlimited,
        },
        stopping: choice.get(Of::Stopping) == 1,
        terms: Terms {
            promised: [0, 5, 6, 7][usize::from(choice.get(Of::Promised))],
            held: [0, 4, 5][usize::from(choice.get(Of::Held))],
        },
        incarnation: match choice.get(Of::Incarnation) {
            0 => Some(incarnation(choice.me())),
            1 => Some(Incarnation("new".to_owned())),
            _ => None,
        },
        disk_failing_since_ms: (choice.get(Of::DiskFails) == 1).then_some(NOW_MS - 9_000),
        ..supervisor(directory(choice))
    }
}

/// A member that runs and says so.
pub(crate) fn member(ordinal: Ordinal, report: LeadershipReport) -> PeerView {
    PeerView {
        uid: format!("uid-{ordinal}"),
        running: true,
        flush_lsn: Some(HERE),
        heard_ms_ago: Some(100),
        leadership: Some(LeadershipReport {
            incarnation: report.incarnation.or(Some(incarnation(ordinal))),
            ..report
        }),
        ..holder()
    }
}

pub(crate) fn content(term: u64) -> LeadershipReport {
    LeadershipReport {
        term,
        promised_term: term,
        priority: Some(0),
        sees_api: true,
        ..LeadershipReport::default()
    }
}

fn holder_peer(choice: &Choice) -> Option<PeerView> {
    let office = |beat| LeadershipReport {
        office: Some(Office { term: TERM, beat }),
        ..content(TERM)
    };
    let primary = |beat| PeerView {
        writable: true,
        ..member(choice.other(), office(beat))
    };
    let lost = |contact, ago_ms| PeerView {
        contact,
        writable: false,
        running: false,
        heard_ms_ago: Some(ago_ms),
        ..primary(0)
    };
    match choice.get(Of::HolderPeer) {
        0 => Some(primary(0)),
        1 => Some(primary(9)),
        2 => Some(PeerView {
            uid: "later".to_owned(),
            ..member(choice.other(), content(TERM))
        }),
        3 => Some(lost(PeerContact::Refused, 300)),
        4 => Some(lost(PeerContact::TimedOut, 5_000)),
        5 => None,
        _ => Some(member(
            choice.other(),
            LeadershipReport {
                confirms: Some(Office { term: TERM, beat: 9 }),
                ..content(TERM)
            },
        )),
    }
}

/// Where a detached member has come to rest, against this one.
fn final_position(by: i64) -> FinalPosition {
    FinalPosition {
        timeline: TimelineId(1),
        flush_lsn: Lsn(HERE.0.saturating_add_signed(by)),
    }
}

fn third_peer(choice: &Choice) -> Option<PeerView> {
    let third = Ordinal(2);
    let detached = |promised_term, by| LeadershipReport {
        promised_term,
        final_position: Some(final_position(by)),
        suspects_term: Some(TERM),
        ..content(TERM)
    };
    let report = match choice.get(Of::ThirdPeer) {
        0 => return None,
        1 => {
            return Some(PeerView {
                contact: PeerContact::TimedOut,
                heard_ms_ago: Some(5_000),
                ..member(third, content(TERM))
            });
        }
        2 => LeadershipReport {
            confirms: Some(Office { term: TERM, beat: 9 }),
            ..content(TERM)
        },
        3 => LeadershipReport {
            suspects_term: Some(TERM),
            ..content(TERM)
        },
        4 => detached(6, -1),
        5 => detached(6, 0),
        6 => detached(6, 1),
        7 => LeadershipReport {
            promised_term: 6,
            ..content(TERM)
        },
        8 => detached(7, 0),
        9 => LeadershipReport {
            incarnation: Some(Incarnation("new".to_owned())),
            ..detached(6, 0)
        },
        10 => LeadershipReport {
            sees_api: false,
            ..detached(6, 1)
        },
        _ => LeadershipReport {
            priority: None,
            ..detached(6, 1)
        },
    };
    let moved = report.final_position.map(|position| position.flush_lsn);
    let peer = member(third, report);
    Some(PeerView {
        flush_lsn: moved.or(peer.flush_lsn),
        ..peer
    })
}

fn upstream_view(choice: &Choice) -> UpstreamView {
    let failed = ProbeState::Failed {
        message: "refused".to_owned(),
    };
    let view = match choice.get(Of::Upstream) {
        0 => upstream(NameState::Unasked, ProbeState::Untried),
        1 => resolved(failed),
        3 => ready(forked()),
        4 => ready(behind()),
        5 => UpstreamView {
            looked_at_ms: 0,
            ..ready(upstream_facts())
        },
        6 => ready(UpstreamFacts {
            in_recovery: Some(true),
            ..upstream_facts()
        }),
        7 => ready(UpstreamFacts {
            system_identifier: FOREIGN,
            ..upstream_facts()
        }),
        _ => ready(upstream_facts()),
    };
    let of = if choice.get(Of::Upstream) == 8 {
        Ordinal(2)
    } else {
        choice.other()
    };
    UpstreamView { of: Some(of), ..view }
}

pub(crate) fn observed(choice: &Choice) -> Observation {
    let barrier = Barrier {
        synchronous_standby_names: told(choice),
        lsn: Lsn(HERE.0 - 8),
        at_ms: NOW_MS,
    };
    let mut peers = BTreeMap::new();
    if let Some(peer) = holder_peer(choice) {
        peers.insert(choice.other(), peer);
    }
    if let Some(peer) = third_peer(choice) {
        peers.insert(Ordinal(2), peer);
    }
    for peer in peers.values_mut() {
        match choice.get(Of::Peers) {
            1 => peer.held_data = HeldData::None,
            2 => (peer.held_data, peer.contact) = (HeldData::Unknown, PeerContact::Unknown),
            3 => peer.timeline = Some(TimelineId(2)),
            _ => {}
        }
        peer.writable &= choice.get(Of::Peers) == 0;
    }
    let supervisor = (choice.get(Of::Blind) == 0).then(|| supervised(choice));
    Observation {
        drained: true,
        at_ms: NOW_MS,
        dns_answered: choice.get(Of::Peers) < 4,
        server: server_status(choice),
        login_refused: (choice.get(Of::Server) == REFUSED).then(|| "a wrong password".to_owned()),
        peers,
        upstream: upstream_view(choice),
        lease: lease(choice),
        barrier: (choice.get(Of::Bound) != 2).then_some(barrier),
        request: match choice.get(Of::MemberRequest) {
            0 => None,
            1 => Some(MemberRequest::Restart),
            _ => Some(MemberRequest::Reinit),
        },
        supervisor,
        ..observation(choice.me().0, crate::worlds::supervisor(DataDirectory::Empty))
    }
}

pub(crate) fn remembered(choice: &Choice) -> Memory {
    let long = choice.get(Of::Down) == 1;
    let since_ms = NOW_MS - if long { 40_000 } else { 100 };
    let bound = Some((Office { term: TERM, beat: 3 }, NOW_MS - 2_000));
    let ends_job = matches!(choice.get(Of::Job), 2 | 3 | 6 | 7);
    Memory {
        began_at_ms: Some(if choice.get(Of::Bound) == 2 || choice.get(Of::Peers) == 5 {
            NOW_MS - 3_000
        } else {
            0
        }),
        busy_at_ms: 10,
        counted_job: u64::from(ends_job && choice.get(Of::Condemned) != 3),
        retry_at_ms: if matches!(choice.get(Of::Job), 3 | 6) {
            u64::MAX
        } else {
            0
        },
        failures: if choice.get(Of::Postmaster) == 1 { 3 } else { 0 },
        stalled: Some(podgres::core::decision::Stalled {
            replay_lsn: HERE,
            since_ms: 20,
        }),
        condemned: match choice.get(Of::Condemned) {
            0 | 3 => None,
            1 => Some(CloneReason::WalGone),
            _ => Some(CloneReason::Diverged),
        },
        lease: LeaseMemory {
            record: Some(record(choice)),
            beats: vec![(9, NOW_MS - 300)],
            confirmed_until_ms: if choice.get(Of::Confirmed) == 1 {
                NOW_MS + 4_000
            } else {
                0
            },
            confirmed_term: TERM,
            confirmed: bound.filter(|_| choice.get(Of::Bound) == 1),
            overtaken_since_ms: long.then_some(since_ms),
            handing_over: (choice.get(Of::HandingOver) != 0).then_some(HandingOver {
                to: None,
                since_ms,
                forced: choice.get(Of::HandingOver) == 2,
            }),
            down_since_ms: Some(since_ms),
            unanswered_since_ms: Some(since_ms),
            detached_since_ms: Some(since_ms),
            starting_since_ms: Some(since_ms),
            waiting_since_ms: long.then_some(since_ms),
            ..LeaseMemory::default()
        },
        ..Memory::default()
    }
}
