//! The commit gate: attaches to a primary that is open, and confirms while the right lasts.

use crate::config::{MS, Time};
use crate::event::Event;
use crate::world::World;

const GATE_REPEAT: Time = 250 * MS;

impl World {
    /// The gate goes to a primary that is open.
    pub(crate) fn gate_wanted(&mut self, member: usize) {
        let delay = self.random.skewed(2 * MS, 100 * MS);
        if let Some(sidecar) = &self.members[member].sidecar {
            let epoch = sidecar.epoch;
            self.after(delay, Event::GateAttach { member, epoch });
        }
    }

    pub(crate) fn gate_attach(&mut self, member: usize, epoch: u64) {
        let open = self.members[member].postgres.as_ref().is_some_and(|postgres| {
            postgres.is_ready && !postgres.in_recovery && postgres.stopping.is_none()
        });
        if !open || self.sidecar(member, epoch).is_none() {
            return;
        }
        let Some(conn) = self.attach_gate(member) else {
            return;
        };
        if let Some(sidecar) = self.sidecar(member, epoch) {
            sidecar.gate = Some(conn);
        }
        self.gate_confirm(member);
    }

    /// Confirms what is flushed, while the right of the last decision lasts.
    pub(crate) fn gate_confirm(&mut self, member: usize) {
        let (clock_ms, now) = (self.clock_ms(member), self.now);
        let there = &mut self.members[member];
        if !there.sidecar_runs() {
            return;
        }
        let (Some(sidecar), Some(postgres), Some(data)) =
            (&mut there.sidecar, &mut there.postgres, &there.data)
        else {
            return;
        };
        let Some(conn) = sidecar.gate else { return };
        if !postgres.is_waiting() {
            return;
        }
        if !sidecar.repeating {
            sidecar.repeating = true;
            let epoch = sidecar.epoch;
            self.order_repeat(member, epoch);
            return self.gate_confirm(member);
        }
        if clock_ms >= sidecar.gate_until_ms {
            return;
        }
        let Some(sender) = postgres.senders.iter_mut().find(|sender| sender.conn == conn) else {
            return;
        };
        sender.flushed = data.wal.len();
        postgres.gate_confirmed_at = now;
        self.release(member, conn);
    }

    fn order_repeat(&mut self, member: usize, epoch: u64) {
        self.after(GATE_REPEAT, Event::GateRepeat { member, epoch });
    }

    pub(crate) fn gate_repeat(&mut self, member: usize, epoch: u64) {
        if let Some(sidecar) = self.sidecar(member, epoch) {
            sidecar.repeating = false;
            self.gate_confirm(member);
        }
    }
}
