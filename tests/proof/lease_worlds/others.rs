//! What the member hears of the others: the holder, the third member, the upstream that it looks at.

use podgres::core::cluster::PeerContact;
use podgres::core::lease::{FinalPosition, Incarnation, LeadershipReport, Office};
use podgres::core::member::Ordinal;
use podgres::core::observation::{NameState, PeerView, ProbeState, UpstreamFacts, UpstreamView};
use podgres::core::wal::{Lsn, TimelineId};

use super::{Choice, Of, TERM, incarnation};
use crate::worlds::*;

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

pub(super) fn holder_peer(choice: &Choice) -> Option<PeerView> {
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
        7 => Some(PeerView {
            running: false,
            ..member(
                choice.other(),
                LeadershipReport {
                    gives_up_term: Some(TERM),
                    ..content(TERM)
                },
            )
        }),
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

pub(super) fn third_peer(choice: &Choice) -> Option<PeerView> {
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
            incarnation: Some(Incarnation("new".into())),
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

pub(super) fn upstream_view(choice: &Choice) -> UpstreamView {
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
