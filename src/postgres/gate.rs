//! The commit gate: confirms this pod's own WAL to its PostgreSQL, as a physical replication client, while the right lasts.
//!
//! PostgreSQL names it first in `synchronous_standby_names` (`core::synchronous_names`), so that no commit is
//! acknowledged without it: neither after the right has lapsed, nor with this process frozen or dead. Runs on a thread
//! and a runtime of its own. Keeps nothing, writes nothing, and never confirms what PostgreSQL has not sent.
//!
//! There is never more than one gate: PostgreSQL counts connections and not names, and two of them would pass
//! for a standby in `ANY 2 (podgres_gate, …)`. So a gate confirms nothing before it has, once connected, seen that it is alone,
//! and reconnects only when its former walsender has ended.

mod attach;
mod shared;
mod thread;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use self::shared::Shared;
use super::Login;
use crate::core::data_directory::SystemIdentifier;
use crate::core::wal::{Lsn, TimelineId};

pub use attach::GateError;

/// The bounds of a gate's waiting.
#[derive(Clone, Copy, Debug)]
pub struct GateSettings {
    /// For connecting, and for each command.
    pub attempt_limit: Duration,
    /// How often a position is said again: PostgreSQL looks at it anew after a reload only when it is said.
    pub repeat_every: Duration,
}

impl Default for GateSettings {
    fn default() -> Self {
        Self {
            attempt_limit: Duration::from_secs(5),
            repeat_every: Duration::from_millis(250),
        }
    }
}

/// The server to attach to: this pod's own, in clear and by its address, as all of the pod's own connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateTarget {
    pub address: SocketAddr,
    /// The replication role's.
    pub login: Login,
    /// Another cluster's server is refused.
    pub system_identifier: SystemIdentifier,
}

/// Whether the gate streams from PostgreSQL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// `None` while it does not.
    pub timeline: Option<TimelineId>,
    /// Since when, on this machine's `CLOCK_BOOTTIME`.
    pub since_ms: u64,
    /// How often the gate has attached.
    pub count: u64,
    /// Why it does not stream now, or did not last time.
    pub last_error: Option<String>,
}

/// What a gate does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GateStatus {
    pub attachment: Attachment,
    /// Up to where PostgreSQL has sent WAL, that is flushed it; `None` before the first attachment.
    pub received_lsn: Option<Lsn>,
    /// Up to where the gate has confirmed, in this attachment or an earlier one.
    pub confirmed_lsn: Option<Lsn>,
}

impl GateStatus {
    #[must_use]
    pub fn attached(&self) -> bool {
        self.attachment.timeline.is_some()
    }
}

/// A gate; dropping it detaches it for good.
pub struct Gate {
    shared: Arc<Shared>,
}

impl Gate {
    /// Starts the thread: detached, and without a right.
    ///
    /// # Errors
    /// The operating system gives no thread or no event queue.
    pub fn start(settings: GateSettings) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let gate = Self {
            shared: Arc::clone(&shared),
        };
        std::thread::Builder::new()
            .name("gate".to_owned())
            .spawn(move || runtime.block_on(thread::run(settings, shared)))?;
        Ok(gate)
    }

    /// Lets the gate confirm until this time on `CLOCK_BOOTTIME` (`clock::boottime_ms`); 0: no right.
    ///
    /// An earlier time than before takes back: once this has returned, nothing is confirmed beyond it.
    pub fn allow_until(&self, deadline_ms: u64) {
        self.shared.allow_until(deadline_ms);
    }

    /// Attaches to a server that runs as primary, or will soon, and stays attached to it; `None` detaches.
    pub fn want(&self, target: Option<GateTarget>) {
        self.shared.want(target);
    }

    #[must_use]
    pub fn status(&self) -> GateStatus {
        self.shared.status()
    }

    /// Tells of each change of the attachment.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Attachment> {
        self.shared.attachment.subscribe()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.dismiss();
    }
}
