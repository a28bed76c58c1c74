//! PostgreSQL ends: asked to, fenced or killed, and what its end leaves behind.

use podgres::core::data_directory::ControlState;
use podgres::core::supervision::{Postmaster, PostmasterExit, ServerRole};
use podgres::core::wal::WalPosition;

use crate::config::{MS, SECOND, Time};
use crate::event::Event;
use crate::postgres::Postgres;
use crate::wal::lsn;
use crate::world::World;

impl World {
    /// Fast or immediate; `patience` is until the next harder one.
    pub(crate) fn stop_postgres(&mut self, member: usize, hard: bool, patience: Option<Time>) {
        let fast = self.random.skewed(10 * MS, 300 * MS) + self.disk_delay(member);
        let Some(postgres) = &mut self.members[member].postgres else {
            return;
        };
        let pg = postgres.pg;
        let before = postgres.stopping;
        if before == Some(true) {
            return;
        }
        if before.is_none() || hard {
            postgres.stopping = Some(hard);
            let delay = if hard { 20 * MS } else { fast };
            self.after(delay, Event::Stopped { member, pg });
        }
        if let Some(patience) = patience {
            self.after(patience, Event::Harder { member, pg });
        }
        self.log(member, || format!("PostgreSQL stops, hard: {hard}"));
        self.status_changed(member);
    }

    /// TERM to the supervisor, which ends when all is down; its pod and the sidecar stay.
    pub(crate) fn end_container(&mut self, member: usize, back: Time) {
        let there = &mut self.members[member];
        let Some(supervisor) = there.supervisor.as_mut().filter(|_| !there.frozen) else {
            return;
        };
        supervisor.status.stopping = true;
        supervisor.back = Some(back);
        let epoch = supervisor.epoch;
        self.cancel_job(member);
        self.begin_to_leave(member);
        self.status_changed(member);
        let told = false;
        self.after(MS, Event::Farewell { member, epoch, told });
    }

    /// All being down the last status waits for a while to be fetched.
    pub(crate) fn farewell(&mut self, member: usize, epoch: u64, told: bool) {
        let told_for = self.random.between(600 * MS, SECOND);
        let there = &self.members[member];
        let begun_since = |p: &Postgres| p.stopping.is_none() && matches!(p.role, ServerRole::Standby { .. });
        if there.postgres.as_ref().is_some_and(begun_since) {
            self.stop_postgres(member, false, None);
        }
        let there = &mut self.members[member];
        let down = there.postgres.is_none();
        let Some(supervisor) = there.supervisor.as_mut().filter(|s| s.epoch == epoch) else {
            return;
        };
        let down = down && !supervisor.working;
        match supervisor.back {
            Some(back) if down && told => self.kill_supervisor(member, back, false),
            _ => {
                let pause = if down { told_for } else { 20 * MS };
                let told = down;
                self.after(pause, Event::Farewell { member, epoch, told });
            }
        }
    }

    /// TERM: a primary with a licence is left to its sidecar for a while; see `src/supervisor/farewell.rs`.
    fn begin_to_leave(&mut self, member: usize) {
        let there = &self.members[member];
        let limit = if there.sidecar.is_some() {
            15 * SECOND
        } else {
            SECOND
        };
        let serves = there.postgres.as_ref().is_some_and(|postgres| {
            postgres.is_ready
                && postgres.stopping.is_none()
                && matches!(postgres.role, ServerRole::Primary { .. })
        });
        match there.postgres.as_ref().map(|postgres| postgres.pg) {
            Some(pg) if serves && self.licensed(member) => self.after(limit, Event::LeftAlone { member, pg }),
            _ => self.stop_postgres(member, false, None),
        }
    }

    /// Nobody has ordered the stop.
    pub(crate) fn left_alone(&mut self, member: usize, pg: u64) {
        if self.postgres(member, pg).is_some() {
            self.stop_postgres(member, false, None);
        }
    }

    pub(crate) fn harder(&mut self, member: usize, pg: u64) {
        if self.postgres(member, pg).is_some() {
            self.stop_postgres(member, true, None);
        }
    }

    /// A stop is through, unless a fast one of a primary still has WAL to deliver.
    pub(crate) fn stopped(&mut self, member: usize, pg: u64) {
        let Some(postgres) = self.postgres(member, pg) else {
            return;
        };
        let (hard, primary) = (postgres.stopping == Some(true), !postgres.in_recovery);
        let was_ready = postgres.is_ready;
        if !hard && primary && was_ready && !(self.delivered(member) && self.archived(member, pg)) {
            self.after(20 * MS, Event::Stopped { member, pg });
            return;
        }
        self.end_data(member, !hard && was_ready);
        self.bury_postgres(member, false);
        self.settle(member, !hard, true, was_ready);
    }

    /// The last record has been written, sent, and flushed by every standby that is connected.
    fn delivered(&mut self, member: usize) -> bool {
        let Some(data) = &self.members[member].data else {
            return true;
        };
        if data.control != ControlState::ShutDown {
            self.write_last(member);
            self.pump(member);
        }
        let end = self.wal_len(member);
        let senders = self.members[member]
            .postgres
            .as_ref()
            .map(|postgres| &postgres.senders);
        senders.is_none_or(|senders| senders.iter().all(|s| s.standby.is_none() || s.flushed >= end))
    }

    /// The last checkpoint: nothing is written after it. The supervisor sees it in the control file, unless it does not look.
    fn write_last(&mut self, member: usize) {
        let id = self.name();
        let delay = self.random.skewed(MS, 60 * MS);
        let (looks, archives) = (self.random.chance(80), self.random.chance(20));
        let archived = if archives {
            self.random.skewed(10 * MS, 40 * SECOND)
        } else {
            0
        };
        let now = self.now;
        let there = &mut self.members[member];
        let Some((data, postgres)) = there.data.as_mut().zip(there.postgres.as_mut()) else {
            return;
        };
        let start = lsn(data.wal.len());
        data.wal.entries.push(id);
        data.control = ControlState::ShutDown;
        data.control_position = WalPosition {
            lsn: start,
            ..data.wal.end()
        };
        postgres.archived_at = now + archived;
        let pg = postgres.pg;
        if looks {
            self.after(delay, Event::ShutDown { member, pg });
        }
    }

    pub(crate) fn shut_down_seen(&mut self, member: usize, pg: u64) {
        let Some(postgres) = self.postgres(member, pg) else {
            return;
        };
        postgres.shut_down = true;
        self.look_at_directory(member);
        self.status_changed(member);
    }

    /// The archiver has taken the last segment.
    fn archived(&mut self, member: usize, pg: u64) -> bool {
        let now = self.now;
        self.postgres(member, pg)
            .is_none_or(|postgres| postgres.archived_at <= now)
    }

    /// What the control file says after PostgreSQL has ended.
    pub(crate) fn end_data(&mut self, member: usize, clean: bool) {
        let vouched = clean || self.random.chance(30);
        let there = &mut self.members[member];
        let Some((data, postgres)) = there.data.as_mut().zip(there.postgres.as_ref()) else {
            return;
        };
        let end = data.wal.end();
        if postgres.in_recovery {
            data.control = if clean {
                ControlState::ShutDownInRecovery
            } else {
                ControlState::InArchiveRecovery
            };
            if vouched && data.control_position.lsn <= end.lsn {
                data.control_position = end;
            }
        } else if data.control != ControlState::ShutDown {
            data.control = ControlState::InProduction;
        }
    }

    /// The supervisor clears up behind a postmaster, then says that it has stopped.
    pub(crate) fn settle(&mut self, member: usize, clean: bool, requested: bool, ready: bool) {
        let delay = self.random.skewed(2 * MS, 100 * MS);
        let Some(epoch) = self.begin_work(member) else {
            return;
        };
        self.after(
            delay,
            Event::Settled {
                member,
                epoch,
                clean,
                requested,
                ready,
            },
        );
    }

    pub(crate) fn settled(
        &mut self,
        member: usize,
        epoch: u64,
        (_, requested, was_ready): (bool, bool, bool),
    ) {
        let Some(supervisor) = self.supervisor(member, epoch) else {
            return;
        };
        supervisor.working = false;
        supervisor.status.postmaster = Postmaster::Stopped {
            last_exit: Some(PostmasterExit {
                requested,
                description: "ended".to_owned(),
                was_ready,
            }),
        };
        self.look_at_directory(member);
        self.status_changed(member);
    }
}
