//! Which replication slots the primary is to have: one per other member, until it is scaled away.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::decision::Memory;
use crate::core::member::{Ordinal, slot_name};
use crate::core::observation::Observation;
use crate::core::policy::Policy;
use crate::core::status::SlotStatus;
use crate::core::wal::Lsn;

/// A slot that lags by less is left where it is: WAL is removed by the segment.
const ADVANCE_BYTES: u64 = 4 << 20;

/// Ordinals that can own a slot on this server: slot names are matched, never parsed.
fn owners<'a>(
    policy: &Policy,
    slots: &'a [SlotStatus],
    known: &BTreeSet<Ordinal>,
) -> BTreeMap<Ordinal, &'a SlotStatus> {
    let stem = slot_name(&policy.cluster, Ordinal(0));
    let stem = stem.trim_end_matches('0');
    slots
        .iter()
        .filter_map(|slot| {
            let digits = slot.slot_name.strip_prefix(stem).unwrap_or_default();
            let by_digits = digits
                .parse()
                .ok()
                .map(Ordinal)
                .filter(|o| slot_name(&policy.cluster, *o) == slot.slot_name);
            // A long cluster name is shortened differently for a longer ordinal.
            let by_name = || {
                let mut known = known.iter().copied();
                known.find(|o| slot_name(&policy.cluster, *o) == slot.slot_name)
            };
            by_digits.or_else(by_name).map(|ordinal| (ordinal, slot))
        })
        .collect()
}

fn known(memory: &Memory, observation: &Observation) -> BTreeSet<Ordinal> {
    observation
        .peers
        .keys()
        .chain(memory.missing_since_ms.keys())
        .copied()
        .collect()
}

pub(super) fn note_missing(policy: &Policy, memory: &mut Memory, observation: &Observation) {
    let Some(server) = &observation.server else { return };
    let owners = owners(policy, &server.slots, &known(memory, observation));
    let named = |ordinal: &Ordinal| observation.peers.get(ordinal).is_some_and(|peer| peer.named);
    // Under a Lease a member counts although a new primary has no slot for it.
    let record = observation.lease.stored.as_ref().map(|stored| &stored.record);
    let members = record.map_or(&[][..], |record| &record.members);
    let counts = |ordinal: &Ordinal| owners.contains_key(ordinal) || members.contains(ordinal);
    memory
        .missing_since_ms
        .retain(|ordinal, _| counts(ordinal) && !named(ordinal));
    let others = owners
        .keys()
        .chain(members)
        .filter(|ordinal| **ordinal != policy.ordinal);
    for ordinal in others.filter(|ordinal| !named(ordinal)) {
        memory
            .missing_since_ms
            .entry(*ordinal)
            .or_insert(observation.at_ms);
    }
}

/// The slots that must exist, if what exists differs from that.
///
/// A slot of a member that DNS no longer lists stays for `slot_retention_ms`; a lost slot that nobody
/// uses is made anew.
pub(super) fn to_reconcile(
    policy: &Policy,
    memory: &Memory,
    observation: &Observation,
) -> Option<Vec<String>> {
    let server = observation.server.as_ref()?;
    let owners = owners(policy, &server.slots, &known(memory, observation));
    let kept = |ordinal: &Ordinal| {
        memory
            .missing_since_ms
            .get(ordinal)
            .is_some_and(|since| observation.at_ms.saturating_sub(*since) < policy.slot_retention_ms)
    };
    let expected: BTreeSet<Ordinal> = observation
        .peers
        .iter()
        .filter(|(_, peer)| peer.named)
        .map(|(ordinal, _)| *ordinal)
        .chain(owners.keys().copied().filter(kept))
        .filter(|ordinal| *ordinal != policy.ordinal)
        .collect();
    let missing = expected.iter().any(|ordinal| !owners.contains_key(ordinal));
    let superfluous = owners
        .iter()
        .any(|(ordinal, slot)| !slot.active && !expected.contains(ordinal));
    let lost = owners.values().any(|slot| slot.lost && !slot.active);
    (missing || superfluous || lost).then(|| {
        expected
            .iter()
            .map(|ordinal| slot_name(&policy.cluster, *ordinal))
            .collect()
    })
}

/// On a standby: the slots that must exist, and how far each is to move, if anything differs from that.
///
/// A slot here holds back WAL for the member that would stream from this one after a promotion: it follows the
/// slot of the same name on the primary, so that it holds back as much and no more.
pub(super) fn behind(
    policy: &Policy,
    memory: &Memory,
    observation: &Observation,
    primary: Ordinal,
) -> Option<(Vec<String>, BTreeMap<String, Lsn>)> {
    let server = observation.server.as_ref()?;
    let owners = owners(policy, &server.slots, &known(memory, observation));
    let model = &observation.peers.get(&primary)?.slots;
    let mut advance = BTreeMap::new();
    for slot in owners.values() {
        let wanted = model.iter().find(|other| other.slot_name == slot.slot_name);
        // The primary itself has no slot there: what is replayed here is what it can need.
        let own_name = slot.slot_name == slot_name(&policy.cluster, primary);
        let target = wanted
            .and_then(|slot| slot.restart_lsn)
            .or(own_name.then_some(server.replay_lsn));
        let far = |target: Lsn| {
            slot.restart_lsn
                .is_none_or(|at| target.bytes_since(at) >= ADVANCE_BYTES)
        };
        if let Some(target) = target
            .map(|target| target.min(server.replay_lsn))
            .filter(|target| far(*target))
        {
            advance.insert(slot.slot_name.clone(), target);
        }
    }
    let expected = to_reconcile(policy, memory, observation);
    if expected.is_none() && advance.is_empty() {
        return None;
    }
    let existing = || owners.values().map(|slot| slot.slot_name.clone()).collect();
    Some((expected.unwrap_or_else(existing), advance))
}
