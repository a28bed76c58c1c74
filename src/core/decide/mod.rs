//! The one function that decides: `decide(policy, memory, observation) -> Decision`.
//!
//! It reads like a table from top to bottom: the first row that fits gives the situation and at
//! most one action. `docs/decision-table.md` is generated from it. It never looks at a clock, and
//! it is told nothing but what an observation holds.

mod first;
mod lease;
mod note;
mod read_only;
mod running;
mod shared;
mod slots;
mod standby;

use super::data_directory::DataDirectoryFacts;
use super::decision::{Decision, Memory, PostgresAction};
use super::observation::{NameState, Observation, ProbeState};
use super::policy::{Leadership, Policy};
use super::situation::Situation;
use super::supervision::{JobState, JobStatus, Postmaster, ServerRole, StopMode, SupervisorStatus, Upstream};

/// Look again this soon while something changes by itself.
const SOON_MS: u64 = 50;
/// Look again at least this often.
const REGULARLY_MS: u64 = 1_000;
/// Look again this soon while the supervisor does not answer.
const SUPERVISOR_RETRY_MS: u64 = 200;

/// One turn's inputs, with the memory already brought up to date.
struct Turn<'a> {
    policy: &'a Policy,
    observation: &'a Observation,
    supervisor: &'a SupervisorStatus,
    memory: Box<Memory>,
}

/// Decides what this member is in, and the one thing to do about it.
///
/// `memory` is what the last decision returned (`Memory::default()` at first).
#[must_use]
pub fn decide(policy: &Policy, memory: &Memory, observation: &Observation) -> Decision {
    decide_with(policy, Box::new(memory.clone()), observation)
}

/// As [`decide`], for whoever keeps no copy of the memory.
#[must_use]
pub fn decide_with(policy: &Policy, mut memory: Box<Memory>, observation: &Observation) -> Decision {
    note::update(policy, &mut memory, observation);
    let Some(supervisor) = &observation.supervisor else {
        let detail = observation.supervisor_error.clone().unwrap_or_default();
        let decision = Decision {
            recheck_after_ms: SUPERVISOR_RETRY_MS,
            ..Decision::row(Situation::SupervisorUnreachable, detail, memory)
        };
        return match policy.leadership {
            Leadership::Fixed => decision,
            Leadership::Lease => lease::without_supervisor(policy, observation, decision),
        };
    };
    let turn = Turn {
        policy,
        observation,
        supervisor,
        memory,
    };
    let mut decision = match policy.leadership {
        Leadership::Fixed => fixed(turn),
        Leadership::Lease => lease::decide(turn),
    };
    note::note_wal(&mut decision, observation);
    let wanted = read_only::wanted(policy, observation);
    let decision = read_only::with_default(decision, supervisor, observation, wanted);
    with_mounted_files(decision, supervisor, observation.at_ms)
}

/// A running server that is otherwise left alone is given what has changed in the mounted files, whatever it says itself:
/// perhaps it cannot follow its primary, or cannot be asked, just because of them.
fn with_mounted_files(mut decision: Decision, supervisor: &SupervisorStatus, at_ms: u64) -> Decision {
    let Postmaster::Running {
        role, ready: true, ..
    } = &supervisor.postmaster
    else {
        return decision;
    };
    if supervisor.stopping || decision.situation == Situation::UpstreamMoved {
        return decision;
    }
    if !supervisor.outdated {
        decision.memory.reloads = 0;
        decision.memory.reload_at_ms = 0;
        return decision;
    }
    if decision.postgres.is_some() || decision.memory.lease.handing_over.is_some() {
        return decision;
    }
    if !decision.detail.is_empty() {
        decision.detail.push_str("; ");
    }
    decision.detail.push_str("the mounted files have changed");
    decision.reload(at_ms, role.clone())
}

/// The first ordinal is the primary for ever.
fn fixed(turn: Turn<'_>) -> Decision {
    let supervisor = turn.supervisor;
    if let Some(JobStatus {
        kind,
        state: JobState::Running { progress },
        ..
    }) = &supervisor.job
    {
        return turn.row(shared::while_job_runs(*kind), shared::progress_text(*progress));
    }
    if supervisor.stopping {
        return turn.row(Situation::Leaving, String::new());
    }
    match &supervisor.postmaster {
        Postmaster::Stopping { .. } => turn.row(Situation::Stopping, String::new()).soon(),
        Postmaster::Running { role, ready, .. } => running::decide(turn, role, *ready),
        Postmaster::Stopped { .. } => stopped(turn),
    }
}

/// PostgreSQL does not run and no job does.
fn stopped(turn: Turn<'_>) -> Decision {
    match shared::openable(turn.supervisor) {
        Err((situation, detail)) => turn.row(situation, detail),
        Ok(None) if turn.policy.first() => first::empty(turn),
        Ok(None) => standby::empty(turn),
        Ok(Some(facts)) if turn.policy.first() => first::complete(turn, facts),
        Ok(Some(facts)) => standby::complete(turn, facts),
    }
}

impl<'a> Turn<'a> {
    /// A row without an action.
    fn row(self, situation: Situation, detail: String) -> Decision {
        Decision::row(situation, detail, self.memory)
    }

    /// A row with its action; what the action's end must be counted against is noted.
    fn act(mut self, situation: Situation, detail: String, action: PostgresAction) -> Decision {
        let read_only = read_only::wanted(self.policy, self.observation);
        let action = read_only::given(action, read_only);
        if let Some(message) = note::refrain(&self.memory, self.observation, &action) {
            let detail = if detail.is_empty() {
                message.to_owned()
            } else {
                format!("{detail}: {message}")
            };
            return self.row(situation, detail);
        }
        self.memory.start_pending |= matches!(action, PostgresAction::Start { .. });
        Decision {
            postgres: Some(action),
            ..self.row(situation, detail)
        }
        .soon()
    }

    /// PostgreSQL ends its sessions and stops.
    fn stop(self, situation: Situation, detail: String) -> Decision {
        self.act(situation, detail, PostgresAction::Stop { mode: StopMode::Fast })
    }

    fn facts(&self) -> Option<&'a DataDirectoryFacts> {
        self.supervisor.data_directory.facts()
    }

    /// The pause after a failed job or start is not over.
    fn pausing(&self) -> bool {
        self.observation.at_ms < self.memory.retry_at_ms
    }

    /// Why the last job failed, while the pause after it lasts.
    fn failed_job(&self) -> Option<(Situation, String)> {
        match &self.supervisor.job {
            Some(JobStatus {
                state: JobState::Failed { refused, message, .. },
                ..
            }) if self.pausing() => {
                let situation = if *refused {
                    Situation::JobRefused
                } else {
                    Situation::JobFailed
                };
                Some((situation, message.clone()))
            }
            _ => None,
        }
    }

    /// How the last start ended, while the pause after it lasts.
    fn failed_start(&self) -> Option<String> {
        match &self.supervisor.postmaster {
            Postmaster::Stopped {
                last_exit: Some(exit),
            } if self.pausing() => Some(format!(
                "PostgreSQL {} before it was ready, {} times in a row",
                exit.description, self.memory.failures
            )),
            _ => None,
        }
    }

    /// Where a standby of this member is to connect to, as far as DNS and the probe know.
    fn upstream(&self) -> Option<Upstream> {
        let upstream = &self.observation.upstream;
        let address = match (&upstream.probe, &upstream.name) {
            (ProbeState::Ready { facts }, _) => Some(facts.address),
            (_, NameState::Resolved { addresses }) => addresses.first().copied(),
            _ => None,
        }?;
        Some(Upstream {
            host: upstream.host.clone(),
            address,
            port: upstream.port,
            slot: self.observation.own_slot.clone(),
            application_name: None,
        })
    }

    fn standby_role(&self) -> ServerRole {
        ServerRole::Standby {
            upstream: self.upstream(),
        }
    }
}

impl Decision {
    /// A row without an action: nothing is done, and nothing is told.
    fn row(situation: Situation, detail: String, memory: Box<Memory>) -> Self {
        Self {
            situation,
            detail,
            postgres: None,
            lease: None,
            read_lease: false,
            report: None,
            upstream: None,
            gate_until_ms: 0,
            memory,
            recheck_after_ms: REGULARLY_MS,
        }
    }

    /// With a reload, unless the last one was in vain only just now.
    fn reload(mut self, at_ms: u64, server: ServerRole) -> Self {
        if at_ms < self.memory.reload_at_ms {
            return self;
        }
        self.memory.reloads += 1;
        self.memory.reload_at_ms = at_ms + note::pause_ms(self.memory.reloads);
        self.postgres = Some(PostgresAction::Reload { server });
        self.soon()
    }

    fn soon(mut self) -> Self {
        self.recheck_after_ms = SOON_MS;
        self
    }
}
