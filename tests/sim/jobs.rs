//! The supervisor's jobs: initdb, clone, rewind, as PostgreSQL's programs leave a directory when they end or are ended.

use podgres::core::data_directory::{ControlState, SystemIdentifier};
use podgres::core::lease::Incarnation;
use podgres::core::supervision::{FailureKind, JobKind, JobProgress, JobRequest, JobState, JobStatus};
use podgres::core::wal::{Lsn, WalPosition};

use crate::config::{MS, SECOND};
use crate::event::Event;
use crate::wal::{Data, Wal};
use crate::world::World;

impl World {
    pub(crate) fn run_job(&mut self, member: usize, job: JobRequest) -> Result<(), &'static str> {
        let there = &self.members[member];
        let Some(supervisor) = &there.supervisor else {
            return Ok(());
        };
        let running = matches!(
            &supervisor.status.job,
            Some(JobStatus {
                state: JobState::Running { .. },
                ..
            })
        );
        if supervisor.working || running || supervisor.status.stopping || there.postgres.is_some() {
            return Err("cannot run the job");
        }
        let upstream = match &job {
            JobRequest::Initdb => None,
            JobRequest::Clone { upstream, .. } | JobRequest::Rewind { upstream, .. } => {
                self.member_at(upstream.address)
            }
        };
        let delay = match job.kind() {
            JobKind::Initdb => self.random.skewed(200 * MS, 2 * SECOND),
            JobKind::Clone => self.random.skewed(200 * MS, 8 * SECOND),
            JobKind::Rewind => self.random.skewed(100 * MS, 3 * SECOND),
        };
        self.log(member, || format!("runs {job:?}"));
        let Some(supervisor) = &mut self.members[member].supervisor else {
            return Ok(());
        };
        let id = supervisor.status.job.as_ref().map_or(0, |job| job.id) + 1;
        supervisor.job_upstream = upstream;
        supervisor.status.job = Some(JobStatus {
            id,
            kind: job.kind(),
            upstream: job.upstream().map(|upstream| upstream.host.clone()),
            state: JobState::Running {
                progress: JobProgress::default(),
            },
        });
        let epoch = supervisor.epoch;
        self.after(
            delay,
            Event::JobEnd {
                member,
                epoch,
                id,
                job: Box::new(job),
            },
        );
        self.status_changed(member);
        Ok(())
    }

    /// The running job ends at a place of its own choosing.
    pub(crate) fn cancel_job(&mut self, member: usize) {
        let half = self.random.chance(50);
        let there = &mut self.members[member];
        let Some(job) = there
            .supervisor
            .as_mut()
            .and_then(|supervisor| supervisor.status.job.as_mut())
        else {
            return;
        };
        if !matches!(job.state, JobState::Running { .. }) {
            return;
        }
        job.state = JobState::Failed {
            refused: false,
            kind: FailureKind::Passing,
            message: "cancelled".to_owned(),
        };
        if job.kind == JobKind::Rewind
            && let Some(data) = there.data.as_mut().filter(|_| half)
        {
            data.half_rewound = true;
        }
        self.look_at_directory(member);
        self.status_changed(member);
    }

    pub(crate) fn job_end(&mut self, member: usize, epoch: u64, id: u64, job: &JobRequest) {
        let Some(supervisor) = self.supervisor(member, epoch) else {
            return;
        };
        let running = supervisor
            .status
            .job
            .as_ref()
            .is_some_and(|job| job.id == id && matches!(job.state, JobState::Running { .. }));
        if !running {
            return;
        }
        let upstream = supervisor.job_upstream;
        let result = match job {
            JobRequest::Initdb => self.initdb(member),
            JobRequest::Clone {
                system_identifier, ..
            } => self.clone_from(member, upstream, *system_identifier),
            JobRequest::Rewind { .. } => self.rewind(member, upstream),
        };
        self.log(member, || format!("{:?} ended: {result:?}", job.kind()));
        let state = match result {
            Ok(()) => JobState::Done,
            Err((refused, message)) => JobState::Failed {
                refused,
                kind: if refused {
                    FailureKind::Data
                } else {
                    FailureKind::Passing
                },
                message: message.to_owned(),
            },
        };
        if let Some(supervisor) = &mut self.members[member].supervisor {
            supervisor.status.job = Some(JobStatus {
                id,
                kind: job.kind(),
                upstream: job.upstream().map(|upstream| upstream.host.clone()),
                state,
            });
        }
        self.look_at_directory(member);
        self.status_changed(member);
    }

    fn initdb(&mut self, member: usize) -> Result<(), (bool, &'static str)> {
        let (identifier, incarnation) = (self.name(), self.name());
        self.oracle_initdb(member, identifier);
        if self.members[member].data.is_some() {
            return Err((true, "the directory is not empty"));
        }
        let wal = Wal {
            entries: vec![identifier],
            ..Wal::new()
        };
        self.members[member].data = Some(Data {
            control_position: WalPosition {
                lsn: Lsn(0),
                ..wal.end()
            },
            wal,
            incarnation: Incarnation(incarnation.to_string().into()),
            system_identifier: identifier,
            standby_signal: false,
            control: ControlState::ShutDown,
            half_rewound: false,
            slots: Vec::new(),
        });
        Ok(())
    }

    /// The upstream's directory, if it can be copied from now.
    fn source(&self, member: usize, upstream: Option<usize>) -> Result<(usize, &Data), (bool, &'static str)> {
        let from = upstream.ok_or((false, "nobody is there"))?;
        let there = &self.members[from];
        let open = there
            .postgres
            .as_ref()
            .is_some_and(|p| p.is_ready && p.stopping.is_none());
        let reached = self.network.up(from, member) && self.network.up(member, from) && !there.frozen;
        let data = there.data.as_ref().filter(|_| open && reached && from != member);
        data.map(|data| (from, data)).ok_or((false, "could not connect"))
    }

    fn clone_from(
        &mut self,
        member: usize,
        upstream: Option<usize>,
        wanted: SystemIdentifier,
    ) -> Result<(), (bool, &'static str)> {
        let incarnation = self.name();
        let (_, source) = self.source(member, upstream)?;
        if source.system_identifier != wanted.0 {
            return Err((true, "another cluster"));
        }
        let mut data = source.clone();
        data.incarnation = Incarnation(incarnation.to_string().into());
        data.standby_signal = true;
        data.control = ControlState::InArchiveRecovery;
        data.control_position = data.wal.end();
        data.half_rewound = false;
        data.slots.clear();
        self.members[member].lineage += 1;
        self.members[member].data = Some(data);
        Ok(())
    }

    /// As `pg_rewind` judges: by timelines and positions alone.
    fn rewind(&mut self, member: usize, upstream: Option<usize>) -> Result<(), (bool, &'static str)> {
        let (_, source) = self.source(member, upstream)?;
        let Some(data) = &self.members[member].data else {
            return Err((true, "no directory"));
        };
        if source.system_identifier != data.system_identifier {
            return Err((true, "another cluster"));
        }
        let mut next = data.clone();
        // Its files may be of a primary that went another way: then what it received since does not count.
        let own = data.wal.history.timeline;
        let files = data.control_position.timeline;
        if source.wal.history.timeline != own || files != own {
            let fork = fork(&data.wal, &source.wal)
                .min(data.wal.len())
                .min(source.wal.len());
            next.wal.entries.truncate(fork);
            next.wal.take_history_of(&source.wal);
            next.control_position = source.wal.end();
        }
        next.standby_signal = true;
        next.control = ControlState::InArchiveRecovery;
        self.members[member].lineage += 1;
        self.members[member].data = Some(next);
        Ok(())
    }
}

/// The last place that both histories have, by what they say.
fn fork(target: &Wal, source: &Wal) -> usize {
    let ends = |wal: &Wal| -> Vec<WalPosition> {
        let last = WalPosition {
            timeline: wal.history.timeline,
            lsn: Lsn(u64::MAX),
        };
        wal.history.ancestors.iter().copied().chain([last]).collect()
    };
    let mut common = 0;
    for (one, two) in ends(target).iter().zip(ends(source)) {
        if one.timeline != two.timeline {
            break;
        }
        common = one.lsn.min(two.lsn).0;
        if one.lsn != two.lsn {
            break;
        }
    }
    usize::try_from(common / crate::wal::ENTRY_BYTES).unwrap_or(usize::MAX)
}
