//! What can happen next, and what it leads to.

use super::*;

impl World {
    pub(super) fn successors(&self, bound: Bound, turns: &mut Turns, into: &mut Vec<Self>) {
        let mut later = *self;
        later.members.iter_mut().for_each(Member::ages);
        into.push(later);
        for member in 0..MEMBERS {
            let there = &self.members[usize::from(member)];
            if let Some(flight) = there.flight.filter(|flight| flight.fate == Fate::Pending) {
                into.push(self.lands(member, flight));
            }
            if there.role == Role::Down {
                continue;
            }
            if bound.restarts {
                into.push(self.with(member, there.begins_anew(member)));
            }
            let mut taken = HashSet::with_hasher(QuickHasher::default());
            for (informed, heard) in self.informed(bound, member) {
                let (mut next, write) = turns.turn(member, &informed, heard);
                let write = write.filter(|_| !bound.cut_off(member));
                if next == *there && write.is_none() || !taken.insert((next, write)) {
                    continue;
                }
                if let Some(record) = write {
                    let pending = next.flight.is_some_and(|flight| flight.fate == Fate::Pending);
                    if pending {
                        // The store may be slower than the agent.
                        into.push(self.with(member, next));
                    }
                    next.flight = Some(Flight {
                        record,
                        sent: 0,
                        fate: Fate::Pending,
                    });
                }
                into.push(self.with(member, next));
            }
        }
        if bound.forced && !self.record.forced && self.record.holder == 0 {
            let record = Record {
                forced: true,
                ..self.record
            };
            into.push(self.written(record));
        }
    }

    fn with(&self, member: u8, there: Member) -> Self {
        let mut next = *self;
        next.members[usize::from(member)] = there;
        next
    }

    /// The Lease has another version.
    fn written(&self, record: Record) -> Self {
        let mut next = Self { record, ..*self };
        for member in &mut next.members {
            member.newest = false;
            // What was to replace the version of before is refused.
            member.flight = member.flight.filter(|flight| flight.fate != Fate::Pending);
            if let Some(flight) = &mut member.flight {
                flight.fate = Fate::Passed;
            }
        }
        next
    }

    fn lands(&self, member: u8, flight: Flight) -> Self {
        let mut next = self.written(flight.record);
        next.members[usize::from(member)].flight = Some(Flight {
            fate: Fate::Landed,
            ..flight
        });
        next
    }

    /// The member with each choice of what it has learned before its next turn.
    fn informed(&self, bound: Bound, member: u8) -> Vec<(Member, Words)> {
        let there = self.members[usize::from(member)];
        let mut all = vec![there];
        all.extend(there.flight.and_then(|flight| answered(member, &there, flight)));
        for at in 0..all.len() {
            all.extend(self.read(bound, member, &all[at]));
        }
        let mut all: Vec<(Member, Words)> = all.into_iter().map(|there| (there, [None; 3])).collect();
        for peer in (0..MEMBERS).filter(|peer| *peer != member) {
            for at in 0..all.len() {
                let (there, heard) = all[at];
                let words = self.words(member, peer, &there);
                all.extend(words.map(|words| {
                    let mut heard = heard;
                    heard[usize::from(peer)] = Some(words);
                    (there, heard)
                }));
            }
        }
        all
    }

    fn read(&self, bound: Bound, member: u8, there: &Member) -> Option<Member> {
        if bound.cut_off(member) || (there.newest && there.read) {
            return None;
        }
        let mut next = *there;
        next.reads(self.record, true);
        // It finds what it wrote itself, or that it never will.
        if let Some(flight) = next.flight.filter(|flight| flight.fate != Fate::Pending) {
            next.renewed = renewal(member, flight)
                .filter(|_| flight.fate == Fate::Landed)
                .or(next.renewed);
            next.flight = None;
        }
        Some(next)
    }

    /// What the other said last, and the last confirmation of its that is under way.
    fn words(&self, member: u8, peer: u8, there: &Member) -> impl Iterator<Item = Report> {
        let other = &self.members[usize::from(peer)];
        let kept = other
            .kept
            .filter(|(term, _)| there.holds(member) && *term == there.view.term);
        let kept = kept.map(|(term, age)| Report {
            promised: term,
            term,
            confirms: Some(age),
            ..Report::default()
        });
        let view = there.view;
        [other.report, kept]
            .into_iter()
            .flatten()
            .map(move |report| view.of_use(member, peer, report))
    }
}

/// The right counts from the send, and only for who holds the Lease by it.
fn renewal(member: u8, flight: Flight) -> Option<Age> {
    (flight.record.holder == member && flight.sent < DEADLINE).then_some(flight.sent)
}

/// The API server's answer comes.
fn answered(member: u8, there: &Member, flight: Flight) -> Option<Member> {
    let mut next = Member {
        flight: None,
        ..*there
    };
    match flight.fate {
        Fate::Pending => return None,
        // Otherwise the watch was faster.
        _ if !there.newest => next.reads(flight.record, flight.fate == Fate::Landed),
        _ => {}
    }
    if flight.record.term == next.view.term {
        next.renewed = renewal(member, flight).or(next.renewed);
    }
    Some(next)
}
