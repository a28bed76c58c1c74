//! What fixed leadership and a Lease judge alike: jobs, directories that cannot be opened, and a standby that receives nothing.

use crate::core::data_directory::{DataDirectory, DataDirectoryFacts};
use crate::core::decision::Decision;
use crate::core::member::Ordinal;
use crate::core::observation::UpstreamFacts;
use crate::core::situation::Situation;
use crate::core::status::ServerStatus;
use crate::core::supervision::{CloneReason, JobKind, JobProgress, SupervisorStatus};
use crate::core::wal::WalPosition;

use super::Turn;

/// The situation while a job of this kind runs.
pub(super) fn while_job_runs(kind: JobKind) -> Situation {
    match kind {
        JobKind::Initdb => Situation::Initialising,
        JobKind::Clone => Situation::Cloning,
        JobKind::Rewind => Situation::Rewinding,
    }
}

/// The situation of a member whose directory is to be cloned over for `reason`.
pub(super) fn while_replacing(reason: CloneReason) -> Situation {
    match reason {
        CloneReason::Diverged | CloneReason::NotRewound => Situation::Diverged,
        CloneReason::WalGone | CloneReason::Empty => Situation::WalGone,
        CloneReason::Requested => Situation::Requested,
    }
}

/// How far a job is, in words.
pub(super) fn progress_text(progress: JobProgress) -> String {
    let JobProgress {
        done_bytes,
        total_bytes,
        bytes_per_second,
    } = progress;
    match (done_bytes * 100).checked_div(total_bytes) {
        None => String::new(),
        Some(percent) => {
            format!("{done_bytes} of {total_bytes} bytes, {percent} %, {bytes_per_second} bytes/s")
        }
    }
}

/// The directory that PostgreSQL may be started on, `None` if it is empty; else why the programs of this pod cannot open it.
pub(super) fn openable(
    supervisor: &SupervisorStatus,
) -> Result<Option<&DataDirectoryFacts>, (Situation, String)> {
    match &supervisor.data_directory {
        DataDirectory::Empty => Ok(None),
        DataDirectory::Unusable { detail } => Err((Situation::UnusableDataDirectory, detail.clone())),
        DataDirectory::Complete(facts) if facts.major_version != supervisor.major_version => {
            let detail = format!(
                "PGDATA was made by PostgreSQL {}, the programs here are PostgreSQL {}",
                facts.major_version, supervisor.major_version
            );
            Err((Situation::WrongMajorVersion, detail))
        }
        DataDirectory::Complete(facts) => Ok(Some(facts)),
    }
}

/// What a directory is, in words.
pub(super) fn data_text(facts: &DataDirectoryFacts) -> String {
    format!(
        "system identifier {}, timeline {}",
        facts.system_identifier, facts.timeline
    )
}

/// PostgreSQL is ready and says nothing. One that merely does not let podgres in serves others, and is left alone.
pub(super) fn unseen(turn: Turn<'_>) -> Decision {
    match turn.observation.login_refused.clone() {
        Some(why) => turn.row(Situation::LoginRefused, why),
        None => turn.row(Situation::Unresponsive, String::new()).soon(),
    }
}

/// Whether this standby, which receives nothing, has replayed nothing either for so long that it can be judged, by a look at the
/// primary from after it came to stand.
pub(super) fn stood_still(turn: &Turn<'_>) -> bool {
    turn.memory.stalled.is_some_and(|stalled| {
        let waited_ms = turn.observation.at_ms.saturating_sub(stalled.since_ms);
        let looked_since = turn.observation.upstream.looked_at_ms > stalled.since_ms;
        waited_ms >= turn.policy.stall_timeout_ms && looked_since
    })
}

/// What the primary says of the WAL that this standby needs next, if it is no longer there.
pub(super) fn wal_gone(turn: &Turn<'_>, server: &ServerStatus, primary: Ordinal) -> Option<String> {
    let primary = turn.observation.peers.get(&primary)?;
    if primary.slot.as_ref().is_some_and(|slot| slot.lost) {
        return Some(format!(
            "replication slot \"{}\" is lost",
            turn.observation.own_slot
        ));
    }
    let oldest = primary.oldest_wal_lsn?;
    let segment_size_bytes = primary.wal_segment_size_bytes.max(1 << 20);
    let needed = server.end_of_wal().segment_start(segment_size_bytes);
    (needed < oldest).then(|| format!("needs WAL from {needed}, the oldest on the primary is {oldest}"))
}

/// What is here and not on the primary, in words.
pub(super) fn ahead(position: WalPosition, upstream: &UpstreamFacts) -> String {
    format!(
        "here {} on timeline {}, the primary {} on timeline {}",
        position.lsn, position.timeline, upstream.flush_lsn, upstream.history.timeline
    )
}
