//! A running standby becomes the primary, as `pg_ctl promote` does it: a file in PGDATA, then SIGUSR1.
//!
//! First the configuration of the new role is written and SIGHUP sent: the postmaster takes signals in that order, so
//! that no commit is acknowledged by what stood there before. From that SIGHUP on it counts as primary, for the fence.

use rustix::process::Signal;

use super::reaper;
use super::requests::{Refusal, Reply};
use super::run::Supervisor;
use super::work::Work;
use crate::core::supervision::{NextTimeline, ServerRole};
use crate::postgres::given::Given;

impl Supervisor {
    pub(super) fn may_promote(&self) -> Result<(), Refusal> {
        if self.stopping {
            return Err(Refusal::Stopping);
        }
        let child = self.child.as_ref().ok_or(Refusal::NotRunning)?;
        if child.is_stopping() {
            return Err(Refusal::BeingStopped);
        }
        if matches!(child.role, ServerRole::Primary { .. }) {
            return Err(Refusal::AlreadyPrimary);
        }
        if !child.ready {
            return Err(Refusal::NotReady);
        }
        if !self.licence.allows_primary() {
            return Err(Refusal::NoLicenceToPromote);
        }
        self.may_begin_work()
    }

    /// The term is on disk.
    pub(super) fn prepare_promotion(&mut self, role: ServerRole, timeline: NextTimeline, reply: Reply) {
        self.enforce_licence();
        if let Err(refusal) = self.may_promote() {
            return self.reply(reply, Err(refusal.to_string()));
        }
        self.work = Some(Work::promote(&self.inputs, (role, timeline), reply));
    }

    /// The configuration is written.
    pub(super) fn announce_promotion(
        &mut self,
        (role, timeline): (ServerRole, NextTimeline),
        reply: Reply,
        written: Result<Given, String>,
    ) {
        self.enforce_licence();
        let refusal = self.may_promote().map_err(|refusal| refusal.to_string());
        let given = match refusal.and(written) {
            Ok(given) => given,
            Err(message) => return self.reply(reply, Err(message)),
        };
        if let Some(child) = &mut self.child {
            child.role = role;
            child.reload();
        }
        self.gave(given);
        self.changed();
        self.work = Some(Work::promote_file(&self.inputs, timeline, reply));
    }

    /// The file is there.
    pub(super) fn promote(&mut self, reply: Reply, made: Result<(), String>) {
        self.enforce_licence();
        let result = match &mut self.child {
            Some(child) if !child.is_stopping() => made.inspect_err(|_| {
                // Still a standby, which follows nobody.
                child.role = ServerRole::Standby { upstream: None };
            }),
            _ => Err(Refusal::Ended.to_string()),
        };
        if let (Ok(()), Some(child)) = (&result, &self.child) {
            reaper::send(child.pid, Signal::USR1);
            tracing::info!("promoting PostgreSQL");
        }
        self.changed();
        self.reply(reply, result);
    }
}
