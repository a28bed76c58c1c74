//! The answers of the probes and role checks: 200 or 503, with the reason.
//!
//! Patroni's meaning, with one rule on top: a standby that does not stream is neither ready nor healthy.
//! The single exception keeps reads alive when the primary is positively gone, see [`primary_is_gone`] and
//! `docs/decisions/0003-readiness-without-a-primary.md`. When in doubt the answer is 503.

use crate::core::status::{MemberState, MemberStatus, Role};

use super::check::{Check, CheckQuery};
use super::{ClusterView, LagMode, PeerContact, PeerEntry};

/// The answer to one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub passed: bool,
    /// A sentence in PostgreSQL's style.
    pub reason: String,
}

impl Verdict {
    /// The HTTP status: 200 or 503.
    #[must_use]
    pub fn status(&self) -> u16 {
        if self.passed { 200 } else { 503 }
    }
}

fn yes(reason: impl Into<String>) -> Verdict {
    Verdict {
        passed: true,
        reason: reason.into(),
    }
}

fn no(reason: impl Into<String>) -> Verdict {
    Verdict {
        passed: false,
        reason: reason.into(),
    }
}

/// A standby may end its replay this far before the end of what it received: a record of which the rest never came.
/// The largest ordinary record, 32 full pages, has a quarter of this.
const UNFINISHED_RECORD_BYTES: u64 = 1 << 20;

/// When the agent's loop last turned, and how long it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopAge {
    pub age_ms: u64,
    pub limit_ms: u64,
}

/// What a probe is answered: [`verdict`], unless the view behind it is too old to be believed.
///
/// Only `/startup` is true of a process whose loop stands still; all else would be old news.
#[must_use]
pub fn answer(check: Check, query: &CheckQuery, view: &ClusterView, turned: LoopAge) -> Verdict {
    if check != Check::Startup && turned.age_ms > turned.limit_ms {
        return no(format!(
            "the agent's loop has not turned for {} ms, limit {} ms",
            turned.age_ms, turned.limit_ms
        ));
    }
    verdict(check, query, view)
}

/// The answer that `view` gives.
#[must_use]
pub fn verdict(check: Check, query: &CheckQuery, view: &ClusterView) -> Verdict {
    if let Some(invalid) = &query.invalid {
        return no(invalid);
    }
    match check {
        Check::Startup => yes("this process listens"),
        Check::Liveness => yes("the agent's loop is turning"),
        Check::Readiness => readiness(query, view),
        // There are no standby clusters, so who leads is the primary; a leader that does not run is none.
        Check::Primary | Check::Leader => primary(&view.me),
        Check::StandbyLeader => no("this cluster has no standby leader"),
        Check::Replica => replica(query, view),
        Check::ReadOnly => primary_or(view, || replica(query, view)),
        Check::Synchronous => synchronous(&["sync"], query, view),
        Check::ReadOnlySynchronous => primary_or(view, || synchronous(&["sync"], query, view)),
        Check::Quorum => synchronous(&["quorum"], query, view),
        Check::ReadOnlyQuorum => primary_or(view, || synchronous(&["quorum"], query, view)),
        Check::Asynchronous => asynchronous(query, view),
        Check::Health => health(&view.me),
    }
}

fn primary(me: &MemberStatus) -> Verdict {
    if me.role != Some(Role::Primary) {
        no(format!("not the primary, but {}", standing(me)))
    } else if !me.accepting {
        no(format!(
            "the primary is {} and accepts no connections",
            me.state.as_str()
        ))
    } else if !me.writable {
        no("runs as primary, but is not allowed to accept writes")
    } else {
        yes("primary, accepting connections")
    }
}

fn primary_or(view: &ClusterView, standby: impl FnOnce() -> Verdict) -> Verdict {
    if view.me.role == Some(Role::Primary) {
        primary(&view.me)
    } else {
        standby()
    }
}

fn readiness(query: &CheckQuery, view: &ClusterView) -> Verdict {
    primary_or(view, || {
        in_service(view).and(|| within_lag(query, query.mode, view))
    })
}

fn replica(query: &CheckQuery, view: &ClusterView) -> Verdict {
    let state = if view.me.streaming() { "streaming" } else { "" };
    if view.me.no_reads && view.me.role == Some(Role::Standby) {
        return no("standby, which is to serve no reads");
    }
    if let Some(wanted) = query.replication_state.as_ref().filter(|wanted| *wanted != state) {
        return no(format!("replication state is \"{state}\", wanted \"{wanted}\""));
    }
    if let Some((name, wanted)) = query
        .tags
        .iter()
        .find(|(name, wanted)| tag(&view.me, name).as_ref() != Some(wanted))
    {
        let found = tag(&view.me, name).map_or_else(|| "not set".to_owned(), |found| format!("\"{found}\""));
        return no(format!("tag \"{name}\" is {found}, wanted \"{wanted}\""));
    }
    in_service(view).and(|| within_lag(query, LagMode::Apply, view))
}

/// Those of Patroni's tags that members have, under Patroni's names; as there, one that is false is not set.
fn tag(me: &MemberStatus, name: &str) -> Option<String> {
    let priority = me.leadership.as_ref().map(|report| report.priority);
    match name {
        "nofailover" => (priority == Some(None)).then(|| "true".to_owned()),
        "failover_priority" => priority.flatten().map(|priority| priority.to_string()),
        "noloadbalance" => me.no_reads.then(|| "true".to_owned()),
        _ => None,
    }
}

fn synchronous(states: &[&str], query: &CheckQuery, view: &ClusterView) -> Verdict {
    match view.sync_state(&view.me.name) {
        Some(state) if states.contains(&state) => replica(query, view),
        Some(state) => no(format!("the primary calls this standby \"{state}\"")),
        None => no("no primary is heard that lists this standby"),
    }
}

fn asynchronous(query: &CheckQuery, view: &ClusterView) -> Verdict {
    match view.sync_state(&view.me.name) {
        Some(state @ ("sync" | "quorum")) => no(format!("the primary calls this standby \"{state}\"")),
        _ => replica(query, view),
    }
}

/// Strict, where readiness has its exception: no reason makes a standby healthy that does not stream.
fn health(me: &MemberStatus) -> Verdict {
    match me.role {
        Some(Role::Primary) if me.accepting => yes("primary, accepting connections"),
        Some(Role::Standby) if me.streaming() => yes("standby, streaming"),
        _ => no(standing(me)),
    }
}

/// Whether a standby may be offered to readers.
fn in_service(view: &ClusterView) -> Verdict {
    let me = &view.me;
    if me.role != Some(Role::Standby) {
        return no(format!("not a standby, but {}", standing(me)));
    }
    if me.streaming() {
        return yes("standby, streaming");
    }
    if !me.accepting || me.state != MemberState::Running {
        return no(standing(me));
    }
    orphaned(view)
}

/// A standby that runs and does not stream: broken, or left behind by a primary that is gone?
fn orphaned(view: &ClusterView) -> Verdict {
    let Some(server) = &view.me.server else {
        return no("the server does not answer");
    };
    let newest = view
        .live_members()
        .filter_map(|s| s.server.as_ref())
        .map(|s| s.timeline)
        .max();
    if !server.in_recovery {
        no("not a standby any more: it accepts writes")
    } else if !view.me.was_streaming {
        no("standby, not streaming, and has not streamed since it started")
    } else if newest > Some(server.timeline) {
        no("standby, not streaming, and behind a promotion")
    } else if server.flush_lsn.bytes_since(server.replay_lsn) > UNFINISHED_RECORD_BYTES {
        no("standby, not streaming, and has not yet replayed what it received")
    } else if !primary_is_gone(view) {
        no("standby, not streaming, and the primary is not known to be gone")
    } else {
        yes("standby, the primary is gone and all that was received is replayed")
    }
}

/// What a peer tells about the life of the primary.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Evidence {
    /// It is an accepting primary, or it streams from one.
    Alive,
    /// It is no primary that accepts connections: it says so, or its process is not there.
    Gone,
    /// It is not heard; it may be alive and this member cut off.
    Silent,
}

fn evidence(peer: &PeerEntry) -> Evidence {
    match (peer.live_status(), peer.contact) {
        (Some(status), _) if status.role == Some(Role::Primary) && status.accepting => Evidence::Alive,
        (Some(status), _) if status.writable || status.streaming() => Evidence::Alive,
        (Some(_), _) | (None, PeerContact::Refused) => Evidence::Gone,
        (None, _) => Evidence::Silent,
    }
}

/// Whether it is positively known that no primary runs, as far as readiness goes.
///
/// Nobody who is heard is or follows a primary, and each member that may be the primary (it last said so, or
/// it holds the Lease) is known to be down: it says so, its address refuses, or, if it is merely
/// silent, another member that is heard has lost it too. A standby that hears nobody at all cannot tell
/// a dead primary from its own cut cable.
#[must_use]
pub fn primary_is_gone(view: &ClusterView) -> bool {
    let witnessed = view.peers.iter().any(|peer| peer.live_status().is_some());
    no_primary(view, witnessed)
}

/// As [`primary_is_gone`], without a witness: this member may be the one that is cut off, and follow nobody.
#[must_use]
pub fn primary_is_silent(view: &ClusterView) -> bool {
    no_primary(view, true)
}

/// Whether nothing newer than what the standbys have can be acknowledged anywhere: as [`primary_is_gone`], without the
/// inference from silence. All standbys may be cut off from a primary that goes on.
#[must_use]
pub fn primary_is_down(view: &ClusterView) -> bool {
    no_primary(view, false)
}

fn no_primary(view: &ClusterView, silence_counts: bool) -> bool {
    let down = |peer: &PeerEntry| match evidence(peer) {
        Evidence::Alive => false,
        Evidence::Gone => true,
        Evidence::Silent => silence_counts,
    };
    let suspected = |peer: &&PeerEntry| {
        let said_so = peer
            .status
            .as_ref()
            .is_some_and(|s| s.role == Some(Role::Primary));
        said_so || view.lease_holder.as_ref() == Some(&peer.name)
    };
    let nobody_alive = view.peers.iter().all(|peer| evidence(peer) != Evidence::Alive);
    let mut suspects = view.peers.iter().filter(suspected).peekable();
    let settled = if suspects.peek().is_some() {
        suspects.all(down)
    } else {
        !view.peers.is_empty() && view.peers.iter().all(|peer| evidence(peer) == Evidence::Gone)
    };
    // A sidecar that is away is no PostgreSQL that is: what this member's own server receives comes from one.
    nobody_alive && settled && !view.me.streaming()
}

fn within_lag(query: &CheckQuery, mode: LagMode, view: &ClusterView) -> Verdict {
    let Some(limit) = query.lag_bytes else {
        return yes("");
    };
    let (Some(lag), Some(primary)) = (view.lag_bytes(&view.me, mode), view.primary_position()) else {
        return no("the lag is unknown: nobody has told the primary's position");
    };
    let known = format!(
        "{lag} bytes behind {}, which was told {} ms ago, limit {limit} bytes",
        primary.lsn, primary.known_ms_ago
    );
    if lag > limit { no(known) } else { yes(known) }
}

fn standing(me: &MemberStatus) -> String {
    let role = me.role.map_or("member without a role", Role::as_str);
    match me.state {
        MemberState::Running if me.role == Some(Role::Standby) => {
            format!("{role}, not streaming: {}", me.situation)
        }
        state => format!("{role}, {}: {}", state.as_str(), me.situation),
    }
}

impl Verdict {
    /// This one if it failed, else `next`; the reasons of two that passed are joined.
    fn and(self, next: impl FnOnce() -> Verdict) -> Verdict {
        if !self.passed {
            return self;
        }
        let next = next();
        if next.passed && next.reason.is_empty() {
            return self;
        }
        Verdict {
            passed: next.passed,
            reason: format!("{}, {}", self.reason, next.reason),
        }
    }
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
