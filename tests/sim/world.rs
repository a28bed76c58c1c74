//! The world: members, links, the API server, and the one queue of what happens when.

use podgres::core::lease::{Durability, Identity};
use podgres::core::member::Ordinal;
use podgres::core::policy::{Leadership, Policy};
use podgres::core::supervision::Terms;
use podgres::core::wal::TimelineId;

use crate::api::{Api, LeaseKept};
use crate::config::{Config, Kind, MS, SECOND, Time};
use crate::event::Event;
use crate::network::Network;
use crate::oracle::Oracle;
use crate::postgres::Postgres;
use crate::queue::Queue;
use crate::random::Random;
use crate::sidecar::Sidecar;
use crate::supervisor::Supervisor;
use crate::trace::Trace;
use crate::wal::Data;

/// One machine with one pod on it.
pub(crate) struct Member {
    pub(crate) policy: Policy,
    /// CLOCK_BOOTTIME at the beginning, and how fast it runs.
    offset_ms: u64,
    rate_ppm: i64,
    /// The StatefulSet wants it.
    pub(crate) wanted: bool,
    /// The pod is there; its number.
    pub(crate) exists: bool,
    pub(crate) pod: u64,
    /// TERM was sent: what ends now is not started again.
    pub(crate) ending: bool,
    pub(crate) frozen: bool,
    pub(crate) sidecar_paused: bool,
    pub(crate) sidecar: Option<Sidecar>,
    pub(crate) supervisor: Option<Supervisor>,
    pub(crate) postgres: Option<Postgres>,
    pub(crate) data: Option<Data>,
    /// Changes with each replacement of WAL that was there.
    pub(crate) lineage: u64,
    pub(crate) terms: Terms,
    /// The supervisor was asked to begin it.
    pub(crate) next_timeline: TimelineId,
    pub(crate) disk_slow: bool,
    /// The disk takes nothing before this time.
    pub(crate) disk_ok_at: Time,
    /// PostgreSQL ends before it is ready until this time.
    pub(crate) starts_at: Time,
    /// What the pod's shared folder keeps of the Lease when a sidecar ends.
    pub(crate) kept_lease: Option<(u64, LeaseKept)>,
    held_up: Vec<Event>,
    pub(crate) resumed_at: Time,
}

/// See the module.
pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) random: Random,
    pub(crate) now: Time,
    queue: Queue,
    pub(crate) members: Vec<Member>,
    pub(crate) network: Network,
    pub(crate) api: Api,
    pub(crate) oracle: Oracle,
    pub(crate) trace: Trace,
    names: u64,
    pub(crate) healed: bool,
    /// The operator has seen after it.
    helped: bool,
    /// When the next fault, and the healing, are due; events for other times are void.
    pub(crate) fault_at: Time,
    pub(crate) heal_at: Time,
    /// Faults that last.
    pub(crate) lasting: u32,
    /// Quiet time that was left out.
    pub(crate) skipped: Time,
    pub(crate) events: u64,
}

pub(crate) const CLUSTER: &str = "pg";

impl World {
    pub(crate) fn new(config: Config, traced: bool) -> Self {
        let mut random = Random::new(config.seed);
        let most = config.members + 2;
        let members = (0..most).map(|at| member(&config, &mut random, at)).collect();
        let mut world = Self {
            network: Network::new(most),
            api: Api::new(most),
            oracle: Oracle::default(),
            trace: Trace::new(traced),
            random,
            now: 0,
            queue: Queue::default(),
            members,
            names: 0,
            healed: false,
            helped: false,
            fault_at: 0,
            heal_at: 0,
            lasting: 0,
            skipped: 0,
            events: 0,
            config,
        };
        for member in 0..world.config.members {
            world.members[member].wanted = true;
            world.create_pod(member);
        }
        let (from, until) = (world.config.faults_from, world.config.faults_until);
        world.expect(from, until);
        world.at(SECOND + 7 * MS, Event::Look);
        world
    }

    /// A number that nothing else has.
    pub(crate) fn name(&mut self) -> u64 {
        self.names += 1;
        self.names
    }

    pub(crate) fn at(&mut self, at: Time, event: Event) {
        self.queue.push(at, event);
    }

    pub(crate) fn after(&mut self, delay: Time, event: Event) {
        self.at(self.now + delay, event);
    }

    /// The next fault and the healing happen at these times, and at no others.
    pub(crate) fn expect(&mut self, fault: Time, heal: Time) {
        if fault != self.fault_at {
            self.fault_at = fault;
            self.at(fault, Event::Fault);
        }
        if heal != self.heal_at {
            self.heal_at = heal;
            self.at(heal, Event::Heal);
        }
    }

    pub(crate) fn log(&mut self, member: usize, line: impl FnOnce() -> String) {
        self.trace.add(self.now, || format!("pg-{member} {}", line()));
    }

    /// A member's clock now, in milliseconds.
    pub(crate) fn clock_ms(&self, member: usize) -> u64 {
        self.members[member].clock_ms(self.now)
    }

    /// When a member's clock will show this.
    pub(crate) fn time_of(&self, member: usize, clock_ms: u64) -> Time {
        self.members[member].time_of(clock_ms)
    }

    /// What a disk needs for one flush, counted from now.
    pub(crate) fn disk_delay(&mut self, member: usize) -> Time {
        let (low, high) = self.config.fsync;
        let drawn = self.random.skewed(low, high);
        let slow = if self.members[member].disk_slow { 20 } else { 1 };
        drawn * slow + self.members[member].disk_ok_at.saturating_sub(self.now)
    }

    /// Runs until it has converged or failed. The first violation, if any.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        while let Some((at, event)) = self.queue.pop() {
            if at > self.heal_at + self.config.heal_bound {
                // Nobody can know that nobody else knows of a later term: this needs the operator.
                if self.api.stored.is_none() && self.config.faults.contains(&Kind::DeleteLease) {
                    return Ok(());
                }
                self.now = at;
                if self.helped || !self.help() {
                    return Err(self.unsettled());
                }
                (self.helped, self.heal_at) = (true, at);
            }
            self.advance(at, event)?;
            if self.oracle.converged_at.is_some() {
                return Ok(());
            }
        }
        Err("nothing happens any more".to_owned())
    }

    /// Runs up to `until`. The first violation, if any.
    pub(crate) fn run_until(&mut self, until: Time) -> Result<(), String> {
        while self.queue.next_at().is_some_and(|at| at <= until) {
            let Some((at, event)) = self.queue.pop() else {
                break;
            };
            self.advance(at, event)?;
        }
        self.now = self.now.max(until);
        Ok(())
    }

    fn advance(&mut self, at: Time, event: Event) -> Result<(), String> {
        self.now = self.now.max(at);
        self.events += 1;
        self.dispatch(event);
        self.oracle.violation.take().map_or(Ok(()), Err)
    }

    fn dispatch(&mut self, event: Event) {
        if let Some((member, sidecar)) = event.process() {
            let target = &mut self.members[member];
            if target.frozen || (sidecar && target.sidecar_paused) {
                target.held_up.push(event);
                return;
            }
        }
        self.happen(event);
    }

    /// What was held up happens now, the fence first.
    pub(crate) fn resume(&mut self, member: usize) {
        self.members[member].resumed_at = self.now;
        let held_up = std::mem::take(&mut self.members[member].held_up);
        let (fences, others): (Vec<_>, Vec<_>) = held_up
            .into_iter()
            .partition(|event| matches!(event, Event::Fence { .. }));
        for event in fences.into_iter().chain(others) {
            self.at(self.now, event);
        }
    }

    fn happen(&mut self, event: Event) {
        use Event as E;
        match event {
            E::Turn { member, epoch } => self.turn(member, epoch),
            E::Execute { member, epoch } => self.execute(member, epoch),
            E::Executed {
                member,
                epoch,
                action,
                error,
            } => self.executed(member, epoch, action, error),
            E::Line {
                observer,
                epoch,
                from,
                stream,
                view,
                news,
            } => {
                self.line(observer, epoch, (from, stream), &view, news);
            }
            E::Hear { observer, epoch, of } => self.hear(observer, epoch, of),
            E::LookSample {
                member,
                epoch,
                of,
                looked_at_ms,
            } => {
                self.look_sample(member, epoch, of, looked_at_ms);
            }
            E::LookDone { member, epoch, view } => self.look_done(member, epoch, *view),
            E::GateAttach { member, epoch } => self.gate_attach(member, epoch),
            E::GateRepeat { member, epoch } => self.gate_repeat(member, epoch),
            E::CheckpointDone { member, epoch } => self.checkpoint_done(member, epoch),
            E::List { member, epoch } => self.list(member, epoch),
            E::Listed {
                member,
                epoch,
                follower,
                sent_at_ms,
                writes,
                found,
            } => {
                self.listed(member, epoch, (follower, sent_at_ms, writes), found);
            }
            E::Watched {
                member,
                epoch,
                watch,
                stored,
            } => self.watched(member, epoch, watch, stored),
            E::Silence {
                member,
                epoch,
                follower,
            } => self.silence(member, epoch, follower),
            E::PutReply {
                member,
                epoch,
                attempt,
                stored,
            } => self.put_reply(member, epoch, attempt, stored),
            E::Put {
                member,
                epoch,
                attempt,
                over,
                record,
                reply,
            } => {
                self.put(member, epoch, (attempt, over, reply), record);
            }
            E::ListAt {
                member,
                epoch,
                follower,
                sent_at_ms,
                writes,
            } => {
                self.list_at(member, epoch, (follower, sent_at_ms, writes));
            }
            E::Fence { member, epoch } => self.fence(member, epoch),
            E::Step { member, epoch, step } => self.step(member, epoch, *step),
            E::JobEnd {
                member,
                epoch,
                id,
                job,
            } => self.job_end(member, epoch, id, &job),
            E::DiskLook { member, epoch } => self.disk_look(member, epoch),
            E::Ready { member, pg } => self.ready(member, pg),
            E::Promoted { member, pg } => self.promoted(member, pg),
            E::ShutDown { member, pg } => self.shut_down_seen(member, pg),
            E::Stopped { member, pg } => self.stopped(member, pg),
            E::Harder { member, pg } => self.harder(member, pg),
            E::LeftAlone { member, pg } => self.left_alone(member, pg),
            E::Settled {
                member,
                epoch,
                clean,
                requested,
                ready,
            } => {
                self.settled(member, epoch, (clean, requested, ready));
            }
            E::Write { member, pg } => self.write(member, pg),
            E::Connect { member, pg } => self.connect(member, pg),
            E::ReceiverEnd { member, pg, conn } => self.receiver_end(member, pg, conn),
            E::SenderEnd { member, pg, conn } => self.sender_end(member, pg, conn),
            E::CutLook {
                member,
                pg,
                conn,
                cut_at,
            } => self.cut_look(member, pg, conn, cut_at),
            E::Ship {
                to,
                pg,
                from,
                conn,
                lineage,
                upto,
            } => self.shipped(to, pg, (from, conn, lineage), upto),
            E::Confirm {
                from,
                pg,
                conn,
                flushed,
            } => self.confirmed(from, pg, conn, flushed),
            E::StartSidecar { member, pod } => self.start_sidecar(member, pod),
            E::StartSupervisor { member, pod } => self.start_supervisor(member, pod),
            E::Farewell { member, epoch, told } => self.farewell(member, epoch, told),
            E::Killed { member, pod, back } => self.killed(member, pod, back),
            E::Replace { member, pod } => self.replace(member, pod),
            E::Fault if self.now == self.fault_at => self.fault(),
            E::Undo(undo) => self.undo(undo),
            E::Heal if self.now == self.heal_at => self.heal(),
            E::Fault | E::Heal => {}
            E::Look => self.look(),
        }
    }
}

impl Member {
    pub(crate) fn clock_ms(&self, now: Time) -> u64 {
        let drift = i64::try_from(now).unwrap_or(0) * self.rate_ppm / 1_000_000;
        self.offset_ms + now.saturating_add_signed(drift) / MS
    }

    pub(crate) fn time_of(&self, clock_ms: u64) -> Time {
        let passed = i128::from(clock_ms.saturating_sub(self.offset_ms)) * 1_000;
        let time = passed * 1_000_000 / (1_000_000 + i128::from(self.rate_ppm));
        // Not before the clock shows it.
        Time::try_from(time).unwrap_or(Time::MAX).saturating_add(2)
    }

    /// The sidecar runs and is not held up.
    pub(crate) fn sidecar_runs(&self) -> bool {
        self.sidecar.is_some() && !self.frozen && !self.sidecar_paused
    }
}

fn member(config: &Config, random: &mut Random, at: usize) -> Member {
    let ordinal = Ordinal(u32::try_from(at).unwrap_or(0));
    let asynchronous = config.durability == Durability::Async;
    Member {
        policy: Policy {
            leadership: Leadership::Lease,
            cluster: CLUSTER.to_owned(),
            ordinal,
            first_ordinal: Ordinal(0),
            new_cluster: false,
            reclone: true,
            discovery_timeout_ms: 5_000,
            stall_timeout_ms: 2_000,
            slot_retention_ms: 60_000,
            identity: Identity {
                pod: format!("{CLUSTER}-{at}"),
                uid: String::new(),
            },
            durability: config.durability,
            gate: true,
            read_only_default: false,
            priority: Some(if asynchronous {
                1
            } else {
                u32::try_from(at % 2).unwrap_or(0)
            }),
            times: config.times,
        },
        offset_ms: random.between(1_000, 5_000_000),
        rate_ppm: i64::try_from(random.between(0, 2_000)).unwrap_or(0) - 1_000,
        wanted: false,
        exists: false,
        pod: 0,
        ending: false,
        frozen: false,
        sidecar_paused: false,
        sidecar: None,
        supervisor: None,
        postgres: None,
        data: None,
        lineage: 0,
        terms: Terms::default(),
        next_timeline: TimelineId(0),
        disk_slow: false,
        disk_ok_at: 0,
        starts_at: 0,
        kept_lease: None,
        held_up: Vec::new(),
        resumed_at: 0,
    }
}
