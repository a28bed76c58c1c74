//! Decisions with `leadership=lease`: whoever holds the Lease is the primary, and what leads there and away.
//!
//! Never claims, promotes or follows without the proof that `docs/failover.md` describes.
//!
//! | file | what it decides |
//! |---|---|
//! | `standing.rs` | nothing: it reads an observation in terms of right, quorum and position |
//! | `first.rs` | a cluster's first moments, and those after its Lease was deleted |
//! | `hold.rs` | the holder: it takes office, stays in it, gives it back |
//! | `office.rs` | the right over time: renewals and the peers' confirmations |
//! | `told.rs` | whose confirmations a commit waits for |
//! | `hand_over.rs` | a planned move |
//! | `follow.rs` | everybody but the holder |
//! | `upstream.rs` | whether this member's WAL fits the holder's history |
//! | `repair.rs` | a directory that cannot follow as it is: rewound, or cloned |
//! | `failover.rs` | a member that has lost its primary: suspect, detach, compare, claim |
//! | `forced.rs` | a forced failover |
//! | `report.rs` | what a member tells the others of this |

mod failover;
mod first;
mod follow;
mod forced;
mod hand_over;
mod hold;
mod office;
mod repair;
mod report;
mod standing;
mod told;
mod upstream;

use crate::core::data_directory::DataDirectoryFacts;
use crate::core::decision::{Decision, PostgresAction};
use crate::core::lease::{Identity, LeasePurpose, LeaseRecord, LeaseWrite};
use crate::core::member::Ordinal;
use crate::core::observation::Observation;
use crate::core::policy::Policy;
use crate::core::situation::Situation;
use crate::core::supervision::{JobState, JobStatus, Postmaster, ServerRole, Upstream};

use super::{Turn, shared};
use standing::Standing;

/// The whole of a turn under a Lease; PostgreSQL's part and the Lease's are independent of each other.
pub(super) fn decide(mut turn: Turn<'_>) -> Decision {
    let standing = office::note(turn.policy, &mut turn.memory, turn.observation);
    let (policy, observation) = (turn.policy, turn.observation);
    let mut decision = situation(turn, &standing);
    if decision.lease.is_none() && standing.is_holder {
        decision.lease = office::renewal(policy, observation, &decision.memory, &standing);
    }
    if let Some(left_ms) = standing.suspects_in_ms {
        // Nothing else would end the wait at that moment.
        decision.recheck_after_ms = decision.recheck_after_ms.min(left_ms);
    }
    decision.read_lease = decision
        .memory
        .lease
        .given_up
        .is_some_and(|(_, heard_ms)| heard_ms == standing.at_ms)
        || standing.asks_whether_expired(&mut decision.memory.lease);
    decision.upstream = standing.holder_elsewhere;
    decision.gate_until_ms = office::gate_until_ms(observation, &standing);
    let resigns = matches!(
        decision.situation,
        Situation::Resigning | Situation::HolderWithoutData | Situation::ForeignDataDirectory
    );
    let gives_up = standing.is_holder && resigns
        || hand_over::left_untold(policy, observation, &decision.memory, &standing);
    report::tell(policy, observation, &mut decision, &standing, gives_up);
    decision
}

/// Nobody can be asked to do anything here: a holder waits a little for its supervisor, then lets others in.
pub(super) fn without_supervisor(
    policy: &Policy,
    observation: &Observation,
    mut decision: Decision,
) -> Decision {
    let standing = office::note(policy, &mut decision.memory, observation);
    let mut gives_up = false;
    if let Some(record) = standing.held() {
        let long = decision.memory.lease.down_ms(standing.at_ms) > 2 * policy.times.peer_timeout_ms;
        let gone = long || hand_over::left_untold(policy, observation, &decision.memory, &standing);
        gives_up = gone && !record.paused;
        decision.lease = if gives_up && office::provable_elsewhere(observation, record) {
            release(record, &standing, None)
        } else {
            office::renewal(policy, observation, &decision.memory, &standing)
        };
    }
    decision.upstream = standing.holder_elsewhere;
    report::tell(policy, observation, &mut decision, &standing, gives_up);
    decision
}

fn situation(turn: Turn<'_>, standing: &Standing) -> Decision {
    if let Some(JobStatus {
        kind,
        state: JobState::Running { progress },
        upstream,
        ..
    }) = &turn.supervisor.job
    {
        let situation = shared::while_job_runs(*kind);
        if upstream
            .as_ref()
            .is_some_and(|host| outdated(&turn, standing, host))
        {
            let detail = standing.holder_name();
            return turn.act(situation, detail, PostgresAction::Cancel).soon();
        }
        return turn.row(situation, shared::progress_text(*progress));
    }
    if let Some(record) = standing.held()
        && let Some(failing_ms) = office::disk_lost_ms(turn.policy, turn.observation, record)
    {
        // Whatever has become of PostgreSQL: what hangs on the disk cannot be killed either.
        let detail = format!("the data volume has taken nothing for {failing_ms} ms");
        return turn.give_back(standing, record, Situation::Resigning, detail);
    }
    if turn.supervisor.stopping {
        return hand_over::leaving(turn, standing);
    }
    match &turn.supervisor.postmaster {
        Postmaster::Stopping { .. } if turn.memory.lease.handing_over.is_some() => {
            hand_over::while_stopping(turn, standing)
        }
        Postmaster::Stopping { .. } => hold::stopping(turn, standing, Situation::Stopping),
        Postmaster::Running { role, ready, .. } => running(turn, standing, role, *ready),
        Postmaster::Stopped { .. } => stopped(turn, standing),
    }
}

/// Another than the one on `host` holds the Lease: what is read there is of no use, and if it is frozen nothing ever comes.
fn outdated(turn: &Turn<'_>, standing: &Standing, host: &str) -> bool {
    let name = host.split('.').next();
    let current = standing
        .holder_elsewhere
        .map(|holder| format!("{}-{holder}", turn.policy.cluster));
    current.is_some_and(|current| name != Some(current.as_str()))
}

fn running(turn: Turn<'_>, standing: &Standing, role: &ServerRole, ready: bool) -> Decision {
    let writable = turn.observation.writable_server().is_some();
    if let Some(record) = standing.held() {
        return match role {
            ServerRole::Primary { .. } => hold::primary(turn, standing, record, ready),
            // Promoted by somebody else: it comes back under its own configuration.
            ServerRole::Standby { .. } if writable => turn.stop(Situation::Reopening, String::new()),
            ServerRole::Standby { .. } => hold::standby(turn, standing, record, ready),
        };
    }
    if !(role.is_primary() || writable) {
        return follow::running(turn, standing, role, ready);
    }
    if standing.record.is_none() {
        // Unless it can be written again, its licence ends by itself.
        return first::write_again(turn, standing);
    }
    let detail = standing.holder_name();
    turn.stop(Situation::LostOffice, detail)
}

fn stopped(turn: Turn<'_>, standing: &Standing) -> Decision {
    match shared::openable(turn.supervisor) {
        Err((situation, detail)) => not_to_be_opened(turn, standing, situation, detail),
        Ok(None) => empty(turn, standing),
        Ok(Some(facts)) => complete(turn, standing, facts),
    }
}

/// What stands at PGDATA cannot be opened by this pod: a holder lets others in who have everything, after a while in which it may come back.
fn not_to_be_opened(turn: Turn<'_>, standing: &Standing, situation: Situation, detail: String) -> Decision {
    let long = turn.memory.lease.down_ms(standing.at_ms) > 2 * turn.policy.times.peer_timeout_ms;
    match standing.held().filter(|record| long && !record.paused) {
        Some(record) if office::provable_elsewhere(turn.observation, record) => {
            turn.give_back(standing, record, Situation::Resigning, detail)
        }
        _ => turn.row(situation, detail),
    }
}

fn empty(turn: Turn<'_>, standing: &Standing) -> Decision {
    match standing.record {
        None => first::without_lease(turn, standing, None),
        Some(record) if standing.is_holder && record.system_identifier.is_none() => {
            first::initdb(turn, standing)
        }
        Some(record) if standing.is_holder => {
            turn.give_back(standing, record, Situation::HolderWithoutData, String::new())
        }
        Some(record) if record.system_identifier.is_none() && turn.policy.first() => {
            first::take_over(turn, standing, record)
        }
        Some(_) => follow::empty(turn, standing),
    }
}

fn complete(turn: Turn<'_>, standing: &Standing, facts: &DataDirectoryFacts) -> Decision {
    let Some(record) = standing.record else {
        return first::without_lease(turn, standing, Some(facts));
    };
    if let Some(recorded) = record.system_identifier
        && recorded != facts.system_identifier
    {
        let detail = format!(
            "PGDATA has system identifier {}, the Lease has {recorded}",
            facts.system_identifier
        );
        if standing.is_holder {
            return turn.give_back(standing, record, Situation::ForeignDataDirectory, detail);
        }
        return turn.row(Situation::ForeignDataDirectory, detail);
    }
    if standing.is_holder {
        return hold::stopped(turn, standing, record, facts);
    }
    if restored(&turn, record, facts) {
        let detail = format!(
            "timeline {}, beside a Lease of term {}",
            facts.timeline, record.term
        );
        return turn.row(Situation::Restored, detail);
    }
    follow::stopped(turn, standing, record, facts)
}

/// Nothing is known of the Lease: because nobody has said, or because there is none.
fn unread(standing: &Standing) -> Situation {
    if standing.missing {
        Situation::LeaseMissing
    } else {
        Situation::LeaseUnread
    }
}

/// The record without a holder. `clean`: the holder that stopped with everything written.
fn release(record: &LeaseRecord, standing: &Standing, clean: Option<Ordinal>) -> Option<LeaseWrite> {
    let mut record = record.clone();
    record.holder = None;
    record.released_by = clean;
    standing.write(LeasePurpose::Release, record)
}

impl Turn<'_> {
    /// The upstream that the running server was given, if it is a standby.
    fn upstream_in_use(&self) -> Option<&Upstream> {
        self.observation.running_role()?.upstream()
    }

    /// Promises `term`, and receives nothing any more.
    fn detach(self, situation: Situation, detail: String, term: u64) -> Decision {
        self.act(situation, detail, PostgresAction::Detach { term })
    }

    /// PostgreSQL may run writable until then.
    fn grant_licence(self, situation: Situation, detail: String, until_ms: u64) -> Decision {
        let until_ms = Some(until_ms);
        self.act(situation, detail, PostgresAction::GrantLicence { until_ms })
    }

    /// The holder gives the Lease back, without the word that it has everything.
    fn give_back(
        self,
        standing: &Standing,
        record: &LeaseRecord,
        situation: Situation,
        detail: String,
    ) -> Decision {
        self.lease_row(situation, detail, release(record, standing, None))
    }

    /// A row whose one action is a write to the Lease, if one may be begun now.
    fn lease_row(self, situation: Situation, detail: String, write: Option<LeaseWrite>) -> Decision {
        let mut decision = self.row(situation, detail);
        decision.lease = write;
        decision.soon()
    }
}

/// A primary's directory that was never opened under a Lease, beside a record of standbys that confirmed commits or of another holder: it comes from
/// a backup.
///
/// It lacks what they have, so that it is not the last primary's. Nor is it a standby's: its timeline may have the number of one that somebody else has
/// begun, and then nothing tells its WAL from theirs.
fn restored(turn: &Turn<'_>, record: &LeaseRecord, facts: &DataDirectoryFacts) -> bool {
    let opened = turn.supervisor.terms.held > 0;
    let ordinal = |holder: &Identity| turn.policy.ordinal_of(&holder.pod);
    let elsewhere = record.holder.as_ref().map(ordinal);
    let others = elsewhere.is_some_and(|holder| holder != Some(turn.policy.ordinal))
        || !record.synchronous.members.is_empty();
    facts.was_primary() && !facts.half_rewound && !opened && others
}
