//! Walreceivers and walsenders: how they find each other, and how each learns that the other is gone.

use std::rc::Rc;

use podgres::core::supervision::ServerRole;
use podgres::core::wal::Relation;

use super::{Receiver, Sender, View};
use crate::config::{MS, SECOND};
use crate::event::Event;
use crate::world::World;

impl World {
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
        if source.system_identifier != data.system_identifier {
            return false;
        }
        let known = source.wal.history.ancestors.iter();
        let known = known
            .map(|branch| branch.timeline)
            .any(|of| of == data.wal.history.timeline);
        let parted = match relation {
            Relation::Contained => false,
            Relation::Ahead if same => false,
            Relation::Ahead | Relation::Forked => true,
        };
        if parted && !(known && self.random.chance(50)) {
            return false;
        }
        self.begin_stream(member, pg, name, from, parted);
        true
    }

    /// `parted`: a WAL receiver asks for the segment in which its WAL ends from the beginning, and says how much it has: an
    /// upstream whose timeline left that WAL within this segment takes the word for it, and ends the stream where they part.
    fn begin_stream(&mut self, member: usize, pg: u64, name: String, from: usize, parted: bool) {
        if !parted {
            self.check_stream(from, member);
        }
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
                sent: if parted { usize::MAX } else { flushed },
                under_way: false,
                base,
                caught_up: parted,
                view: View {
                    next: Some((now, Rc::clone(&postgres.names))),
                    ..view
                },
            });
            postgres.senders_changed += 1;
        }
        self.reply(from, member, conn, flushed);
        if parted {
            let ends = self.random.between(MS, 5 * MS);
            self.after(ends, Event::ReceiverEnd { member, pg, conn });
        } else {
            self.pump(from);
        }
        self.wake(member, MS);
        self.wake(from, MS);
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

    /// The walreceiver of a standby of this server ends: at once, or when it has waited in vain.
    pub(super) fn upstream_lost(&mut self, standby: usize, upstream_pg: u64, silent: bool) {
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
}
