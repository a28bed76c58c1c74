//! Whether a move, a restart or a fresh clone can be done now, and if not, why: what the operator is told before
//! anything is asked of anybody. The members look again when they act; this only spares a wait that would be in vain.

use crate::core::lease::LeaseRecord;
use crate::core::member::{MemberName, Ordinal};
use crate::core::policy::Leadership;
use crate::core::situation::{Outlook, SITUATIONS};
use crate::core::status::{MemberStatus, Role};

use super::impossible::Impossible;
use super::table::size_text;
use super::{ClusterView, LagMode};

/// A standby further behind than this is not handed over to.
pub const MAX_LAG_BYTES: u64 = 16 << 20;

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
    // A forced move is the members' work, who do nothing; a planned one is the primary's.
    if record.paused && forced {
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
    if record.paused {
        return Err(Impossible::Paused);
    }
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

/// Whether an earlier order or a takeover is not through: somebody who is heard is on the way to what it will be.
#[must_use]
pub fn settling(view: &ClusterView) -> bool {
    let asked = view.lease.as_ref().is_some_and(|record| record.request.is_some());
    let passing = |member: &MemberStatus| {
        let mut rows = SITUATIONS.iter();
        rows.any(|(_, outlook, name, _)| *name == member.situation && *outlook == Outlook::Passing)
    };
    asked || view.live_members().any(passing)
}

/// The record of a cluster whose primary may be moved.
fn movable(view: &ClusterView) -> Result<&LeaseRecord, Impossible> {
    if view.leadership != Some(Leadership::Lease) {
        return Err(Impossible::FixedLeadership);
    }
    view.lease.as_ref().ok_or(Impossible::NoLease)
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
    let never = report.is_some_and(|report| report.priority.is_none());
    let name = || status.name.clone();
    (!never)
        .then_some(())
        .ok_or_else(|| Impossible::NeverPrimary { name: name() })
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
#[path = "moves_tests.rs"]
mod tests;
