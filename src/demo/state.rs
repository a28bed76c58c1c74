//! `demo.json`: what other commands, and the next run, need to know of a demo. No secret is in it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::DemoError;
use crate::core::member::{Ordinal, Topology};
use crate::core::policy::Leadership;
use crate::files::{Making, replace};
use crate::postgres::user::ServerUser;

const FILE_NAME: &str = "demo.json";

/// The ports of every pod; the same on each pod's own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub postgres: u16,
    pub read_write: u16,
    pub read_only: u16,
    pub http: u16,
    /// The demo's DNS server, on the demo's own address.
    pub dns: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            postgres: 5432,
            read_write: 6432,
            read_only: 6433,
            http: 8008,
            dns: 5300,
        }
    }
}

/// A loopback network of 256 addresses, `127.a.b.0/24`: .1 is the demo's own, the pods begin at .10.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub a: u8,
    pub b: u8,
}

impl Network {
    #[must_use]
    pub fn host(self, last: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(127, self.a, self.b, last))
    }
}

/// One pod that exists, or did when the demo ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodState {
    pub name: String,
    pub ordinal: Ordinal,
    pub address: IpAddr,
}

/// Everything in `demo.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DemoState {
    pub cluster: String,
    pub service: String,
    pub namespace: String,
    pub cluster_domain: String,
    pub first_ordinal: Ordinal,
    pub replicas: u32,
    #[serde(default = "fixed")]
    pub leadership: Leadership,
    /// Of the API server, with a Lease; `None` at first.
    #[serde(default)]
    pub api_server: Option<SocketAddr>,
    pub network: Network,
    pub ports: Ports,
    pub superuser: String,
    pub database: String,
    pub password_file: PathBuf,
    /// Where the pods' PostgreSQL programs are: as found, or the copy that the pods' user can reach.
    pub program_directory: PathBuf,
    /// `None`: the pods run as whoever runs the demo.
    pub user: Option<ServerUser>,
    pub control_socket: PathBuf,
    /// How long a pod may take to end by itself.
    pub grace_ms: u64,
    /// In the order of the ordinals.
    pub pods: Vec<PodState>,
}

/// What a demo of the first version ran with.
fn fixed() -> Leadership {
    Leadership::Fixed
}

impl DemoState {
    /// Reads `<directory>/demo.json`; `None` if there is none.
    ///
    /// # Errors
    /// The file is not readable, or not what a demo of this version writes.
    pub fn load(directory: &Path) -> Result<Option<Self>, DemoError> {
        let path = directory.join(FILE_NAME);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DemoError::file("read", &path)(error)),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| DemoError::file("read", &path)(error.into()))
    }

    /// Replaces `<directory>/demo.json`; a reader sees the old or the new one, never a part.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn save(&self, directory: &Path) -> Result<(), DemoError> {
        let path = directory.join(FILE_NAME);
        let text =
            serde_json::to_vec_pretty(self).map_err(|error| DemoError::file("write", &path)(error.into()))?;
        let making = Making {
            mode: 0o666,
            owner: None,
            durable: false,
        };
        replace(&path, &text, making).map_err(|error| DemoError::file("write", &path)(error.source))
    }

    #[must_use]
    pub fn topology(&self) -> Topology {
        Topology {
            cluster: self.cluster.clone(),
            service: self.service.clone(),
            namespace: self.namespace.clone(),
            cluster_domain: self.cluster_domain.clone(),
            first_ordinal: self.first_ordinal,
        }
    }

    #[must_use]
    pub fn dns_server(&self) -> SocketAddr {
        SocketAddr::new(self.network.host(1), self.ports.dns)
    }

    #[must_use]
    pub fn pod(&self, ordinal: Ordinal) -> Option<&PodState> {
        self.pods.iter().find(|pod| pod.ordinal == ordinal)
    }
}
