//! Whose confirmations this primary's commits wait for, and the next step of a change of that.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::lease::{Durability, LeaseRecord, SynchronousSet};
use crate::core::member::Ordinal;
use crate::core::observation::{Observation, PeerView};
use crate::core::policy::Policy;
use crate::core::sync::{self, Change, Step, Told};
use crate::core::synchronous_names;
use crate::core::wal::Lsn;

use super::Turn;
use super::standing::Standing;

/// A standby whose recorded incarnation is another one confirms under this name, which no setting lists.
pub(super) const JOINING: &str = "_joining";

/// Each process of PostgreSQL reads a changed setting by itself, and until then lets commits go under the one of before.
const RELOAD_LAG_MS: u64 = 250;
/// What was told is in force by then, unless somebody else has told PostgreSQL otherwise.
const TELL_AGAIN_MS: u64 = 1_000;
/// Longer than a pod that is only being moved has no name.
const UNCOUNTED_AFTER_MS: u64 = 60_000;

/// Whether a WAL sender serves `member`, joined already or not.
pub(super) fn belongs(policy: &Policy, application_name: &str, member: Ordinal) -> bool {
    let name = application_name.strip_suffix(JOINING).unwrap_or(application_name);
    policy.ordinal_of(name) == Some(member)
}

/// The setting's text.
pub(super) fn text(policy: &Policy, told: &Told) -> String {
    let members: Vec<String> = told
        .members
        .iter()
        .map(|member| format!("{}-{member}", policy.cluster))
        .collect();
    synchronous_names::standby_names(policy.gate, &members, told.quorum)
}

/// What a setting of ours says; `None` for anybody else's.
pub(super) fn read(policy: &Policy, text: &str) -> Option<Told> {
    let names = synchronous_names::parse(text)?;
    let ordinal = |name: &String| policy.ordinal_of(name);
    let members = names.members.iter().map(ordinal).collect::<Option<_>>()?;
    Some(Told::new(members, names.quorum))
}

/// What a primary is to begin with: safe under the record, and not weaker than the durability asks for.
///
/// `uncertain`: the record that a write without an answer may have put in its place.
pub(super) fn at_first(policy: &Policy, record: &LeaseRecord, uncertain: Option<&LeaseRecord>) -> Told {
    let holder = policy.ordinal;
    let plain = Told::plain(&record.synchronous, holder);
    let joined = record.members.iter().copied().filter(|member| *member != holder);
    let half = u32::try_from(record.members.len() / 2).unwrap_or(u32::MAX);
    let all = Told::new(joined.collect(), half);
    let covered = |told: &Told| {
        let mut records = std::iter::once(record).chain(uncertain);
        records.all(|record| sync::covers(told, &record.synchronous, holder))
    };
    let safe = |told: &Told| !told.impossible() && covered(told);
    let strong = |told: &Told| record.durability != Durability::Majority || told.quorum >= half;
    [&plain, &all]
        .into_iter()
        .find(|told| safe(told) && strong(told))
        .or_else(|| [&plain, &all].into_iter().find(|told| covered(told)))
        .cloned()
        .unwrap_or_else(|| everybody(record, uncertain, holder))
}

/// Waits for all that any of the records names.
fn everybody(record: &LeaseRecord, uncertain: Option<&LeaseRecord>, holder: Ordinal) -> Told {
    let records = std::iter::once(record).chain(uncertain);
    let named = records.flat_map(|record| record.synchronous.members.keys().copied());
    let members: BTreeSet<Ordinal> = named.filter(|member| *member != holder).collect();
    let quorum = u32::try_from(members.len()).unwrap_or(u32::MAX);
    Told::new(members, quorum)
}

/// What a primary in office has to do about its synchronous set.
pub(super) enum Next {
    Nothing,
    Tell(Told),
    /// It was told, and something else is in force.
    TellAgain(Told),
    Record(Box<LeaseRecord>),
    Mark,
    Wait(&'static str),
}

/// `told_text`: what the server was given last.
pub(super) fn next(turn: &Turn<'_>, standing: &Standing, record: &LeaseRecord, told_text: &str) -> Next {
    let (policy, observation) = (turn.policy, turn.observation);
    let Some(server) = &observation.server else {
        return Next::Nothing;
    };
    let Some(told) = read(policy, told_text) else {
        return Next::Tell(at_first(policy, record, observation.lease.uncertain.as_ref()));
    };
    if server.synchronous_standby_names != told_text {
        let since_ms = turn
            .memory
            .lease
            .names_in_force
            .as_ref()
            .map(|(_, since_ms)| *since_ms);
        if since_ms.is_some_and(|since_ms| observation.at_ms >= since_ms.saturating_add(TELL_AGAIN_MS)) {
            return Next::TellAgain(told);
        }
        return Next::Wait("synchronous_standby_names is not in force yet");
    }
    let target = Target::of(turn, record);
    let plain = Told::plain(&target.synchronous, policy.ordinal);
    // So it is nearly always: there is nothing to change.
    let settled = target.same_members(policy, record)
        && observation.lease.uncertain.is_none()
        && told == plain
        && target.synchronous == record.synchronous;
    if settled || plain.impossible() {
        return Next::Nothing;
    }
    step(turn, record, told_text, &told, &target).unless_writing(standing)
}

/// What the record is to say in the end.
struct Target {
    members: Vec<Ordinal>,
    synchronous: SynchronousSet,
}

impl Target {
    /// Who has joined stays until it is scaled away; who streams is to be waited for, as far as the durability asks for it.
    fn of(turn: &Turn<'_>, record: &LeaseRecord) -> Self {
        let policy = turn.policy;
        let fit = fit(turn, record);
        let mut members: Vec<Ordinal> = record.members.clone();
        members.extend(fit.members.keys().copied().chain([policy.ordinal]));
        members.sort_unstable();
        members.dedup();
        members.retain(|member| !scaled_away(turn, *member));
        let counted = counted(turn, &members, &fit);
        let synchronous = sync::target(
            policy.durability,
            counted,
            fit,
            &record.synchronous,
            policy.ordinal,
        );
        Self { members, synchronous }
    }

    fn same_members(&self, policy: &Policy, record: &LeaseRecord) -> bool {
        self.members == record.members && record.durability == policy.durability
    }

    /// The record on the way there, with this set.
    fn recorded_with(&self, policy: &Policy, record: &LeaseRecord, synchronous: SynchronousSet) -> Next {
        let mut next = record.clone();
        next.synchronous = synchronous;
        next.members.clone_from(&self.members);
        next.durability = policy.durability;
        Next::Record(Box::new(next))
    }
}

/// The next safe step from what is told and recorded to the target.
fn step(turn: &Turn<'_>, record: &LeaseRecord, told_text: &str, told: &Told, target: &Target) -> Next {
    let (policy, observation) = (turn.policy, turn.observation);
    let uncertain = observation.lease.uncertain.as_ref();
    let uncertain = uncertain.map(|record| &record.synchronous);
    let flushed = flushed(turn);
    let named = turn.memory.lease.names_in_force.as_ref();
    let all_know_at_ms = named.map_or(u64::MAX, |(_, since_ms)| since_ms.saturating_add(RELOAD_LAG_MS));
    let barrier = observation
        .barrier
        .as_ref()
        .filter(|b| b.synchronous_standby_names == told_text && all_know_at_ms <= b.at_ms);
    let change = Change {
        holder: policy.ordinal,
        told,
        recorded: &record.synchronous,
        uncertain: uncertain.filter(|set| **set != record.synchronous),
        target: &target.synchronous,
        barrier: barrier.map(|barrier| barrier.lsn),
        flushed: &flushed,
    };
    match sync::step(&change) {
        Step::Settled if target.same_members(policy, record) => Next::Nothing,
        Step::Settled => target.recorded_with(policy, record, record.synchronous.clone()),
        Step::Tell(told) => Next::Tell(told),
        Step::Record(set) => target.recorded_with(policy, record, set),
        Step::Mark if observation.at_ms < all_know_at_ms => {
            Next::Wait("not every WAL sender may know the setting yet")
        }
        Step::Mark => Next::Mark,
        Step::CatchUp => Next::Wait("standbys have yet to receive what was acknowledged before"),
    }
}

impl Next {
    fn unless_writing(self, standing: &Standing) -> Self {
        match self {
            Self::Record(_) if !standing.may_write => Self::Wait("the Lease is being written"),
            other => other,
        }
    }
}

/// The other members that are heard of, and those that are recorded.
pub(super) fn others(
    policy: &Policy,
    observation: &Observation,
    record: Option<&LeaseRecord>,
) -> BTreeSet<Ordinal> {
    let recorded = record
        .into_iter()
        .flat_map(|record| record.synchronous.members.keys());
    let all = observation.peers.keys().chain(recorded).copied();
    all.filter(|member| *member != policy.ordinal).collect()
}

/// Standbys that stream from here, or did so a moment ago.
fn fit(turn: &Turn<'_>, record: &LeaseRecord) -> SynchronousSet {
    let mut members = BTreeMap::new();
    let at_ms = turn.observation.at_ms;
    for ordinal in &others(turn.policy, turn.observation, Some(record)) {
        // A recorded one may stream although DNS does not name it for a moment.
        let peer = turn.observation.peers.get(ordinal);
        let connected = peer.is_some_and(PeerView::connected);
        let streamed_at_ms = turn.memory.lease.streamed_at_ms.get(ordinal).copied();
        let times = turn.policy.times;
        // Where writes need not wait for lost standbys they do so shortly.
        let patience_ms = match turn.policy.durability {
            Durability::Preferred => 2 * times.peer_timeout_ms,
            Durability::Majority | Durability::Async => times.lease_duration_ms,
        };
        let recently = |since_ms: Option<u64>| since_ms.is_some_and(|since| at_ms < since + patience_ms);
        let lately = recently(streamed_at_ms);
        let known = record.synchronous.members.get(ordinal);
        // This process, or the time in office, began a moment ago: a recorded standby may be about to stream.
        let opened = recently(turn.memory.lease.opened_at_ms) && connected;
        let young = known.is_some() && (opened || recently(turn.memory.began_at_ms));
        if !(lately || young) || scaled_away(turn, *ordinal) {
            continue;
        }
        let report = peer.and_then(|peer| peer.leadership.as_ref());
        if report.is_some_and(|report| report.priority.is_none()) {
            continue;
        }
        let now = streamed_at_ms == Some(at_ms) && connected;
        let told = report
            .and_then(|report| report.incarnation.clone())
            .filter(|_| now);
        if let Some(incarnation) = told.or_else(|| known.cloned()) {
            members.insert(*ordinal, incarnation);
        }
    }
    SynchronousSet { members, quorum: 0 }
}

/// Of how many members a commit needs the majority: one that DNS has not named for a while is probably scaled away, and waiting for others in its
/// place costs writes whenever one of these is away. But of three at least, so that no commit is on the primary alone.
fn counted(turn: &Turn<'_>, members: &[Ordinal], fit: &SynchronousSet) -> usize {
    let there = members.iter().filter(|member| {
        fit.members.contains_key(*member) || !missing_for(turn, **member, UNCOUNTED_AFTER_MS)
    });
    there.count().max(members.len().min(3))
}

fn scaled_away(turn: &Turn<'_>, member: Ordinal) -> bool {
    missing_for(turn, member, turn.policy.slot_retention_ms)
}

/// DNS has not named it for so long.
fn missing_for(turn: &Turn<'_>, member: Ordinal, limit_ms: u64) -> bool {
    let since = turn.memory.missing_since_ms.get(&member);
    since.is_some_and(|since| turn.observation.at_ms.saturating_sub(*since) >= limit_ms)
}

/// What each standby has flushed of this primary's WAL.
pub(super) fn flushed(turn: &Turn<'_>) -> BTreeMap<Ordinal, Lsn> {
    let Some(server) = &turn.observation.server else {
        return BTreeMap::new();
    };
    let mut flushed = BTreeMap::new();
    for ordinal in &others(turn.policy, turn.observation, turn.memory.lease.record.as_deref()) {
        let rows = server
            .replication
            .iter()
            .filter(|row| belongs(turn.policy, &row.application_name, *ordinal));
        if let Some(lsn) = rows
            .filter(|row| row.state == "streaming")
            .filter_map(|row| row.flush_lsn)
            .max()
        {
            flushed.insert(*ordinal, lsn);
        }
    }
    flushed
}
