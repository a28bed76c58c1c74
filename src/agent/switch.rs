//! The read-only switch as the members tell it each other: this member's copy, kept in the pod's shared folder. Without a Lease
//! it counts alone, and the supervisor keeps it beside PGDATA too, where it outlives the pod.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::core::cluster::PeerEntry;
use crate::core::lease::ReadOnlySwitch;
use crate::core::switch::SwitchPosition;
use crate::files;
use crate::postgres::error::describe;

const FILE_NAME: &str = "read-only.json";

/// The newest position that this member has heard of.
#[derive(Clone)]
pub(super) struct Switchboard {
    path: PathBuf,
    known: Arc<Mutex<SwitchPosition>>,
    turned: Arc<Notify>,
}

impl Switchboard {
    /// With what was known before this container started.
    pub(super) fn open(run_directory: &Path) -> Self {
        let path = run_directory.join(FILE_NAME);
        let read = std::fs::read(&path).ok();
        let known = read.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self {
            path,
            known: Arc::new(Mutex::new(known.unwrap_or_default())),
            turned: Arc::default(),
        }
    }

    pub(super) fn position(&self) -> SwitchPosition {
        self.lock().clone()
    }

    /// The operator turns it.
    pub(super) fn turn(&self, on: Option<ReadOnlySwitch>) {
        let next = self.lock().turned(on);
        self.learn(&next);
        self.turned.notify_one();
    }

    /// Takes over what the others know better.
    pub(super) fn listen(&self, peers: &[PeerEntry]) {
        let told = peers.iter().filter_map(|peer| peer.status.as_ref());
        if let Some(newest) = SwitchPosition::newest(told.map(|status| &status.switch)) {
            self.learn(newest);
        }
    }

    /// Takes over what is kept on the volume, and gives what should be.
    pub(super) fn recall(&self, kept: &SwitchPosition) -> Option<SwitchPosition> {
        self.learn(kept);
        Some(self.position()).filter(|known| known > kept)
    }

    /// Ends when the operator has turned it.
    pub(super) async fn turned(&self) {
        self.turned.notified().await;
    }

    fn learn(&self, position: &SwitchPosition) {
        let mut known = self.lock();
        if *position <= *known {
            return;
        }
        known.clone_from(position);
        let text = serde_json::to_vec(&*known).unwrap_or_default();
        if let Err(error) = files::write_generated(&self.path, &text) {
            tracing::warn!("could not keep the read-only switch: {}", describe(&error));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, SwitchPosition> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
