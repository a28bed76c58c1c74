//! What the operator has asked for, as far as decisions rest on it.

use serde::{Deserialize, Serialize};

use super::lease::{Durability, Identity};
use super::member::Ordinal;

/// Who may be primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leadership {
    /// The first ordinal is the primary for ever; no API rights are needed.
    #[serde(rename = "fixed_ordinal")]
    Fixed,
    /// The holder of the Lease named as the cluster.
    Lease,
}

impl Leadership {
    /// As settings and pages have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Lease => "lease",
        }
    }
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
    /// This pod in the Lease's `holderIdentity`.
    pub identity: Identity,
    pub durability: Durability,
    /// Commits also wait for the sidecar's own confirmation.
    pub gate: bool,
    /// While the cluster is switched to read-only, sessions that connect to the primary directly begin read-only too.
    #[serde(default)]
    pub read_only_default: bool,
    /// Whether this member may become primary, and who is preferred among equals (lower first).
    pub priority: Option<u32>,
    pub times: LeaseTimes,
}

/// The Lease's timing; relations are checked where the settings are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseTimes {
    /// Others may take the Lease when they have not seen it change for so long.
    pub lease_duration_ms: u64,
    /// The right ends so long after the last renewal was sent.
    pub renew_deadline_ms: u64,
    pub retry_period_ms: u64,
    /// Silence of a peer after which it counts as lost.
    pub peer_timeout_ms: u64,
    pub stop_timeout_ms: u64,
    /// Before a planned stop, sessions may take so long to come to the end of a transaction.
    pub drain_timeout_ms: u64,
    /// A crashed primary that is not ready by then is handed over, where that loses nothing.
    pub recovery_timeout_ms: u64,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        Self {
            lease_duration_ms: 15_000,
            renew_deadline_ms: 10_000,
            retry_period_ms: 2_000,
            peer_timeout_ms: 2_000,
            stop_timeout_ms: 3_000,
            drain_timeout_ms: 5_000,
            recovery_timeout_ms: 30_000,
        }
    }
}

impl Policy {
    /// Whether this member is the one that [`Leadership::Fixed`] makes primary.
    #[must_use]
    pub fn first(&self) -> bool {
        self.ordinal == self.first_ordinal
    }

    /// The member of this cluster that is called so, in a pod's name or an `application_name`: `<cluster>-<ordinal>`.
    #[must_use]
    pub fn ordinal_of(&self, name: &str) -> Option<Ordinal> {
        Ordinal::read(name.strip_prefix(&self.cluster)?.strip_prefix('-')?)
    }
}
