//! Faults, their end, and the healing of everything.
//!
//! Volumes are lost under one rule: since the cluster was last settled (everybody streams, and the record names the
//! directories that there are), no more than the recorded quorum k, and under `async` no more than one; and the
//! recorded standbys have not been scaled away. Beyond that no
//! arrangement keeps the promise: an acknowledged commit is on k standbys and the primary.

use podgres::core::lease::Durability;
use podgres::core::observation::MemberRequest;
use podgres::core::supervision::Terms;

use crate::api::LeaseKept;
use crate::config::{Kind, MS, SECOND, Time};
use crate::event::Event;
use crate::world::World;

/// What ends by itself after a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undo {
    Thaw(usize),
    Resume(usize),
    ApiBack,
    ApiBackFor(usize),
    ApiSound,
    Mend(usize, usize),
    Join(usize),
    Unpause,
    FastDisk(usize),
    Request(usize),
}

impl World {
    pub(crate) fn create_pod(&mut self, member: usize) {
        let pod = self.name();
        let there = &mut self.members[member];
        there.exists = true;
        there.ending = false;
        there.pod = pod;
        there.policy.identity.uid = format!("uid-{pod}");
        let (sidecar, supervisor) = (self.random.between(MS, SECOND), self.random.between(MS, SECOND));
        self.log(member, || format!("pod {pod} is made"));
        self.after(sidecar, Event::StartSidecar { member, pod });
        self.after(supervisor, Event::StartSupervisor { member, pod });
        self.touch(member);
    }

    pub(crate) fn fault(&mut self) {
        if self.healed {
            return;
        }
        let (low, high) = self.config.fault_pause;
        let pause = self.random.between(low, high);
        self.expect(self.now + pause, self.heal_at);
        let kind = self.config.faults[self.random.below(self.config.faults.len())];
        let (low, high) = self.config.fault_length;
        let length = self.random.between(low, high);
        let there: Vec<usize> = (0..self.members.len())
            .filter(|m| self.members[*m].exists)
            .collect();
        if there.is_empty() {
            return;
        }
        let drawn = there[self.random.below(there.len())];
        let primary = self.primary().filter(|_| self.random.chance(40));
        let member = primary.unwrap_or(drawn);
        self.trace.add(self.now, || {
            format!("FAULT {kind:?} at pg-{member} for {} ms", length / MS)
        });
        self.inflict(kind, member, length);
    }

    pub(crate) fn inflict(&mut self, kind: Kind, member: usize, length: Time) {
        let other = self.random.below(self.members.len());
        let undo = match kind {
            Kind::CrashPostgres => return self.crash_postgres(member),
            Kind::CrashSidecar => return self.kill_sidecar(member, length),
            Kind::CrashSupervisor => return self.kill_supervisor(member, length, false),
            Kind::CrashPod => return self.crash_pod(member, length, false),
            Kind::EndPod => return self.end_pod(member, length),
            Kind::EndContainer => return self.end_container(member, length),
            Kind::LoseVolume => return self.lose_volume(member, length),
            Kind::Switchover | Kind::Failover => return self.ask_move(kind, other),
            Kind::CancelJob => return self.cancel_job(member),
            Kind::Scale => return self.scale(),
            Kind::DiskFailing => return self.fail_disk(member, length),
            Kind::StartFailing => return self.fail_starts(member, length),
            Kind::DeleteLease => return self.delete_lease(),
            Kind::FreezePod => self.freeze(member),
            Kind::PauseSidecar => self.pause_sidecar(member),
            Kind::ApiAway => {
                self.api.away = true;
                Undo::ApiBack
            }
            Kind::ApiAwayForOne => {
                self.api.away_for[member] = true;
                Undo::ApiBackFor(member)
            }
            Kind::ApiLossy => {
                self.api.loss = self.random.between(5, 60);
                Undo::ApiSound
            }
            Kind::CutLink | Kind::CutOneWay => {
                if member == other {
                    return;
                }
                self.network.cut(member, other);
                if kind == Kind::CutLink {
                    self.network.cut(other, member);
                }
                self.link_changed(member, other);
                Undo::Mend(member, other)
            }
            Kind::Isolate => {
                self.isolate(member, true);
                if self.random.chance(60) {
                    self.api.away_for[member] = true;
                }
                Undo::Join(member)
            }
            Kind::PauseCluster => {
                self.operator(|record| record.paused = true);
                Undo::Unpause
            }
            Kind::SlowDisk => {
                self.members[member].disk_slow = true;
                Undo::FastDisk(member)
            }
            Kind::Reinit => {
                let Some(sidecar) = &mut self.members[member].sidecar else {
                    return;
                };
                sidecar.observation.request = Some(MemberRequest::Reinit);
                self.lasting += 1;
                return self.after(2 * SECOND, Event::Undo(Undo::Request(member)));
            }
        };
        self.lasting += 1;
        self.after(length, Event::Undo(undo));
    }

    pub(crate) fn undo(&mut self, undo: Undo) {
        self.lasting = self.lasting.saturating_sub(1);
        self.trace.add(self.now, || format!("UNDO {undo:?}"));
        match undo {
            Undo::Thaw(member) => self.thaw(member),
            Undo::Resume(member) => self.resume_sidecar(member),
            Undo::ApiBack => self.api.away = false,
            Undo::ApiBackFor(member) => self.api.away_for[member] = false,
            Undo::ApiSound => self.api.loss = 0,
            Undo::Mend(one, two) => {
                self.network.mend(one, two);
                self.network.mend(two, one);
                self.link_changed(one, two);
            }
            Undo::Join(member) => {
                self.isolate(member, false);
                self.api.away_for[member] = false;
            }
            Undo::Unpause => self.operator(|record| record.paused = false),
            Undo::FastDisk(member) => self.members[member].disk_slow = false,
            Undo::Request(member) => {
                if let Some(sidecar) = &mut self.members[member].sidecar {
                    sidecar.observation.request = None;
                }
            }
        }
    }

    /// Everything is as it should be from now on.
    pub(crate) fn heal(&mut self) {
        self.healed = true;
        self.trace.add(self.now, || "HEAL".to_owned());
        self.api.away = false;
        self.api.away_for.fill(false);
        self.api.loss = 0;
        self.network.mend_all();
        self.operator(|record| {
            record.paused = false;
            record.request = None;
        });
        for member in 0..self.members.len() {
            let now = self.now;
            let there = &mut self.members[member];
            there.disk_slow = false;
            there.disk_ok_at = there.disk_ok_at.min(now);
            there.starts_at = there.starts_at.min(now);
            self.thaw(member);
            self.resume_sidecar(member);
            self.undo(Undo::Request(member));
            if self.members[member].wanted && !self.members[member].exists {
                self.create_pod(member);
            }
            let (exists, pod) = (self.members[member].exists, self.members[member].pod);
            if exists {
                self.after(SECOND, Event::StartSidecar { member, pod });
                self.after(SECOND, Event::StartSupervisor { member, pod });
            }
        }
        for member in 0..self.members.len() {
            self.touch(member);
            for other in 0..member {
                self.touch_wal(member, other);
            }
        }
    }

    pub(crate) fn crash_postgres(&mut self, member: usize) {
        let Some(postgres) = &self.members[member].postgres else {
            return;
        };
        let was_ready = postgres.is_ready;
        self.end_data(member, false);
        self.bury_postgres(member, false);
        self.settle(member, false, false, was_ready);
    }

    fn kill_sidecar(&mut self, member: usize, back: Time) {
        let pod = self.members[member].pod;
        self.drop_sidecar(member);
        self.touch(member);
        self.after(back, Event::StartSidecar { member, pod });
    }

    fn drop_sidecar(&mut self, member: usize) {
        let there = &mut self.members[member];
        there.sidecar_paused = false;
        let Some(sidecar) = there.sidecar.take() else {
            return;
        };
        let kept = LeaseKept::of(sidecar.observation.lease, sidecar.client);
        there.kept_lease = Some((there.pod, kept));
        if let Some(postgres) = &mut there.postgres {
            postgres.senders.retain(|sender| sender.standby.is_some());
            postgres.senders_changed += 1;
        }
        if !self.members[member].frozen {
            self.resume(member);
        }
    }

    /// PID 1 of its container: PostgreSQL goes with it.
    pub(crate) fn kill_supervisor(&mut self, member: usize, back: Time, silent: bool) {
        let pod = self.members[member].pod;
        self.cancel_job(member);
        self.end_data(member, false);
        self.bury_postgres(member, silent);
        self.members[member].supervisor = None;
        self.action_lost(member);
        self.wake(member, MS);
        self.after(back, Event::StartSupervisor { member, pod });
    }

    /// Every process of the pod is killed. A lost node says nothing to anybody; its pod is replaced later.
    fn crash_pod(&mut self, member: usize, back: Time, replaced: bool) {
        let lost_node = replaced || self.random.chance(50);
        let pod = self.members[member].pod;
        self.end_processes(member, lost_node);
        if lost_node {
            self.members[member].exists = false;
            self.after(back, Event::Replace { member, pod });
        } else {
            self.after(back, Event::StartSidecar { member, pod });
            self.after(back, Event::StartSupervisor { member, pod });
        }
        self.touch(member);
    }

    fn end_processes(&mut self, member: usize, silent: bool) {
        self.members[member].frozen = false;
        self.kill_supervisor(member, Time::MAX / 4, silent);
        self.drop_sidecar(member);
        self.resume(member);
    }

    /// TERM: PostgreSQL stops, the sidecar hands over; what is left is killed after the grace period.
    fn end_pod(&mut self, member: usize, back: Time) {
        let there = &self.members[member];
        let (pod, frozen) = (there.pod, there.frozen);
        if frozen {
            return;
        }
        self.end_container(member, back);
        self.members[member].ending = true;
        let grace = self.random.between(2 * SECOND, 10 * SECOND);
        self.after(grace, Event::Killed { member, pod, back });
    }

    pub(crate) fn killed(&mut self, member: usize, pod: u64, back: Time) {
        let there = &self.members[member];
        if !there.exists || there.pod != pod {
            return;
        }
        self.end_processes(member, false);
        self.members[member].exists = false;
        self.touch(member);
        self.after(back, Event::Replace { member, pod });
    }

    /// The StatefulSet's controller makes a new pod under the old name.
    pub(crate) fn replace(&mut self, member: usize, pod: u64) {
        let there = &self.members[member];
        if there.exists || there.pod != pod || !there.wanted {
            return;
        }
        self.create_pod(member);
    }

    fn lose_volume(&mut self, member: usize, back: Time) {
        let Some(stored) = &self.api.stored else { return };
        let quorum = stored.record.synchronous.quorum as usize;
        let bound = if self.config.durability == Durability::Async {
            1
        } else {
            quorum
        };
        let by_ordinal = |ordinal: &podgres::core::member::Ordinal| self.members.get(ordinal.0 as usize);
        let mut named = stored.record.synchronous.members.keys().filter_map(by_ordinal);
        let all_wanted = named.all(|member| member.wanted);
        if self.oracle.volumes_lost >= bound || self.is_settled().is_err() || !all_wanted {
            return;
        }
        self.oracle.volumes_lost += 1;
        self.crash_pod(member, back, true);
        let there = &mut self.members[member];
        there.data = None;
        there.terms = Terms::default();
        there.lineage += 1;
        self.log(member, || "its volume is lost".to_owned());
    }

    fn scale(&mut self) {
        let wanted = self.members.iter().filter(|member| member.wanted).count();
        // Whoever scales waits until all is well.
        if self.oracle.volumes_lost > 0 || self.is_settled().is_err() {
            return;
        }
        let down = wanted > self.config.members
            || (wanted >= self.config.members && wanted > 2 && self.random.chance(50));
        if down && wanted + 1 > self.config.members {
            let member = wanted - 1;
            self.members[member].wanted = false;
            if self.members[member].exists {
                self.end_pod(member, 0);
            }
        } else {
            self.scale_up();
        }
    }

    /// By one, if there may be more.
    pub(crate) fn scale_up(&mut self) {
        let Some(next) = self.members.iter().position(|member| !member.wanted) else {
            return;
        };
        self.members[next].wanted = true;
        if !self.members[next].exists {
            self.create_pod(next);
        }
    }

    fn fail_disk(&mut self, member: usize, length: Time) {
        let until = self.now + length;
        let look = self.random.between(SECOND, 3 * SECOND);
        let there = &mut self.members[member];
        there.disk_ok_at = there.disk_ok_at.max(until);
        if let Some(epoch) = there.supervisor.as_ref().map(|supervisor| supervisor.epoch) {
            self.after(look, Event::DiskLook { member, epoch });
        }
    }

    /// PostgreSQL ends, and does not come up again.
    fn fail_starts(&mut self, member: usize, length: Time) {
        let until = self.now + length;
        let there = &mut self.members[member];
        there.starts_at = there.starts_at.max(until);
        self.crash_postgres(member);
    }

    fn freeze(&mut self, member: usize) -> Undo {
        let now = self.now;
        let there = &mut self.members[member];
        there.frozen = true;
        if let Some(sidecar) = &mut there.sidecar {
            sidecar.ears.iter_mut().for_each(|ear| ear.hold(now));
        }
        self.oracle.paused = true;
        self.touch(member);
        for other in 0..self.members.len() {
            self.touch_wal(member, other);
        }
        Undo::Thaw(member)
    }

    fn thaw(&mut self, member: usize) {
        if !self.members[member].frozen {
            return;
        }
        self.members[member].frozen = false;
        self.resume(member);
        self.touch(member);
        for other in 0..self.members.len() {
            self.touch_wal(member, other);
        }
        self.gate_confirm(member);
    }

    fn pause_sidecar(&mut self, member: usize) -> Undo {
        let now = self.now;
        let there = &mut self.members[member];
        if let Some(sidecar) = &mut there.sidecar {
            there.sidecar_paused = true;
            sidecar.ears.iter_mut().for_each(|ear| ear.hold(now));
        }
        self.oracle.paused = true;
        self.touch(member);
        Undo::Resume(member)
    }

    fn resume_sidecar(&mut self, member: usize) {
        let there = &mut self.members[member];
        if !there.sidecar_paused {
            return;
        }
        there.sidecar_paused = false;
        if !there.frozen {
            self.resume(member);
        }
        self.touch(member);
        self.gate_confirm(member);
    }

    fn isolate(&mut self, member: usize, cut: bool) {
        for other in 0..self.members.len() {
            if other == member {
                continue;
            }
            for (from, to) in [(member, other), (other, member)] {
                if cut {
                    self.network.cut(from, to);
                } else {
                    self.network.mend(from, to);
                }
            }
            self.link_changed(member, other);
        }
    }

    fn link_changed(&mut self, one: usize, two: usize) {
        self.touch_pair(one, two);
        self.touch_pair(two, one);
        self.touch_wal(one, two);
    }
}
