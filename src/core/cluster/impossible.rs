//! Why an operator's order cannot be carried out, in words, and what helps.

use std::fmt;

use super::table::size_text;
use crate::core::operate::{Answer, Outcome};

/// Why an order is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Impossible {
    FixedLeadership,
    /// Nothing has been read of the Lease.
    NoLease,
    Paused,
    UnknownMember {
        name: String,
    },
    /// The operator had another primary in mind.
    OtherPrimary {
        given: String,
        found: Option<String>,
    },
    NoPrimary {
        holder: Option<String>,
    },
    AlreadyPrimary {
        name: String,
    },
    NotHeard {
        name: String,
    },
    NeverPrimary {
        name: String,
    },
    NotStreaming {
        name: String,
        situation: String,
    },
    TooFarBehind {
        name: String,
        lag_bytes: Option<u64>,
    },
    /// Nobody but the primary is fit: each with its reason.
    NoCandidate {
        reasons: Vec<String>,
    },
    NotRunning {
        name: String,
        situation: String,
    },
    PrimaryIsNotCloned {
        name: String,
    },
}

impl fmt::Display for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FixedLeadership => f.write_str("cannot move the primary: leadership is fixed"),
            Self::NoLease => f.write_str("could not read the Lease yet"),
            Self::Paused => f.write_str("cannot move the primary by force: the cluster is paused"),
            Self::UnknownMember { name } => write!(f, "the cluster has no member \"{name}\""),
            Self::OtherPrimary { given, found } => match found {
                Some(found) => write!(f, "\"{given}\" is not the primary, \"{found}\" is"),
                None => write!(f, "\"{given}\" is not the primary, nobody is"),
            },
            Self::NoPrimary { holder } => match holder {
                Some(holder) => write!(
                    f,
                    "\"{holder}\" holds the Lease and does not serve as the primary"
                ),
                None => f.write_str("nobody holds the Lease"),
            },
            Self::AlreadyPrimary { name } => write!(f, "\"{name}\" is the primary already"),
            Self::NotHeard { name } => write!(f, "\"{name}\" is not heard"),
            Self::NeverPrimary { name } => write!(f, "\"{name}\" is never to be primary"),
            Self::NotStreaming { name, situation } => write!(f, "\"{name}\" does not stream: {situation}"),
            Self::TooFarBehind { name, lag_bytes } => match lag_bytes {
                Some(lag) => write!(f, "\"{name}\" is {} behind", size_text(*lag)),
                None => write!(f, "\"{name}\" is behind by an unknown amount"),
            },
            Self::NoCandidate { reasons } if reasons.is_empty() => {
                f.write_str("the cluster has no other member")
            }
            Self::NoCandidate { reasons } => write!(f, "nobody can take over: {}", reasons.join("; ")),
            Self::NotRunning { name, situation } => {
                write!(f, "PostgreSQL of \"{name}\" does not run: {situation}")
            }
            Self::PrimaryIsNotCloned { name } => {
                write!(f, "cannot clone \"{name}\" afresh: it holds the primary's data")
            }
        }
    }
}

impl Impossible {
    /// Whether the order names what there is not, rather than what must not be done.
    #[must_use]
    pub fn mistaken(&self) -> bool {
        matches!(self, Self::UnknownMember { .. })
    }

    /// Whether it may be over in a moment, by what the members do themselves.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::NoLease
                | Self::NoPrimary { .. }
                | Self::NotHeard { .. }
                | Self::NotStreaming { .. }
                | Self::TooFarBehind { .. }
                | Self::NoCandidate { .. }
                | Self::NotRunning { .. }
        )
    }

    /// The answer to the order.
    #[must_use]
    pub fn answer(&self) -> Answer {
        let outcome = if self.mistaken() {
            Outcome::Invalid
        } else {
            Outcome::NotPossible
        };
        let answer = Answer::new(outcome, self.to_string());
        match self.hint() {
            Some(hint) => answer.hint(hint),
            None => answer,
        }
    }

    /// What the operator can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::FixedLeadership => Some("Set PODGRES_LEADERSHIP=lease to have a primary that can move."),
            Self::NoLease => Some("Is the Kubernetes API reachable, and may the pod read the Lease?"),
            Self::Paused => Some("Run \"podgres resume\" first."),
            Self::NoPrimary { .. } => {
                Some("Wait for the failover, or force one: \"podgres failover --to POD\".")
            }
            Self::TooFarBehind { .. } => Some("Wait until it has caught up, or choose another member."),
            Self::PrimaryIsNotCloned { .. } => Some("Move the primary first: \"podgres switchover\"."),
            Self::NeverPrimary { .. } => Some("PODGRES_NEVER_PRIMARY keeps it from that."),
            _ => None,
        }
    }
}
