//! The synchronous set: what a quorum of it proves, and the order in which it may be changed.
//!
//! Two things name standbys: the record in the Lease, which a candidate reads to know how many detached members
//! prove that nothing is missing (n-k+1 of n), and PostgreSQL's setting, which says whose confirmations a commit waits
//! for (k of them and the gate). Whatever a candidate may read, every acknowledged commit must be on one
//! member of each of its quorums. Each step here keeps that, so that a change may be interrupted anywhere.

use std::collections::{BTreeMap, BTreeSet};

use super::lease::{Durability, Incarnation, SynchronousSet};
use super::member::Ordinal;
use super::wal::Lsn;

/// Whose confirmations PostgreSQL waits for, the gate aside.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Told {
    pub members: BTreeSet<Ordinal>,
    pub quorum: u32,
}

impl Told {
    /// The setting that a recorded set stands for, on the primary `holder`.
    #[must_use]
    pub fn plain(set: &SynchronousSet, holder: Ordinal) -> Self {
        let others = set.members.keys().copied().filter(|member| *member != holder);
        Self::new(others.collect(), set.quorum)
    }

    /// Where nobody is waited for nobody is named: one name beside the gate would stand for it.
    #[must_use]
    pub fn new(members: BTreeSet<Ordinal>, quorum: u32) -> Self {
        Self {
            members: if quorum == 0 { BTreeSet::new() } else { members },
            quorum,
        }
    }

    /// Fewer confirmations are possible than are asked for: no commit would ever end.
    #[must_use]
    pub fn impossible(&self) -> bool {
        count(self.members.len()) < self.quorum
    }
}

impl SynchronousSet {
    /// Whether `member` is in it with the directory that it has now.
    #[must_use]
    pub fn has(&self, member: Ordinal, incarnation: Option<&Incarnation>) -> bool {
        incarnation.is_some() && self.members.get(&member) == incarnation
    }

    /// How many detached members prove that they have every acknowledged commit among them: n-k+1.
    ///
    /// `None`: none do, since a commit may be on the primary alone.
    #[must_use]
    pub fn proof(&self) -> Option<u32> {
        let members = count(self.members.len());
        (self.quorum > 0 && self.quorum <= members).then(|| members - self.quorum + 1)
    }
}

/// Whether each commit that PostgreSQL acknowledges as told is on a member of every quorum of `set`.
///
/// k confirmations of which at most `outside` are of members that `set` does not name, and the holder's
/// own copy if `set` names it, must be at least the recorded k.
#[must_use]
pub fn covers(told: &Told, set: &SynchronousSet, holder: Ordinal) -> bool {
    let outside = told
        .members
        .iter()
        .filter(|member| !set.members.contains_key(member));
    let own = u32::from(set.members.contains_key(&holder));
    set.quorum == 0 || told.quorum.saturating_sub(count(outside.count())) + own >= set.quorum
}

/// What the set is to become.
///
/// `joined`: every member of the cluster, the holder included; `fit`: standbys that stream or did so a moment ago.
#[must_use]
pub fn target(
    durability: Durability,
    joined: usize,
    fit: SynchronousSet,
    recorded: &SynchronousSet,
    holder: Ordinal,
) -> SynchronousSet {
    let half = count(joined / 2);
    let mut members = fit.members;
    let quorum = match durability {
        Durability::Async => 0,
        Durability::Preferred => half.min(count(members.len())),
        Durability::Majority => {
            let missing = (half as usize).saturating_sub(members.len());
            let known = recorded.members.iter();
            let others = known.filter(|(member, _)| **member != holder && !members.contains_key(member));
            let kept: Vec<_> = others.take(missing).map(|(m, i)| (*m, i.clone())).collect();
            members.extend(kept);
            half
        }
    };
    SynchronousSet { members, quorum }
}

/// What is known when a step is chosen.
#[derive(Clone, Debug)]
pub struct Change<'a> {
    pub holder: Ordinal,
    /// What PostgreSQL has been told, and has taken over.
    pub told: &'a Told,
    /// The record, and the one that a write of unknown outcome may have put in its place.
    pub recorded: &'a SynchronousSet,
    pub uncertain: Option<&'a SynchronousSet>,
    pub target: &'a SynchronousSet,
    /// All commits acknowledged under an earlier setting lie before it; `None`: not known yet.
    pub barrier: Option<Lsn>,
    /// How far each standby has flushed what this primary sent.
    pub flushed: &'a BTreeMap<Ordinal, Lsn>,
}

/// The one thing to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Settled,
    /// Have PostgreSQL wait for these.
    Tell(Told),
    /// Write this into the Lease.
    Record(SynchronousSet),
    /// Find out from where on the setting is in force.
    Mark,
    /// The standbys must first have what was acknowledged before.
    CatchUp,
}

/// Chooses the next step towards `target`; every record that may be in the Lease stays covered.
#[must_use]
pub fn step(change: &Change<'_>) -> Step {
    if let Some(step) = record_step(change) {
        return step;
    }
    let possible = |told: &Told| {
        !told.impossible()
            && covers(told, change.recorded, change.holder)
            && change
                .uncertain
                .is_none_or(|set| covers(told, set, change.holder))
    };
    let wanted = Told::plain(change.target, change.holder);
    if change.recorded == change.target && change.uncertain.is_none() {
        return if *change.told == wanted || !possible(&wanted) {
            Step::Settled
        } else {
            Step::Tell(wanted)
        };
    }
    let others = change
        .target
        .members
        .keys()
        .filter(|member| **member != change.holder);
    let stricter = Told::new(
        others.copied().collect(),
        change.target.quorum.max(change.recorded.quorum),
    );
    let choices = [wanted, stricter].into_iter().chain(bridge(change));
    let mut choices = choices.filter(|told| possible(told) && covers(told, change.target, change.holder));
    match choices.next() {
        Some(told) if told != *change.told => Step::Tell(told),
        _ => Step::CatchUp,
    }
}

/// The first of the records on the way that may be written now.
fn record_step(change: &Change<'_>) -> Option<Step> {
    if change.recorded == change.target && change.uncertain.is_none() {
        return None;
    }
    let mut both = change.target.clone();
    for (member, incarnation) in &change.recorded.members {
        both.members.entry(*member).or_insert_with(|| incarnation.clone());
    }
    let lower = SynchronousSet {
        quorum: both.quorum.min(change.recorded.quorum),
        ..both.clone()
    };
    let mut waits = None;
    for set in [change.target.clone(), both, lower] {
        if set == *change.recorded && change.uncertain.is_none() {
            continue;
        }
        // Of writes whose outcome is unknown at most one differs from the record: that one may be written again.
        let another = change.uncertain.is_some_and(|uncertain| set != *uncertain);
        if another && set != *change.recorded {
            continue;
        }
        if !covers(change.told, &set, change.holder) {
            continue;
        }
        match reached(change, &set) {
            Ok(()) => return Some(Step::Record(set)),
            Err(step) => waits = waits.or(Some(step)),
        }
    }
    // Only if telling would not help either.
    waits.filter(|_| covers(change.told, change.target, change.holder))
}

/// Whether enough members of `set` have everything that was acknowledged under earlier settings.
fn reached(change: &Change<'_>, set: &SynchronousSet) -> Result<(), Step> {
    if set.quorum == 0 {
        return Ok(());
    }
    let barrier = change.barrier.ok_or(Step::Mark)?;
    let has_it = |member: &&Ordinal| {
        **member == change.holder || change.flushed.get(*member).is_some_and(|lsn| *lsn >= barrier)
    };
    let holders = set.members.keys().filter(has_it).count();
    if count(holders) >= set.quorum {
        Ok(())
    } else {
        Err(Step::CatchUp)
    }
}

/// Settings under which both the record and the target are covered, the easiest first.
fn bridge(change: &Change<'_>) -> Vec<Told> {
    let names = |set: &SynchronousSet| -> BTreeSet<Ordinal> {
        let others = set.members.keys().filter(|member| **member != change.holder);
        others.copied().collect()
    };
    let (from, to) = (names(change.recorded), names(change.target));
    let shared = from.intersection(&to).copied().collect();
    let all = from.union(&to).copied().collect();
    let needed = |members: &BTreeSet<Ordinal>, set: &SynchronousSet| {
        let outside = members.iter().filter(|m| !set.members.contains_key(m)).count();
        let own = u32::from(set.members.contains_key(&change.holder));
        match set.quorum.saturating_sub(own) {
            0 => 0,
            others => others + count(outside),
        }
    };
    let mut choices: Vec<Told> = [shared, from, to, all]
        .into_iter()
        .map(|members| {
            let quorum = needed(&members, change.recorded).max(needed(&members, change.target));
            Told::new(members, quorum)
        })
        .collect();
    choices.sort_by_key(|told| told.quorum);
    choices
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::lease::Incarnation;

    const HOLDER: Ordinal = Ordinal(0);

    fn set(members: &[u32], quorum: u32) -> SynchronousSet {
        let named = members.iter().map(|m| (Ordinal(*m), Incarnation("".into())));
        SynchronousSet {
            members: named.collect(),
            quorum,
        }
    }

    fn subsets(of: &[u32]) -> Vec<Vec<u32>> {
        (0..1_u32 << of.len())
            .map(|bits| {
                let chosen = of.iter().enumerate().filter(|(at, _)| bits >> at & 1 == 1);
                chosen.map(|(_, member)| *member).collect()
            })
            .collect()
    }

    fn sets() -> Vec<SynchronousSet> {
        let mut all = Vec::new();
        for members in subsets(&[0, 1, 2, 3]) {
            let largest = u32::try_from(members.len()).expect("small");
            all.extend((0..=largest).map(|quorum| set(&members, quorum)));
        }
        all
    }

    /// By going through all of them: every acknowledgement meets every quorum.
    fn always_meets(told: &Told, set: &SynchronousSet) -> bool {
        let Some(proof) = set.proof() else { return true };
        let confirmed = subsets(&[1, 2, 3]).into_iter().filter(|members| {
            members.len() == told.quorum as usize
                && members.iter().all(|m| told.members.contains(&Ordinal(*m)))
        });
        let copies: Vec<Vec<u32>> = confirmed
            .map(|mut members| {
                members.push(0);
                members
            })
            .collect();
        let quorums: Vec<Vec<u32>> = subsets(&[0, 1, 2, 3])
            .into_iter()
            .filter(|q| q.len() == proof as usize && q.iter().all(|m| set.members.contains_key(&Ordinal(*m))))
            .collect();
        copies
            .iter()
            .all(|copy| quorums.iter().all(|q| q.iter().any(|m| copy.contains(m))))
    }

    #[test]
    fn covering_is_what_counting_says() {
        for set in sets() {
            for told in sets()
                .iter()
                .map(|set| Told::plain(set, HOLDER))
                .filter(|told| !told.impossible())
            {
                assert_eq!(
                    covers(&told, &set, HOLDER),
                    always_meets(&told, &set),
                    "{told:?} {set:?}"
                );
            }
        }
    }

    /// Whatever the target, from whatever is recorded: covered at every moment, and there in a few steps.
    #[test]
    fn every_change_arrives_and_is_covered_all_along() {
        let barrier = Some(Lsn(10));
        let flushed: BTreeMap<Ordinal, Lsn> = (1..4).map(|m| (Ordinal(m), Lsn(10))).collect();
        for from in sets() {
            for target in sets() {
                let reachable = !Told::plain(&target, HOLDER).impossible();
                let mut told = Told::plain(&from, HOLDER);
                if !reachable || told.impossible() || target.members.contains_key(&HOLDER) {
                    continue;
                }
                let mut recorded = from.clone();
                let mut steps = 0;
                loop {
                    let change = Change {
                        holder: HOLDER,
                        told: &told,
                        recorded: &recorded,
                        uncertain: None,
                        target: &target,
                        barrier,
                        flushed: &flushed,
                    };
                    match step(&change) {
                        Step::Settled => break,
                        Step::Tell(new) => told = new,
                        Step::Record(new) => recorded = new,
                        other => panic!("{other:?} from {from:?} to {target:?} at {recorded:?} {told:?}"),
                    }
                    assert!(covers(&told, &recorded, HOLDER), "{told:?} {recorded:?}");
                    steps += 1;
                    assert!(steps < 8, "from {from:?} to {target:?}: at {recorded:?} {told:?}");
                }
                assert_eq!(recorded, target);
                assert_eq!(told, Told::plain(&target, HOLDER));
            }
        }
    }

    #[test]
    fn nothing_is_recorded_before_the_standbys_have_what_was_acknowledged() {
        let recorded = set(&[1, 2], 1);
        let target = set(&[1], 1);
        let told = Told::plain(&target, HOLDER);
        let flushed = BTreeMap::from([(Ordinal(1), Lsn(9)), (Ordinal(2), Lsn(20))]);
        let change = |barrier| Change {
            holder: HOLDER,
            told: &told,
            recorded: &recorded,
            uncertain: None,
            target: &target,
            barrier,
            flushed: &flushed,
        };
        assert_eq!(step(&change(None)), Step::Mark);
        assert_eq!(step(&change(Some(Lsn(10)))), Step::CatchUp);
        assert_eq!(step(&change(Some(Lsn(9)))), Step::Record(target.clone()));
    }

    #[test]
    fn a_majority_is_kept_when_its_members_are_gone_and_a_preference_is_not() {
        let recorded = set(&[1, 2], 1);
        let none = set(&[], 0);
        let of = |durability| target(durability, 3, none.clone(), &recorded, HOLDER);
        assert_eq!(of(Durability::Majority), set(&[1], 1));
        assert_eq!(of(Durability::Preferred), set(&[], 0));
        assert_eq!(of(Durability::Async), set(&[], 0));
        assert_eq!(
            target(Durability::Majority, 5, set(&[1, 2, 3], 0), &recorded, HOLDER),
            set(&[1, 2, 3], 2)
        );
    }
}
