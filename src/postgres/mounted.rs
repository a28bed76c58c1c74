//! What a server is given from mounted files, as one digest: by it a change is noticed.
//!
//! Covers the TLS files, the user's configuration, and what the secrets put into the passfile and `pg_hba.conf`.
//! The digest stays in memory: of a password not even that much may be shown.

use std::fs;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

use super::{ServerSettings, conf, tls_files};
use crate::files::{FileContext as _, FileError};

/// Equal if and only if files of the same names had the same content, wherever they stood.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fingerprint(…)")
    }
}

/// Reads the mounted files as they are now. Blocks.
///
/// # Errors
/// One of them cannot be read.
pub fn fingerprint(settings: &ServerSettings) -> Result<Fingerprint, FileError> {
    let mut digest = Context::new(&SHA256);
    let replication = &settings.replication;
    for text in [
        &settings.superuser.user,
        &replication.user,
        replication.password.expose(),
    ] {
        add(&mut digest, text.as_bytes());
    }
    let tls = settings.tls.as_deref();
    let mut files: Vec<PathBuf> = tls
        .into_iter()
        .flat_map(|folder| tls_files::NAMES.map(|name| folder.join(name)))
        .collect();
    if let Some(folder) = &settings.user_configuration {
        files.extend(conf::user_files(folder)?);
    }
    for file in &files {
        add(
            &mut digest,
            file.file_name().unwrap_or_default().as_encoded_bytes(),
        );
        add(&mut digest, &read(file)?);
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.finish().as_ref());
    Ok(Fingerprint(bytes))
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).file("read file", path)
}

/// With its length, so that no two lists of pieces give the same bytes.
fn add(digest: &mut Context, piece: &[u8]) {
    digest.update(&piece.len().to_le_bytes());
    digest.update(piece);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::Secret;
    use crate::postgres::fixtures::settings;

    #[test]
    fn each_mounted_file_counts_and_nothing_else() {
        let folder = tempfile::tempdir().expect("folder");
        let mut settings = settings(folder.path());
        for name in ["tls/tls.crt", "tls/tls.key", "tls/ca.crt", "conf.d/a.conf"] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            fs::write(path, "one").expect("write");
        }
        let mut last = fingerprint(&settings).expect("readable");
        let mut same = |settings: &ServerSettings| {
            let found = fingerprint(settings).expect("readable");
            std::mem::replace(&mut last, found) == found
        };
        assert!(same(&settings));
        for name in [
            "tls/tls.crt",
            "tls/tls.key",
            "tls/ca.crt",
            "conf.d/a.conf",
            "conf.d/b.conf",
            "conf.d/pg_hba.conf",
        ] {
            fs::write(folder.path().join(name), "two").expect("write");
            assert!(!same(&settings), "{name}");
            assert!(same(&settings), "{name}");
        }
        for name in ["conf.d/readme", "conf.d/.hidden.conf", "tls/other"] {
            fs::write(folder.path().join(name), "two").expect("write");
            assert!(same(&settings), "{name}");
        }
        settings.superuser.password = Secret::new("b".to_owned());
        assert!(same(&settings), "it is in no file of the server's");
        settings.replication.password = Secret::new("b".to_owned());
        assert!(!same(&settings));
        fs::remove_file(folder.path().join("tls/tls.key")).expect("remove");
        let error = fingerprint(&settings).expect_err("half a pair");
        assert!(error.to_string().contains("tls.key"), "{error}");
    }
}
