//! One small cluster under a Lease as a member sees it, made of a few choices, each with a handful of values.
//!
//! The member is `pg-1` (or the first, `pg-0`); the record is of term 5, the other holder is `H`, the third member `pg-2`.

mod others;
mod own;

use std::collections::BTreeMap;
use std::sync::Arc;

use podgres::core::cluster::PeerContact;
use podgres::core::data_directory::DataDirectory;
use podgres::core::decision::{HandingOver, LeaseMemory, Memory};
use podgres::core::lease::{
    Durability, HistoryEntry, Identity, Incarnation, LeaseRecord, LeaseView, MoveRequest, Office, Renewal,
    StoredLease, SynchronousSet,
};
use podgres::core::member::Ordinal;
use podgres::core::observation::{Barrier, MemberRequest, Observation};
use podgres::core::policy::{Leadership, Policy};
use podgres::core::status::HeldData;
use podgres::core::supervision::CloneReason;
use podgres::core::wal::{Lsn, TimelineId};

use crate::worlds::*;
pub(crate) use others::member;
use others::{holder_peer, third_peer, upstream_view};
use own::{REFUSED, server_status, supervised, told};
pub(crate) use own::{slot, streaming};

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
    2, 8, 2, 5, 2, 4, 3, 10, 7, 9, 8, 2, 4, 11, 4, 3, 8, 12, 2, 5, 3, 3, 9, 4, 3, 2, 2, 5, 2, 3, 4, 6, 2,
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
    Incarnation(format!("i{member}").into())
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
        read_only_turns: 0,
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
        history: Arc::new(vec![
            entry(4, choice.other()),
            entry(5, if mine { me } else { choice.other() }),
        ]),
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
            record: record.into(),
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
            record: Some(record(choice).into()),
            beats: vec![(9, NOW_MS - 300)],
            names_in_force: Some((told(choice), NOW_MS - 1_000)),
            confirmed_until_ms: if choice.get(Of::Confirmed) == 1 {
                NOW_MS + 4_000
            } else {
                0
            },
            confirmed_term: TERM,
            confirmation_given: bound.filter(|_| choice.get(Of::Bound) == 1),
            overtaken_since_ms: long.then_some(since_ms),
            handing_over: (choice.get(Of::HandingOver) != 0).then_some(HandingOver {
                to: None,
                since_ms,
                forced: choice.get(Of::HandingOver) == 2,
            }),
            // Heard before the API server's last answer.
            given_up: (choice.get(Of::HolderPeer) == 7).then_some((TERM, NOW_MS - 1_000)),
            down_since_ms: Some(since_ms),
            stopped_since_ms: Some(since_ms),
            unanswered_since_ms: Some(since_ms),
            detached: own::position(choice).map(|position| (position, since_ms)),
            starting_since_ms: Some(since_ms),
            waiting_since_ms: long.then_some(since_ms),
            ..LeaseMemory::default()
        },
        ..Memory::default()
    }
}
