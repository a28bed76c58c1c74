//! A volume of a size of its own, for what happens when it is full.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{LIMIT, wait_for};
use crate::plain::{give_away, run};

/// Mounted as root; unmounted at the end.
pub(crate) struct Volume(PathBuf);

impl Volume {
    /// An empty one at `path`, of `size` as mount(8) takes it.
    pub(crate) fn mount(path: &Path, size: &str) -> Self {
        let options = format!("size={size},mode=0700");
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &options, "podgres-test"])
            .arg(path);
        run(&mut mount);
        give_away(path);
        Self(path.to_owned())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Leaves no room but what is in use; how many bytes that is.
    pub(crate) fn fill(&self) -> u64 {
        let mut used = 0;
        let filled = wait_for(LIMIT, || {
            let found = rustix::fs::statvfs(&self.0).expect("statvfs");
            used = (found.f_blocks - found.f_bfree) * found.f_frsize;
            // Not if it has grown meanwhile: tmpfs does not become smaller than its files.
            let mut mount = Command::new("mount");
            mount.args(["-o", &format!("remount,size={used}")]).arg(&self.0);
            mount.output().expect("mount").status.success()
        });
        assert!(filled, "{} cannot be filled", self.0.display());
        used
    }

    pub(crate) fn resize(&self, size: &str) {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,size={size}")]).arg(&self.0);
        run(&mut mount);
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        umount.arg("--lazy").arg(&self.0).status().expect("umount");
    }
}
