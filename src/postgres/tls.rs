//! The TLS of podgres' own connections to other members: the cluster's certificate authority, read from `ca.crt`.
//!
//! Servers are verified as libpq's `verify-full` does: a chain to `ca.crt` and the host's name among the
//! certificate's subject alternative names. Never falls back to clear text or to the system's authorities.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::TlsConnector;

/// The file in the TLS folder that holds the authorities, as PEM.
pub const AUTHORITY_FILE: &str = "ca.crt";

/// No authority bundle is larger; a larger file is not read.
const AUTHORITY_FILE_LIMIT_BYTES: u64 = 1 << 20;

/// Why the authorities could not be taken from the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("could not read certificate authority file \"{}\"", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("certificate authority file \"{}\" holds no usable certificate: {detail}", path.display())]
    Unusable { path: PathBuf, detail: String },
    #[error("could not set up TLS")]
    Protocol(#[from] rustls::Error),
}

/// The authorities of the cluster; reloaded when their file changes.
pub struct ClientTls {
    path: PathBuf,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    stamp: FileStamp,
    config: Arc<ClientConfig>,
}

/// What tells one version of a file from the next, also when a mounted Secret swaps its link.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileStamp {
    modified: Option<SystemTime>,
    inode: u64,
    size_bytes: u64,
}

impl ClientTls {
    /// Reads `ca.crt` in `folder`.
    ///
    /// # Errors
    /// A file that cannot be read or holds no certificate.
    pub fn open(folder: &Path) -> Result<Self, TlsError> {
        let path = folder.join(AUTHORITY_FILE);
        let loaded = Mutex::new(load(&path)?);
        Ok(Self { path, loaded })
    }

    /// The client configuration of the file as it is now.
    ///
    /// A changed file that cannot be used is reported once as a warning, and the last good one stays.
    #[must_use]
    pub fn config(&self) -> Arc<ClientConfig> {
        let mut loaded = self.lock();
        let now = std::fs::metadata(&self.path).map(|metadata| FileStamp::of(&metadata));
        if let Ok(stamp) = now
            && stamp != loaded.stamp
        {
            match load(&self.path) {
                Ok(fresh) => *loaded = fresh,
                Err(error) => {
                    tracing::warn!(%error, "keeping the previous certificate authority");
                    loaded.stamp = stamp;
                }
            }
        }
        Arc::clone(&loaded.config)
    }

    /// For plain streams: the connector, as of now.
    #[must_use]
    pub fn connector(&self) -> TlsConnector {
        TlsConnector::from(self.config())
    }

    /// For `tokio_postgres`, as of now; use it with `sslmode=require` and the host's name.
    #[must_use]
    pub fn postgres_connector(&self) -> MakeRustlsConnect {
        MakeRustlsConnect::new(ClientConfig::clone(&self.config()))
    }

    fn lock(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name that the certificate of `host` must carry; a trailing dot does not count.
///
/// # Errors
/// A text that is neither a DNS name nor an IP address.
pub fn server_name(host: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
    ServerName::try_from(host.trim_end_matches('.').to_owned())
}

impl FileStamp {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            modified: metadata.modified().ok(),
            inode: metadata.ino(),
            size_bytes: metadata.len(),
        }
    }
}

fn load(path: &Path) -> Result<Loaded, TlsError> {
    let (stamp, pem) = read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })?;
    let unusable = |detail: String| TlsError::Unusable {
        path: path.to_owned(),
        detail,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| unusable(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unusable("no PEM section \"CERTIFICATE\"".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Loaded {
        stamp,
        config: Arc::new(config),
    })
}

/// The stamp is taken from the opened file, so that it belongs to the bytes.
fn read(path: &Path) -> std::io::Result<(FileStamp, Vec<u8>)> {
    let file = std::fs::File::open(path)?;
    let stamp = FileStamp::of(&file.metadata()?);
    let mut pem = Vec::new();
    file.take(AUTHORITY_FILE_LIMIT_BYTES).read_to_end(&mut pem)?;
    Ok((stamp, pem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_authorities_is_refused_with_its_path() {
        let folder = tempfile::tempdir().expect("folder");
        let missing = ClientTls::open(folder.path()).err().expect("no file");
        assert!(
            missing
                .to_string()
                .contains("could not read certificate authority file")
        );
        for text in [
            "",
            "no pem",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            std::fs::write(folder.path().join(AUTHORITY_FILE), text).expect("write");
            let error = ClientTls::open(folder.path()).err().expect(text);
            assert!(error.to_string().contains("ca.crt"), "{error}");
            assert!(error.to_string().contains("no usable certificate"), "{error}");
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address() {
        for host in ["pg-0.pg.default.svc.cluster.local", "pg-0.", "127.0.0.1", "::1"] {
            assert!(server_name(host).is_ok(), "{host}");
        }
        for host in ["", "a b", "-"] {
            assert!(server_name(host).is_err(), "{host:?} was taken");
        }
    }
}
