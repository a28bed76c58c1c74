//! The one row that fits an observation: log sentence, metric label, column of `podgres status`.

mod rows;

use serde::{Deserialize, Serialize};

pub use rows::SITUATIONS;

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
    /// It runs and serves others.
    LoginRefused,
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
    /// From a backup, beside a Lease that was there before.
    Restored,
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
