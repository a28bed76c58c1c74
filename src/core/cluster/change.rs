//! How much a member's new report differs from its last: what wakes a peer, and what can wait for the next line.
//!
//! Positions move all the time under load and ages grow even while nothing happens; neither is news.

use crate::core::status::MemberStatus;
use crate::core::supervision::JobProgress;
use crate::core::wal::Lsn;

/// The weight of a change, lightest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    None,
    /// Only time has passed.
    Age,
    /// WAL positions, bytes of a running job, or the wording of the situation.
    Progress,
    /// A state, a situation, a connection: somebody may have to act.
    News,
}

/// How `new` differs from `old`.
#[must_use]
pub fn change(old: &MemberStatus, new: &MemberStatus) -> Change {
    if old == new {
        return Change::None;
    }
    let (mut old, mut new) = (old.clone(), new.clone());
    forget_age(&mut old);
    forget_age(&mut new);
    if old == new {
        return Change::Age;
    }
    forget_progress(&mut old);
    forget_progress(&mut new);
    if old == new {
        Change::Progress
    } else {
        Change::News
    }
}

fn forget_age(status: &mut MemberStatus) {
    if let Some(server) = &mut status.server {
        server.replay_age_ms = None;
        server.receiver_silent_ms = None;
    }
}

fn forget_progress(status: &mut MemberStatus) {
    // The sentence repeats the figures; the situation's name does not.
    status.message.clear();
    if let Some(job) = &mut status.job {
        job.progress = JobProgress::default();
    }
    let Some(server) = &mut status.server else {
        return;
    };
    (server.flush_lsn, server.replay_lsn) = (Lsn(0), Lsn(0));
    (server.upstream_lsn, server.oldest_wal_lsn) = (None, None);
    for row in &mut server.replication {
        (row.sent_lsn, row.flush_lsn, row.replay_lsn) = (None, None, None);
    }
    for slot in &mut server.slots {
        (slot.restart_lsn, slot.safe_wal_size_bytes) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{cut_off, down, primary, standby};
    use super::*;

    #[test]
    fn the_weight_of_each_change() {
        let mut older = standby(1);
        older.server.as_mut().expect("server").replay_age_ms = Some(99_999);
        let mut moved = older.clone();
        moved.server.as_mut().expect("server").flush_lsn = Lsn(u64::MAX);
        let mut advanced = primary(0);
        advanced.server.as_mut().expect("server").replication[0].flush_lsn = Some(Lsn(1));
        let mut resynced = primary(0);
        resynced.server.as_mut().expect("server").replication[0].sync_state = "async".to_owned();
        for (what, old, new, weight) in [
            ("nothing", standby(1), standby(1), Change::None),
            ("time", standby(1), older, Change::Age),
            ("positions", standby(1), moved, Change::Progress),
            ("positions of others", primary(0), advanced, Change::Progress),
            ("the synchronous set", primary(0), resynced, Change::News),
            ("the stream", standby(1), cut_off(standby(1)), Change::News),
            ("the server", standby(1), down(standby(1)), Change::News),
        ] {
            assert_eq!(change(&old, &new), weight, "{what}");
        }
    }
}
