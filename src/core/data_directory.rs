//! What a data directory says about itself, as plain data.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::wal::{Lsn, TimelineId, WalPosition};

/// The number that initdb draws once and that all members of one cluster share.
///
/// Written as text in JSON, since it does not fit a JSON number exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SystemIdentifier(pub u64);

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl TryFrom<String> for SystemIdentifier {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(SystemIdentifier)
    }
}

impl From<SystemIdentifier> for String {
    fn from(identifier: SystemIdentifier) -> Self {
        identifier.to_string()
    }
}

/// "Database cluster state" of `pg_controldata`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlState {
    StartingUp,
    ShutDown,
    ShutDownInRecovery,
    ShuttingDown,
    InCrashRecovery,
    InArchiveRecovery,
    InProduction,
}

impl ControlState {
    /// Whether the directory was last used by a standby: such a server has written no WAL of its own.
    #[must_use]
    pub fn was_standby(self) -> bool {
        matches!(self, Self::ShutDownInRecovery | Self::InArchiveRecovery)
    }
}

/// What stands at PGDATA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DataDirectory {
    /// Nothing, or an empty directory (`lost+found` does not count).
    Empty,
    /// Something that PostgreSQL cannot start: entries but no readable `pg_control`. Left alone.
    Unusable { detail: String },
    /// A directory with a readable `pg_control`.
    Complete(DataDirectoryFacts),
}

impl DataDirectory {
    /// The facts of a complete directory.
    #[must_use]
    pub fn facts(&self) -> Option<&DataDirectoryFacts> {
        match self {
            Self::Complete(facts) => Some(facts),
            Self::Empty | Self::Unusable { .. } => None,
        }
    }
}

/// What `pg_controldata`, `PG_VERSION` and the signal files of a complete directory say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataDirectoryFacts {
    pub system_identifier: SystemIdentifier,
    /// From `PG_VERSION`: 15 to 18.
    pub major_version: u32,
    /// The timeline of the latest checkpoint, or of the minimum recovery point if that is further.
    pub timeline: TimelineId,
    /// The latest position that the control file vouches for: checkpoint or minimum recovery point.
    pub control_lsn: Lsn,
    pub control_state: ControlState,
    pub standby_signal: bool,
    /// `recovery.signal`: a point-in-time recovery that has not ended.
    pub recovery_signal: bool,
    /// `backup_label`: a base backup that was never started.
    pub backup_label: bool,
    /// `pg_rewind` began to change it and did not end: never started, only replaced by a clone.
    #[serde(default)]
    pub half_rewound: bool,
}

impl DataDirectoryFacts {
    /// It was last written by a primary, so that nobody else has all of it for certain.
    #[must_use]
    pub fn was_primary(&self) -> bool {
        let copy = self.backup_label && !self.recovery_signal;
        !(self.standby_signal || copy || self.control_state.was_standby())
    }

    #[must_use]
    pub fn position(&self) -> WalPosition {
        WalPosition {
            timeline: self.timeline,
            lsn: self.control_lsn,
        }
    }
}
