//! Which replication slots the primary is to have: one per other member, until it is scaled away.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::decision::Memory;
use crate::core::member::{Ordinal, slot_name, slot_owner};
use crate::core::observation::Observation;
use crate::core::policy::Policy;
use crate::core::status::SlotStatus;
use crate::core::wal::Lsn;

/// A slot that lags by less is left where it is: WAL is removed by the segment.
const ADVANCE_BYTES: u64 = 4 << 20;

/// The slots of members: who owns which.
fn owned<'a>(policy: &Policy, slots: &'a [SlotStatus]) -> Vec<(Ordinal, &'a SlotStatus)> {
    slots
        .iter()
        .filter_map(|slot| Some((slot_owner(&policy.cluster, &slot.slot_name)?, slot)))
        .collect()
}

pub(super) fn note_missing(policy: &Policy, memory: &mut Memory, observation: &Observation) {
    let Some(server) = &observation.server else { return };
    let slots = server.slots.iter();
    let owners = slots.filter_map(|slot| slot_owner(&policy.cluster, &slot.slot_name));
    // Under a Lease a member counts although a new primary has no slot for it.
    let record = observation.lease.stored.as_ref().map(|stored| &stored.record);
    let members = record.map_or(&[][..], |record| &record.members);
    let named = |ordinal: &Ordinal| observation.peers.get(ordinal).is_some_and(|peer| peer.named);
    let missing: Vec<Ordinal> = owners
        .chain(members.iter().copied())
        .filter(|ordinal| *ordinal != policy.ordinal && !named(ordinal))
        .collect();
    let since_ms = &mut memory.missing_since_ms;
    since_ms.retain(|ordinal, _| missing.contains(ordinal));
    for ordinal in missing {
        since_ms.entry(ordinal).or_insert(observation.at_ms);
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
    differing(policy, memory, observation, &owned(policy, &server.slots))
}

fn differing(
    policy: &Policy,
    memory: &Memory,
    observation: &Observation,
    owned: &[(Ordinal, &SlotStatus)],
) -> Option<Vec<String>> {
    let owners = || owned.iter().map(|(owner, _)| *owner);
    let kept = |ordinal: &Ordinal| {
        memory
            .missing_since_ms
            .get(ordinal)
            .is_some_and(|since| observation.at_ms.saturating_sub(*since) < policy.slot_retention_ms)
    };
    let expected = || {
        let named = observation.peers.iter().filter(|(_, peer)| peer.named);
        named
            .map(|(ordinal, _)| *ordinal)
            .chain(owners().filter(kept))
            .filter(|ordinal| *ordinal != policy.ordinal)
    };
    let missing = expected().any(|ordinal| !owners().any(|owner| owner == ordinal));
    let superfluous = |(owner, slot): &(Ordinal, &SlotStatus)| {
        !slot.active && (slot.lost || !expected().any(|ordinal| ordinal == *owner))
    };
    (missing || owned.iter().any(superfluous)).then(|| {
        let expected: BTreeSet<Ordinal> = expected().collect();
        let names = expected.iter();
        names
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
    let model = &observation.peers.get(&primary)?.slots;
    let mut advance = BTreeMap::new();
    let owned = owned(policy, &server.slots);
    for (owner, slot) in &owned {
        let wanted = model.iter().find(|other| other.slot_name == slot.slot_name);
        // The primary itself has no slot there: what is replayed here is what it can need.
        let target = wanted
            .and_then(|slot| slot.restart_lsn)
            .or((*owner == primary).then_some(server.replay_lsn));
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
    let expected = differing(policy, memory, observation, &owned);
    if expected.is_none() && advance.is_empty() {
        return None;
    }
    let existing = || {
        let slots: BTreeMap<Ordinal, &SlotStatus> = owned.iter().copied().collect();
        slots.values().map(|slot| slot.slot_name.clone()).collect()
    };
    Some((expected.unwrap_or_else(existing), advance))
}
