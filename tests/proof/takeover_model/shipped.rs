//! The shipped decisions about the synchronous set, asked and answered in the bits of the model.

use super::*;

fn incarnation(bit: u8) -> Incarnation {
    Incarnation(if bit == 0 { "first" } else { "second" }.into())
}

impl Set {
    pub(super) fn shipped(self) -> SynchronousSet {
        let bits = (0..2 * MEMBERS).filter(|bit| self.members >> bit & 1 == 1);
        let members = bits.map(|bit| (Ordinal(u32::from(bit / 2)), incarnation(bit % 2)));
        SynchronousSet {
            members: members.collect(),
            quorum: u32::from(self.quorum),
        }
    }

    pub(super) fn of(shipped: &SynchronousSet) -> Self {
        let bits = shipped.members.iter().map(|(member, known)| {
            let second = u32::from(*known == incarnation(1));
            1_u8 << (2 * member.0 + second)
        });
        Self {
            members: bits.sum(),
            quorum: u8::try_from(shipped.quorum).expect("small"),
        }
    }

    /// Whether it names the member, and whether in this incarnation.
    pub(super) fn names(self, member: u8, incarnation: u8) -> (bool, bool) {
        let both = self.members >> (2 * member) & 3;
        (both != 0, both >> incarnation & 1 == 1)
    }
}

impl Setting {
    pub(super) fn shipped(self) -> Told {
        let members = (0..MEMBERS).filter(|member| self.members >> member & 1 == 1);
        Told::new(
            members.map(|member| Ordinal(u32::from(member))).collect(),
            u32::from(self.quorum),
        )
    }

    pub(super) fn of(told: &Told) -> Self {
        Self {
            members: told.members.iter().map(|member| 1_u8 << member.0).sum(),
            quorum: u8::try_from(told.quorum).expect("small"),
        }
    }

    /// What a primary begins with: waits for everybody if the plain setting does not cover each record there may be.
    pub(super) fn at_first(holder: u8, sets: &[Set]) -> Self {
        let ordinal = Ordinal(u32::from(holder));
        let plain = Told::plain(&sets[0].shipped(), ordinal);
        if sets.iter().all(|set| covers(&plain, &set.shipped(), ordinal)) {
            return Self::of(&plain);
        }
        let named = sets.iter().flat_map(|set| set.shipped().members.into_keys());
        let members: BTreeSet<Ordinal> = named.filter(|member| *member != ordinal).collect();
        let quorum = u32::try_from(members.len()).expect("small");
        Self::of(&Told::new(members, quorum))
    }
}

impl Shipped {
    pub(super) fn target(&mut self, holder: u8, fit: u8, recorded: Set) -> Set {
        *self.targets.entry((holder, fit, recorded)).or_insert_with(|| {
            let fit = Set {
                members: fit,
                quorum: 0,
            }
            .shipped();
            let ordinal = Ordinal(u32::from(holder));
            Set::of(&target(
                Durability::Majority,
                3,
                fit,
                &recorded.shipped(),
                ordinal,
            ))
        })
    }

    pub(super) fn step(&mut self, world: &World, holder: u8, wanted: Set) -> Choice {
        let member = &world.members[usize::from(holder)];
        let Role::Primary { told, barrier } = member.role else {
            return Choice::Nothing;
        };
        let uncertain = world
            .uncertain(holder)
            .filter(|record| record.holder == holder)
            .map(|record| record.set);
        let uncertain = uncertain.filter(|set| *set != member.view.set);
        let flushed: [u8; 3] =
            std::array::from_fn(|m| world.flushed(holder, u8::try_from(m).expect("small")));
        let key = (holder, told, member.view.set, uncertain, wanted, barrier, flushed);
        *self.steps.entry(key).or_insert_with(|| {
            let lsns: BTreeMap<Ordinal, Lsn> = (0_u32..3)
                .zip(flushed)
                .filter(|(_, count)| *count > 0)
                .map(|(m, count)| (Ordinal(m), Lsn(u64::from(count))))
                .collect();
            let uncertain = uncertain.map(Set::shipped);
            let change = Change {
                holder: Ordinal(u32::from(holder)),
                told: &told.shipped(),
                recorded: &member.view.set.shipped(),
                uncertain: uncertain.as_ref(),
                target: &wanted.shipped(),
                barrier: barrier.map(|count| Lsn(u64::from(count) + 1)),
                flushed: &lsns,
            };
            match step(&change) {
                Step::Settled | Step::CatchUp => Choice::Nothing,
                Step::Tell(told) => Choice::Tell(Setting::of(&told)),
                Step::Record(set) => Choice::Record(Set::of(&set)),
                Step::Mark => Choice::Mark,
            }
        })
    }
}
