//! The postmaster as a child process: its pid, what it runs as, and how it is being stopped.
//!
//! Never starts or waits for anything; sends signals and keeps the time of the next harder one.

use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::time::Instant;

use super::reaper;
use crate::core::supervision::{Postmaster, ServerRole, StopMode};
use crate::postgres::postmaster_pid::PostmasterPid;

/// A started postmaster that has not been collected yet.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: Pid,
    pub(super) role: ServerRole,
    pub(super) ready: bool,
    /// What another postmaster had left when this one was started.
    pub(super) leftover: Option<PostmasterPid>,
    stopping: Option<Stopping>,
    /// As [`Postmaster::Stopping`] says it.
    pub(super) shut_down: bool,
}

#[derive(Debug)]
struct Stopping {
    mode: StopMode,
    /// When the next harder signal is due.
    escalate_at: Option<Instant>,
}

impl Child {
    pub(super) fn new(pid: Pid, role: ServerRole, leftover: Option<PostmasterPid>) -> Self {
        Self {
            pid,
            role,
            ready: false,
            leftover,
            stopping: None,
            shut_down: false,
        }
    }

    pub(super) fn status(&self) -> Postmaster {
        let pid = self.pid.as_raw_nonzero().get().unsigned_abs();
        match &self.stopping {
            Some(stopping) => Postmaster::Stopping {
                pid,
                mode: stopping.mode,
                shut_down: self.shut_down,
            },
            None => Postmaster::Running {
                pid,
                role: self.role.clone(),
                ready: self.ready,
            },
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// A primary that is being stopped and may write its last checkpoint at any moment. Before it was ready the control file told of the stop
    /// before this one.
    pub(super) fn is_shutting_down(&self) -> bool {
        let fast = self.stopping.as_ref().map(|stopping| stopping.mode) == Some(StopMode::Fast);
        let primary = matches!(self.role, ServerRole::Primary { .. });
        fast && primary && self.ready && !self.shut_down
    }

    /// Still on its way to readiness.
    pub(super) fn is_starting(&self) -> bool {
        !self.ready && self.stopping.is_none()
    }

    pub(super) fn reload(&self) {
        reaper::send(self.pid, Signal::HUP);
    }

    /// Asks for a stop, unless one at least as hard is under way. True if that changed anything.
    ///
    /// A fast stop takes the time that its checkpoint needs, unless `patience` ends it: then it
    /// becomes immediate. An immediate one becomes SIGKILL after `kill_after`.
    pub(super) fn stop(&mut self, mode: StopMode, patience: Option<Duration>, kill_after: Duration) -> bool {
        let begun = self.stopping.as_ref().map(|stopping| stopping.mode);
        if begun == Some(mode) {
            self.shorten(patience);
            return false;
        }
        if begun > Some(mode) {
            return false;
        }
        let (signal, limit) = match mode {
            StopMode::Fast => (Signal::INT, patience),
            StopMode::Immediate => (Signal::QUIT, Some(kill_after)),
        };
        reaper::send(self.pid, signal);
        let escalate_at = limit.and_then(|limit| Instant::now().checked_add(limit));
        self.stopping = Some(Stopping { mode, escalate_at });
        true
    }

    fn shorten(&mut self, patience: Option<Duration>) {
        let until = patience.and_then(|patience| Instant::now().checked_add(patience));
        if let (Some(stopping), Some(until)) = (&mut self.stopping, until) {
            stopping.escalate_at = Some(stopping.escalate_at.map_or(until, |at| at.min(until)));
        }
    }

    /// When [`Self::escalate`] is due.
    pub(super) fn escalate_at(&self) -> Option<Instant> {
        self.stopping.as_ref().and_then(|stopping| stopping.escalate_at)
    }

    /// From fast to immediate, from immediate to SIGKILL, and that again every `again_after`.
    pub(super) fn escalate(&mut self, again_after: Duration) {
        if self.stop(StopMode::Immediate, None, again_after) {
            return;
        }
        // The children first: they are found by their parent.
        for child in reaper::children_of(self.pid) {
            reaper::send(child, Signal::KILL);
        }
        reaper::send(self.pid, Signal::KILL);
        if let Some(stopping) = &mut self.stopping {
            stopping.escalate_at = Instant::now().checked_add(again_after);
        }
    }
}
