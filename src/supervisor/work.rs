//! The one slow thing that may be under way: a start, a reload, a job, a look, or clearing up after a stop.
//!
//! Each is a future that the loop polls among everything else; what it yields is taken in here.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::inputs::{self, Inputs};
use super::postmaster::Child;
use super::requests::{Refusal, Reply, shortened};
use super::run::{INSPECT_INTERVAL, Supervisor};
use super::tools::{self, Cleanup, JobFailure, Seen};
use super::{panic, reaper};
use crate::core::supervision::{
    FailureKind, JobProgress, JobRequest, JobState, NextTimeline, Postmaster, PostmasterExit, ServerRole,
};
use crate::postgres::given::{Given, Source};

/// What a future yields at its end.
pub(super) enum Finished {
    Settled(Seen),
    Looked(Seen),
    ShutDown(Seen),
    Prepared(Seen, Result<Given, String>),
    Rewritten(Result<Given, String>),
    PromoteFileMade(Result<(), String>),
    JobEnded(Result<(), JobFailure>, Seen),
}

/// What is under way, with what will be needed at its end.
pub(super) enum Task {
    /// Ends what a postmaster left behind and reads its directory. Until then the status says `before`.
    Settle {
        before: Postmaster,
        exit: PostmasterExit,
    },
    /// Reads the directory of a stopped server again; given up for anything else.
    Look,
    /// Waits for the last checkpoint of a primary that is being stopped.
    ShutDown,
    /// Everything before the start of a postmaster.
    Prepare { role: ServerRole, reply: Reply },
    /// New configuration files for a running postmaster.
    Rewrite { role: ServerRole, reply: Option<Reply> },
    /// The configuration of a primary for a standby that is to become one.
    Promote {
        role: ServerRole,
        timeline: NextTimeline,
        reply: Reply,
    },
    /// The file that tells PostgreSQL to become one.
    PromoteFile { reply: Reply },
    Job {
        cancel: watch::Sender<Option<Cleanup>>,
        progress: watch::Receiver<JobProgress>,
    },
}

type Doing = Pin<Box<dyn Future<Output = Finished> + Send>>;

pub(super) struct Work {
    pub(super) task: Task,
    doing: Doing,
}

pub(super) enum Happened {
    Progress(JobProgress),
    Finished(Box<Finished>),
}

impl Work {
    pub(super) fn settle(inputs: &Arc<Inputs>, before: Postmaster, exit: PostmasterExit) -> Self {
        let inputs = Arc::clone(inputs);
        Self {
            task: Task::Settle { before, exit },
            doing: Box::pin(async move {
                let left = reaper::end_leftovers(inputs.settings.stop_timeout).await;
                if left > 0 {
                    tracing::warn!("could not end {left} processes that PostgreSQL left behind");
                }
                Finished::Settled(tools::look(&inputs.settings).await)
            }),
        }
    }

    pub(super) fn look(inputs: &Arc<Inputs>) -> Self {
        let inputs = Arc::clone(inputs);
        Self {
            task: Task::Look,
            doing: Box::pin(async move {
                let settings = inputs::now(&inputs).await;
                Finished::Looked(tools::look(&settings).await)
            }),
        }
    }

    pub(super) fn shut_down(inputs: &Arc<Inputs>) -> Self {
        let inputs = Arc::clone(inputs);
        Self {
            task: Task::ShutDown,
            doing: Box::pin(async move { Finished::ShutDown(tools::wait_shut_down(&inputs.settings).await) }),
        }
    }

    pub(super) fn prepare(inputs: &Arc<Inputs>, role: ServerRole, reply: Reply) -> Self {
        let preparing = tools::prepare_start(Arc::clone(inputs), role.clone());
        Self {
            task: Task::Prepare { role, reply },
            doing: Box::pin(async move {
                let (seen, prepared) = preparing.await;
                Finished::Prepared(seen, prepared)
            }),
        }
    }

    pub(super) fn rewrite(
        inputs: &Arc<Inputs>,
        (role, source): (ServerRole, Source),
        reply: Option<Reply>,
    ) -> Self {
        let writing = tools::write_configuration(Arc::clone(inputs), role.clone(), source);
        Self {
            task: Task::Rewrite { role, reply },
            doing: Box::pin(async move { Finished::Rewritten(writing.await) }),
        }
    }

    pub(super) fn promote(
        inputs: &Arc<Inputs>,
        (role, timeline): (ServerRole, NextTimeline),
        reply: Reply,
    ) -> Self {
        let source = Source::MountedOrAccepted;
        let writing = tools::write_configuration(Arc::clone(inputs), role.clone(), source);
        Self {
            task: Task::Promote {
                role,
                timeline,
                reply,
            },
            doing: Box::pin(async move { Finished::Rewritten(writing.await) }),
        }
    }

    pub(super) fn promote_file(inputs: &Arc<Inputs>, timeline: NextTimeline, reply: Reply) -> Self {
        let making = tools::make_promote_file(Arc::clone(inputs), timeline);
        Self {
            task: Task::PromoteFile { reply },
            doing: Box::pin(async move { Finished::PromoteFileMade(making.await) }),
        }
    }

    pub(super) fn job(inputs: &Arc<Inputs>, job: JobRequest) -> Self {
        let inputs = Arc::clone(inputs);
        let (report, progress) = watch::channel(JobProgress::default());
        let (cancel, cancelled) = watch::channel(None);
        Self {
            task: Task::Job { cancel, progress },
            doing: Box::pin(async move {
                let settings = inputs::now(&inputs).await;
                let result = tools::run_job(&settings, job, report, cancelled).await;
                Finished::JobEnded(result, tools::look(&settings).await)
            }),
        }
    }
}

/// The next event of the work under way; never, without any. Dropping the future loses nothing.
pub(super) async fn next(work: &mut Option<Work>) -> Happened {
    let Some(Work { task, doing }) = work else {
        return std::future::pending().await;
    };
    let Task::Job { progress, .. } = task else {
        return Happened::Finished(Box::new(doing.await));
    };
    tokio::select! {
        biased;
        finished = &mut *doing => Happened::Finished(Box::new(finished)),
        Ok(()) = progress.changed() => Happened::Progress(*progress.borrow_and_update()),
    }
}

impl Supervisor {
    pub(super) fn take_in(&mut self, happened: Happened) {
        let finished = match happened {
            Happened::Progress(progress) => return self.job_goes_on(progress),
            Happened::Finished(finished) => *finished,
        };
        self.inspect_at = Instant::now() + INSPECT_INTERVAL;
        match (self.work.take().map(|work| work.task), finished) {
            (Some(Task::Look), Finished::Looked(seen)) => self.looked(seen),
            (Some(Task::ShutDown), Finished::ShutDown(seen)) => {
                self.found.seen = seen;
                if let Some(child) = &mut self.child {
                    child.shut_down = true;
                }
                self.changed();
            }
            (Some(Task::Settle { exit, .. }), Finished::Settled(seen)) => {
                self.found.seen = seen;
                tracing::info!("PostgreSQL {}", exit.description);
                self.last_exit = Some(exit);
                self.changed();
            }
            (Some(Task::Prepare { role, reply }), Finished::Prepared(seen, prepared)) => {
                self.found.seen = seen;
                self.changed();
                let started = prepared.and_then(|given| self.start(role, given));
                self.reply(reply, started);
            }
            (Some(Task::Rewrite { role, reply }), Finished::Rewritten(written)) => {
                self.reload(&role, reply, written);
            }
            (
                Some(Task::Promote {
                    role,
                    timeline,
                    reply,
                }),
                Finished::Rewritten(written),
            ) => {
                self.announce_promotion((role, timeline), reply, written);
            }
            (Some(Task::PromoteFile { reply }), Finished::PromoteFileMade(made)) => {
                self.promote(reply, made);
            }
            (Some(Task::Job { .. }), Finished::JobEnded(result, seen)) => {
                self.found.seen = seen;
                self.job_ended(result);
                self.changed();
            }
            _ => tracing::error!("work ended as something else than it began; this is a bug"),
        }
        // Those that died while a tool ran.
        self.collect_children();
        self.watch_shut_down();
    }

    fn looked(&mut self, seen: Seen) {
        if seen != self.found.seen {
            self.found.seen = seen;
            self.changed();
        }
    }

    fn start(&mut self, role: ServerRole, given: Given) -> Result<(), String> {
        self.enforce_licence();
        self.may_run_as(&role).map_err(|refusal| refusal.to_string())?;
        let name = match role {
            ServerRole::Primary { .. } => "primary",
            ServerRole::Standby { .. } => "standby",
        };
        tracing::info!("starting PostgreSQL {} as {name}", self.found.major_version);
        let leftover = tools::leftover(&self.inputs.settings);
        let pid = tools::spawn_postmaster(&self.inputs.settings)?;
        panic::record_postmaster(Some(pid));
        self.child = Some(Child::new(pid, role, leftover));
        self.fenced = false;
        self.gave(given);
        self.changed();
        Ok(())
    }

    fn reload(&mut self, role: &ServerRole, reply: Option<Reply>, written: Result<Given, String>) {
        let result = written.and_then(|given| {
            let child = self.child.as_mut().ok_or(Refusal::Ended.to_string())?;
            child.role = role.clone();
            child.reload();
            self.gave(given);
            self.watch_receiver(role);
            self.changed();
            Ok(())
        });
        if let Some(reply) = reply {
            self.reply(reply, result);
        }
    }

    fn job_goes_on(&mut self, now: JobProgress) {
        if let Some(job) = &mut self.job {
            job.state = JobState::Running { progress: now };
            self.changed();
        }
    }

    fn job_ended(&mut self, result: Result<(), JobFailure>) {
        let Some(job) = &mut self.job else {
            return;
        };
        job.state = match result {
            Ok(()) => JobState::Done,
            Err(JobFailure { kind, message }) => {
                tracing::warn!("{message}");
                JobState::Failed {
                    refused: kind != FailureKind::Passing,
                    kind,
                    message: shortened(&message),
                }
            }
        };
    }

    /// Ends the running job; the status tells when it has ended.
    pub(super) fn cancel_job(&mut self) {
        self.end_job(Cleanup::Now);
    }

    /// Gives up what is under way, since PostgreSQL ended or everything is to end.
    pub(super) fn abandon_work(&mut self) {
        self.end_job(Cleanup::AtNextStart);
        let begun = matches!(
            &self.work,
            Some(Work {
                task: Task::Look
                    | Task::ShutDown
                    | Task::Prepare { .. }
                    | Task::Rewrite { .. }
                    | Task::Promote { .. }
                    | Task::PromoteFile { .. },
                ..
            })
        );
        if !begun {
            return;
        }
        let reply = match self.work.take().map(|work| work.task) {
            Some(Task::Prepare { reply, .. } | Task::Promote { reply, .. } | Task::PromoteFile { reply }) => {
                Some(reply)
            }
            Some(Task::Rewrite { reply, .. }) => reply,
            _ => None,
        };
        if let Some(reply) = reply {
            self.reply(reply, Err(Refusal::Ended.to_string()));
        }
    }

    fn end_job(&mut self, cleanup: Cleanup) {
        if let Some(Work {
            task: Task::Job { cancel, .. },
            ..
        }) = &self.work
        {
            cancel.send_replace(Some(cleanup));
        }
    }
}
