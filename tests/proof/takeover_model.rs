//! A model of takeover and of changes of the synchronous set, gone through completely within a bound.
//!
//! Three members with a volume each, one Lease. Time does not exist here: every member may act on what it last read,
//! however old, a primary may be frozen and go on, and a write to the Lease may land long after it was sent. So what holds
//! here rests on promises and quorums alone. The shipped `sync::step`, `sync::target`, `sync::covers`, `Told` and
//! `SynchronousSet::proof` decide; what a member does about it is said here in a few lines.

mod shipped;
mod steps;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use podgres::core::lease::{Durability, Incarnation, SynchronousSet};
use podgres::core::member::Ordinal;
use podgres::core::sync::{Change, Step, Told, covers, step, target};
use podgres::core::wal::Lsn;

const MEMBERS: u8 = 3;
const NOBODY: u8 = 9;

/// How far a run goes.
#[derive(Clone, Copy)]
struct Bound {
    commits: u8,
    last_term: u8,
    crashes: u8,
    wipes: u8,
}

/// Members with the incarnation that counts, as bits: member m of incarnation i is bit 2m+i.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Set {
    members: u8,
    quorum: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Record {
    holder: u8,
    term: u8,
    set: Set,
}

/// Whose confirmations PostgreSQL waits for, members as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Setting {
    members: u8,
    quorum: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Role {
    Down,
    Standby {
        upstream: u8,
        /// It confirms under a name that no setting lists.
        joining: bool,
    },
    Primary {
        told: Setting,
        /// All acknowledged under an earlier setting are among the first so many commits.
        barrier: Option<u8>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Member {
    role: Role,
    /// Commits on its volume, as bits; they have the order of their numbers.
    wal: u8,
    /// The term in which the last of its WAL began.
    timeline: u8,
    promised: u8,
    incarnation: u8,
    /// Its directory was last written by a primary.
    was_primary: bool,
    /// What it last read of the Lease, and whether that is still the newest version.
    view: Record,
    newest: bool,
}

/// A write to the Lease that was sent and not answered; `valid` while it may still land.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Flight {
    writer: u8,
    record: Record,
    valid: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct World {
    record: Record,
    members: [Member; 3],
    flight: Option<Flight>,
    commits: [Commit; 3],
    made: u8,
    acknowledged: u8,
    crashes: u8,
    wipes: u8,
}

/// Of interest while its client waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Commit {
    /// The primary on which the client waits.
    by: u8,
    /// Whose confirmations have been sent to that one.
    confirmed: u8,
    term: u8,
}

/// The holder, what it told, the record, one of unknown outcome, the target, the barrier, what each has flushed.
type Question = (u8, Setting, Set, Option<Set>, Set, Option<u8>, [u8; 3]);

/// What the shipped functions are asked, kept so that each question is put once.
#[derive(Default)]
struct Shipped {
    steps: HashMap<Question, Choice>,
    targets: HashMap<(u8, u8, Set), Set>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Nothing,
    Tell(Setting),
    Record(Set),
    Mark,
}

impl Member {
    fn position(&self) -> (u8, u32) {
        (self.timeline, self.wal.count_ones())
    }

    fn is_primary(&self) -> bool {
        matches!(self.role, Role::Primary { .. })
    }
}

impl World {
    fn first() -> Self {
        let set = Set {
            members: 0b01_01_00,
            quorum: 1,
        };
        let record = Record {
            holder: 0,
            term: 1,
            set,
        };
        let standby = Member {
            role: Role::Standby {
                upstream: 0,
                joining: false,
            },
            wal: 0,
            timeline: 1,
            promised: 1,
            incarnation: 0,
            was_primary: false,
            view: record,
            newest: true,
        };
        let told = Setting::at_first(0, &[set]);
        let primary = Member {
            role: Role::Primary { told, barrier: None },
            was_primary: true,
            ..standby
        };
        Self {
            record,
            members: [primary, standby, standby],
            flight: None,
            commits: [Commit {
                by: NOBODY,
                confirmed: 0,
                term: 0,
            }; 3],
            made: 0,
            acknowledged: 0,
            crashes: 0,
            wipes: 0,
        }
    }

    /// The record that a write of this member's without an answer may have stored.
    fn uncertain(&self, member: u8) -> Option<Record> {
        self.flight
            .filter(|flight| flight.writer == member)
            .map(|flight| flight.record)
    }

    /// How much of the primary's WAL a standby that is attached under its own name has, counted from 1.
    fn flushed(&self, holder: u8, member: u8) -> u8 {
        let there = &self.members[usize::from(member)];
        match there.role {
            Role::Standby { upstream, .. } if upstream == holder => {
                u8::try_from(there.wal.count_ones()).expect("small") + 1
            }
            _ => 0,
        }
    }

    fn with(&self, member: u8, change: impl FnOnce(&mut Member)) -> Self {
        let mut next = *self;
        change(&mut next.members[usize::from(member)]);
        next
    }

    /// The record is another one: nobody's view is the newest any more, and no write over the old one lands.
    fn write(&self, record: Record, seen_by: Option<u8>) -> Self {
        let mut next = *self;
        next.record = record;
        for member in &mut next.members {
            member.newest = false;
        }
        if let Some(flight) = &mut next.flight {
            flight.valid = false;
        }
        if let Some(by) = seen_by {
            next.read(by);
        }
        next
    }

    fn read(&mut self, member: u8) {
        let record = self.record;
        let there = &mut self.members[usize::from(member)];
        (there.view, there.newest) = (record, true);
        // What was not answered has landed or never will.
        if self
            .flight
            .is_some_and(|flight| flight.writer == member && !flight.valid)
        {
            self.flight = None;
        }
    }

    /// Sends a write over the version that `member` has read: it lands and is answered, or it is under way for ever so long.
    fn send(&self, member: u8, record: Record, into: &mut Vec<Self>) {
        if self.members[usize::from(member)].newest {
            into.push(self.write(record, Some(member)));
        }
        if self.flight.is_none() {
            let valid = self.members[usize::from(member)].newest;
            let flight = Some(Flight {
                writer: member,
                record,
                valid,
            });
            into.push(Self { flight, ..*self });
        }
    }

    /// What must hold in every state.
    fn broken(&self) -> Option<&'static str> {
        let holder = self.record.holder;
        if holder < MEMBERS {
            let there = &self.members[usize::from(holder)];
            let in_office = there.is_primary() && there.timeline == self.record.term;
            if in_office && self.acknowledged & !there.wal != 0 {
                return Some("an acknowledged commit is missing on the primary in office");
            }
        }
        for member in 0..MEMBERS {
            let there = &self.members[usize::from(member)];
            let Role::Primary { told, .. } = there.role else {
                continue;
            };
            let ordinal = Ordinal(u32::from(member));
            let current = self.record.holder == member && self.record.term == there.timeline;
            if current && !covers(&told.shipped(), &self.record.set.shipped(), ordinal) {
                return Some("the Lease has a set that the setting in force does not cover");
            }
        }
        None
    }
}

/// Every state that can be reached: how many, and the way to the first that breaks a rule.
fn explore(bound: Bound) -> (usize, Result<Reached, String>) {
    let mut shipped = Shipped::default();
    let mut seen = HashSet::from([World::first()]);
    let mut order = vec![(World::first(), 0_usize)];
    let mut reached = Reached::default();
    let (mut at, mut next) = (0, Vec::new());
    while at < order.len() {
        let world = order[at].0;
        if let Some(rule) = world.broken() {
            let mut way = vec![format!("{world:#?}")];
            while at != 0 {
                at = order[at].1;
                way.push(format!("{:?}", order[at].0));
            }
            way.reverse();
            return (seen.len(), Err(format!("{rule}\n{}", way.join("\n\n"))));
        }
        reached.note(&world);
        world.successors(bound, &mut shipped, &mut next);
        for world in next.drain(..) {
            assert!(world.record.term >= order[at].0.record.term, "terms grow");
            if seen.insert(world) {
                order.push((world, at));
            }
        }
        at += 1;
    }
    (seen.len(), Ok(reached))
}

/// That the model is alive: what must be possible in it.
#[derive(Default, Debug, PartialEq, Eq)]
struct Reached {
    last_term: u8,
    acknowledged_by_a_successor: bool,
    another_set: bool,
    two_primaries: bool,
}

impl Reached {
    fn note(&mut self, world: &World) {
        self.last_term = self.last_term.max(world.record.term);
        let mut commits = (0_u8..).zip(&world.commits);
        self.acknowledged_by_a_successor |=
            commits.any(|(at, commit)| commit.term > 1 && world.acknowledged >> at & 1 == 1);
        self.another_set |= world.record.set != World::first().record.set;
        self.two_primaries |= world.members.iter().filter(|member| member.is_primary()).count() > 1;
    }
}

fn holds(bound: Bound) {
    let (states, outcome) = explore(bound);
    let reached = outcome.unwrap_or_else(|way| panic!("after {states} states: {way}"));
    assert_eq!(reached.last_term, bound.last_term, "{states} states: {reached:?}");
    assert!(
        reached.acknowledged_by_a_successor && reached.another_set,
        "{states} states: {reached:?}"
    );
    assert!(
        reached.two_primaries,
        "a deposed primary goes on for a while: {states} states"
    );
    assert!(states > 1_000, "only {states} states");
}

/// Wider with `PODGRES_MODEL=wide`, as `make model` runs it.
fn wide() -> bool {
    std::env::var_os("PODGRES_MODEL").is_some_and(|value| value == "wide")
}

#[test]
fn no_acknowledged_commit_is_lost_by_a_takeover_or_a_change_of_the_set() {
    let (commits, last_term) = if wide() { (2, 3) } else { (1, 2) };
    let bound = Bound {
        commits,
        last_term,
        crashes: 0,
        wipes: 0,
    };
    holds(bound);
}

#[test]
fn no_acknowledged_commit_is_lost_by_a_crash() {
    let commits = if wide() { 2 } else { 1 };
    let bound = Bound {
        commits,
        last_term: 2,
        crashes: 1,
        wipes: 0,
    };
    holds(bound);
}

#[test]
fn no_acknowledged_commit_is_lost_with_a_volume() {
    let crashes = u8::from(wide());
    let bound = Bound {
        commits: 1,
        last_term: 2,
        crashes,
        wipes: 1,
    };
    holds(bound);
}
