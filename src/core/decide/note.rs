//! What a turn adds to the memory before any row is looked at.

use crate::core::decision::{Decision, Memory, PostgresAction, Stalled};
use crate::core::observation::Observation;
use crate::core::policy::Policy;
use crate::core::situation::Situation;
use crate::core::supervision::{CloneReason, JobKind, JobState, Postmaster, SupervisorStatus};

use super::slots;

/// Pause after the `failures`-th failure in a row: 0.5 s doubling to 30 s.
pub(super) fn pause_ms(failures: u32) -> u64 {
    (500 << failures.saturating_sub(1).min(6)).min(30_000)
}

/// Pause after a job that said trying again cannot help.
const REFUSED_PAUSE_MS: u64 = 60_000;

/// Since when something holds without a break: since `known` if it held at the last turn too, else from now on.
pub(super) fn since(known: Option<u64>, holds: bool, at_ms: u64) -> Option<u64> {
    holds.then(|| known.unwrap_or(at_ms))
}

/// A value and since when it has been this one without a break.
pub(super) fn unchanged_since<T: PartialEq>(
    known: Option<(T, u64)>,
    value: Option<T>,
    at_ms: u64,
) -> Option<(T, u64)> {
    let value = value?;
    let since_ms = known
        .filter(|(known, _)| *known == value)
        .map(|(_, since_ms)| since_ms);
    Some((value, since_ms.unwrap_or(at_ms)))
}

pub(super) fn update(policy: &Policy, memory: &mut Memory, observation: &Observation) {
    memory.began_at_ms.get_or_insert(observation.at_ms);
    if let Some(supervisor) = &observation.supervisor {
        note_busy(memory, supervisor, observation.at_ms);
        count_job(memory, supervisor, observation.at_ms);
        count_start(memory, supervisor, observation.at_ms);
    } else {
        // Nobody knows what is done to the directory meanwhile.
        memory.busy_at_ms = observation.at_ms;
    }
    count_failed_action(memory, observation);
    note_stall(memory, observation);
    slots::note_missing(policy, memory, observation);
}

fn count_failed_action(memory: &mut Memory, observation: &Observation) {
    match &observation.failed_action {
        None => memory.failed_actions = 0,
        Some(failed) if failed.at_ms != memory.failed_action_at_ms => {
            memory.failed_actions += 1;
            memory.failed_action_at_ms = failed.at_ms;
        }
        Some(_) => {}
    }
}

/// Why an action that has just failed is not tried again yet.
pub(super) fn refrain<'a>(
    memory: &Memory,
    observation: &'a Observation,
    action: &PostgresAction,
) -> Option<&'a str> {
    let failed = observation
        .failed_action
        .as_ref()
        .filter(|failed| failed.action == *action)?;
    let waited_ms = observation.at_ms.saturating_sub(failed.at_ms);
    (waited_ms < pause_ms(memory.failed_actions)).then_some(failed.message.as_str())
}

/// The directory may have changed until now: facts about the upstream from before do not judge it.
fn note_busy(memory: &mut Memory, supervisor: &SupervisorStatus, at_ms: u64) {
    let running = !matches!(supervisor.postmaster, Postmaster::Stopped { .. });
    let worked = supervisor
        .job
        .as_ref()
        .is_some_and(|job| job.id != memory.counted_job);
    if running || worked {
        memory.busy_at_ms = at_ms;
    }
}

fn count_job(memory: &mut Memory, supervisor: &SupervisorStatus, at_ms: u64) {
    let Some(job) = &supervisor.job else {
        // A new supervisor counts its jobs from 1 again.
        memory.counted_job = 0;
        return;
    };
    if job.id == memory.counted_job {
        return;
    }
    match &job.state {
        JobState::Running { .. } => return,
        JobState::Done => {
            memory.failures = 0;
            memory.retry_at_ms = at_ms;
            if matches!(job.kind, JobKind::Clone | JobKind::Rewind) {
                memory.condemned = None;
            }
        }
        JobState::Failed { refused, .. } => {
            memory.failures += 1;
            let pause = if *refused {
                REFUSED_PAUSE_MS
            } else {
                pause_ms(memory.failures)
            };
            memory.retry_at_ms = at_ms + pause;
            if job.kind == JobKind::Rewind && *refused {
                memory.condemned = Some(CloneReason::NotRewound);
                memory.retry_at_ms = at_ms;
            }
        }
    }
    memory.counted_job = job.id;
}

fn count_start(memory: &mut Memory, supervisor: &SupervisorStatus, at_ms: u64) {
    if !memory.start_pending {
        return;
    }
    match &supervisor.postmaster {
        Postmaster::Running { ready: true, .. } => {
            memory.start_pending = false;
            memory.failures = 0;
        }
        Postmaster::Stopped { last_exit } => {
            memory.start_pending = false;
            if last_exit
                .as_ref()
                .is_some_and(|exit| !exit.requested && !exit.was_ready)
            {
                memory.failures += 1;
                memory.retry_at_ms = at_ms + pause_ms(memory.failures);
            }
        }
        Postmaster::Running { ready: false, .. } | Postmaster::Stopping { .. } => {}
    }
}

/// What the turn has found out of the WAL that this standby needs; forgotten once it stands elsewhere.
pub(super) fn note_wal(decision: &mut Decision, observation: &Observation) {
    let Some(server) = &observation.server else { return };
    let gone = decision.situation == Situation::WalGone;
    let known = &mut decision.memory.wal_gone_at;
    *known = known
        .filter(|at| *at == server.flush_lsn)
        .or(gone.then_some(server.flush_lsn));
}

/// A standby's position is judged only once it has stood still: until then it may be replaying WAL that it has.
fn note_stall(memory: &mut Memory, observation: &Observation) {
    let standing = observation
        .server
        .as_ref()
        .filter(|server| server.in_recovery && !server.receiver_streaming);
    memory.stalled = standing.map(|server| match memory.stalled {
        Some(stalled) if stalled.replay_lsn == server.replay_lsn => stalled,
        _ => Stalled {
            replay_lsn: server.replay_lsn,
            since_ms: observation.at_ms,
        },
    });
}
