//! Disks and clocks of pods that a test can disturb, and pods that speak from their own addresses: a library that every process of a pod loads first.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::harness::wait_for;
use crate::plain::run;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/faults.c");
/// Pods that a demo has in these tests at most.
const PODS: u32 = 6;

/// What is disturbed, as the library's file has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Disturbed {
    /// The time of day is so many microseconds off.
    ClockStep = 0,
    /// Each write and flush takes so many microseconds longer.
    DiskDelay = 1,
    /// Writes and flushes do not end while it is more than 0.
    DiskHangs = 2,
}

/// The compiled library, and one file for each pod of a demo named `demo`.
pub(crate) struct Preloaded {
    folder: PathBuf,
    /// As the files have it, by pod.
    values: Mutex<BTreeMap<(String, Disturbed), i64>>,
}

impl Preloaded {
    /// Compiles the library into a new folder `directory`.
    pub(crate) fn new(directory: &Path) -> Self {
        let new = Self {
            folder: directory.to_owned(),
            values: Mutex::default(),
        };
        fs::create_dir_all(directory).expect("folder");
        run(Command::new("cc")
            .args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
            .arg(new.library())
            .arg(SOURCE)
            .arg("-ldl"));
        for pod in 0..PODS {
            let file = directory.join(format!("demo-{pod}"));
            fs::write(&file, [0; 24]).expect("file");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("mode");
        }
        for path in [directory, &new.library()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("mode");
        }
        new
    }

    fn library(&self) -> PathBuf {
        self.folder.join("faults.so")
    }

    /// Words for `podgres demo`.
    pub(crate) fn words(&self) -> Vec<String> {
        let set = |key, path: &Path| ["--set".to_owned(), format!("{key}={}", path.display())];
        let (library, files) = (set("LD_PRELOAD", &self.library()), set("FAULTS", &self.folder));
        library.into_iter().chain(files).collect()
    }

    /// Disturbs a pod by so much more from now on: what falls on it at the same time adds up.
    pub(crate) fn add(&self, pod: &str, what: Disturbed, more: i64) {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let value = values.entry((pod.to_owned(), what)).or_default();
        *value += more;
        self.write(pod, what, *value);
    }

    /// Takes everything back.
    pub(crate) fn heal(&self) {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        for ((pod, what), _) in std::mem::take(&mut *values) {
            self.write(&pod, what, 0);
        }
    }

    fn write(&self, pod: &str, what: Disturbed, value: i64) {
        let file = OpenOptions::new().write(true).open(self.folder.join(pod));
        let at = what as u64 * 8;
        let file = file.expect("the pod's file");
        file.write_all_at(&value.to_ne_bytes(), at).expect("write");
    }

    /// Whether a process would notice; `None` if it has ended.
    pub(crate) fn reaches(&self, pid: u32) -> Option<bool> {
        let library = self.library();
        let mut maps = String::new();
        // Right after its start a process has not loaded it yet.
        let reached = wait_for(Duration::from_secs(3), || {
            maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
            maps.is_empty() || maps.contains(&library.display().to_string())
        });
        (!maps.is_empty()).then_some(reached)
    }
}
