//! The operator: asks for moves, and helps where a cluster cannot know by itself how to go on.

use std::sync::Arc;

use podgres::core::lease::{LeaseRecord, MoveRequest};

use crate::config::Kind;
use crate::world::World;

impl World {
    /// What the operator writes; reads, changes and writes until nobody else was faster.
    pub(crate) fn operator(&mut self, change: impl FnOnce(&mut LeaseRecord)) {
        let Some(stored) = &self.api.stored else { return };
        let mut record = (*stored.record).clone();
        change(&mut record);
        if record != *stored.record {
            self.store(Arc::new(record), false);
        }
    }

    pub(crate) fn ask_move(&mut self, kind: Kind, to: usize) {
        let id = self.name().to_string();
        let ordinal = self.members[to].policy.ordinal;
        let anybody = self.random.chance(40);
        if self.api.away {
            return;
        }
        if kind == Kind::Failover {
            return self.force(to, id);
        }
        let to = (!anybody).then_some(ordinal);
        self.operator(|record| record.request = Some(MoveRequest::Switchover { to, id }));
    }

    pub(crate) fn force(&mut self, to: usize, id: String) {
        self.oracle.forced_at = Some(self.now);
        let to = self.members[to].policy.ordinal;
        self.operator(|record| record.request = Some(MoveRequest::Failover { to, id }));
    }

    /// Does what only somebody who knows more than the members may do; false where there is nothing of that kind.
    pub(crate) fn help(&mut self) -> bool {
        let Some(record) = self.api.stored.as_ref().map(|stored| Arc::clone(&stored.record)) else {
            return false;
        };
        if record.paused {
            // A primary has written the deleted Lease again as it was.
            self.operator(|record| record.paused = false);
            return true;
        }
        if self.primary().is_some() {
            return false;
        }
        let by_name = |member: &usize| {
            let policy = &self.members[*member].policy;
            record.held_by(&policy.identity) || record.released_by == Some(policy.ordinal)
        };
        if let Some(last) = (0..self.members.len())
            .find(by_name)
            .filter(|last| !self.members[*last].wanted)
        {
            // Scaled away, with what it alone has.
            while !self.members[last].wanted {
                self.scale_up();
            }
            return true;
        }
        // A forced move has failed, and nobody is known to have everything.
        let best = (0..self.members.len())
            .filter(|member| self.members[*member].wanted && self.oracle.forced_at.is_some())
            .max_by_key(|member| self.members[*member].data.as_ref().map(|data| data.wal.len()));
        let Some(best) = best else { return false };
        let id = self.name().to_string();
        self.force(best, id);
        true
    }
}
