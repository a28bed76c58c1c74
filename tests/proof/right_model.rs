//! A model of the right to be primary, with time: renewals, the peers' confirmations, and who may claim when.
//!
//! Three members, pg-0 in office, pg-1 and pg-2 recorded; time passes in ticks, the same for all. A member takes a turn or
//! does not, for ever so long: one that does not is slow, frozen or cut off, and its next turn rests on what it heard before.
//! What was sent is heard later, or never; a write to the Lease lands whenever it may, or never, and so does its answer. A
//! sidecar may begin anew at any moment. Each turn is the shipped `decide`'s, on an observation made from the member's state
//! (`turn.rs`); restated here are what the network, the API server, its client and the supervisor do with it (`steps.rs`).
//!
//! Complete for the terms of a [`Bound`], without a limit of time: what is older than a Lease lasts is simply old. Left out:
//! the licence (never longer than the right, which `lease_rules` holds each decision to), clocks of unequal speed, and changes of
//! the synchronous set (`takeover_model`). Simpler than it is: what was heard is not kept from one turn to the next but heard
//! again, the last words, the youngest confirmation or nothing (a right counts from the beat's own time, so that to have heard of
//! it earlier gives no more); short waits, for a better candidate or before a term of one's own, are over at once; each member
//! has one write without an answer at most; who holds the last term asks nobody.

mod member;
mod steps;
mod turn;

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use member::{Age, Fate, Flight, Member, OLD, Report, Role};
use turn::{Turns, Words};

const MEMBERS: u8 = 3;
/// Those recorded: all but the first holder.
const RECORDED: [u8; 2] = [1, 2];

/// In ticks: the right after a renewal or a beat was sent, and how old an unchanged Lease must be to be taken.
const DEADLINE: u8 = 2;
const DURATION: u8 = 3;

/// How far a run goes, and of which cluster it tells.
#[derive(Clone, Copy)]
struct Bound {
    /// Standbys whose copy a commit waits for; 0 is `async`.
    quorum: u8,
    last_term: u8,
    /// Sidecars begin anew.
    restarts: bool,
    /// The first holder has lost the API server for good, and the operator orders pg-1 to take over, at any moment.
    forced: bool,
}

impl Bound {
    fn cut_off(self, member: u8) -> bool {
        self.forced && member == 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Record {
    holder: u8,
    term: u8,
    /// With the operator's order.
    forced: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct World {
    record: Record,
    members: [Member; 3],
}

impl World {
    fn first() -> Self {
        let record = Record {
            holder: 0,
            term: 1,
            forced: false,
        };
        let member = |me| Member::first(me, record);
        Self {
            record,
            members: [member(0), member(1), member(2)],
        }
    }

    /// The same with pg-1 and pg-2 by each other's names: without an order for pg-1 nothing tells them apart.
    fn exchanged(&self) -> Self {
        let [first, one, other] = self.members.map(|member| member.exchanged());
        Self {
            record: self.record.exchanged(),
            members: [first, other, one],
        }
    }

    /// Those whose PostgreSQL acknowledges what waits for the gate alone.
    fn in_right(&self) -> impl Iterator<Item = u8> {
        (0..MEMBERS).filter(|member| {
            let there = &self.members[usize::from(*member)];
            there.role == Role::Primary && there.gate > 0
        })
    }

    /// What must hold in every state.
    fn broken(&self, bound: Bound) -> Option<&'static str> {
        if bound.quorum == 0 {
            return (self.in_right().count() > 1).then_some("two members have a right at the same time");
        }
        for member in 0..MEMBERS {
            let there = &self.members[usize::from(member)];
            let deposed = there.role == Role::Primary
                && self.record.holder != member
                && self.record.term > there.view.term;
            let streams =
                |peer: &&u8| self.members[usize::from(**peer)].role == (Role::Attached { to: member });
            if deposed && RECORDED.iter().filter(streams).count() >= usize::from(bound.quorum) {
                return Some("a quorum streams from a primary whose successor has claimed the Lease");
            }
        }
        None
    }
}

/// That the model is alive: what must be possible in it.
#[derive(Default, Debug)]
struct Reached {
    /// In office although its last renewal was sent longer ago than the Lease lasts.
    by_confirmations: bool,
    /// The same with a sidecar that began anew a moment ago.
    by_confirmations_anew: bool,
    successor_in_right: bool,
    /// Both run as primary, and the first knows of no other.
    both_primary: bool,
    /// It thawed, and ended.
    stopped: bool,
}

impl Reached {
    fn note(&mut self, world: &World) {
        let [first, rest @ ..] = &world.members;
        let in_right = first.role == Role::Primary && first.gate > 0;
        let run_out = first.renewed == Some(OLD);
        self.by_confirmations |= in_right && run_out && world.record.holder == 0;
        self.by_confirmations_anew |=
            in_right && run_out && first.began < DEADLINE && world.record.holder == 0;
        let successor = rest
            .iter()
            .any(|there| there.role == Role::Primary && there.gate > 0);
        self.successor_in_right |= successor;
        self.both_primary |= successor && first.role == Role::Primary && first.view.holder == 0;
        self.stopped |= successor && first.role == Role::Down;
    }

    fn everything(&self, bound: Bound) -> bool {
        let anew = self.by_confirmations_anew == bound.restarts;
        // An order never reaches the first holder, which would stop by itself.
        let stopped = self.stopped != bound.forced;
        self.by_confirmations && anew && self.successor_in_right && self.both_primary && stopped
    }
}

/// Many small states are looked up: the usual hasher would take most of the time.
#[derive(Default)]
struct Quick(u64);

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u8(*byte);
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(u64::from(byte));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn write_isize(&mut self, word: isize) {
        self.write_u64(word.cast_unsigned() as u64);
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

type QuickHasher = BuildHasherDefault<Quick>;

/// Every state that can be reached: how many, and the way to the first that breaks a rule.
fn explore(bound: Bound) -> (usize, Result<Reached, String>) {
    let mut turns = Turns::new(bound);
    let mut seen = HashSet::with_hasher(QuickHasher::default());
    seen.insert(World::first());
    let mut order = vec![(World::first(), 0_usize)];
    let mut reached = Reached::default();
    let (mut at, mut next) = (0, Vec::new());
    while at < order.len() {
        let world = order[at].0;
        if let Some(rule) = world.broken(bound) {
            let mut way = vec![world];
            while at != 0 {
                at = order[at].1;
                way.push(order[at].0);
            }
            way.reverse();
            return (seen.len(), Err(format!("{rule}\n{}", told(&way))));
        }
        reached.note(&world);
        world.successors(bound, &mut turns, &mut next);
        for world in next.drain(..) {
            let world = if bound.forced {
                world
            } else {
                world.min(world.exchanged())
            };
            if seen.insert(world) {
                order.push((world, at));
            }
        }
        at += 1;
    }
    (seen.len(), Ok(reached))
}

/// A way, as what changes from each state to the next.
fn told(way: &[World]) -> String {
    let mut lines = vec![format!("{:#?}", way[0])];
    for pair in way.windows(2) {
        lines.push("--".to_owned());
        if pair[0].record != pair[1].record {
            lines.push(format!("the Lease: {:?}", pair[1].record));
        }
        for (member, (before, after)) in pair[0].members.iter().zip(&pair[1].members).enumerate() {
            if before != after {
                lines.push(format!("pg-{member}: {after:?}"));
            }
        }
    }
    lines.join("\n")
}

fn holds(bound: Bound) {
    let (states, outcome) = explore(bound);
    let reached = outcome.unwrap_or_else(|way| panic!("after {states} states: {way}"));
    assert!(reached.everything(bound), "{states} states: {reached:?}");
    assert!(states > 1_000, "only {states} states");
}

/// Wider with `PODGRES_MODEL=wide`, as `make model` runs it.
fn wide() -> bool {
    std::env::var_os("PODGRES_MODEL").is_some_and(|value| value == "wide")
}

#[test]
fn under_async_no_two_members_ever_have_a_right() {
    holds(Bound {
        quorum: 0,
        last_term: 2,
        restarts: wide(),
        forced: false,
    });
}

#[test]
fn with_a_quorum_nobody_acknowledges_after_the_successor_has_claimed() {
    holds(Bound {
        quorum: 1,
        last_term: 2,
        restarts: wide(),
        forced: false,
    });
}

#[test]
fn a_forced_member_claimed_beside_the_primary_that_it_had_just_confirmed() {
    holds(Bound {
        quorum: 0,
        last_term: 2,
        restarts: wide(),
        forced: true,
    });
}
