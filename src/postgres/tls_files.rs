//! Copies certificate and key from a mounted Secret to where PostgreSQL takes them.
//!
//! PostgreSQL refuses a key that the group may read or that a stranger owns, and `fsGroup` makes Secret
//! files just that. All three files are read before the first is written, so that they belong together.

use std::fs;
use std::path::{Path, PathBuf};

use super::ServerSettings;
use crate::files::{FileContext as _, FileError, write_generated};

/// The copies in the run directory.
#[derive(Clone, Debug)]
pub(super) struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub authority: PathBuf,
}

/// What a TLS folder holds.
pub(super) const NAMES: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];

/// Where the copies are.
pub(super) fn copies(settings: &ServerSettings) -> TlsFiles {
    let [certificate, key, authority] = NAMES.map(|name| settings.run_directory.join(name));
    TlsFiles {
        certificate,
        key,
        authority,
    }
}

/// The settings with the copies in the mounted files' place.
pub(super) fn with_copies(settings: &ServerSettings) -> ServerSettings {
    ServerSettings {
        tls: settings.tls.as_ref().map(|_| settings.run_directory.clone()),
        ..settings.clone()
    }
}

/// Copies `tls.crt`, `tls.key` and `ca.crt` from `folder`.
pub(super) fn copy(settings: &ServerSettings, folder: &Path) -> Result<(), FileError> {
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read(&path).file("read file", &path)
    };
    let [certificate, key, authority] = NAMES.map(read);
    let (certificate, key, authority) = (certificate?, key?, authority?);
    let files = copies(settings);
    write_generated(&files.certificate, &certificate)?;
    write_generated(&files.key, &key)?;
    write_generated(&files.authority, &authority)
}
