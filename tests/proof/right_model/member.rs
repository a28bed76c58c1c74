//! What one member is and knows, with times as ages in ticks.

use super::{DEADLINE, DURATION, Record};

/// Ticks since something was, at most [`OLD`].
pub(super) type Age = u8;
/// So long ago that it does not matter any more how long.
pub(super) const OLD: Age = DURATION;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(super) enum Role {
    Attached {
        to: u8,
    },
    Detached,
    Primary,
    /// A deposed primary that has learned of it.
    Down,
}

/// What a member says of itself; a beat is named by its age, one that is old is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Report {
    pub(super) promised: u8,
    pub(super) term: u8,
    /// It is in office in its term, and asks for a confirmation of the beat.
    pub(super) office: bool,
    pub(super) beat: Option<Age>,
    pub(super) confirms: Option<Age>,
    pub(super) suspects: bool,
    pub(super) detached: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(super) enum Fate {
    /// It may still land.
    Pending,
    /// It landed, and is the newest version.
    Landed,
    /// It landed, and another one has since.
    Passed,
}

/// A write to the Lease that has not been answered. Whether its author still waits for the answer is all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Flight {
    pub(super) record: Record,
    /// How long ago; old if it gives no right any more.
    pub(super) sent: Age,
    pub(super) fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Member {
    pub(super) role: Role,
    pub(super) promised: u8,
    /// Ticks for which the gate still confirms.
    pub(super) gate: u8,
    /// What it last read of the Lease, how long ago that was new, and whether there is nothing newer.
    pub(super) view: Record,
    pub(super) changed: Age,
    pub(super) newest: bool,
    /// This process has read the Lease itself.
    pub(super) read: bool,
    pub(super) renewed: Option<Age>,
    pub(super) flight: Option<Flight>,
    /// How long it has been sending beats.
    pub(super) asking: Option<Age>,
    /// Ticks for which the peers' confirmations carry it.
    pub(super) confirmed: u8,
    /// When it last confirmed the holder in view.
    pub(super) given: Option<Age>,
    pub(super) began: Age,
    /// What it told last, and the youngest beat that it ever confirmed, which may be heard ever so late.
    pub(super) report: Option<Report>,
    pub(super) kept: Option<(u8, Age)>,
}

/// A tick later; what is as old as the right lasts proves nothing any more.
fn older(age: Option<Age>) -> Option<Age> {
    age.map(|age| age + 1).filter(|age| *age < DEADLINE)
}

impl Report {
    fn ages(&mut self) {
        self.beat = older(self.beat);
        self.confirms = older(self.confirms);
    }
}

impl Member {
    /// All is well: the holder has just renewed, the others follow it.
    pub(super) fn first(me: u8, record: Record) -> Self {
        let holder = record.holder == me;
        Self {
            role: if holder {
                Role::Primary
            } else {
                Role::Attached { to: record.holder }
            },
            promised: record.term,
            gate: if holder { DEADLINE } else { 0 },
            view: record,
            changed: 0,
            newest: true,
            read: true,
            renewed: holder.then_some(0),
            flight: None,
            asking: None,
            confirmed: 0,
            given: None,
            began: DEADLINE,
            report: None,
            kept: None,
        }
    }

    pub(super) fn holds(&self, me: u8) -> bool {
        self.view.holder == me
    }

    /// A tick passes.
    pub(super) fn ages(&mut self) {
        self.gate = self.gate.saturating_sub(1);
        self.confirmed = self.confirmed.saturating_sub(1);
        self.changed = (self.changed + 1).min(OLD);
        self.began = (self.began + 1).min(DEADLINE);
        self.renewed = self.renewed.map(|age| (age + 1).min(OLD));
        self.given = older(self.given);
        self.asking = self.asking.map(|age| (age + 1).min(DEADLINE - 1));
        if let Some(flight) = &mut self.flight {
            let sent = flight.sent + 1;
            flight.sent = if sent < DEADLINE { sent } else { OLD };
        }
        // That it landed so late is learned by reading as well.
        let of_use = |flight: &Flight| flight.fate == Fate::Pending || flight.sent < OLD;
        self.flight = self.flight.filter(of_use);
        self.report.iter_mut().for_each(Report::ages);
        self.kept = self.kept.and_then(|(term, age)| Some((term, older(Some(age))?)));
    }

    /// It knows the Lease as `record` from now on.
    pub(super) fn reads(&mut self, record: Record, newest: bool) {
        if record.term != self.view.term || record.holder != self.view.holder {
            (self.renewed, self.asking, self.confirmed, self.given) = (None, None, 0, None);
        }
        (self.view, self.newest, self.changed, self.read) = (record, newest, 0, true);
    }

    /// The process ends and another one begins with what is remembered.
    pub(super) fn begins_anew(&self, me: u8) -> Self {
        let mut next = Self {
            gate: 0,
            changed: 0,
            read: false,
            asking: None,
            confirmed: 0,
            given: None,
            began: 0,
            ..*self
        };
        if !next.holds(me) {
            next.renewed = None;
        }
        next
    }
}

impl Record {
    /// What a member that knows this of the Lease can ever make of another's words.
    pub(super) fn of_use(self, me: u8, of: u8, report: Report) -> Report {
        let nothing = Report {
            promised: report.promised,
            ..Report::default()
        };
        if self.holder == me {
            let confirms = report.confirms.filter(|_| report.term == self.term);
            let term = if confirms.is_some() { report.term } else { 0 };
            Report {
                term,
                confirms,
                ..nothing
            }
        } else if self.holder == of {
            let (office, beat, term) = (report.office, report.beat, report.term);
            Report {
                term,
                office,
                beat,
                ..Report::default()
            }
        } else {
            let (suspects, detached, term) = (report.suspects, report.detached, report.term);
            let term = if suspects { term } else { 0 };
            Report {
                term,
                suspects,
                detached,
                ..nothing
            }
        }
    }
}

/// pg-1 is pg-2, and the other way round.
fn exchanged(name: u8) -> u8 {
    match name {
        1 => 2,
        2 => 1,
        name => name,
    }
}

impl Record {
    pub(super) fn exchanged(self) -> Self {
        let holder = exchanged(self.holder);
        Self { holder, ..self }
    }
}

impl Member {
    pub(super) fn exchanged(&self) -> Self {
        let role = match self.role {
            Role::Attached { to } => Role::Attached { to: exchanged(to) },
            role => role,
        };
        let flight = self.flight.map(|flight| Flight {
            record: flight.record.exchanged(),
            ..flight
        });
        let view = self.view.exchanged();
        Self {
            role,
            view,
            flight,
            ..*self
        }
    }
}
