//! What the agent asks, held against what is so: carried out, begun, or refused with the reason.

use std::mem::discriminant;

use tokio::sync::oneshot;

use super::run::Supervisor;
use super::socket::Call;
use super::work::{Task, Work};
use crate::clock::boottime_ms;
use crate::core::supervision::{
    JobProgress, JobRequest, JobState, JobStatus, ServerRole, StopMode, SupervisorReply, SupervisorRequest,
};
use crate::core::switch::SwitchPosition;
use crate::postgres::given::Source;

/// Where the answer to one request goes.
pub(super) type Reply = oneshot::Sender<SupervisorReply>;

/// Why a request is not carried out, for the agent's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("cannot start as primary: no licence")]
    NoLicence,
    #[error("cannot promote: no licence")]
    NoLicenceToPromote,
    #[error("PostgreSQL runs as primary already")]
    AlreadyPrimary,
    #[error("PostgreSQL is still starting")]
    NotReady,
    #[error("the promised terms cannot be read")]
    TermsUnknown,
    #[error("the licence would have ended {late_ms} ms ago")]
    LicenceOver { late_ms: u64 },
    #[error("the supervisor is stopping")]
    Stopping,
    #[error("PostgreSQL is running")]
    Running,
    #[error("PostgreSQL is not running")]
    NotRunning,
    #[error("PostgreSQL is being stopped")]
    BeingStopped,
    #[error("PostgreSQL ended or was stopped meanwhile")]
    Ended,
    #[error("PostgreSQL runs in the other role: a reload cannot change it")]
    OtherRole,
    #[error("job {id} is running")]
    JobRunning { id: u64 },
    #[error("an earlier request is still being carried out")]
    Busy,
    #[error("a term is being written down first")]
    TermUnderWay,
    #[error("term {term} was promised meanwhile")]
    PromisedMeanwhile { term: u64 },
}

/// For an answer, which is one line of bounded length: the beginning and the end of what a program may have said at any length.
pub(super) fn shortened(message: &str) -> String {
    /// Characters of each. In JSON one may take six bytes.
    const PART: usize = 2_000;
    let length = message.chars().count();
    if length <= 2 * PART {
        return message.to_owned();
    }
    let first: String = message.chars().take(PART).collect();
    let last: String = message.chars().skip(length - PART).collect();
    format!("{first} […] {last}")
}

impl Supervisor {
    /// Replies now, or leaves that to the work it begins.
    pub(super) fn answer(&mut self, call: Call) {
        // The deadline may have passed since the loop last looked; a renewal comes too late then.
        self.enforce_licence();
        self.look_at_files();
        let Call { request, reply } = call;
        let result = match request {
            SupervisorRequest::Status | SupervisorRequest::Wait { .. } => Ok(()),
            SupervisorRequest::Start { server, promised } => match self.may_start(&server, promised) {
                Ok(()) => {
                    self.work = Some(Work::prepare(&self.inputs, server, reply));
                    return;
                }
                Err(refusal) => Err(refusal.to_string()),
            },
            SupervisorRequest::Reload { server, promised } => match self.may_reload(&server, promised) {
                Ok(()) => {
                    let wanted = (server.clone(), self.source_for(&server));
                    self.work = Some(Work::rewrite(&self.inputs, wanted, Some(reply)));
                    return;
                }
                Err(refusal) => Err(refusal.to_string()),
            },
            SupervisorRequest::Promote { .. }
            | SupervisorRequest::Detach { .. }
            | SupervisorRequest::Hold { .. } => return self.bind(request, reply),
            other => self.carry_out(other),
        };
        self.reply(reply, result);
    }

    /// What needs no work that would reply later.
    fn carry_out(&mut self, request: SupervisorRequest) -> Result<(), String> {
        match request {
            SupervisorRequest::Run { job } => {
                self.may_work().map_err(|refusal| refusal.to_string())?;
                self.begin(job);
            }
            SupervisorRequest::Stop { mode } => self.stop_as_asked(mode),
            SupervisorRequest::Cancel => self.cancel_job(),
            SupervisorRequest::GrantLicence { until_ms } => return self.grant(until_ms),
            SupervisorRequest::KeepSwitch { position } => self.keep_switch(position),
            // Answered by the status alone, or begun by the caller.
            SupervisorRequest::Status
            | SupervisorRequest::Wait { .. }
            | SupervisorRequest::Start { .. }
            | SupervisorRequest::Reload { .. }
            | SupervisorRequest::Promote { .. }
            | SupervisorRequest::Detach { .. }
            | SupervisorRequest::Hold { .. } => {}
        }
        Ok(())
    }

    fn keep_switch(&mut self, position: SwitchPosition) {
        let newer = |known: &mut SwitchPosition| {
            let newer = position > *known;
            if newer {
                *known = position;
            }
            newer
        };
        if self.switch.send_if_modified(newer) {
            self.changed();
        }
    }

    /// The status as it is now, or the refusal. A client that has gone does not matter.
    pub(super) fn reply(&mut self, reply: Reply, result: Result<(), String>) {
        let answer = match result {
            Ok(()) => {
                self.told();
                SupervisorReply::Status(Box::new(self.status()))
            }
            Err(message) => SupervisorReply::Refused {
                message: shortened(&message),
            },
        };
        drop(reply.send(answer));
    }

    /// Nothing runs: no postmaster, no tool.
    fn may_work(&self) -> Result<(), Refusal> {
        if self.stopping {
            return Err(Refusal::Stopping);
        }
        if self.child.is_some() {
            return Err(Refusal::Running);
        }
        self.may_begin_work()
    }

    pub(super) fn may_begin_work(&self) -> Result<(), Refusal> {
        match (&self.work, &self.job) {
            // A look gives way to whatever is asked.
            (None | Some(Work { task: Task::Look, .. }), _) => Ok(()),
            (
                Some(Work {
                    task: Task::Job { .. },
                    ..
                }),
                Some(job),
            ) => Err(Refusal::JobRunning { id: job.id }),
            (Some(_), _) => Err(Refusal::Busy),
        }
    }

    fn may_start(&self, server: &ServerRole, promised: Option<u64>) -> Result<(), Refusal> {
        self.may_work()?;
        self.may_follow(server, promised)?;
        self.may_run_as(server)
    }

    /// No promise must find the member attached again by what was decided before it.
    fn may_follow(&self, server: &ServerRole, promised: Option<u64>) -> Result<(), Refusal> {
        let follows = matches!(server, ServerRole::Standby { upstream: Some(_) });
        if follows && self.errand.is_some() {
            return Err(Refusal::TermUnderWay);
        }
        let term = self.terms.map(|terms| terms.promised);
        match (promised, term) {
            (Some(known), Some(term)) if follows && known != term => Err(Refusal::PromisedMeanwhile { term }),
            _ => Ok(()),
        }
    }

    pub(super) fn may_run_as(&self, server: &ServerRole) -> Result<(), Refusal> {
        if matches!(server, ServerRole::Primary { .. }) && !self.licence.allows_primary() {
            return Err(Refusal::NoLicence);
        }
        Ok(())
    }

    fn may_reload(&self, server: &ServerRole, promised: Option<u64>) -> Result<(), Refusal> {
        if self.stopping {
            return Err(Refusal::Stopping);
        }
        let child = self.child.as_ref().ok_or(Refusal::NotRunning)?;
        if child.is_stopping() {
            return Err(Refusal::BeingStopped);
        }
        if discriminant(&child.role) != discriminant(server) {
            return Err(Refusal::OtherRole);
        }
        self.may_follow(server, promised)?;
        self.may_begin_work()
    }

    /// A server that is to be what it is goes on with what it has; whoever is to be something else needs it now.
    fn source_for(&self, server: &ServerRole) -> Source {
        match &self.child {
            Some(child) if child.role == *server => Source::Mounted,
            _ => Source::MountedOrAccepted,
        }
    }

    /// For HUP: the same server, with whatever has changed in the mounted files.
    pub(super) fn reload_as_it_runs(&mut self) {
        let Some(role) = self.child.as_ref().map(|child| child.role.clone()) else {
            return;
        };
        if self.may_reload(&role, None).is_ok() {
            self.work = Some(Work::rewrite(&self.inputs, (role, Source::Mounted), None));
        }
    }

    fn begin(&mut self, job: JobRequest) {
        let kind = job.kind();
        self.job = Some(JobStatus {
            id: self.job.as_ref().map_or(0, |job| job.id) + 1,
            kind,
            upstream: job.upstream().map(|upstream| upstream.host.clone()),
            state: JobState::Running {
                progress: JobProgress::default(),
            },
        });
        self.work = Some(Work::job(&self.inputs, job));
        self.changed();
    }

    fn stop_as_asked(&mut self, mode: StopMode) {
        if matches!(
            self.work,
            Some(Work {
                task: Task::Prepare { .. },
                ..
            })
        ) {
            self.abandon_work();
        }
        self.stop(mode, None, "requested by the agent");
    }

    /// The newest counts, but one that comes after its own end changes nothing.
    fn grant(&mut self, until_ms: Option<u64>) -> Result<(), String> {
        let late_ms = until_ms.and_then(|until_ms| boottime_ms().checked_sub(until_ms));
        if let Some(late_ms) = late_ms {
            return Err(Refusal::LicenceOver { late_ms }.to_string());
        }
        let could_not = |error| format!("could not set the timer for the licence: {error}");
        let before = self.licence.allows_primary();
        self.licence.grant(until_ms).map_err(could_not)?;
        // A renewal is no news to anybody, and comes every few seconds.
        if !before {
            self.changed();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its JSON was longer than the sidecar reads in one line, and the sidecar took the supervisor for gone.
    #[test]
    fn a_long_message_of_a_program_made_the_status_unreadable() {
        let long = "\u{1}".repeat(190_000) + "the reason";
        let told = shortened(&long);
        assert!(told.ends_with("the reason"), "{told}");
        let line = serde_json::to_string(&SupervisorReply::Refused { message: told }).expect("JSON");
        assert!(
            line.len() < crate::core::supervision::MAX_LINE_BYTES / 2,
            "{}",
            line.len()
        );
        assert_eq!(shortened("short"), "short");
    }
}
