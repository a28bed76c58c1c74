//! Holds every enumerated decision under a Lease to the rules, and sees that every situation is reached.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use podgres::core::decide::decide;
use podgres::core::decision::PostgresAction;
use podgres::core::lease::{LeasePurpose, LeaseWrite};
use podgres::core::situation::{SITUATIONS, Situation};
use podgres::core::supervision::{JobRequest, ServerRole};

use crate::lease_enumeration;
use crate::lease_rules::{Case, broken};

/// What is done, in the words of the decision table.
pub(crate) fn action_name(action: Option<&PostgresAction>) -> &'static str {
    match action {
        None => "nothing",
        Some(PostgresAction::GrantLicence { .. }) => "grant the licence",
        Some(PostgresAction::Run {
            job: JobRequest::Initdb,
        }) => "initdb",
        Some(PostgresAction::Run {
            job: JobRequest::Clone { .. },
        }) => "clone",
        Some(PostgresAction::Start {
            server: ServerRole::Primary { .. },
        }) => "start as primary",
        Some(PostgresAction::Start {
            server: ServerRole::Standby { .. },
        }) => "start as standby",
        Some(PostgresAction::Reload { .. }) => "reload",
        Some(PostgresAction::Stop { .. }) => "stop",
        Some(PostgresAction::Run {
            job: JobRequest::Rewind { .. },
        }) => "rewind",
        Some(PostgresAction::Promote { .. }) => "promote",
        Some(PostgresAction::Detach { .. }) => "detach",
        Some(PostgresAction::Hold { .. }) => "note the term",
        Some(PostgresAction::Barrier { .. }) => "mark the place in the WAL",
        Some(PostgresAction::Checkpoint) => "checkpoint",
        Some(PostgresAction::Cancel) => "cancel the job",
        Some(PostgresAction::EnsureRoles) => "ensure roles",
        Some(PostgresAction::ReconcileSlots { .. }) => "reconcile slots",
        Some(PostgresAction::DropSlots { .. }) => "drop superseded slots",
    }
}

/// A write to the Lease, if the situation is what it is for; renewals go along with everything.
fn write_name(write: &LeaseWrite) -> Option<&'static str> {
    match write.purpose {
        LeasePurpose::Renew => None,
        LeasePurpose::Claim => Some("claim the Lease"),
        LeasePurpose::HandOver => Some("name the successor in the Lease"),
        LeasePurpose::Release => Some("give the Lease back"),
        LeasePurpose::Record => Some("record in the Lease"),
        LeasePurpose::Answer => Some("answer the request"),
    }
}

/// What the enumeration has shown: who meets a situation, and what is done then.
#[derive(Default)]
pub(crate) struct Survey {
    pub(crate) seen: BTreeMap<Situation, (BTreeSet<&'static str>, BTreeSet<&'static str>)>,
    count: u64,
    /// How often each rule was broken, and the first case.
    broken: BTreeMap<&'static str, (u64, String)>,
}

/// Gone through once for all tests that look at it.
pub(crate) fn survey() -> &'static Survey {
    static SURVEY: OnceLock<Survey> = OnceLock::new();
    SURVEY.get_or_init(|| {
        let mut survey = Survey::default();
        lease_enumeration::each(&mut |choice, policy, memory, observation| {
            let decision = decide(policy, memory, observation);
            let case = Case {
                policy,
                memory,
                observation,
                decision: &decision,
            };
            if let Some(rule) = broken(&case) {
                let first = || format!("{choice:?}\n{decision:#?}\n{observation:#?}\n{memory:#?}");
                survey.broken.entry(rule).or_insert_with(|| (0, first())).0 += 1;
            }
            let stored = observation.lease.stored.as_ref();
            let holds = stored.is_some_and(|stored| stored.record.held_by(&policy.identity));
            let (members, actions) = survey.seen.entry(decision.situation).or_default();
            members.insert(if holds { "the holder" } else { "others" });
            let write = decision.lease.as_ref();
            if decision.postgres.is_some() || write.is_none_or(|write| write_name(write).is_none()) {
                actions.insert(action_name(decision.postgres.as_ref()));
            }
            actions.extend(write.and_then(write_name));
            survey.count += 1;
        });
        survey
    })
}

#[test]
fn every_observation_under_a_lease_leads_to_a_safe_decision() {
    let survey = survey();
    let summary: Vec<String> = survey
        .broken
        .iter()
        .map(|(rule, (count, first))| format!("{rule}: {count} times, first\n{first}"))
        .collect();
    assert!(
        summary.is_empty(),
        "of {}: {}",
        survey.count,
        summary.join("\n\n")
    );
    assert!(survey.count > 500_000, "only {} observations", survey.count);
}

/// Those of a fixed primary are held against its own enumeration.
#[test]
fn every_situation_under_a_lease_is_reached() {
    let fixed_only = [
        Situation::Unlicensed,
        Situation::ReadyAsPrimary,
        Situation::FirstHoldsStandby,
        Situation::WasWritable,
        Situation::WritableStandby,
        Situation::TwoWritable,
    ];
    let reached = |situation: &Situation| survey().seen.contains_key(situation);
    let missing: Vec<_> = SITUATIONS
        .iter()
        .map(|row| row.0)
        .filter(|situation| !fixed_only.contains(situation) && !reached(situation))
        .collect();
    assert_eq!(missing, [], "of {} observations none leads there", survey().count);
    let strange: Vec<_> = fixed_only.iter().filter(|situation| reached(situation)).collect();
    assert!(strange.is_empty(), "under a Lease nobody is that: {strange:?}");
}
