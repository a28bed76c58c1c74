//! What the read-only switch means for those who connect to the primary directly, where that is wanted: their transactions
//! cannot write unless they say otherwise (`default_transaction_read_only`).
//!
//! The rows know nothing of it. What starts, promotes or reloads a primary is given the default here, and a primary that
//! runs with another one is told as soon as nothing else is to be done.

use crate::core::decision::{Decision, PostgresAction};
use crate::core::observation::Observation;
use crate::core::policy::Policy;
use crate::core::supervision::{Postmaster, ServerRole, SupervisorStatus};

use super::note;

/// Whether a primary's sessions are to be read-only by default.
pub(super) fn wanted(policy: &Policy, observation: &Observation) -> bool {
    policy.read_only_default && observation.read_only
}

/// The action, with the default that a primary is to have from it.
pub(super) fn given(mut action: PostgresAction, wanted: bool) -> PostgresAction {
    match &mut action {
        PostgresAction::Promote { read_only, .. }
        | PostgresAction::Start {
            server: ServerRole::Primary { read_only, .. },
        }
        | PostgresAction::Reload {
            server: ServerRole::Primary { read_only, .. },
        } => *read_only = wanted,
        _ => {}
    }
    action
}

/// With a reload of a primary that runs with the other default and is left alone otherwise.
pub(super) fn with_default(
    mut decision: Decision,
    supervisor: &SupervisorStatus,
    observation: &Observation,
    wanted: bool,
) -> Decision {
    let Postmaster::Running {
        role: ServerRole::Primary {
            synchronous_standby_names,
            read_only,
        },
        ready: true,
        ..
    } = &supervisor.postmaster
    else {
        return decision;
    };
    let busy = decision.postgres.is_some() || decision.memory.lease.handing_over.is_some();
    if *read_only == wanted || busy || supervisor.stopping {
        return decision;
    }
    let server = ServerRole::Primary {
        synchronous_standby_names: synchronous_standby_names.clone(),
        read_only: wanted,
    };
    let action = PostgresAction::Reload { server };
    let now = if wanted { "now" } else { "no longer" };
    let mut detail = format!("direct sessions are {now} read-only by default");
    if let Some(message) = note::refrain(&decision.memory, observation, &action) {
        detail = format!("{detail}: {message}");
    } else {
        decision.postgres = Some(action);
        decision = decision.soon();
    }
    if !decision.detail.is_empty() {
        decision.detail.push_str("; ");
    }
    decision.detail.push_str(&detail);
    decision
}
