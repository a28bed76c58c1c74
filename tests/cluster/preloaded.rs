//! Disks and clocks of pods that a test can disturb, and pods that speak from their own addresses: a library that every process of a pod loads first.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::wait_for;
use crate::plain::run;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/faults.c");
/// Pods that a demo has in these tests at most.
const PODS: u32 = 6;

/// What is disturbed, as the library's file has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disturbed {
    /// The time of day is so many microseconds off.
    ClockStep = 0,
    /// Each write and flush takes so many microseconds longer.
    DiskDelay = 1,
    /// Writes and flushes do not end while it is not 0.
    DiskHangs = 2,
}

/// The compiled library, and one file for each pod of a demo named `demo`.
pub(crate) struct Preloaded(PathBuf);

impl Preloaded {
    /// Compiles the library into a new folder `directory`.
    pub(crate) fn new(directory: &Path) -> Self {
        let new = Self(directory.to_owned());
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
        self.0.join("faults.so")
    }

    /// Words for `podgres demo`.
    pub(crate) fn words(&self) -> Vec<String> {
        let set = |key, path: &Path| ["--set".to_owned(), format!("{key}={}", path.display())];
        let (library, files) = (set("LD_PRELOAD", &self.library()), set("FAULTS", &self.0));
        library.into_iter().chain(files).collect()
    }

    /// Disturbs a pod from now on; 0 no longer.
    pub(crate) fn set(&self, pod: &str, what: Disturbed, value: i64) {
        let file = OpenOptions::new().write(true).open(self.0.join(pod));
        let at = what as u64 * 8;
        let file = file.expect("the pod's file");
        file.write_all_at(&value.to_ne_bytes(), at).expect("write");
    }

    /// Takes everything back.
    pub(crate) fn heal(&self) {
        for pod in 0..PODS {
            for what in [Disturbed::ClockStep, Disturbed::DiskDelay, Disturbed::DiskHangs] {
                self.set(&format!("demo-{pod}"), what, 0);
            }
        }
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
