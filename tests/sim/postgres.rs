//! PostgreSQL: flushed WAL, walsenders, a walreceiver, and the rule by which commits are acknowledged.
//!
//! Source: `syncrep.c`, `walsender.c`. Each walsender has its own view of `synchronous_standby_names`, read anew after
//! a reload at a time of its own, and only its own reply makes it look whether commits can be let go.

mod connecting;
mod names;
mod shipping;

use std::collections::VecDeque;
use std::rc::Rc;

use podgres::core::data_directory::ControlState;
use podgres::core::supervision::{GATE_NAME, ServerRole};
use podgres::core::wal::TimelineId;

use crate::config::{MS, SECOND, Time};
use crate::event::Event;
use crate::world::{Member, World};
pub(crate) use names::{Names, View};

/// Longest time in which a process of PostgreSQL reads its configuration after a reload.
const RELOAD_LAG: Time = 20 * MS;
/// Sessions that may wait for an acknowledgement.
const SESSIONS: usize = 12;

/// A walsender.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) conn: u64,
    pub(crate) standby: Option<usize>,
    pub(crate) name: String,
    /// What it was told to be flushed there, in entries.
    pub(crate) flushed: usize,
    sent: usize,
    under_way: bool,
    /// From where on it streams, and whether it does: only then it counts.
    base: usize,
    pub(crate) caught_up: bool,
    view: View,
}

/// A walreceiver that streams.
#[derive(Debug)]
pub(crate) struct Receiver {
    pub(crate) conn: u64,
    pub(crate) upstream: usize,
    pub(crate) upstream_pg: u64,
    /// When it lost the upstream without being told, if it did.
    pub(crate) cut_at: Option<Time>,
}

/// A postmaster with its children.
#[derive(Debug)]
pub(crate) struct Postgres {
    pub(crate) pg: u64,
    pub(crate) role: ServerRole,
    pub(crate) in_recovery: bool,
    pub(crate) is_ready: bool,
    /// Being stopped; an immediate one writes nothing more.
    pub(crate) stopping: Option<bool>,
    /// The supervisor has seen that the last checkpoint is written.
    pub(crate) shut_down: bool,
    pub(crate) archived_at: Time,
    pub(crate) promoting: bool,
    pub(crate) receiver: Option<Receiver>,
    pub(crate) connecting: bool,
    pub(crate) senders: Vec<Sender>,
    pub(crate) senders_changed: u64,
    /// Commits that wait: where they end, and which they are.
    waiting: VecDeque<(usize, u64)>,
    pub(crate) names: Rc<Names>,
    /// What a session sees.
    pub(crate) shown: View,
    pub(crate) replayed_at: Time,
    writes_next: Time,
    pub(crate) gate_confirmed_at: Time,
}

impl Postgres {
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl World {
    /// Two members at once.
    fn two(&mut self, one: usize, two: usize) -> Option<(&Member, &mut Member)> {
        let [one, two] = self.members.get_disjoint_mut([one, two]).ok()?;
        Some((one, two))
    }

    /// A postmaster begins.
    pub(crate) fn spawn_postgres(&mut self, member: usize, role: ServerRole) {
        let pg = self.name();
        let primary = matches!(role, ServerRole::Primary { .. });
        let text = match &role {
            ServerRole::Primary {
                synchronous_standby_names,
                ..
            } => synchronous_standby_names.clone(),
            ServerRole::Standby { .. } => format!("FIRST 1 ({GATE_NAME})"),
        };
        let names = Names::read(&text);
        let Some(data) = &mut self.members[member].data else {
            return;
        };
        let clean = matches!(
            data.control,
            ControlState::ShutDown | ControlState::ShutDownInRecovery
        );
        if primary {
            data.control = ControlState::InProduction;
        } else {
            data.standby_signal = true;
            data.control = ControlState::InArchiveRecovery;
        }
        let (low, high) = self.config.recovery;
        let delay = if clean {
            self.random.skewed(30 * MS, 200 * MS)
        } else {
            self.random.skewed(low, high)
        };
        let delay = delay + self.disk_delay(member);
        self.members[member].postgres = Some(Postgres {
            pg,
            role,
            in_recovery: !primary,
            is_ready: false,
            stopping: None,
            shut_down: false,
            archived_at: 0,
            promoting: false,
            receiver: None,
            connecting: false,
            senders: Vec::new(),
            senders_changed: 0,
            waiting: VecDeque::new(),
            shown: View::new(&names),
            names,
            replayed_at: self.now + delay,
            writes_next: 0,
            gate_confirmed_at: 0,
        });
        self.after(delay, Event::Ready { member, pg });
    }

    pub(crate) fn postgres(&mut self, member: usize, pg: u64) -> Option<&mut Postgres> {
        self.members[member]
            .postgres
            .as_mut()
            .filter(|postgres| postgres.pg == pg)
    }

    pub(crate) fn wal_len(&self, member: usize) -> usize {
        self.members[member]
            .data
            .as_ref()
            .map_or(0, |data| data.wal.len())
    }

    pub(crate) fn ready(&mut self, member: usize, pg: u64) {
        let short = self.members[member]
            .data
            .as_ref()
            .is_some_and(|data| data.wal.end().lsn < data.control_position.lsn);
        let Some(postgres) = self
            .postgres(member, pg)
            .filter(|postgres| postgres.stopping.is_none())
        else {
            return;
        };
        if postgres.in_recovery {
            self.connect_soon(member);
        } else {
            self.append(member);
        }
        if short {
            // Not consistent before it has the WAL that belongs to its files.
            self.after(100 * MS, Event::Ready { member, pg });
            return;
        }
        if self.now < self.members[member].starts_at {
            return self.crash_postgres(member);
        }
        if let Some(postgres) = self.postgres(member, pg) {
            postgres.is_ready = true;
        }
        self.status_changed(member);
        self.check_primary(member);
        self.serve(member);
    }

    /// Clients and the gate come to a primary that is open.
    fn serve(&mut self, member: usize) {
        let Some(postgres) = &self.members[member].postgres else {
            return;
        };
        if postgres.in_recovery || !postgres.is_ready {
            return;
        }
        let pg = postgres.pg;
        self.after(MS, Event::Write { member, pg });
        self.gate_wanted(member);
    }

    /// One more entry, flushed.
    fn append(&mut self, member: usize) -> Option<(usize, u64)> {
        let id = self.name();
        let data = self.members[member].data.as_mut()?;
        data.wal.entries.push(id);
        Some((data.wal.len(), id))
    }

    /// A client commits; the next one comes after a pause.
    pub(crate) fn write(&mut self, member: usize, pg: u64) {
        let (low, high) = self.config.write_pause;
        let pause = self.random.between(low, high);
        let disk_ok_at = self.members[member].disk_ok_at;
        let now = self.now;
        let Some(postgres) = self.postgres(member, pg).filter(|p| p.stopping.is_none()) else {
            return;
        };
        if now < postgres.writes_next {
            return;
        }
        if disk_ok_at > now {
            postgres.writes_next = disk_ok_at;
            return self.at(disk_ok_at, Event::Write { member, pg });
        }
        postgres.writes_next = now + pause;
        let full = postgres.waiting.len() >= SESSIONS;
        self.after(pause, Event::Write { member, pg });
        if full {
            return;
        }
        let Some((end, id)) = self.append(member) else {
            return;
        };
        let Some(postgres) = self.postgres(member, pg) else {
            return;
        };
        if postgres.names.needed == 0 {
            return self.acknowledge(member, end, id);
        }
        postgres.waiting.push_back((end, id));
        self.pump(member);
        self.gate_confirm(member);
    }

    /// Each process reads the new setting in its own time.
    pub(crate) fn reload_names(&mut self, member: usize, text: &str) {
        let names = Names::read(text);
        let now = self.now;
        let Some(postgres) = &mut self.members[member].postgres else {
            return;
        };
        postgres.names = Rc::clone(&names);
        let random = &mut self.random;
        let mut renew = |view: &mut View| {
            view.at(now);
            let at = view
                .next
                .as_ref()
                .map_or(now + random.skewed(100, RELOAD_LAG), |(at, _)| *at);
            view.next = Some((at, Rc::clone(&names)));
        };
        renew(&mut postgres.shown);
        for sender in &mut postgres.senders {
            renew(&mut sender.view);
        }
    }

    /// The gate's connection, or its end.
    pub(crate) fn attach_gate(&mut self, member: usize) -> Option<u64> {
        let conn = self.name();
        let postgres = self.members[member].postgres.as_mut()?;
        if postgres.senders.iter().any(|sender| sender.standby.is_none()) {
            return None;
        }
        postgres.senders.push(Sender {
            conn,
            standby: None,
            name: GATE_NAME.to_owned(),
            flushed: 0,
            sent: 0,
            under_way: false,
            base: 0,
            caught_up: true,
            view: View::new(&postgres.names),
        });
        postgres.senders_changed += 1;
        Some(conn)
    }

    pub(crate) fn pg_of(&self, member: usize) -> u64 {
        self.members[member]
            .postgres
            .as_ref()
            .map_or(0, |postgres| postgres.pg)
    }

    /// A postmaster is gone, by a stop or by a crash. Its standbys are told by the network if it can.
    pub(crate) fn bury_postgres(&mut self, member: usize, silent: bool) {
        let Some(postgres) = self.members[member].postgres.take() else {
            return;
        };
        if let Some(receiver) = &postgres.receiver {
            let (from, pg, conn) = (receiver.upstream, receiver.upstream_pg, receiver.conn);
            if silent {
                let delay = self.random.between(5 * SECOND, 10 * SECOND);
                self.after(
                    delay,
                    Event::SenderEnd {
                        member: from,
                        pg,
                        conn,
                    },
                );
            } else {
                self.end_sender_of(from, pg, member, conn);
            }
        }
        for standby in 0..self.members.len() {
            self.upstream_lost(standby, postgres.pg, silent || !self.network.up(member, standby));
        }
    }

    /// A running standby becomes the primary: a new timeline.
    pub(crate) fn promoted(&mut self, member: usize, pg: u64) {
        let Some(postgres) = self
            .postgres(member, pg)
            .filter(|postgres| postgres.stopping.is_none())
        else {
            return;
        };
        postgres.in_recovery = false;
        postgres.promoting = false;
        let next = self.members[member].next_timeline;
        if let Some(data) = &mut self.members[member].data {
            data.wal.branch(next);
            data.standby_signal = false;
            data.control = ControlState::InProduction;
            data.control_position = data.wal.end();
        }
        self.append(member);
        let timeline = self.timeline(member);
        self.check_timeline(member, timeline);
        self.log(member, || format!("is the primary, timeline {timeline}"));
        self.check_primary(member);
        self.pump(member);
        self.wake(member, MS);
        self.serve(member);
    }

    pub(crate) fn timeline(&self, member: usize) -> TimelineId {
        self.members[member]
            .data
            .as_ref()
            .map_or(TimelineId(0), |data| data.wal.history.timeline)
    }
}
