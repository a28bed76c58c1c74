//! The one row that fits an observation: log sentence, metric label, column of `podgres status`.

use serde::{Deserialize, Serialize};

/// What a member finds itself in. Exactly one fits each observation; `decide` picks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Situation {
    SupervisorUnreachable,
    Leaving,
    Initialising,
    Cloning,
    /// `pg_rewind` runs.
    Rewinding,
    JobRefused,
    JobFailed,
    UnusableDataDirectory,
    WrongMajorVersion,
    Unlicensed,
    AskingPeers,
    PeerHoldsData,
    PeersUnreachable,
    NewCluster,
    WaitingForName,
    WaitingForPrimary,
    ReadyToClone,
    FirstHoldsStandby,
    FirstBehindPeer,
    AnotherPrimary,
    ReadyAsPrimary,
    StartFailing,
    ForeignDataDirectory,
    WasWritable,
    AheadOfPrimary,
    Diverged,
    WalGone,
    ReadyAsStandby,
    Stopping,
    Starting,
    Unresponsive,
    WritableStandby,
    Recovering,
    Primary,
    TwoWritable,
    UpstreamMoved,
    Streaming,
    NotStreaming,
    PrimaryUnreachable,
    /// Nothing is known of the Lease since this process began.
    LeaseUnread,
    /// The Lease was deleted, or the cluster is not made yet.
    LeaseMissing,
    /// The Lease is written with this member as its holder.
    Claiming,
    /// Its process may still run somewhere.
    AwaitingExpiry,
    /// The volume was lost while the Lease was held.
    HolderWithoutData,
    /// No right to acknowledge; the supervisor stops PostgreSQL when its licence ends.
    RightLapsed,
    /// Crash recovery or a restart under the right that it still has.
    Reopening,
    /// The licence first, then the promotion.
    Promoting,
    /// Lease and PostgreSQL are told in turns.
    ChangingSynchronousSet,
    /// See `Office`.
    OnConfirmations,
    /// Switchover, or the pod is ending.
    HandingOver,
    /// Others can prove that they have everything.
    Resigning,
    /// A former primary that still ran.
    LostOffice,
    /// Waits for enough others to say so.
    Suspecting,
    /// The promise is on disk before it is told.
    Detaching,
    /// Nothing can reach this member any more.
    Comparing,
    /// It has more, or comes first among equals.
    BetterCandidate,
    /// Not in the recorded set, never to be primary, or nothing can be proven.
    NoCandidate,
    /// By compare-and-swap, in the next term.
    Standing,
    /// The operator's wish.
    Paused,
    /// Of this member alone: a restart, or a fresh clone.
    Requested,
    /// What it alone has is kept aside.
    ReadyToRewind,
    /// Waits detached.
    AwaitingPrimary,
}

/// What follows from a situation that stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outlook {
    /// The member works.
    Steady,
    /// Something is under way or awaited.
    Passing,
    /// Acting would endanger data: a person must decide. `init` ends with exit code 65.
    Refused,
    /// What was awaited did not come in time. `init` ends with exit code 69.
    Overdue,
}

/// Outlook, name and explanation of every situation, in the order in which `decide` asks for them.
pub const SITUATIONS: [(Situation, Outlook, &str, &str); 62] = {
    use Outlook::{Overdue, Passing, Refused, Steady};
    use Situation as S;
    [
        (
            S::SupervisorUnreachable,
            Passing,
            "supervisor_unreachable",
            "the supervisor does not answer on its socket",
        ),
        (
            S::Leaving,
            Passing,
            "leaving",
            "the pod is ending; nothing is started any more",
        ),
        (
            S::Initialising,
            Passing,
            "initialising",
            "a new cluster is being made in the staging directory",
        ),
        (
            S::Cloning,
            Passing,
            "cloning",
            "the primary is being copied into the staging directory",
        ),
        (
            S::Rewinding,
            Passing,
            "rewinding",
            "the former primary is being rewound to where the new one branched off",
        ),
        (
            S::UnusableDataDirectory,
            Refused,
            "unusable_data_directory",
            "PGDATA holds something that is no complete data directory",
        ),
        (
            S::WrongMajorVersion,
            Refused,
            "wrong_major_version",
            "PGDATA was made by another major version of PostgreSQL",
        ),
        (
            S::ForeignDataDirectory,
            Refused,
            "foreign_data_directory",
            "PGDATA belongs to another cluster than the primary",
        ),
        (
            S::WritableStandby,
            Steady,
            "writable_standby",
            "a server that must be a standby accepts writes; a person must decide which one is right",
        ),
        (S::Stopping, Passing, "stopping", "PostgreSQL is stopping"),
        (
            S::Requested,
            Passing,
            "requested",
            "what the operator asked of this member is carried out",
        ),
        (S::Starting, Passing, "starting", "PostgreSQL is starting"),
        (
            S::Unresponsive,
            Passing,
            "unresponsive",
            "PostgreSQL runs but does not answer",
        ),
        (
            S::Recovering,
            Passing,
            "recovering",
            "the first ordinal is in recovery and will be the primary when it ends",
        ),
        (
            S::TwoWritable,
            Steady,
            "two_writable",
            "another member accepts writes too; a person must decide which one is right",
        ),
        (S::Primary, Steady, "primary", "running as primary"),
        (
            S::WalGone,
            Passing,
            "wal_gone",
            "the primary no longer has the WAL that this standby needs",
        ),
        (
            S::Diverged,
            Passing,
            "diverged",
            "this directory holds WAL that the primary's history does not",
        ),
        (
            S::AheadOfPrimary,
            Refused,
            "ahead_of_primary",
            "this standby holds WAL that the primary has lost",
        ),
        (
            S::UpstreamMoved,
            Passing,
            "upstream_moved",
            "the primary's address has changed; the standby is pointed at it",
        ),
        (S::Streaming, Steady, "streaming", "streaming from the primary"),
        (
            S::PrimaryUnreachable,
            Passing,
            "primary_unreachable",
            "the primary cannot be reached; serving what was received",
        ),
        (
            S::NotStreaming,
            Passing,
            "not_streaming",
            "the primary is there but the WAL receiver does not stream yet",
        ),
        (
            S::JobRefused,
            Refused,
            "job_refused",
            "the last job was refused; trying again cannot help",
        ),
        (
            S::JobFailed,
            Passing,
            "job_failed",
            "the last job failed; it is tried again after a pause",
        ),
        (
            S::StartFailing,
            Passing,
            "start_failing",
            "PostgreSQL did not start; it is tried again after a pause",
        ),
        (
            S::AskingPeers,
            Passing,
            "asking_peers",
            "asking the peers that DNS knows before anything is started",
        ),
        (
            S::PeerHoldsData,
            Refused,
            "peer_holds_data",
            "this first ordinal is empty but a peer holds data",
        ),
        (
            S::PeersUnreachable,
            Overdue,
            "peers_unreachable",
            "a peer that DNS knows does not answer; it may hold data",
        ),
        (
            S::NewCluster,
            Passing,
            "new_cluster",
            "no peer holds data: a new cluster is made",
        ),
        (
            S::WaitingForName,
            Passing,
            "waiting_for_name",
            "standby waiting on DNS for the primary's name",
        ),
        (
            S::WaitingForPrimary,
            Passing,
            "waiting_for_primary",
            "standby waiting for the primary to accept replication",
        ),
        (
            S::ReadyToClone,
            Passing,
            "ready_to_clone",
            "the primary accepts replication: it is cloned",
        ),
        (
            S::FirstHoldsStandby,
            Refused,
            "first_holds_standby",
            "the first ordinal holds a standby's data directory",
        ),
        (
            S::FirstBehindPeer,
            Refused,
            "first_behind_peer",
            "a peer is on a later timeline than the first ordinal",
        ),
        (
            S::AnotherPrimary,
            Refused,
            "another_primary",
            "another member already accepts writes",
        ),
        (
            S::WasWritable,
            Refused,
            "was_writable",
            "this standby ordinal's directory was last used by a primary",
        ),
        (
            S::Unlicensed,
            Passing,
            "unlicensed",
            "the supervisor is given its licence",
        ),
        (
            S::ReadyAsPrimary,
            Passing,
            "ready_as_primary",
            "the data directory is ready to start as primary",
        ),
        (
            S::ReadyAsStandby,
            Passing,
            "ready_as_standby",
            "the data directory is ready to start as standby",
        ),
        (
            S::LeaseUnread,
            Passing,
            "lease_unread",
            "the API server has not told the Lease yet",
        ),
        (
            S::LeaseMissing,
            Passing,
            "lease_missing",
            "there is no Lease, and this member is not the one to make it",
        ),
        (S::Claiming, Passing, "claiming", "claims the Lease"),
        (
            S::AwaitingExpiry,
            Passing,
            "awaiting_expiry",
            "an earlier pod of this name holds the Lease, which must run out first",
        ),
        (
            S::HolderWithoutData,
            Passing,
            "holder_without_data",
            "holds the Lease but has no data: gives it back",
        ),
        (
            S::RightLapsed,
            Passing,
            "right_lapsed",
            "holds the Lease but has not renewed it in time",
        ),
        (
            S::Reopening,
            Passing,
            "reopening",
            "holds the Lease: PostgreSQL is started as the primary it was",
        ),
        (
            S::Promoting,
            Passing,
            "promoting",
            "holds the Lease: this standby becomes the primary",
        ),
        (
            S::ChangingSynchronousSet,
            Steady,
            "changing_synchronous_set",
            "running as primary; the synchronous set is being changed",
        ),
        (
            S::OnConfirmations,
            Steady,
            "on_confirmations",
            "running as primary; the API server does not answer, enough peers confirm",
        ),
        (
            S::HandingOver,
            Passing,
            "handing_over",
            "a planned move: the successor takes over when PostgreSQL has stopped",
        ),
        (
            S::Resigning,
            Passing,
            "resigning",
            "PostgreSQL cannot serve here: the Lease is given back",
        ),
        (
            S::LostOffice,
            Passing,
            "lost_office",
            "another holds the Lease: PostgreSQL is stopped",
        ),
        (
            S::Suspecting,
            Passing,
            "suspecting",
            "the primary is lost to this member; one member's word is not enough",
        ),
        (
            S::Detaching,
            Passing,
            "detaching",
            "enough members have lost the primary: the next term is promised",
        ),
        (
            S::Comparing,
            Passing,
            "comparing",
            "detached: enough final positions are not known yet",
        ),
        (
            S::BetterCandidate,
            Passing,
            "better_candidate",
            "another member is to take over",
        ),
        (
            S::NoCandidate,
            Passing,
            "no_candidate",
            "the primary is lost and this member may not take over",
        ),
        (
            S::Standing,
            Passing,
            "standing",
            "has every acknowledged commit: claims the Lease",
        ),
        (
            S::Paused,
            Steady,
            "paused",
            "the cluster is paused: nothing is done automatically",
        ),
        (
            S::ReadyToRewind,
            Passing,
            "ready_to_rewind",
            "this former primary is rewound to follow the new one",
        ),
        (
            S::AwaitingPrimary,
            Passing,
            "awaiting_primary",
            "nobody holds the Lease as a primary that can be followed yet",
        ),
    ]
};

impl Situation {
    fn row(self) -> (Outlook, &'static str, &'static str) {
        SITUATIONS
            .iter()
            .find(|(situation, ..)| *situation == self)
            .map_or((Outlook::Passing, "", ""), |(_, outlook, name, sentence)| {
                (*outlook, name, sentence)
            })
    }

    /// The name in logs, metrics and `podgres status`: `waiting_for_primary`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().1
    }

    #[must_use]
    pub fn outlook(self) -> Outlook {
        self.row().0
    }

    /// One sentence without particulars.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        self.row().2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_situation_is_in_the_table_once_and_serde_agrees_with_its_name() {
        let names: BTreeSet<&str> = SITUATIONS.iter().map(|row| row.2).collect();
        assert_eq!(names.len(), SITUATIONS.len());
        for (situation, _, _, sentence) in SITUATIONS {
            assert!(!sentence.is_empty());
            let json = serde_json::to_string(&situation).expect("plain enum");
            assert_eq!(json, format!("\"{}\"", situation.name()));
        }
    }
}
