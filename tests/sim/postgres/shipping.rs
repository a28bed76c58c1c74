//! WAL on its way to the standbys, what they confirm, and the commits that this lets go.

use crate::config::{MS, Time};
use crate::event::Event;
use crate::world::World;

impl World {
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

    pub(super) fn reply(&mut self, from: usize, to: usize, conn: u64, flushed: usize) {
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

    pub(super) fn sender_free(&mut self, from: usize, conn: u64, lost: bool) {
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
        if postgres.stopping.is_some() || postgres.in_recovery || !postgres.is_waiting() {
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
}
