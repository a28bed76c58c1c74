//! Slow actions on the data directory: what is asked for, how far it is, and what became of it.

use serde::{Deserialize, Serialize};

use super::Upstream;
use crate::core::data_directory::SystemIdentifier;

/// Why a directory is cloned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloneReason {
    /// There was no data.
    Empty,
    /// The primary no longer has the WAL that this standby needs next.
    WalGone,
    /// The directory holds WAL that the primary's history does not.
    Diverged,
    /// The operator asked.
    Requested,
    /// `pg_rewind` could not make it follow.
    NotRewound,
}

/// A slow action on the data directory; at most one runs at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case")]
pub enum JobRequest {
    /// Makes a new cluster in a staging directory and renames it to PGDATA.
    Initdb,
    /// Copies the upstream into a staging directory and renames it to PGDATA.
    Clone {
        upstream: Upstream,
        /// The clone is refused if the upstream turns out to be another cluster.
        system_identifier: SystemIdentifier,
        /// `Empty` refuses a PGDATA that holds anything; the other reasons replace it.
        reason: CloneReason,
    },
    /// Makes a stopped former primary able to follow: crash recovery where it was not shut down cleanly, what it
    /// alone has kept aside and counted, then `pg_rewind`, then a standby.signal. A directory left half
    /// rewound is marked, and `Failed { refused: true }`: only a clone helps.
    Rewind {
        upstream: Upstream,
        system_identifier: SystemIdentifier,
    },
}

impl JobRequest {
    #[must_use]
    pub fn kind(&self) -> JobKind {
        match self {
            Self::Initdb => JobKind::Initdb,
            Self::Clone { .. } => JobKind::Clone,
            Self::Rewind { .. } => JobKind::Rewind,
        }
    }

    /// Whom it reads from; `None` if from nobody.
    #[must_use]
    pub fn upstream(&self) -> Option<&Upstream> {
        match self {
            Self::Initdb => None,
            Self::Clone { upstream, .. } | Self::Rewind { upstream, .. } => Some(upstream),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    Initdb,
    Clone,
    Rewind,
}

/// How far a clone is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobProgress {
    pub done_bytes: u64,
    /// 0 while not yet known.
    pub total_bytes: u64,
    /// Mean rate since the job began.
    pub bytes_per_second: u64,
}

/// What must change before a failed job can end well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// Nothing here: it may end well the next time.
    #[default]
    Passing,
    /// A setting of the pod.
    Settings,
    /// Owner or mode of a file, or the pod's security context.
    Permission,
    /// What stands on a volume, or its size.
    Data,
}

/// What became of the last job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum JobState {
    Running {
        progress: JobProgress,
    },
    Done,
    /// `refused`: trying again cannot help (bad settings, foreign data, no space).
    Failed {
        refused: bool,
        /// In JSON not `kind`, which beside it is the job's.
        #[serde(default, rename = "cause")]
        kind: FailureKind,
        message: String,
    },
}

/// The job that runs or ran last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Counts up from 1 with each job of this supervisor.
    pub id: u64,
    pub kind: JobKind,
    /// The name of the host that it reads from.
    #[serde(default)]
    pub upstream: Option<String>,
    #[serde(flatten)]
    pub state: JobState,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_job_is_read_as_it_was_written_and_as_older_recordings_have_it() {
        let job = |kind| JobStatus {
            id: 3,
            kind: JobKind::Clone,
            upstream: None,
            state: JobState::Failed {
                refused: true,
                kind,
                message: "no".to_owned(),
            },
        };
        let written = serde_json::to_string(&job(FailureKind::Permission)).expect("JSON");
        let read: JobStatus = serde_json::from_str(&written).expect(&written);
        assert_eq!(read, job(FailureKind::Permission));
        let old = r#"{"id":3,"kind":"clone","state":"failed","refused":true,"message":"no"}"#;
        let read: JobStatus = serde_json::from_str(old).expect(old);
        assert_eq!(read, job(FailureKind::default()));
    }
}
