//! What can happen next: each step of each member, and what it leads to.

use super::*;

impl World {
    pub(super) fn successors(&self, bound: Bound, shipped: &mut Shipped, into: &mut Vec<Self>) {
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
}
