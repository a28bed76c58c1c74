//! A model of takeover and of changes of the synchronous set, gone through completely within a bound.
//!
//! Three members with a volume each, one Lease. Time does not exist here: every member may act on what it last read,
//! however old, a primary may be frozen and go on, and a write to the Lease may land long after it was sent. So what holds
//! here rests on promises and quorums alone. The shipped `sync::step`, `sync::target`, `sync::covers`, `Told` and
//! `SynchronousSet::proof` decide; what a member does about it is said here in a few lines.

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

fn incarnation(bit: u8) -> Incarnation {
    Incarnation(if bit == 0 { "first" } else { "second" }.to_owned())
}

impl Set {
    fn shipped(self) -> SynchronousSet {
        let bits = (0..2 * MEMBERS).filter(|bit| self.members >> bit & 1 == 1);
        let members = bits.map(|bit| (Ordinal(u32::from(bit / 2)), incarnation(bit % 2)));
        SynchronousSet {
            members: members.collect(),
            quorum: u32::from(self.quorum),
        }
    }

    fn of(shipped: &SynchronousSet) -> Self {
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
    fn names(self, member: u8, incarnation: u8) -> (bool, bool) {
        let both = self.members >> (2 * member) & 3;
        (both != 0, both >> incarnation & 1 == 1)
    }
}

impl Setting {
    fn shipped(self) -> Told {
        let members = (0..MEMBERS).filter(|member| self.members >> member & 1 == 1);
        Told::new(
            members.map(|member| Ordinal(u32::from(member))).collect(),
            u32::from(self.quorum),
        )
    }

    fn of(told: &Told) -> Self {
        Self {
            members: told.members.iter().map(|member| 1_u8 << member.0).sum(),
            quorum: u8::try_from(told.quorum).expect("small"),
        }
    }

    /// What a primary begins with: waits for everybody if the plain setting does not cover each record there may be.
    fn at_first(holder: u8, sets: &[Set]) -> Self {
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
    fn target(&mut self, holder: u8, fit: u8, recorded: Set) -> Set {
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
                &fit,
                &recorded.shipped(),
                ordinal,
            ))
        })
    }

    fn step(&mut self, world: &World, holder: u8, wanted: Set) -> Choice {
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

    fn successors(&self, bound: Bound, shipped: &mut Shipped, into: &mut Vec<Self>) {
        if let Some(flight) = self.flight.filter(|flight| flight.valid) {
            into.push(self.write(flight.record, None));
        }
        for member in 0..MEMBERS {
            if !self.members[usize::from(member)].newest {
                let mut next = *self;
                next.read(member);
                into.push(next);
            }
            match self.members[usize::from(member)].role {
                Role::Down => self.starts(member, into),
                Role::Standby { .. } => {
                    self.standby(member, bound, into);
                    self.stands(member, into);
                }
                Role::Primary { .. } => self.primary(member, bound, shipped, into),
            }
            self.fails(member, bound, into);
        }
    }

    /// PostgreSQL ends there: whoever waits for a commit gets no answer.
    fn stopped(&self, member: u8) -> Self {
        let mut next = self.with(member, |there| there.role = Role::Down);
        for commit in next.commits.iter_mut().filter(|commit| commit.by == member) {
            (commit.by, commit.confirmed) = (NOBODY, 0);
        }
        next
    }

    /// The process ends, or the volume goes with it.
    fn fails(&self, member: u8, bound: Bound, into: &mut Vec<Self>) {
        let down = self.stopped(member);
        if self.crashes < bound.crashes && down != *self {
            into.push(Self {
                crashes: self.crashes + 1,
                ..down
            });
        }
        if self.wipes < bound.wipes {
            // Its pod is a new one, which reads the Lease before it does anything.
            let view = self.record;
            let mut wiped = down.with(member, |there| {
                (there.view, there.newest) = (view, true);
                (there.wal, there.timeline, there.promised, there.incarnation) = (0, 0, 0, 1);
                there.was_primary = false;
            });
            wiped.wipes += 1;
            into.push(wiped);
        }
    }

    /// A stopped member: the primary that it was, a standby, or what a rewind or a clone makes of it.
    fn starts(&self, member: u8, into: &mut Vec<Self>) {
        let there = &self.members[usize::from(member)];
        let view = there.view;
        let detached = Role::Standby {
            upstream: NOBODY,
            joining: false,
        };
        let empty = there.timeline == 0;
        if view.holder == member {
            if empty {
                self.send(
                    member,
                    Record {
                        holder: NOBODY,
                        ..view
                    },
                    into,
                );
            } else if there.was_primary && there.promised <= view.term {
                let unanswered = self.uncertain(member).map(|record| record.set);
                let sets: Vec<Set> = std::iter::once(view.set).chain(unanswered).collect();
                let told = Setting::at_first(member, &sets);
                into.push(self.with(member, |m| m.role = Role::Primary { told, barrier: None }));
            }
        }
        if !empty && !there.was_primary {
            into.push(self.with(member, |m| m.role = detached));
        }
        if view.holder == member {
            return;
        }
        if view.holder < MEMBERS && there.promised <= view.term {
            let source = self.members[usize::from(view.holder)];
            if source.is_primary() {
                into.push(self.with(member, |m| {
                    (m.role, m.wal, m.timeline) = (detached, source.wal, source.timeline);
                    m.was_primary = false;
                }));
            }
        }
    }

    /// Follows: lets go, looks, attaches, receives.
    fn standby(&self, member: u8, bound: Bound, into: &mut Vec<Self>) {
        let there = &self.members[usize::from(member)];
        let view = there.view;
        let Role::Standby { upstream, joining } = there.role else {
            return;
        };
        let detached = Role::Standby {
            upstream: NOBODY,
            joining: false,
        };
        if view.holder != member && there.promised <= view.term && view.term < bound.last_term {
            // It takes the primary for lost, rightly or not.
            into.push(self.with(member, |m| (m.role, m.promised) = (detached, view.term + 1)));
        }
        if upstream != NOBODY && (upstream != view.holder || there.promised > view.term) {
            into.push(self.with(member, |m| {
                (m.role, m.promised) = (detached, m.promised.max(view.term));
            }));
        }
        if upstream == NOBODY && view.holder < MEMBERS && view.holder != member && there.promised <= view.term
        {
            let source = &self.members[usize::from(view.holder)];
            let prefix = source.wal & there.wal == there.wal
                && source.wal & (1_u8 << (8 - there.wal.leading_zeros())).wrapping_sub(1) == there.wal;
            let (named, same) = view.set.names(member, there.incarnation);
            if source.is_primary() && prefix && there.timeline <= source.timeline {
                let joining = named && !same;
                into.push(self.with(member, |m| {
                    m.role = Role::Standby {
                        upstream: view.holder,
                        joining,
                    }
                }));
            }
        }
        if upstream < MEMBERS && self.members[usize::from(upstream)].is_primary() {
            let source = self.members[usize::from(upstream)];
            let missing = source.wal & !there.wal;
            if missing != 0 {
                let next = missing.trailing_zeros();
                let term = self.commits[next as usize].term;
                let mut after = self.with(member, |m| {
                    m.wal |= 1 << next;
                    m.timeline = m.timeline.max(term);
                });
                let commit = &mut after.commits[next as usize];
                if commit.by == upstream && !joining {
                    commit.confirmed |= 1 << member;
                }
                into.push(after);
            } else if source.timeline != there.timeline {
                into.push(self.with(member, |m| m.timeline = source.timeline));
            }
        }
    }

    /// Takes over: with the proof, by compare-and-swap, then promotes.
    fn stands(&self, member: u8, into: &mut Vec<Self>) {
        let there = &self.members[usize::from(member)];
        let view = there.view;
        let Role::Standby { upstream: NOBODY, .. } = there.role else {
            return;
        };
        if view.holder == member {
            if there.promised <= view.term && self.uncertain(member).is_none() {
                let told = Setting::at_first(member, &[view.set]);
                into.push(self.with(member, |m| {
                    m.role = Role::Primary { told, barrier: None };
                    m.timeline = view.term;
                    m.was_primary = true;
                }));
            }
            return;
        }
        let term = there.promised;
        let Some(proof) = view.set.shipped().proof().filter(|_| term > view.term) else {
            return;
        };
        if !view.set.names(member, there.incarnation).1 {
            return;
        }
        let counted = (0..MEMBERS).filter(|peer| {
            let other = &self.members[usize::from(*peer)];
            let bound =
                other.promised >= term && matches!(other.role, Role::Standby { upstream: NOBODY, .. });
            let recorded = view.set.names(*peer, other.incarnation).1;
            *peer != member && bound && recorded && other.position() <= there.position()
        });
        if counted.count() + 1 >= proof as usize {
            self.send(
                member,
                Record {
                    holder: member,
                    term,
                    ..view
                },
                into,
            );
        }
    }

    /// Writes, acknowledges, changes its synchronous set, steps down when it reads that another holds the Lease.
    fn primary(&self, member: u8, bound: Bound, shipped: &mut Shipped, into: &mut Vec<Self>) {
        let there = &self.members[usize::from(member)];
        let Role::Primary { told, .. } = there.role else {
            return;
        };
        if there.view.holder != member {
            into.push(self.stopped(member));
            return;
        }
        if self.made < bound.commits {
            let mut next = self.with(member, |m| m.wal |= 1 << self.made);
            next.commits[usize::from(self.made)] = Commit {
                by: member,
                confirmed: 0,
                term: there.timeline,
            };
            next.made += 1;
            into.push(next);
        }
        for commit in 0..self.made {
            let Commit { by, confirmed, .. } = self.commits[usize::from(commit)];
            let enough = (confirmed & told.members).count_ones() >= u32::from(told.quorum);
            if by == member && enough {
                let mut next = *self;
                next.acknowledged |= 1 << commit;
                (
                    next.commits[usize::from(commit)].by,
                    next.commits[usize::from(commit)].confirmed,
                ) = (NOBODY, 0);
                into.push(next);
            }
        }
        let attached: Vec<u8> = (0..MEMBERS).filter(|m| self.flushed(member, *m) > 0).collect();
        for bits in 0..1_u8 << attached.len() {
            let chosen = attached.iter().enumerate().filter(|(at, _)| bits >> at & 1 == 1);
            let fit = chosen
                .map(|(_, m)| 1 << (2 * m + self.members[usize::from(*m)].incarnation))
                .sum();
            let wanted = shipped.target(member, fit, there.view.set);
            if wanted.members.count_ones() < u32::from(wanted.quorum) {
                continue;
            }
            self.change(member, shipped.step(self, member, wanted), into);
        }
    }

    fn change(&self, member: u8, choice: Choice, into: &mut Vec<Self>) {
        let there = &self.members[usize::from(member)];
        let Role::Primary { told, .. } = there.role else {
            return;
        };
        match choice {
            Choice::Nothing => {}
            Choice::Tell(told) => {
                into.push(self.with(member, |m| m.role = Role::Primary { told, barrier: None }));
            }
            Choice::Mark => {
                let barrier = Some(u8::try_from(there.wal.count_ones()).expect("small"));
                into.push(self.with(member, |m| m.role = Role::Primary { told, barrier }));
            }
            Choice::Record(set) => self.send(member, Record { set, ..there.view }, into),
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
