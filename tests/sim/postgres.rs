//! PostgreSQL: flushed WAL, walsenders, a walreceiver, and the rule by which commits are acknowledged.
//!
//! Source: `syncrep.c`, `walsender.c`. Each walsender has its own view of `synchronous_standby_names`, read anew after
//! a reload at a time of its own, and only its own reply makes it look whether commits can be let go.

use std::collections::VecDeque;
use std::rc::Rc;

use podgres::core::data_directory::ControlState;
use podgres::core::supervision::{GATE_NAME, ServerRole};
use podgres::core::synchronous_names;
use podgres::core::wal::{Relation, TimelineId};

use crate::config::{MS, SECOND, Time};
use crate::event::Event;
use crate::world::{Member, World};

/// Longest time in which a process of PostgreSQL reads its configuration after a reload.
const RELOAD_LAG: Time = 20 * MS;
/// Sessions that may wait for an acknowledgement.
const SESSIONS: usize = 12;

/// `synchronous_standby_names` as it was read.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) text: String,
    listed: Vec<String>,
    needed: usize,
}

impl Names {
    pub(crate) fn read(text: &str) -> Rc<Self> {
        let names = synchronous_names::parse(text).unwrap_or_default();
        let mut listed = names.members;
        let mut needed = names.quorum as usize;
        if names.gate {
            listed.push(GATE_NAME.to_owned());
            needed += 1;
        }
        Rc::new(Self {
            text: text.to_owned(),
            listed,
            needed,
        })
    }
}

/// A process's view of a setting.
#[derive(Clone, Debug)]
pub(crate) struct View {
    known: Rc<Names>,
    next: Option<(Time, Rc<Names>)>,
}

impl View {
    pub(crate) fn new(names: &Rc<Names>) -> Self {
        Self {
            known: Rc::clone(names),
            next: None,
        }
    }

    pub(crate) fn at(&mut self, now: Time) -> Rc<Names> {
        if let Some((_, names)) = self.next.take_if(|(at, _)| *at <= now) {
            self.known = names;
        }
        Rc::clone(&self.known)
    }
}

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

    /// A walreceiver that has waited in vain for as long as `wal_receiver_timeout`.
    pub(crate) fn cut_look(&mut self, member: usize, pg: u64, conn: u64, cut_at: Time) {
        let Some(postgres) = self.postgres(member, pg) else {
            return;
        };
        let receiver = postgres.receiver.as_ref();
        if receiver.is_some_and(|receiver| receiver.conn == conn && receiver.cut_at == Some(cut_at)) {
            self.receiver_end(member, pg, conn);
        }
    }

    /// The link is there again, and TCP sends what was lost.
    pub(crate) fn retransmit(&mut self, from: usize, conn: u64) {
        self.sender_free(from, conn, true);
        self.pump(from);
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

    /// Sends what each walsender has not sent.
    pub(crate) fn pump(&mut self, member: usize) {
        let (end, lineage) = (self.wal_len(member), self.members[member].lineage);
        let (low, high) = self.config.link_delay;
        let Some(postgres) = &mut self.members[member].postgres else {
            return;
        };
        let mut ships = Vec::new();
        for sender in &mut postgres.senders {
            let Some(to) = sender.standby.filter(|to| self.network.up(member, *to)) else {
                continue;
            };
            if sender.under_way || sender.sent >= end {
                continue;
            }
            sender.under_way = true;
            sender.sent = end;
            ships.push((to, sender.conn));
        }
        for (to, conn) in ships {
            let Some(pg) = self.members[to].postgres.as_ref().map(|postgres| postgres.pg) else {
                continue;
            };
            let delay = self.random.skewed(low, high) + self.disk_delay(to);
            self.after(
                delay,
                Event::Ship {
                    to,
                    pg,
                    from: member,
                    conn,
                    lineage,
                    upto: end,
                },
            );
        }
    }

    /// WAL has arrived at a standby and is flushed there.
    pub(crate) fn shipped(
        &mut self,
        to: usize,
        pg: u64,
        (from, conn, lineage): (usize, u64, u64),
        upto: usize,
    ) {
        let lost = !self.network.up(from, to);
        let until = self.members[from].lineage == lineage;
        let ours = self.postgres(to, pg).is_some_and(|p| {
            p.stopping != Some(true) && p.receiver.as_ref().is_some_and(|receiver| receiver.conn == conn)
        });
        if lost || !until || !ours {
            return self.sender_free(from, conn, lost);
        }
        let lag = self.random.skewed(MS / 10, 20 * MS);
        let Some((source, target)) = self.two(from, to) else {
            return;
        };
        let Some((source, data)) = source.data.as_ref().zip(target.data.as_mut()) else {
            return;
        };
        let have = data.wal.len();
        if upto > have && upto <= source.wal.len() {
            data.wal
                .entries
                .extend_from_slice(&source.wal.entries[have..upto]);
        }
        data.wal.take_history_of(&source.wal);
        let flushed = data.wal.len();
        let now = self.now;
        if let Some(postgres) = self.postgres(to, pg) {
            postgres.replayed_at = postgres.replayed_at.max(now + lag);
        }
        self.reply(from, to, conn, flushed);
        self.pump(to);
    }

    fn reply(&mut self, from: usize, to: usize, conn: u64, flushed: usize) {
        let (low, high) = self.config.link_delay;
        let delay = self.random.skewed(low, high);
        if let Some(pg) = self.members[from].postgres.as_ref().map(|postgres| postgres.pg)
            && self.network.up(to, from)
        {
            self.after(
                delay,
                Event::Confirm {
                    from,
                    pg,
                    conn,
                    flushed,
                },
            );
        }
    }

    fn sender_free(&mut self, from: usize, conn: u64, lost: bool) {
        if let Some(postgres) = &mut self.members[from].postgres
            && let Some(sender) = postgres.senders.iter_mut().find(|sender| sender.conn == conn)
        {
            sender.under_way = false;
            if lost {
                sender.sent = sender.flushed;
            }
        }
    }

    pub(crate) fn confirmed(&mut self, from: usize, pg: u64, conn: u64, flushed: usize) {
        let Some(postgres) = self.postgres(from, pg) else {
            return;
        };
        let Some(sender) = postgres.senders.iter_mut().find(|sender| sender.conn == conn) else {
            return;
        };
        sender.under_way = false;
        sender.flushed = sender.flushed.max(flushed);
        if !sender.caught_up && sender.flushed >= sender.base {
            sender.caught_up = true;
            self.wake(from, MS);
        }
        self.release(from, conn);
        self.pump(from);
    }

    /// What `SyncRepReleaseWaiters` does in the walsender of this connection.
    pub(crate) fn release(&mut self, member: usize, conn: u64) {
        let now = self.now;
        let Some(postgres) = &mut self.members[member].postgres else {
            return;
        };
        if postgres.stopping.is_some() || postgres.in_recovery {
            return;
        }
        let Some(sender) = postgres.senders.iter_mut().find(|sender| sender.conn == conn) else {
            return;
        };
        let view = sender.view.at(now);
        if view.needed == 0 || !sender.caught_up || !view.listed.contains(&sender.name) {
            return;
        }
        let listed = postgres
            .senders
            .iter()
            .filter(|sender| sender.caught_up && view.listed.contains(&sender.name));
        let mut flushed: Vec<usize> = listed.map(|sender| sender.flushed).collect();
        flushed.sort_unstable_by(|one, other| other.cmp(one));
        let Some(upto) = flushed.get(view.needed - 1).copied() else {
            return;
        };
        while let Some((end, id)) = self.members[member]
            .postgres
            .as_mut()
            .and_then(|postgres| postgres.waiting.pop_front_if(|(end, _)| *end <= upto))
        {
            self.acknowledge(member, end, id);
        }
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

    /// A standby's walreceiver tries to connect, unless it streams or has nowhere to.
    pub(crate) fn connect_soon(&mut self, member: usize) {
        let pause = self.random.between(5 * MS, 500 * MS);
        let Some(postgres) = &mut self.members[member].postgres else {
            return;
        };
        if !postgres.connecting && postgres.receiver.is_none() && postgres.in_recovery {
            postgres.connecting = true;
            let pg = postgres.pg;
            self.after(pause, Event::Connect { member, pg });
        }
    }

    pub(crate) fn connect(&mut self, member: usize, pg: u64) {
        let Some(postgres) = self.postgres(member, pg) else {
            return;
        };
        postgres.connecting = false;
        let ServerRole::Standby {
            upstream: Some(upstream),
        } = &postgres.role
        else {
            return;
        };
        if postgres.receiver.is_some() || postgres.stopping.is_some() || postgres.promoting {
            return;
        }
        let name = upstream
            .application_name
            .clone()
            .unwrap_or_else(|| format!("pg-{member}"));
        let address = upstream.address;
        if !self.try_connect(member, pg, name, address) {
            self.connect_soon(member);
        }
    }

    fn try_connect(&mut self, member: usize, pg: u64, name: String, address: std::net::IpAddr) -> bool {
        let Some(from) = self.member_at(address).filter(|from| *from != member) else {
            return false;
        };
        let there = &self.members[from];
        let open = there
            .postgres
            .as_ref()
            .filter(|p| p.is_ready && p.stopping.is_none() && !there.frozen);
        if !self.network.up(from, member) || !self.network.up(member, from) {
            return false;
        }
        let Some(open) = open else { return false };
        // Its slot is still active.
        if open.senders.iter().any(|sender| sender.standby == Some(member)) {
            return false;
        }
        let Some((source, data)) = there.data.as_ref().zip(self.members[member].data.as_ref()) else {
            return false;
        };
        let relation = source.wal.history.relation(data.wal.end(), source.wal.end().lsn);
        let same = data.wal.history.timeline == source.wal.history.timeline;
        if source.system_identifier != data.system_identifier
            || (relation != Relation::Contained && !(relation == Relation::Ahead && same))
        {
            return false;
        }
        self.check_stream(from, member);
        let (conn, upstream_pg, flushed) = (self.name(), self.pg_of(from), self.wal_len(member));
        let base = self.wal_len(from);
        let now = self.now;
        if let Some(postgres) = self.postgres(member, pg) {
            postgres.receiver = Some(Receiver {
                conn,
                upstream: from,
                upstream_pg,
                cut_at: None,
            });
        }
        self.log(member, || format!("streams from pg-{from} as {name}"));
        if let Some(postgres) = &mut self.members[from].postgres {
            let view = View::new(&postgres.shown.clone().at(now));
            postgres.senders.push(Sender {
                conn,
                standby: Some(member),
                name,
                flushed: 0,
                sent: flushed,
                under_way: false,
                base,
                caught_up: false,
                view: View {
                    next: Some((now, Rc::clone(&postgres.names))),
                    ..view
                },
            });
            postgres.senders_changed += 1;
        }
        self.reply(from, member, conn, flushed);
        self.pump(from);
        self.wake(member, MS);
        self.wake(from, MS);
        true
    }

    pub(crate) fn pg_of(&self, member: usize) -> u64 {
        self.members[member]
            .postgres
            .as_ref()
            .map_or(0, |postgres| postgres.pg)
    }

    /// The walreceiver ends, whoever ended it.
    pub(crate) fn receiver_end(&mut self, member: usize, pg: u64, conn: u64) {
        let Some(postgres) = self.postgres(member, pg) else {
            return;
        };
        let Some(receiver) = postgres.receiver.take_if(|receiver| receiver.conn == conn) else {
            return;
        };
        let (from, upstream_pg) = (receiver.upstream, receiver.upstream_pg);
        self.end_sender_of(from, upstream_pg, member, conn);
        self.connect_soon(member);
        self.wake(member, MS);
    }

    /// The other end is told at once, or finds out.
    pub(crate) fn end_sender_of(&mut self, from: usize, pg: u64, member: usize, conn: u64) {
        let told = self.network.up(member, from);
        let delay = if told {
            self.random.between(100, 5 * MS)
        } else {
            self.random.between(5 * SECOND, 10 * SECOND)
        };
        self.after(
            delay,
            Event::SenderEnd {
                member: from,
                pg,
                conn,
            },
        );
    }

    pub(crate) fn sender_end(&mut self, member: usize, pg: u64, conn: u64) {
        let Some(postgres) = self.postgres(member, pg) else {
            return;
        };
        let before = postgres.senders.len();
        postgres.senders.retain(|sender| sender.conn != conn);
        if postgres.senders.len() != before {
            postgres.senders_changed += 1;
            self.wake(member, MS);
        }
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

    /// The walreceiver of a standby of this server ends: at once, or when it has waited in vain.
    fn upstream_lost(&mut self, standby: usize, upstream_pg: u64, silent: bool) {
        let delay = if silent {
            self.random.between(4 * SECOND, 5 * SECOND)
        } else {
            self.random.between(100, 5 * MS)
        };
        let now = self.now;
        let Some(postgres) = &mut self.members[standby].postgres else {
            return;
        };
        let pg = postgres.pg;
        if let Some(receiver) = postgres
            .receiver
            .as_mut()
            .filter(|r| r.upstream_pg == upstream_pg)
        {
            receiver.cut_at.get_or_insert(now);
            let conn = receiver.conn;
            self.after(
                delay,
                Event::ReceiverEnd {
                    member: standby,
                    pg,
                    conn,
                },
            );
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
