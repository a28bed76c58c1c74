//! Backups: from a server to a destination, back into a data directory, and proven.
//!
//! Everything at a destination:
//!
//! - `backups/<name>/backup.json`: the record, written last; without it there is no backup.
//! - `backups/<name>/…`: the objects that the record lists.
//! - `backups/<name>/verified.json`: what the last verification found.
//! - `wal/<system identifier>/<file>.zst`: archived WAL.
//!
//! What is kept and what a restore begins with is decided in [`crate::core::backup`].

mod assemble;
mod error;
mod extract;
mod facts;
mod files;
mod finish;
mod incremental;
mod logical;
mod object_reader;
mod own_folder;
mod physical;
mod pipeline;
mod replay;
mod repository;
pub mod restore;
mod restore_lock;
pub mod run;
mod spool;
pub mod verify;
pub mod wal;
pub mod wal_ahead;
pub mod wal_batch;
mod wal_object;
pub mod wal_place;
pub mod wal_standby;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use error::BackupError;
pub use repository::{Repository, catalogue};

use crate::core::supervision::Upstream;
use crate::postgres::Login;
use crate::postgres::session::{Access, Address, Session, SessionError};
use crate::postgres::tls::ClientTls;

/// To connect and log in.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A member that a backup is taken from.
#[derive(Clone)]
pub struct Server {
    pub name: String,
    /// `primary` or `standby`.
    pub role: String,
    /// What its certificate says.
    pub host: String,
    pub address: IpAddr,
    pub port: u16,
    pub superuser: Login,
    pub replication: Login,
    pub tls: Option<Arc<ClientTls>>,
    /// `ca.crt`, for the programs.
    pub authority: Option<PathBuf>,
}

impl Server {
    fn address(&self) -> Address {
        Address::Tcp {
            host: self.host.clone(),
            address: self.address,
            port: self.port,
        }
    }

    fn upstream(&self) -> Upstream {
        Upstream {
            host: self.host.clone(),
            address: self.address,
            port: self.port,
            slot: String::new(),
            application_name: None,
        }
    }

    async fn session(&self, database: &str, application_name: &str) -> Result<Session, SessionError> {
        let address = self.address();
        let access = Access {
            address: &address,
            login: &self.superuser,
            tls: self.tls.as_deref(),
            application_name,
        };
        Session::connect(&access, database, CONNECT_LIMIT).await
    }
}

/// Seconds since 1970 of this machine's clock: for people, and for how old a backup is.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
