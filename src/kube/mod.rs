//! The Kubernetes API, as far as podgres needs it: one Lease, and at most a label and an Event of its own pod, and
//! EndpointSlices.
//!
//! [`LeaseStore`] follows the Lease and writes it by compare-and-swap; what is known is a [`LeaseView`], stamped
//! with this machine's clock alone. It never decides who may hold the Lease, and never repeats a write.
//!
//! How a silent API is noticed without asking it all the time: a holder's renewals reach everybody as watch events,
//! so while they come, the watch is alive and nothing else is sent. When none has come for two retry periods, the
//! Lease is read once per two retry periods, with a time limit; that is when the holder is lost and the answer matters.
//! The watch itself is asked to end within a minute, its connection uses TCP keepalive and a user timeout, and HTTP/1.1
//! gives it a connection of its own, so that a stuck one never holds up a renewal.

mod annotations;
mod client;
mod error;
mod follow;
mod knowledge;
mod lease_api;
pub mod pod;
mod record;
mod remembered;
pub mod slice;
mod store;
mod update;

use std::path::PathBuf;
use std::time::Duration;

use crate::core::lease::Identity;
#[cfg(doc)]
use crate::core::lease::LeaseView;

pub use client::ApiClient;
pub use error::LeaseError;
pub use record::{RecordError, record_of, with_record};
pub use store::LeaseStore;
pub use update::LeaseClient;

/// The annotations' and labels' own prefix.
pub const PREFIX: &str = "podgres.dev/";

/// Of the seconds in the API's `MicroTime`.
pub const API_DECIMALS: usize = 6;

/// No request takes longer, whatever the retry period.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);

/// Where the API server is, and who one is to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// `KUBERNETES_SERVICE_HOST` and the service account's files, as the kubelet mounts them.
    InCluster,
    /// A kubeconfig file; without `context`, its current one.
    Kubeconfig { path: PathBuf, context: Option<String> },
    /// An address without TLS, for tests: the program itself reads a kubeconfig. The file holds a bearer token.
    Url {
        url: String,
        token_file: Option<PathBuf>,
    },
}

/// Which Lease, and how to reach it.
#[derive(Clone, Debug)]
pub struct LeaseSettings {
    pub reach: Reach,
    pub namespace: String,
    /// The cluster's name.
    pub name: String,
    /// This pod: a write that leaves it the holder is a renewal.
    pub identity: Identity,
    /// How often a holder writes. A request takes no longer than this, and never longer than 2 s.
    pub retry_period: Duration,
    /// Where what is known outlives this process; the folder is the pod's own. `None`: nowhere.
    pub memory_file: Option<PathBuf>,
}

impl LeaseSettings {
    /// The time that one request may take.
    #[must_use]
    pub fn request_limit(&self) -> Duration {
        self.retry_period.min(REQUEST_LIMIT)
    }

    /// How long the watch may say nothing before the Lease is read.
    #[must_use]
    pub fn silence(&self) -> Duration {
        self.retry_period * 2
    }
}

/// The time of day, RFC 3339, with so many decimals of the second: for people only.
#[must_use]
pub fn timestamp(decimals: usize) -> String {
    format!("{:.decimals$}", jiff::Timestamp::now())
}
