//! The demo: a StatefulSet controller, kubelet and DNS server for pods that are processes of one machine.
//!
//! Each pod runs the shipped `init`, `sidecar` and `postgres` on a loopback address of its own. Nothing here
//! knows what the pods do: they are started, probed, signalled and named in DNS, as in Kubernetes.
//! Entry points: [`run`] leads a demo, [`control::request`] talks to one, [`dsn::dsn`] connects to one.

pub mod addresses;
pub mod api;
mod backoff;
mod banner;
pub mod container;
pub mod control;
mod controller;
pub mod dns;
pub mod dsn;
pub mod events;
mod layout;
mod life;
mod orphans;
pub mod pod;
mod probe;
mod process;
mod programs;
mod requests;
mod secret;
mod setup;
pub mod state;
pub mod tree;
mod user;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::core::member::Ordinal;
use crate::core::policy::Leadership;
use crate::postgres::user::UserError;

pub use controller::run;
pub use dsn::{Target, dsn};
pub use layout::run_directories;
pub use state::DemoState;

/// In which order pods are made (StatefulSet, `.spec.podManagementPolicy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodManagement {
    /// One after the other, each waiting until all before it are ready.
    #[default]
    OrderedReady,
    /// All at once.
    Parallel,
}

/// What a demo is started with. What is `None` is as in the directory's earlier run, or else the default.
#[derive(Clone, Debug)]
pub struct Options {
    /// Default 3.
    pub replicas: Option<u32>,
    /// Kept at the end; `None`: a new temporary directory, removed at the end.
    pub directory: Option<PathBuf>,
    /// Run as `<binary> init`, `sidecar` and `postgres`; copied into the directory first.
    pub binary: PathBuf,
    /// Where `postgres`, `initdb` and the others are.
    pub program_directory: PathBuf,
    /// Default: all at once with a Lease, one after the other with a fixed primary.
    pub pod_management: Option<PodManagement>,
    /// Default [`Leadership::Lease`].
    pub leadership: Option<Leadership>,
    /// Default `demo`.
    pub cluster: Option<String>,
    /// Default: the cluster's name.
    pub service: Option<String>,
    /// Default `default`.
    pub namespace: Option<String>,
    /// Default `cluster.local`.
    pub cluster_domain: Option<String>,
    /// Default 0.
    pub first_ordinal: Option<u32>,
    /// How long a pod may take to end by itself; 30 s in Kubernetes.
    pub grace: Duration,
    /// More settings for the pods, e.g. `PODGRES_MAX_LAG`; they win over the demo's own.
    pub environment: BTreeMap<String, String>,
    /// Repeats the containers' output.
    pub verbose: bool,
    /// This process does nothing but the demo: it handles SIGINT, SIGTERM and SIGCHLD, inherits the pods'
    /// orphans and reaps every child that it has. False only where a demo runs inside a test.
    pub own_process: bool,
}

impl Options {
    /// The defaults, for these programs.
    #[must_use]
    pub fn new(binary: PathBuf, program_directory: PathBuf) -> Self {
        Self {
            replicas: None,
            directory: None,
            binary,
            program_directory,
            pod_management: None,
            leadership: None,
            cluster: None,
            service: None,
            namespace: None,
            cluster_domain: None,
            first_ordinal: None,
            grace: Duration::from_secs(30),
            environment: BTreeMap::new(),
            verbose: false,
            own_process: true,
        }
    }
}

/// Why a demo does not run.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("could not {action} \"{path}\"")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("directory \"{directory}\" is in use by another demo")]
    InUse { directory: PathBuf },
    #[error("directory \"{directory}\" holds the cluster \"{found}\", not \"{wanted}\"")]
    OtherCluster {
        directory: PathBuf,
        found: String,
        wanted: String,
    },
    #[error("user \"{user}\" cannot enter directory \"{directory}\"")]
    NotEntered { user: String, directory: PathBuf },
    #[error(transparent)]
    User(#[from] UserError),
    #[error("invalid {setting} \"{value}\": {expected}")]
    Setting {
        setting: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error("could not listen on {address}, nor on other loopback addresses in its place")]
    Address {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("pod \"{name}\" does not exist")]
    NoPod { name: String },
    #[error("could not {action}")]
    Process {
        action: &'static str,
        #[source]
        source: io::Error,
    },
}

impl DemoError {
    /// A closure for `map_err`: the action ("read") and the file that it failed on.
    fn file(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File {
            action,
            path: path.clone(),
            source,
        }
    }

    fn no_pod(state: &DemoState, ordinal: Ordinal) -> Self {
        Self::NoPod {
            name: state.topology().pod_name(ordinal),
        }
    }

    /// What to do about it, as a sentence; `None` where the error says it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::InUse { .. } => {
                Some("Stop it with \"podgres demo stop --dir DIR\", or choose another directory.")
            }
            Self::OtherCluster { .. } => {
                Some("Leave the setting out to continue with what is there, or choose another directory.")
            }
            Self::NotEntered { .. } => Some(
                "Choose a directory that all users may enter, e.g. under /var/tmp, or run the demo as another user.",
            ),
            Self::User(UserError::Missing) => Some("Run the demo as an ordinary user."),
            Self::Address { .. } => {
                Some("The demo needs addresses of the network 127.0.0.0/8 and free ports on them.")
            }
            Self::User(UserError::Passwd(_))
            | Self::File { .. }
            | Self::Setting { .. }
            | Self::NoPod { .. }
            | Self::Process { .. } => None,
        }
    }
}
