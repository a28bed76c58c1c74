//! The supervisor: licence and fence, terms on disk, jobs, starts and stops, as `src/supervisor` does them.

use std::net::IpAddr;

use podgres::core::data_directory::{DataDirectory, DataDirectoryFacts, SystemIdentifier};
use podgres::core::decision::PostgresAction;
use podgres::core::status::SlotStatus;
use podgres::core::supervision::{
    JobState, JobStatus, Licence, Postmaster, ServerRole, StopMode, SupervisorStatus, Terms,
};
use podgres::core::switch::SwitchPosition;
use podgres::core::wal::Lsn;

use crate::config::{MS, SECOND, Time};
use crate::event::Event;
use crate::world::{Member, World};

/// A part of a request that takes time; `action` is the sidecar's, to be answered.
#[derive(Debug)]
pub(crate) enum Step {
    TermsWritten { action: u64, terms: Terms, then: Then },
    Rewritten { action: u64, role: ServerRole },
    Prepared { action: u64, role: ServerRole },
    PromoteAnnounced { action: u64, names: String },
    PromoteFile { action: u64 },
}

#[derive(Debug)]
pub(crate) enum Then {
    Nothing,
    EndReceiver,
    Promote(String),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pub(crate) epoch: u64,
    pub(crate) licence_ms: Option<u64>,
    pub(crate) status: SupervisorStatus,
    /// A start, a reload, a promotion or clearing up is under way.
    pub(crate) working: bool,
    /// A term is being written.
    pub(crate) binding: bool,
    pub(crate) job_upstream: Option<usize>,
    /// TERM has come: its container is started again so long after its end.
    pub(crate) back: Option<Time>,
}

impl Supervisor {
    pub(crate) fn is_working(&self) -> bool {
        self.working || self.binding
    }
}

impl World {
    pub(crate) fn start_supervisor(&mut self, member: usize, pod: u64) {
        let there = &self.members[member];
        if !there.exists || there.ending || there.pod != pod || there.supervisor.is_some() {
            return;
        }
        let epoch = self.name();
        let there = &self.members[member];
        let status = SupervisorStatus {
            version: epoch,
            pid: 1,
            postmaster: Postmaster::Stopped { last_exit: None },
            job: None,
            data_directory: directory(there),
            licence: Licence::None,
            major_version: 16,
            stopping: false,
            fenced: false,
            outdated: false,
            terms: there.terms,
            incarnation: there.data.as_ref().map(|data| data.incarnation.clone()),
            disk_failing_since_ms: None,
            diverged: None,
            switch: SwitchPosition::default(),
        };
        self.members[member].supervisor = Some(Supervisor {
            epoch,
            licence_ms: None,
            status,
            working: false,
            binding: false,
            job_upstream: None,
            back: None,
        });
        self.wake(member, 2 * MS);
    }

    pub(crate) fn supervisor(&mut self, member: usize, epoch: u64) -> Option<&mut Supervisor> {
        let supervisor = self.members[member].supervisor.as_mut();
        supervisor.filter(|supervisor| supervisor.epoch == epoch)
    }

    /// Brings the status up to date and wakes the sidecar's long poll.
    pub(crate) fn status_changed(&mut self, member: usize) {
        let there = &mut self.members[member];
        let Some(supervisor) = &mut there.supervisor else {
            return;
        };
        let status = &mut supervisor.status;
        status.version += 1;
        status.terms = there.terms;
        if let Some(postgres) = &there.postgres {
            let pid = u32::try_from(postgres.pg % 1_000_000).unwrap_or(0);
            status.postmaster = match postgres.stopping {
                Some(hard) => Postmaster::Stopping {
                    pid,
                    mode: if hard { StopMode::Immediate } else { StopMode::Fast },
                    shut_down: postgres.shut_down,
                },
                None => Postmaster::Running {
                    pid,
                    role: postgres.role.clone(),
                    ready: postgres.is_ready,
                },
            };
        }
        let delay = self.random.skewed(100, 3 * MS);
        self.wake(member, delay);
    }

    /// The directory is read, which happens only while PostgreSQL does not run.
    pub(crate) fn look_at_directory(&mut self, member: usize) {
        let there = &mut self.members[member];
        let seen = directory(there);
        let incarnation = there.data.as_ref().map(|data| data.incarnation.clone());
        if let Some(supervisor) = &mut there.supervisor {
            supervisor.status.data_directory = seen;
            supervisor.status.incarnation = incarnation;
        }
    }

    /// The licence as the status shows it, at this moment.
    pub(crate) fn show_licence(&mut self, member: usize, clock_ms: u64) {
        if let Some(supervisor) = &mut self.members[member].supervisor {
            let held = supervisor.licence_ms.filter(|until_ms| *until_ms > clock_ms);
            supervisor.status.licence = held.map_or(Licence::None, |until_ms| Licence::Limited { until_ms });
        }
    }

    pub(crate) fn licensed(&self, member: usize) -> bool {
        self.licensed_at(member, self.clock_ms(member))
    }

    /// Now, or a millisecond ago: the timer has its grain.
    pub(crate) fn licensed_lately(&self, member: usize) -> bool {
        self.licensed_at(member, self.clock_ms(member).saturating_sub(1))
    }

    fn licensed_at(&self, member: usize, clock_ms: u64) -> bool {
        let supervisor = self.members[member].supervisor.as_ref();
        supervisor
            .and_then(|s| s.licence_ms)
            .is_some_and(|until_ms| until_ms > clock_ms)
    }

    /// The timer of the licence: stops a writable server.
    pub(crate) fn fence(&mut self, member: usize, epoch: u64) {
        let clock_ms = self.clock_ms(member);
        let Some(supervisor) = self.supervisor(member, epoch) else {
            return;
        };
        if supervisor.licence_ms.is_none_or(|until_ms| until_ms > clock_ms) {
            return;
        }
        supervisor.licence_ms = None;
        let there = &self.members[member];
        let primary = there
            .postgres
            .as_ref()
            .is_some_and(|p| matches!(p.role, ServerRole::Primary { .. }));
        if primary {
            self.log(member, || "FENCE: its licence ran out".to_owned());
            if let Some(supervisor) = &mut self.members[member].supervisor {
                supervisor.status.fenced = true;
            }
            let patience = self.members[member].policy.times.stop_timeout_ms * MS / 2;
            self.stop_postgres(member, false, Some(patience));
        }
        self.status_changed(member);
    }

    /// A request of the sidecar. It is answered at once, or by a later step.
    pub(crate) fn request(&mut self, member: usize, action: u64, request: PostgresAction, promised: u64) {
        let Some(epoch) = self.members[member]
            .supervisor
            .as_ref()
            .map(|supervisor| supervisor.epoch)
        else {
            return self.answer(member, action, Some("the supervisor does not answer"));
        };
        self.fence(member, epoch);
        let result = match request {
            PostgresAction::GrantLicence { until_ms } => {
                self.grant(member, epoch, until_ms.unwrap_or(u64::MAX))
            }
            PostgresAction::Promote {
                synchronous_standby_names,
                term,
                timeline,
                ..
            } => {
                self.members[member].next_timeline = timeline.next;
                let then = Then::Promote(synchronous_standby_names);
                return self.bind(member, action, (term, true), then);
            }
            PostgresAction::Detach { term } => {
                return self.bind(member, action, (term, false), Then::EndReceiver);
            }
            PostgresAction::Hold { term } => return self.bind(member, action, (term, true), Then::Nothing),
            PostgresAction::Start { server } => match self.may_start(member, &server, promised) {
                Ok(()) => {
                    let delay = self.random.skewed(10 * MS, 200 * MS);
                    let step = Step::Prepared { action, role: server };
                    return self.work(member, delay, step);
                }
                Err(error) => Err(error),
            },
            PostgresAction::Reload { server } => match self.may_reload(member, &server, promised) {
                Ok(()) => {
                    let delay = self.random.skewed(5 * MS, 50 * MS);
                    let step = Step::Rewritten { action, role: server };
                    return self.work(member, delay, step);
                }
                Err(error) => Err(error),
            },
            PostgresAction::Stop { mode } => {
                self.stop_postgres(member, mode == StopMode::Immediate, None);
                Ok(())
            }
            PostgresAction::Run { job } => self.run_job(member, job),
            PostgresAction::Cancel => {
                self.cancel_job(member);
                Ok(())
            }
            _ => Ok(()),
        };
        self.answer(member, action, result.err());
    }

    pub(crate) fn answer(&mut self, member: usize, action: u64, error: Option<&'static str>) {
        let Some(epoch) = self.members[member].sidecar.as_ref().map(|sidecar| sidecar.epoch) else {
            return;
        };
        let delay = self.random.skewed(100, 2 * MS);
        self.after(
            delay,
            Event::Executed {
                member,
                epoch,
                action,
                error,
            },
        );
    }

    /// From now on until it is told otherwise, the supervisor takes up nothing else; which one that is.
    pub(crate) fn begin_work(&mut self, member: usize) -> Option<u64> {
        let supervisor = self.members[member].supervisor.as_mut()?;
        supervisor.working = true;
        Some(supervisor.epoch)
    }

    fn work(&mut self, member: usize, delay: Time, step: Step) {
        let Some(epoch) = self.begin_work(member) else {
            return;
        };
        self.after(
            delay,
            Event::Step {
                member,
                epoch,
                step: Box::new(step),
            },
        );
    }

    fn grant(&mut self, member: usize, epoch: u64, until_ms: u64) -> Result<(), &'static str> {
        if until_ms <= self.clock_ms(member) {
            return Err("the licence would have ended");
        }
        let at = self.time_of(member, until_ms);
        self.at(at, Event::Fence { member, epoch });
        let Some(supervisor) = self.supervisor(member, epoch) else {
            return Ok(());
        };
        let before = supervisor.licence_ms.replace(until_ms);
        if before.is_none() {
            self.status_changed(member);
        }
        Ok(())
    }

    /// Writes down terms first; see `src/supervisor/bonds.rs`.
    fn bind(&mut self, member: usize, action: u64, (term, hold): (u64, bool), then: Then) {
        let known = self.members[member].terms;
        let allowed = term >= known.promised && (!hold || term >= known.held);
        let may_promote = !matches!(then, Then::Promote(_)) || self.may_promote(member).is_ok();
        let delay = self.disk_delay(member);
        let Some(supervisor) = &mut self.members[member].supervisor else {
            return;
        };
        let attaching = supervisor.working && matches!(then, Then::EndReceiver);
        if supervisor.binding || attaching || !allowed || !may_promote {
            return self.answer(member, action, Some("refused to bind"));
        }
        let terms = Terms {
            promised: term,
            held: if hold { term } else { known.held },
        };
        let step = Step::TermsWritten { action, terms, then };
        supervisor.binding = true;
        let epoch = supervisor.epoch;
        let delay = if terms == known { 1 } else { delay };
        self.after(
            delay,
            Event::Step {
                member,
                epoch,
                step: Box::new(step),
            },
        );
    }

    pub(crate) fn step(&mut self, member: usize, epoch: u64, step: Step) {
        if self.supervisor(member, epoch).is_none() {
            return;
        }
        self.fence(member, epoch);
        match step {
            Step::TermsWritten { action, terms, then } => self.bound(member, action, terms, then),
            Step::Rewritten { action, role } => {
                self.worked(member);
                let error = self.reload(member, role).err();
                self.answer(member, action, error);
            }
            Step::Prepared { action, role } => {
                self.worked(member);
                self.look_at_directory(member);
                let primary = matches!(role, ServerRole::Primary { .. });
                let refused = self.members[member].postgres.is_some() || (primary && !self.licensed(member));
                if !refused {
                    self.log(member, || format!("starts PostgreSQL as {role:?}"));
                    self.spawn_postgres(member, role);
                    if let Some(supervisor) = &mut self.members[member].supervisor {
                        supervisor.status.fenced = false;
                    }
                }
                self.status_changed(member);
                self.answer(member, action, refused.then_some("cannot start"));
            }
            Step::PromoteAnnounced { action, names } => self.announce_promotion(member, action, names),
            Step::PromoteFile { action } => self.promote(member, action),
        }
    }

    pub(crate) fn worked(&mut self, member: usize) {
        if let Some(supervisor) = &mut self.members[member].supervisor {
            supervisor.working = false;
        }
    }

    fn bound(&mut self, member: usize, action: u64, terms: Terms, then: Then) {
        self.check_terms(member, terms);
        self.members[member].terms = terms;
        let Some(supervisor) = &mut self.members[member].supervisor else {
            return;
        };
        supervisor.binding = false;
        let busy = supervisor.working;
        self.log(member, || format!("bound to {terms:?}"));
        self.status_changed(member);
        let follows = self.members[member].postgres.as_ref().is_some_and(|p| {
            p.stopping.is_none() && matches!(p.role, ServerRole::Standby { upstream: Some(_) })
        });
        match then {
            Then::EndReceiver if busy => self.answer(member, action, Some("busy")),
            Then::EndReceiver if follows => {
                let role = ServerRole::Standby { upstream: None };
                let delay = self.random.skewed(5 * MS, 50 * MS);
                self.work(member, delay, Step::Rewritten { action, role });
            }
            Then::Nothing | Then::EndReceiver => self.answer(member, action, None),
            Then::Promote(names) => {
                if let Err(error) = self.may_promote(member) {
                    return self.answer(member, action, Some(error));
                }
                let delay = self.random.skewed(5 * MS, 50 * MS);
                self.work(member, delay, Step::PromoteAnnounced { action, names });
            }
        }
    }

    fn may_promote(&self, member: usize) -> Result<(), &'static str> {
        let there = &self.members[member];
        let Some(postgres) = &there.postgres else {
            return Err("not running");
        };
        let free = there
            .supervisor
            .as_ref()
            .is_some_and(|s| !s.working && !s.status.stopping);
        let standby = matches!(postgres.role, ServerRole::Standby { .. });
        let ready = postgres.is_ready && postgres.stopping.is_none();
        (free && standby && ready && self.licensed(member))
            .then_some(())
            .ok_or("cannot promote")
    }

    fn announce_promotion(&mut self, member: usize, action: u64, names: String) {
        self.worked(member);
        if let Err(error) = self.may_promote(member) {
            return self.answer(member, action, Some(error));
        }
        self.reload_names(member, &names);
        if let Some(postgres) = &mut self.members[member].postgres {
            postgres.role = ServerRole::primary(names);
        }
        self.status_changed(member);
        let delay = self.disk_delay(member);
        self.work(member, delay, Step::PromoteFile { action });
    }

    fn promote(&mut self, member: usize, action: u64) {
        self.worked(member);
        let delay = self.random.skewed(20 * MS, 500 * MS);
        let Some(postgres) = self.members[member]
            .postgres
            .as_mut()
            // Another postmaster's work was given up with it.
            .filter(|p| p.stopping.is_none() && matches!(p.role, ServerRole::Primary { .. }))
        else {
            return self.answer(member, action, Some("ended"));
        };
        postgres.promoting = true;
        let (pg, receiver) = (
            postgres.pg,
            postgres.receiver.as_ref().map(|receiver| receiver.conn),
        );
        if let Some(conn) = receiver {
            self.receiver_end(member, pg, conn);
        }
        self.check_promotion(member);
        self.after(delay, Event::Promoted { member, pg });
        self.answer(member, action, None);
    }

    fn may_start(&self, member: usize, role: &ServerRole, promised: u64) -> Result<(), &'static str> {
        let there = &self.members[member];
        let free = there.supervisor.as_ref().is_some_and(|s| {
            let job = matches!(
                &s.status.job,
                Some(JobStatus {
                    state: JobState::Running { .. },
                    ..
                })
            );
            !s.working && !s.status.stopping && !job
        });
        let primary = matches!(role, ServerRole::Primary { .. });
        let allowed = !primary || self.licensed(member);
        (free && allowed && self.may_follow(member, role, promised) && there.postgres.is_none())
            .then_some(())
            .ok_or("cannot start")
    }

    fn may_reload(&self, member: usize, role: &ServerRole, promised: u64) -> Result<(), &'static str> {
        let there = &self.members[member];
        let free = there
            .supervisor
            .as_ref()
            .is_some_and(|s| !s.working && !s.status.stopping);
        let same = there.postgres.as_ref().is_some_and(|p| {
            p.stopping.is_none() && std::mem::discriminant(&p.role) == std::mem::discriminant(role)
        });
        (free && same && self.may_follow(member, role, promised))
            .then_some(())
            .ok_or("cannot reload")
    }

    /// No promise must find the member attached again by what was decided before it.
    fn may_follow(&self, member: usize, role: &ServerRole, promised: u64) -> bool {
        let follows = matches!(role, ServerRole::Standby { upstream: Some(_) });
        let there = &self.members[member];
        let supervisor = there.supervisor.as_ref();
        let binding = supervisor.is_none_or(|supervisor| supervisor.binding);
        !follows || (!binding && there.terms.promised == promised)
    }

    fn reload(&mut self, member: usize, role: ServerRole) -> Result<(), &'static str> {
        let Some(postgres) = self.members[member]
            .postgres
            .as_mut()
            .filter(|p| p.stopping.is_none())
        else {
            return Err("ended");
        };
        self.trace
            .add(self.now, || format!("pg-{member} reloads {role:?}"));
        let pg = postgres.pg;
        postgres.role = role.clone();
        match role {
            ServerRole::Primary {
                synchronous_standby_names,
                ..
            } => {
                self.reload_names(member, &synchronous_standby_names);
            }
            ServerRole::Standby { upstream } => {
                // It ends, to begin anew at the new address if there is one.
                if let Some(conn) = postgres.receiver.as_ref().map(|receiver| receiver.conn) {
                    let delay = self.random.skewed(2 * MS, 150 * MS);
                    self.after(delay, Event::ReceiverEnd { member, pg, conn });
                } else if upstream.is_some() {
                    self.connect_soon(member);
                }
            }
        }
        self.status_changed(member);
        Ok(())
    }

    /// The disk is tried once a second while PostgreSQL is primary, and once it failed until it no longer does.
    pub(crate) fn disk_look(&mut self, member: usize, epoch: u64) {
        let (now, clock_ms) = (self.now, self.clock_ms(member));
        let there = &mut self.members[member];
        let failing = there.disk_ok_at > now;
        let primary = there
            .postgres
            .as_ref()
            .is_some_and(|p| matches!(p.role, ServerRole::Primary { .. }));
        let disk_ok_at = there.disk_ok_at;
        let Some(supervisor) = self.supervisor(member, epoch) else {
            return;
        };
        let since = &mut supervisor.status.disk_failing_since_ms;
        if !failing {
            *since = None;
        } else if primary {
            since.get_or_insert(clock_ms);
        }
        self.status_changed(member);
        if failing {
            self.at(disk_ok_at.min(now + SECOND), Event::DiskLook { member, epoch });
        }
    }

    /// Whose address this is, if its pod is there.
    pub(crate) fn member_at(&self, address: IpAddr) -> Option<usize> {
        (0..self.members.len())
            .find(|member| self.members[*member].exists && self.address(*member) == address)
    }

    /// A pod's own, never used again.
    pub(crate) fn address(&self, member: usize) -> IpAddr {
        let pod = self.members[member].pod;
        let octet = |shift: u32| u8::try_from(pod >> shift & 255).unwrap_or(0);
        IpAddr::from([10, octet(16), octet(8), octet(0)])
    }
}

fn directory(there: &Member) -> DataDirectory {
    let Some(data) = &there.data else {
        return DataDirectory::Empty;
    };
    DataDirectory::Complete(DataDirectoryFacts {
        system_identifier: SystemIdentifier(data.system_identifier),
        major_version: 16,
        timeline: data.control_position.timeline,
        control_lsn: data.control_position.lsn,
        control_state: data.control,
        standby_signal: data.standby_signal,
        recovery_signal: false,
        backup_label: false,
        half_rewound: data.half_rewound,
    })
}

/// A slot that exists.
pub(crate) fn slot(name: String) -> SlotStatus {
    SlotStatus {
        slot_name: name,
        active: true,
        restart_lsn: Some(Lsn(0)),
        lost: false,
        safe_wal_size_bytes: None,
    }
}
