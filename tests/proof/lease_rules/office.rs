//! Who may serve, until when, and what is told of oneself.

use podgres::core::decision::PostgresAction;
use podgres::core::lease::LeasePurpose;
use podgres::core::supervision::{CloneReason, JobState, JobStatus, Licence, Postmaster, ServerRole};

use super::case::{Case, was_primary};

pub(super) fn gate(case: &Case<'_>) -> bool {
    let primary = matches!(case.running_role(), Some(ServerRole::Primary { .. }));
    let until_ms = case.decision.gate_until_ms;
    until_ms == 0 || (primary && until_ms <= case.right_until_ms())
}

pub(super) fn opens(case: &Case<'_>) -> bool {
    let Some(supervisor) = case.supervisor() else {
        return true;
    };
    let licensed = match supervisor.licence {
        Licence::Limited { until_ms } => case.observation.at_ms < until_ms,
        Licence::Unlimited | Licence::None => false,
    };
    match &case.decision.postgres {
        Some(PostgresAction::GrantLicence { until_ms }) => {
            case.in_right() && until_ms.is_some_and(|until| until <= case.right_until_ms())
        }
        Some(PostgresAction::Promote { term, .. }) => {
            let receives = case
                .observation
                .server
                .as_ref()
                .is_none_or(|server| server.receiver_present);
            let told_to = matches!(
                supervisor.postmaster,
                Postmaster::Running {
                    role: ServerRole::Standby { upstream: Some(_) },
                    ..
                }
            );
            let detached = !receives && !told_to;
            case.in_right() && licensed && *term == case.term() && detached
        }
        Some(PostgresAction::Start {
            server: ServerRole::Primary { .. },
        }) => {
            let own = case.facts().is_some_and(was_primary) && supervisor.terms.held == case.term();
            case.in_right() && licensed && own
        }
        Some(PostgresAction::Hold { term }) => case.in_right() && *term == case.term(),
        Some(PostgresAction::EnsureRoles | PostgresAction::Barrier { .. } | PostgresAction::Checkpoint) => {
            case.in_right()
        }
        _ => true,
    }
}

pub(super) fn told_covers(case: &Case<'_>) -> bool {
    match &case.decision.postgres {
        Some(
            PostgresAction::Start {
                server:
                    ServerRole::Primary {
                        synchronous_standby_names: names,
                        ..
                    },
            }
            | PostgresAction::Reload {
                server:
                    ServerRole::Primary {
                        synchronous_standby_names: names,
                        ..
                    },
            }
            | PostgresAction::Promote {
                synchronous_standby_names: names,
                ..
            },
        ) => case.holds() && case.covered(names),
        _ => true,
    }
}

pub(super) fn idle_hands(case: &Case<'_>) -> bool {
    let Some(supervisor) = case.supervisor() else {
        return case.decision.postgres.is_none();
    };
    let job = supervisor.job.as_ref();
    let running = job.filter(|job| matches!(job.state, JobState::Running { .. }));
    let cancels = case.decision.postgres == Some(PostgresAction::Cancel);
    let winds_up = matches!(
        case.decision.postgres,
        Some(PostgresAction::GrantLicence { .. } | PostgresAction::Checkpoint | PostgresAction::Stop { .. })
    );
    match running {
        Some(job) => cancels == reads_elsewhere(case, job) && (cancels || case.decision.postgres.is_none()),
        None => case.decision.postgres.is_none() || winds_up || !(cancels || supervisor.stopping),
    }
}

/// The job reads from one member while another holds the Lease.
fn reads_elsewhere(case: &Case<'_>, job: &JobStatus) -> bool {
    let holder = case.record().and_then(|record| record.holder.as_ref());
    let holder = holder.filter(|holder| **holder != case.policy.identity);
    let holder = holder.map(|holder| format!("{}.", holder.pod));
    let host = job.upstream.as_ref();
    host.zip(holder)
        .is_some_and(|(host, holder)| !host.starts_with(&holder))
}

pub(super) fn states(case: &Case<'_>) -> bool {
    let standby = matches!(case.running_role(), Some(ServerRole::Standby { .. }));
    let primary = matches!(case.running_role(), Some(ServerRole::Primary { .. }));
    match &case.decision.postgres {
        Some(PostgresAction::Start { .. } | PostgresAction::Run { .. }) => case.stopped(),
        Some(PostgresAction::Stop { .. }) => standby || primary,
        Some(PostgresAction::Promote { .. } | PostgresAction::Detach { .. }) => standby,
        Some(PostgresAction::Reload { server }) => {
            matches!(server, ServerRole::Primary { .. }) == primary && (standby || primary)
        }
        _ => true,
    }
}

pub(super) fn writes_in_order(case: &Case<'_>) -> bool {
    let Some(write) = &case.decision.lease else {
        return true;
    };
    let lease = &case.observation.lease;
    let version = lease
        .stored
        .as_ref()
        .map(|stored| stored.resource_version.clone());
    !lease.writing && write.over == version && (version.is_some() || lease.missing)
}

pub(super) fn only_the_holder(case: &Case<'_>) -> bool {
    let Some(write) = &case.decision.lease else {
        return true;
    };
    match write.purpose {
        LeasePurpose::Claim => write.record.holder.as_ref() == Some(&case.policy.identity),
        LeasePurpose::Renew | LeasePurpose::Record | LeasePurpose::Answer => {
            case.holds() && write.record.holder.as_ref() == Some(&case.policy.identity)
        }
        LeasePurpose::Release => case.holds() && write.record.holder.is_none() && !open_gate(case),
        LeasePurpose::HandOver => case.holds(),
    }
}

/// Under `async` nothing but the gate stands between a released Lease and an acknowledgement.
fn open_gate(case: &Case<'_>) -> bool {
    case.decision.gate_until_ms > 0 && case.record().is_some_and(|record| record.synchronous.quorum == 0)
}

pub(super) fn promises(case: &Case<'_>) -> bool {
    match case.decision.postgres {
        Some(PostgresAction::Detach { term }) => term >= case.promised() && term >= case.term(),
        _ => true,
    }
}

pub(super) fn reports(case: &Case<'_>) -> bool {
    let Some(report) = &case.decision.report else {
        return false;
    };
    let own = case.own_final_position();
    let office = report
        .office
        .is_none_or(|office| case.holds() && office.term == case.term());
    let confirms = report
        .confirms
        .is_none_or(|office| office.term == case.term() && case.promised() <= office.term && !case.holds());
    let remembered = report.confirms.is_none_or(|office| {
        case.decision.memory.lease.confirmation_given == Some((office, case.observation.at_ms))
    });
    report.promised_term == case.promised()
        && report.final_position == own
        && office
        && confirms
        && remembered
}

pub(super) fn paused(case: &Case<'_>) -> bool {
    let (Some(record), Some(supervisor)) = (case.record().filter(|record| record.paused), case.supervisor())
    else {
        return true;
    };
    let standby = matches!(case.running_role(), Some(ServerRole::Standby { .. }));
    let claims = case
        .decision
        .lease
        .as_ref()
        .is_some_and(|write| write.purpose == LeasePurpose::Claim);
    let by_others = matches!(
        &supervisor.postmaster,
        Postmaster::Stopped { last_exit: Some(exit) } if !exit.requested
    );
    let opens = matches!(
        &case.decision.postgres,
        Some(PostgresAction::Start {
            server: ServerRole::Primary { .. }
        })
    );
    let asked =
        case.observation.request.is_some() || case.decision.memory.condemned == Some(CloneReason::Requested);
    let replaced =
        case.facts().is_some() && matches!(case.decision.postgres, Some(PostgresAction::Run { .. }));
    let takes_over = claims && standby && record.system_identifier.is_some();
    !(takes_over || (opens && by_others) || (replaced && !asked))
}

pub(super) fn disk(case: &Case<'_>) -> bool {
    let failing = case
        .supervisor()
        .is_some_and(|supervisor| supervisor.disk_failing_since_ms.is_some());
    let renews = case
        .decision
        .lease
        .as_ref()
        .is_some_and(|write| write.purpose == LeasePurpose::Renew);
    // By nobody's confirmation either, unless there is nobody who could take over.
    let (before, after) = (&case.memory.lease, &case.decision.memory.lease);
    let alone = case.record().is_none_or(|record| record.members.len() < 2);
    let longer = after.confirmed_until_ms > before.confirmed_until_ms && !alone;
    !(failing && (renews || longer || !after.beats.is_empty()))
}
