//! Which replication slots the primary is to have: one per other member, until it is scaled away.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::decision::Memory;
use crate::core::member::{Ordinal, slot_name};
use crate::core::observation::Observation;
use crate::core::policy::Policy;
use crate::core::status::SlotStatus;

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
            let by_name = known
                .iter()
                .copied()
                .find(|o| slot_name(&policy.cluster, *o) == slot.slot_name);
            by_digits.or(by_name).map(|ordinal| (ordinal, slot))
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
    memory
        .missing_since_ms
        .retain(|ordinal, _| owners.contains_key(ordinal) && !named(ordinal));
    for ordinal in owners.keys().filter(|ordinal| !named(ordinal)) {
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
