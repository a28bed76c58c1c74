//! Sees to it that a detached standby's WAL receiver ends.
//!
//! The reload without an upstream ends it, but only once all that it has received is replayed, which a long query or a
//! great lag may hold up while WAL goes on arriving. So one that is still there after a moment is told directly.

use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::time::Instant;

use super::reaper;
use super::run::Supervisor;
use crate::core::supervision::ServerRole;

/// From the reload to the first look, and from one to the next.
const PAUSE: Duration = Duration::from_millis(100);
/// PostgreSQL may start it once more before it has read its files.
const LOOKS: u32 = 30;
/// In the process title: `postgres: <cluster_name>: walreceiver …`.
const TITLE: &str = ": walreceiver";

/// A receiver that has no right to go on.
pub(super) struct EndingReceiver {
    pub(super) look_at: Instant,
    looks: u32,
}

impl Supervisor {
    /// The server was told to follow `role`'s upstream.
    pub(super) fn watch_receiver(&mut self, role: &ServerRole) {
        let alone = matches!(role, ServerRole::Standby { upstream: None });
        self.ending_receiver = alone.then(|| EndingReceiver {
            look_at: Instant::now() + PAUSE,
            looks: 0,
        });
    }

    pub(super) fn look_for_receiver(&mut self) {
        let (Some(ending), Some(child)) = (&mut self.ending_receiver, &self.child) else {
            self.ending_receiver = None;
            return;
        };
        ending.looks += 1;
        ending.look_at = Instant::now() + PAUSE;
        let over = ending.looks > LOOKS;
        let receivers = receivers(child.pid);
        for receiver in &receivers {
            tracing::info!("ending the WAL receiver of a detached standby");
            reaper::send(*receiver, Signal::TERM);
        }
        if receivers.is_empty() || over {
            self.ending_receiver = None;
        }
    }
}

fn receivers(postmaster: Pid) -> Vec<Pid> {
    let children = reaper::children_of(postmaster).into_iter();
    children.filter(|pid| reaper::has_title(*pid, TITLE)).collect()
}
