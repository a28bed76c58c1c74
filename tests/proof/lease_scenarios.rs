//! The story of each decision under a Lease, told once: what is seen, and what is done about it.

mod following;
mod holding;
mod moving;
mod standing;

use podgres::core::decide::decide;
use podgres::core::decision::{Decision, Memory, PostgresAction};
use podgres::core::lease::{self, LeadershipReport, LeasePurpose, LeaseRecord};
use podgres::core::member::Ordinal;
use podgres::core::observation::{Observation, ProbeState};
use podgres::core::policy::Policy;
use podgres::core::situation::Situation;
use podgres::core::status::HeldData;
use podgres::core::supervision::{CloneReason, JobRequest, ServerRole, StopMode};
use podgres::core::wal::Lsn;

use crate::lease_worlds::{
    Choice,
    Of::{self, *},
    TERM, lease_policy, observed, remembered, set,
};

fn decided(choice: &Choice) -> Decision {
    told(choice, |_, _| {})
}

/// With something that no choice says.
fn told(choice: &Choice, change: impl FnOnce(&mut Memory, &mut Observation)) -> Decision {
    let (mut memory, mut observation) = (remembered(choice), observed(choice));
    change(&mut memory, &mut observation);
    decide(&lease_policy(choice), &memory, &observation)
}

fn all(choice: Choice, values: &[(Of, u8)]) -> Choice {
    values
        .iter()
        .fold(choice, |choice, (of, value)| choice.with(*of, *value))
}

fn usual(values: &[(Of, u8)]) -> Choice {
    all(Choice::usual(), values)
}

fn primary(values: &[(Of, u8)]) -> Choice {
    all(Choice::primary(), values)
}

/// The primary's sidecar is silent and its WAL has stopped.
const LOST: &[(Of, u8)] = &[(HolderPeer, 4), (Server, 3)];
/// Lost, promised term 6, at rest.
const AT_REST: &[(Of, u8)] = &[(HolderPeer, 4), (Postmaster, 6), (Server, 4), (Promised, 2)];
const STOPPED: &[(Of, u8)] = &[(Postmaster, 0), (Server, 0)];

/// The last renewal is too old, and no peer confirms.
const LAPSED: &[(Of, u8)] = &[(Renewal, 2), (HolderPeer, 5), (ThirdPeer, 3)];

fn written(decision: &Decision, purpose: LeasePurpose) -> &LeaseRecord {
    let write = decision
        .lease
        .as_ref()
        .unwrap_or_else(|| panic!("no write: {decision:#?}"));
    assert_eq!(write.purpose, purpose, "{decision:#?}");
    &write.record
}

fn holder(record: &LeaseRecord) -> Option<&str> {
    record.holder.as_ref().map(|holder| holder.pod.as_str())
}

/// Whom the primary that is started or reloaded waits for, as PostgreSQL is told.
fn waits_for(decision: &Decision) -> &str {
    let Some(PostgresAction::Start { server, .. } | PostgresAction::Reload { server, .. }) =
        &decision.postgres
    else {
        panic!("no server is started or reloaded: {decision:#?}");
    };
    let ServerRole::Primary {
        synchronous_standby_names,
        ..
    } = server
    else {
        panic!("no primary: {decision:#?}");
    };
    synchronous_standby_names
}
