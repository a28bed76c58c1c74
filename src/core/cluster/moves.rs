//! Whether a move, a restart or a fresh clone can be done now, and if not, why: what the operator is told before
//! anything is asked of anybody. The members look again when they act; this only spares a wait that would be in vain.

use std::fmt;

use crate::core::lease::LeaseRecord;
use crate::core::member::{MemberName, Ordinal};
use crate::core::status::{MemberStatus, Role};

use super::table::size_text;
use super::{ClusterView, LagMode};

/// A standby further behind than this is not handed over to: `decide` has the same bound.
const MAX_LAG_BYTES: u64 = 16 << 20;

/// Why an order is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Impossible {
    FixedLeadership,
    /// Nothing has been read of the Lease.
    NoLease,
    Paused,
    UnknownMember {
        name: String,
    },
    /// The operator had another primary in mind.
    OtherPrimary {
        given: String,
        found: Option<String>,
    },
    NoPrimary {
        holder: Option<String>,
    },
    AlreadyPrimary {
        name: String,
    },
    NotHeard {
        name: String,
    },
    NeverPrimary {
        name: String,
    },
    NotStreaming {
        name: String,
        situation: String,
    },
    TooFarBehind {
        name: String,
        lag_bytes: Option<u64>,
    },
    /// Nobody but the primary is fit: each with its reason.
    NoCandidate {
        reasons: Vec<String>,
    },
    NotRunning {
        name: String,
        situation: String,
    },
    PrimaryIsNotCloned {
        name: String,
    },
}

impl fmt::Display for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FixedLeadership => f.write_str("cannot move the primary: leadership is fixed"),
            Self::NoLease => f.write_str("could not read the Lease yet"),
            Self::Paused => f.write_str("cannot move the primary: the cluster is paused"),
            Self::UnknownMember { name } => write!(f, "the cluster has no member \"{name}\""),
            Self::OtherPrimary { given, found } => match found {
                Some(found) => write!(f, "\"{given}\" is not the primary, \"{found}\" is"),
                None => write!(f, "\"{given}\" is not the primary, nobody is"),
            },
            Self::NoPrimary { holder } => match holder {
                Some(holder) => write!(
                    f,
                    "\"{holder}\" holds the Lease and does not serve as the primary"
                ),
                None => f.write_str("nobody holds the Lease"),
            },
            Self::AlreadyPrimary { name } => write!(f, "\"{name}\" is the primary already"),
            Self::NotHeard { name } => write!(f, "\"{name}\" is not heard"),
            Self::NeverPrimary { name } => write!(f, "\"{name}\" is never to be primary"),
            Self::NotStreaming { name, situation } => write!(f, "\"{name}\" does not stream: {situation}"),
            Self::TooFarBehind { name, lag_bytes } => match lag_bytes {
                Some(lag) => write!(f, "\"{name}\" is {} behind", size_text(*lag)),
                None => write!(f, "\"{name}\" is behind by an unknown amount"),
            },
            Self::NoCandidate { reasons } if reasons.is_empty() => {
                f.write_str("the cluster has no other member")
            }
            Self::NoCandidate { reasons } => write!(f, "nobody can take over: {}", reasons.join("; ")),
            Self::NotRunning { name, situation } => {
                write!(f, "PostgreSQL of \"{name}\" does not run: {situation}")
            }
            Self::PrimaryIsNotCloned { name } => {
                write!(f, "cannot clone \"{name}\" afresh: it holds the primary's data")
            }
        }
    }
}

impl Impossible {
    /// What the operator can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::FixedLeadership => Some("Set PODGRES_LEADERSHIP=lease to have a primary that can move."),
            Self::NoLease => Some("Is the Kubernetes API reachable, and may the pod read the Lease?"),
            Self::Paused => Some("Run \"podgres resume\" first."),
            Self::NoPrimary { .. } => {
                Some("Wait for the failover, or force one: \"podgres failover --to POD\".")
            }
            Self::TooFarBehind { .. } => Some("Wait until it has caught up, or choose another member."),
            Self::PrimaryIsNotCloned { .. } => Some("Move the primary first: \"podgres switchover\"."),
            Self::NeverPrimary { .. } => Some("It was started with PODGRES_NEVER_PRIMARY."),
            _ => None,
        }
    }
}

/// What the Lease alone tells of a move, for an operator who reaches no member; gives the member that was named.
///
/// # Errors
/// Why it is not begun.
pub fn by_record(
    cluster: &str,
    record: &LeaseRecord,
    candidate: Option<&str>,
    forced: bool,
) -> Result<Option<Ordinal>, Impossible> {
    if record.paused {
        return Err(Impossible::Paused);
    }
    let holder = record.holder.as_ref().map(|holder| holder.pod.as_str());
    if holder.is_none() && !forced {
        return Err(Impossible::NoPrimary { holder: None });
    }
    let Some(name) = candidate else {
        return Ok(None);
    };
    let unknown = || Impossible::UnknownMember {
        name: name.to_owned(),
    };
    let parsed = MemberName::parse(name).map_err(|_| unknown())?;
    if parsed.cluster != cluster || !record.members.contains(&parsed.ordinal) {
        return Err(unknown());
    }
    if holder == Some(name) {
        return Err(Impossible::AlreadyPrimary {
            name: name.to_owned(),
        });
    }
    Ok(Some(parsed.ordinal))
}

/// A planned move; gives the member that was named.
///
/// # Errors
/// Why it is not begun.
pub fn switchover(
    view: &ClusterView,
    leader: Option<&str>,
    candidate: Option<&str>,
) -> Result<Option<Ordinal>, Impossible> {
    let record = movable(view)?;
    let primary = primary(view);
    let name = |member: &MemberStatus| member.name.clone();
    if let Some(given) = leader
        && primary.is_none_or(|member| member.name != given)
    {
        let (given, found) = (given.to_owned(), primary.map(name));
        return Err(Impossible::OtherPrimary { given, found });
    }
    let Some(primary) = primary else {
        let holder = record.holder.as_ref().map(|holder| holder.pod.clone());
        return Err(Impossible::NoPrimary { holder });
    };
    if let Some(candidate) = candidate {
        let ordinal = member(view, record, candidate)?;
        return fit(view, primary, candidate).map(|()| Some(ordinal));
    }
    let others = view
        .peers
        .iter()
        .map(|peer| peer.name.as_str())
        .chain([view.me.name.as_str()]);
    let others = others.filter(|name| *name != primary.name);
    let mut reasons = Vec::new();
    for other in others {
        match fit(view, primary, other) {
            Ok(()) => return Ok(None),
            Err(reason) => reasons.push(reason.to_string()),
        }
    }
    Err(Impossible::NoCandidate { reasons })
}

/// A forced move to a named member.
///
/// # Errors
/// Why it is not begun: it cannot be, whatever may be lost.
pub fn failover(view: &ClusterView, candidate: &str) -> Result<Ordinal, Impossible> {
    let record = movable(view)?;
    let ordinal = member(view, record, candidate)?;
    let name = || candidate.to_owned();
    if primary(view).is_some_and(|primary| primary.name == candidate) {
        return Err(Impossible::AlreadyPrimary { name: name() });
    }
    let status = live(view, candidate)?;
    willing(status)?;
    if status.server.is_none() {
        let situation = status.situation.clone();
        return Err(Impossible::NotRunning {
            name: name(),
            situation,
        });
    }
    Ok(ordinal)
}

/// PostgreSQL of a member stops and starts.
///
/// # Errors
/// Why not.
pub fn restart(view: &ClusterView, name: &str) -> Result<(), Impossible> {
    known(view, name)?;
    let status = live(view, name)?;
    if status.server.is_none() {
        let (name, situation) = (name.to_owned(), status.situation.clone());
        return Err(Impossible::NotRunning { name, situation });
    }
    Ok(())
}

/// A standby is cloned afresh.
///
/// # Errors
/// Why not.
pub fn reinitialise(view: &ClusterView, name: &str) -> Result<(), Impossible> {
    known(view, name)?;
    let status = live(view, name)?;
    let holder = view.lease_holder.as_deref() == Some(name);
    if holder || status.writable || status.role == Some(Role::Primary) {
        return Err(Impossible::PrimaryIsNotCloned {
            name: name.to_owned(),
        });
    }
    Ok(())
}

/// The member that is primary by right and serves.
#[must_use]
pub fn primary(view: &ClusterView) -> Option<&MemberStatus> {
    let serves = |member: &&MemberStatus| member.role == Some(Role::Primary) && member.writable;
    let holds = |member: &&MemberStatus| {
        view.lease_holder
            .as_ref()
            .is_none_or(|holder| *holder == member.name)
    };
    view.live_members().filter(serves).find(holds)
}

/// What a forced move to `candidate` would lose, as far as anybody knows.
#[must_use]
pub fn loss(view: &ClusterView, candidate: &str) -> String {
    let lag = live(view, candidate)
        .ok()
        .and_then(|status| view.lag_bytes(status, LagMode::Write));
    let age = view.primary_position().map(|position| position.known_ms_ago);
    match (lag, age) {
        (Some(0), Some(age)) if primary(view).is_none() => format!(
            "\"{candidate}\" has everything up to the primary's last known position, which is {} old; \
             what the primary wrote after that would be lost",
            age_text(age)
        ),
        (Some(0), Some(_)) => {
            format!("\"{candidate}\" has everything up to the primary's last known position")
        }
        (Some(lag), Some(age)) => format!(
            "\"{candidate}\" lacks {} of what the primary had written {} ago; that would be lost",
            size_text(lag),
            age_text(age)
        ),
        _ => format!("it is not known what \"{candidate}\" lacks; commits may be lost"),
    }
}

/// Milliseconds for a sentence.
#[must_use]
pub fn age_text(ms: u64) -> String {
    match ms {
        u64::MAX => "an unknown time".to_owned(),
        0..10_000 => format!("{ms} ms"),
        _ => format!("{} s", ms / 1000),
    }
}

/// The record of a cluster whose primary may be moved now.
fn movable(view: &ClusterView) -> Result<&LeaseRecord, Impossible> {
    if view.leadership != "lease" {
        return Err(Impossible::FixedLeadership);
    }
    let record = view.lease.as_ref().ok_or(Impossible::NoLease)?;
    if record.paused {
        return Err(Impossible::Paused);
    }
    Ok(record)
}

/// The ordinal behind a name that the record or somebody's stream knows.
fn member(view: &ClusterView, record: &LeaseRecord, name: &str) -> Result<Ordinal, Impossible> {
    let unknown = || Impossible::UnknownMember {
        name: name.to_owned(),
    };
    let parsed = MemberName::parse(name).map_err(|_| unknown())?;
    let known = record.members.contains(&parsed.ordinal) || known(view, name).is_ok();
    (parsed.cluster == view.cluster && known)
        .then_some(parsed.ordinal)
        .ok_or_else(unknown)
}

fn known(view: &ClusterView, name: &str) -> Result<(), Impossible> {
    let known = view.me.name == name || view.peers.iter().any(|peer| peer.name == name);
    known.then_some(()).ok_or_else(|| Impossible::UnknownMember {
        name: name.to_owned(),
    })
}

fn live<'a>(view: &'a ClusterView, name: &str) -> Result<&'a MemberStatus, Impossible> {
    let mut members = view.live_members();
    let found = members.find(|member| member.name == name);
    found.ok_or_else(|| Impossible::NotHeard {
        name: name.to_owned(),
    })
}

fn willing(status: &MemberStatus) -> Result<(), Impossible> {
    let report = status.leadership.as_ref();
    match report.is_some_and(|report| report.priority.is_none()) {
        true => Err(Impossible::NeverPrimary {
            name: status.name.clone(),
        }),
        false => Ok(()),
    }
}

/// Whether `candidate` could take over from a primary that runs.
fn fit(view: &ClusterView, primary: &MemberStatus, candidate: &str) -> Result<(), Impossible> {
    let name = candidate.to_owned();
    if primary.name == candidate {
        return Err(Impossible::AlreadyPrimary { name });
    }
    let status = live(view, candidate)?;
    willing(status)?;
    if !status.streaming() {
        let situation = status.situation.clone();
        return Err(Impossible::NotStreaming { name, situation });
    }
    let lag_bytes = view.lag_bytes(status, LagMode::Write);
    if lag_bytes.is_none_or(|lag| lag > MAX_LAG_BYTES) {
        return Err(Impossible::TooFarBehind { name, lag_bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{cut_off, down, led, peer, primary, standby, view};
    use super::*;
    use crate::core::cluster::{PeerContact, PeerEntry};
    use crate::core::lease::LeadershipReport;
    use crate::core::wal::Lsn;

    fn willing_standby(ordinal: u32) -> MemberStatus {
        let mut status = standby(ordinal);
        status.leadership = Some(LeadershipReport {
            priority: Some(100),
            ..LeadershipReport::default()
        });
        status
    }

    /// pg-0 is the primary and looks; pg-1 is as given, pg-2 lost.
    fn seen(first: MemberStatus) -> ClusterView {
        let lost = PeerEntry {
            contact: PeerContact::TimedOut,
            ..peer(willing_standby(2))
        };
        led(view(primary(0), vec![peer(first), lost]), "pg-0", &[0, 1, 2])
    }

    fn never() -> MemberStatus {
        let mut status = willing_standby(1);
        status.leadership = Some(LeadershipReport::default());
        status
    }

    fn behind() -> MemberStatus {
        let mut status = willing_standby(1);
        let server = status.server.as_mut().expect("server");
        (server.flush_lsn, server.replay_lsn) = (Lsn(0x100), Lsn(0x100));
        status
    }

    #[test]
    fn a_switchover_is_refused_with_the_reason() {
        let said = |view: &ClusterView, leader: Option<&str>, candidate: Option<&str>| {
            switchover(view, leader, candidate).map_or_else(|why| why.to_string(), |to| format!("{to:?}"))
        };
        let well = seen(willing_standby(1));
        for (leader, candidate, expected) in [
            (None, None, "None"),
            (Some("pg-0"), Some("pg-1"), "Some(Ordinal(1))"),
            (Some("pg-1"), None, "\"pg-1\" is not the primary, \"pg-0\" is"),
            (None, Some("pg-0"), "\"pg-0\" is the primary already"),
            (None, Some("pg-7"), "the cluster has no member \"pg-7\""),
            (None, Some("other-1"), "the cluster has no member \"other-1\""),
            (None, Some("pg-2"), "\"pg-2\" is not heard"),
        ] {
            assert_eq!(
                said(&well, leader, candidate),
                expected,
                "{leader:?} {candidate:?}"
            );
        }
        for (first, expected) in [
            (never(), "\"pg-1\" is never to be primary"),
            (
                cut_off(willing_standby(1)),
                "\"pg-1\" does not stream: standby_streaming",
            ),
            (behind(), "\"pg-1\" is 48 MB behind"),
        ] {
            let seen = seen(first);
            assert_eq!(said(&seen, None, Some("pg-1")), expected);
            let all = format!("nobody can take over: {expected}; \"pg-2\" is not heard");
            assert_eq!(said(&seen, None, None), all);
        }
    }

    #[test]
    fn a_cluster_that_cannot_be_moved() {
        let mut paused = seen(willing_standby(1));
        paused.lease.as_mut().expect("record").paused = true;
        let mut fixed = seen(willing_standby(1));
        fixed.leadership = "fixed".to_owned();
        let mut unread = seen(willing_standby(1));
        unread.lease = None;
        for (view, expected) in [
            (&paused, Impossible::Paused),
            (&fixed, Impossible::FixedLeadership),
            (&unread, Impossible::NoLease),
        ] {
            assert_eq!(switchover(view, None, None), Err(expected.clone()));
            assert_eq!(failover(view, "pg-1"), Err(expected));
        }
        let mut dead = seen(willing_standby(1));
        dead.me = down(dead.me);
        let holder = Some("pg-0".to_owned());
        assert_eq!(
            switchover(&dead, None, None),
            Err(Impossible::NoPrimary { holder })
        );
        assert_eq!(failover(&dead, "pg-1"), Ok(Ordinal(1)));
    }

    #[test]
    fn a_failover_needs_no_more_than_a_willing_server() {
        for (first, expected) in [
            (behind(), Ok(Ordinal(1))),
            (cut_off(willing_standby(1)), Ok(Ordinal(1))),
            (never(), Err("\"pg-1\" is never to be primary".to_owned())),
            (
                down(willing_standby(1)),
                Err("PostgreSQL of \"pg-1\" does not run: standby_streaming".to_owned()),
            ),
        ] {
            assert_eq!(
                failover(&seen(first), "pg-1").map_err(|why| why.to_string()),
                expected
            );
        }
        assert!(failover(&seen(willing_standby(1)), "pg-0").is_err());
        let told = loss(&seen(behind()), "pg-1");
        assert_eq!(
            told,
            "\"pg-1\" lacks 48 MB of what the primary had written 0 ms ago; that would be lost"
        );
        assert!(loss(&seen(willing_standby(1)), "pg-1").contains("has everything"));
        assert!(loss(&seen(willing_standby(1)), "pg-2").contains("not known"));
    }

    #[test]
    fn the_primary_is_restarted_and_never_cloned() {
        let seen = seen(willing_standby(1));
        assert_eq!(restart(&seen, "pg-0"), Ok(()));
        assert_eq!(restart(&seen, "pg-1"), Ok(()));
        assert!(restart(&seen, "pg-2").is_err() && restart(&seen, "pg-9").is_err());
        assert_eq!(reinitialise(&seen, "pg-1"), Ok(()));
        let refused = reinitialise(&seen, "pg-0").expect_err("the primary").to_string();
        assert_eq!(
            refused,
            "cannot clone \"pg-0\" afresh: it holds the primary's data"
        );
    }
}
