//! What a restarted sidecar still knows of the Lease while the API server is silent, kept in the pod's shared folder.
//!
//! An old copy gives no right: that comes from the peers' confirmations, which count from now, or from a renewal. It must only
//! never hide a write that may still land, so a write that changes more than the count of renewals is in the file before it
//! is sent. Read by the same pod on the same boot alone, since the times in it are `CLOCK_BOOTTIME`.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::core::lease::{Identity, LeaseRecord, Renewal, StoredLease};

/// A write whose outcome was not known when this was kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OpenWrite {
    /// The version that it replaces.
    pub(super) over: Option<String>,
    pub(super) record: LeaseRecord,
    /// The record that it replaces.
    pub(super) replaced: Option<LeaseRecord>,
    pub(super) begun_at_ms: u64,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    pub(super) stored: StoredLease,
    pub(super) renewal: Option<Renewal>,
    /// Oldest first.
    pub(super) open: Vec<OpenWrite>,
}

impl Remembered {
    /// Whether `other` says the same but for renewals: then it need not be kept anew.
    pub(super) fn is_as_good_as(&self, other: &Self) -> bool {
        self.told() == other.told()
    }

    fn told(&self) -> (LeaseRecord, Option<u64>, Vec<LeaseRecord>) {
        let stored = settled(&self.stored.record);
        // A write that only renews changes nothing when it lands.
        let open = self.open.iter().map(|write| settled(&write.record));
        let open = open.filter(|record| *record != stored).collect();
        (stored, self.renewal.map(|renewal| renewal.term), open)
    }
}

fn settled(record: &LeaseRecord) -> LeaseRecord {
    LeaseRecord {
        renewals: 0,
        ..record.clone()
    }
}

#[derive(Serialize, Deserialize)]
struct File {
    boot_id: String,
    identity: Identity,
    remembered: Remembered,
}

/// The file, and what it holds.
#[derive(Debug)]
pub(super) struct Keeper {
    path: PathBuf,
    boot_id: String,
    identity: Identity,
    kept: Option<Remembered>,
}

impl Keeper {
    /// With what an earlier process of this pod left on this boot, if that can be read.
    pub(super) fn open(path: &Path, identity: &Identity) -> Self {
        let boot_id = boot_id();
        let read = std::fs::read(path).ok();
        let file = read.and_then(|bytes| serde_json::from_slice::<File>(&bytes).ok());
        let ours =
            file.filter(|file| file.boot_id == boot_id && !boot_id.is_empty() && file.identity == *identity);
        Self {
            path: path.to_owned(),
            boot_id,
            identity: identity.clone(),
            kept: ours.map(|file| file.remembered),
        }
    }

    /// What the file holds.
    pub(super) fn kept(&self) -> Option<&Remembered> {
        self.kept.as_ref()
    }

    /// Keeps what is known now. Survives the end of this process, not of the machine, so nothing is synced.
    ///
    /// # Errors
    /// An older copy is there and could be neither replaced nor removed: what it does not know of must not be begun.
    pub(super) fn keep(&mut self, now: Option<Remembered>) -> io::Result<()> {
        let same = match (&self.kept, &now) {
            (Some(kept), Some(now)) => now.is_as_good_as(kept),
            (None, None) => true,
            _ => false,
        };
        if same {
            return Ok(());
        }
        let written = now.as_ref().map_or_else(|| self.remove(), |now| self.write(now));
        match written {
            Ok(()) => self.kept = now,
            Err(error) => {
                self.remove()?;
                self.kept = None;
                tracing::debug!(path = %self.path.display(), %error, "could not keep what is known of the Lease");
            }
        }
        Ok(())
    }

    fn write(&self, now: &Remembered) -> io::Result<()> {
        let file = File {
            boot_id: self.boot_id.clone(),
            identity: self.identity.clone(),
            remembered: now.clone(),
        };
        let staged = self.path.with_extension("new");
        std::fs::write(&staged, serde_json::to_vec(&file)?)?;
        std::fs::rename(&staged, &self.path)
    }

    fn remove(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Linux, proc_sys_kernel(5): differs after each boot; empty where it cannot be read.
fn boot_id() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    read.unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(uid: &str) -> Identity {
        Identity {
            pod: "pg-0".to_owned(),
            uid: uid.to_owned(),
        }
    }

    fn remembered(term: u64, renewals: u64) -> Remembered {
        Remembered {
            stored: StoredLease {
                record: std::sync::Arc::new(LeaseRecord {
                    term,
                    renewals,
                    ..LeaseRecord::default()
                }),
                resource_version: renewals.to_string(),
            },
            renewal: None,
            open: Vec::new(),
        }
    }

    #[test]
    fn the_next_process_of_the_pod_finds_it_and_another_pod_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lease.json");
        let mut keeper = Keeper::open(&path, &identity("a"));
        assert_eq!(keeper.kept(), None);
        keeper.keep(Some(remembered(3, 1))).expect("kept");
        assert_eq!(
            Keeper::open(&path, &identity("a")).kept(),
            Some(&remembered(3, 1))
        );
        assert_eq!(Keeper::open(&path, &identity("b")).kept(), None);
        keeper.boot_id = "another boot".to_owned();
        keeper.keep(Some(remembered(4, 1))).expect("kept");
        assert_eq!(Keeper::open(&path, &identity("a")).kept(), None);
    }

    #[test]
    fn a_renewal_does_not_touch_the_file_and_a_pending_change_does() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lease.json");
        let mut keeper = Keeper::open(&path, &identity("a"));
        keeper.keep(Some(remembered(3, 1))).expect("kept");
        let mut renewing = remembered(3, 2);
        renewing.open.push(OpenWrite {
            over: Some("2".to_owned()),
            record: (*remembered(3, 3).stored.record).clone(),
            replaced: None,
            begun_at_ms: 7,
        });
        keeper.keep(Some(renewing.clone())).expect("not needed");
        assert_eq!(
            Keeper::open(&path, &identity("a")).kept(),
            Some(&remembered(3, 1))
        );
        renewing.open[0].record.paused = true;
        keeper.keep(Some(renewing.clone())).expect("kept");
        assert_eq!(Keeper::open(&path, &identity("a")).kept(), Some(&renewing));
    }

    #[test]
    fn a_copy_that_cannot_be_renewed_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lease.json");
        let mut keeper = Keeper::open(&path, &identity("a"));
        keeper.keep(Some(remembered(3, 1))).expect("kept");
        std::fs::create_dir(path.with_extension("new")).expect("in the way");
        keeper.keep(Some(remembered(4, 1))).expect("removed");
        assert!(!path.exists());
        std::fs::write(&path, "half").expect("written");
        assert_eq!(Keeper::open(&path, &identity("a")).kept(), None);
    }
}
