//! What the operator has asked for, as far as decisions rest on it.

use serde::{Deserialize, Serialize};

use super::member::Ordinal;

/// Who may be primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leadership {
    /// The first ordinal is the primary for ever; no API rights are needed.
    FixedOrdinal,
}

/// Settings that `decide` reads. Times are milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub leadership: Leadership,
    /// The StatefulSet's name; slot names are made from it.
    pub cluster: String,
    pub ordinal: Ordinal,
    pub first_ordinal: Ordinal,
    /// Make a new cluster on an empty first ordinal although a peer holds data. The operator's
    /// explicit override (`--new-cluster`), never a default.
    pub new_cluster: bool,
    /// Replace a standby's directory that can never follow again by a fresh clone.
    pub reclone: bool,
    /// How long an empty first ordinal asks peers that DNS knows and that do not answer.
    pub discovery_timeout_ms: u64,
    /// How long a standby may stand still without streaming before its position is judged.
    pub stall_timeout_ms: u64,
    /// How long a member may be missing from DNS before its replication slot is dropped.
    pub slot_retention_ms: u64,
}

impl Policy {
    /// Whether this member is the one that `FixedOrdinal` makes primary.
    #[must_use]
    pub fn first(&self) -> bool {
        self.ordinal == self.first_ordinal
    }
}
