//! A folder whose files change as those of a mounted Secret do: all at once, by a renamed link.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::authority::Authority;
use crate::kit::open_folder;
use crate::user::give_away;

/// A mounted Secret or ConfigMap.
pub(crate) struct Mounted {
    folder: tempfile::TempDir,
    version: Cell<u32>,
}

impl Mounted {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self {
            folder: open_folder(),
            version: Cell::new(0),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Replaces all files, as the kubelet does: a new folder, and one link to it. The mode is what `fsGroup` makes of
    /// them, which neither libpq nor PostgreSQL takes for a secret's.
    pub(crate) fn put(&self, files: &[(&str, &[u8])]) {
        self.version.set(self.version.get() + 1);
        let version = format!("..{}", self.version.get());
        let folder = self.path().join(&version);
        fs::create_dir(&folder).expect("folder");
        for (name, content) in files {
            let file = folder.join(name);
            fs::write(&file, content).expect("file");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o440)).expect("mode");
            give_away(&file);
        }
        symlink(&version, self.path().join("..fresh")).expect("link");
        fs::rename(self.path().join("..fresh"), self.path().join("..data")).expect("rename");
        for (name, _) in files {
            // There since the first time.
            symlink(Path::new("..data").join(name), self.path().join(name)).ok();
        }
    }

    /// A key with a certificate by `issuer` for every pod of a demo, and the certificate of `trusted`. Beside them a
    /// line of configuration by which the server logs who connects, and how.
    pub(crate) fn put_tls(&self, issuer: &Authority, trusted: &Authority) {
        let made = open_folder();
        let names: Vec<String> = (0..4)
            .map(|n| format!("DNS:demo-{n}.demo.default.svc.cluster.local"))
            .collect();
        issuer.issue(made.path(), &names.join(","));
        let read = |folder: &Path, name: &str| fs::read(folder.join(name)).expect("made");
        self.put(&[
            ("tls.crt", &read(made.path(), "tls.crt")),
            ("tls.key", &read(made.path(), "tls.key")),
            ("ca.crt", &read(trusted.directory.path(), "ca.crt")),
            ("log.conf", b"log_connections = on\n"),
        ]);
    }
}
