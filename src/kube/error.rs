//! Why the Lease could not be read or written, in PostgreSQL's words.

use std::time::Duration;

use super::record::RecordError;
use crate::core::operate::{Answer, Outcome};

/// The name that users know a Lease by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseName {
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for LeaseName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "lease \"{}\" in namespace \"{}\"", self.name, self.namespace)
    }
}

/// Why a request was not answered by the API server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("could not use the settings for the Kubernetes API: {0}")]
    Settings(String),
    /// It never left: no connection.
    #[error("could not connect to the Kubernetes API: {0}")]
    NotSent(String),
    /// It may have arrived, now or later.
    #[error("no answer from the Kubernetes API: {0}")]
    Lost(String),
}

/// One operation on the Lease that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// `verb` is the API's: get, list, watch, create, update.
    #[error("could not {verb} {lease}: {failure}")]
    NoAnswer {
        verb: &'static str,
        lease: LeaseName,
        failure: Failure,
    },
    #[error("could not {verb} {lease}: {reason}")]
    Refused {
        verb: &'static str,
        lease: LeaseName,
        /// HTTP's.
        status: u16,
        reason: String,
        /// `Retry-After`.
        retry_after: Option<Duration>,
    },
    #[error("could not {verb} {lease}: it has changed since it was read")]
    Stale { verb: &'static str, lease: LeaseName },
    #[error("cannot use {lease}: {source}")]
    Unusable {
        lease: LeaseName,
        #[source]
        source: RecordError,
    },
    #[error("could not update {lease}: others have changed it {attempts} times meanwhile")]
    Contended { lease: LeaseName, attempts: u32 },
    /// An older copy in the pod's shared folder could be neither replaced nor removed.
    #[error("could not keep what is known of {lease} in this pod: {reason}")]
    NotKept { lease: LeaseName, reason: String },
    #[error("{lease} does not exist")]
    Missing { lease: LeaseName },
}

impl LeaseError {
    /// What the operator can do about it; `None` where nothing helps but time.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused {
                verb, status: 403, ..
            } => Some(format!(
                "Grant the verb \"{verb}\" on \"leases\" in the API group \"coordination.k8s.io\" to this pod's service account."
            )),
            Self::Refused { status: 401, .. } => {
                Some("Check the service account's token, or the user in the kubeconfig file.".to_owned())
            }
            Self::Unusable { .. } => {
                Some("Restore what was there, or delete the lease if no member runs.".to_owned())
            }
            _ => None,
        }
    }

    /// What the operator is told of an order that was not written.
    #[must_use]
    pub fn answer(&self) -> Answer {
        let answer = Answer::new(Outcome::Failed, self.to_string());
        match self.hint() {
            Some(hint) => answer.hint(hint),
            None => answer,
        }
    }

    /// The server's answer, if it gave one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The request may have been carried out all the same, or may still be.
    #[must_use]
    pub fn uncertain(&self) -> bool {
        match self {
            Self::NoAnswer {
                failure: Failure::Lost(_),
                ..
            } => true,
            // A gateway that gave up says nothing of the server behind it; a 500 may follow a write that was stored.
            Self::Refused { status, .. } => *status >= 500,
            _ => false,
        }
    }

    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
