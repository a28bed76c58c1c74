//! The cluster's own certificate and key, as the endpoints show them to clients when they terminate TLS.
//!
//! Read from the mounted folder, and again when its files change; the pair before stays at hand until the servers have
//! changed too. Never leaves the process, and never asks clients for certificates of theirs.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;

/// What PostgreSQL calls its protocol in TLS (since version 17).
pub(super) const ALPN: &[u8] = b"postgresql";
const CERTIFICATE_FILE: &str = "tls.crt";
const KEY_FILE: &str = "tls.key";

/// Why a certificate cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("could not read \"{}\"", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("\"{}\" holds no usable {what}: {detail}", path.display())]
    Unusable {
        path: PathBuf,
        what: &'static str,
        detail: String,
    },
    #[error("certificate and key in \"{}\" cannot be used: {source}", folder.display())]
    Pair { folder: PathBuf, source: rustls::Error },
}

/// A mounted folder with `tls.crt` and `tls.key`.
pub struct CertificateFolder {
    folder: PathBuf,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    stamps: Stamps,
    newest: Shown,
    before: Option<Shown>,
}

/// One version of the certificate.
#[derive(Clone)]
pub(super) struct Shown {
    pub(super) config: Arc<ServerConfig>,
    /// The server's own certificate, first of its chain.
    pub(super) certificate: Arc<CertificateDer<'static>>,
}

/// What tells one version of both files from the next, also when a mounted Secret swaps its link.
type Stamps = [Option<(SystemTime, u64, u64)>; 2];

impl std::fmt::Debug for CertificateFolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateFolder")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl CertificateFolder {
    /// Reads both files in `folder`.
    ///
    /// # Errors
    /// A file that cannot be read or used, or a key of another certificate.
    pub fn open(folder: &Path) -> Result<Self, CertificateError> {
        let loaded = Loaded {
            stamps: stamps(folder),
            newest: load(folder)?,
            before: None,
        };
        Ok(Self {
            folder: folder.to_owned(),
            loaded: Mutex::new(loaded),
        })
    }

    /// The certificate as the files have it now; the one before it while that is what a server has shown last.
    ///
    /// Files that cannot be used are reported once, and the last good ones stay.
    pub(super) fn to_show(&self, server: Option<&CertificateDer<'_>>) -> Shown {
        let now = stamps(&self.folder);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.stamps != now {
            loaded.stamps = now;
            match load(&self.folder) {
                Ok(fresh) if fresh.certificate == loaded.newest.certificate => loaded.newest = fresh,
                Ok(fresh) => loaded.before = Some(std::mem::replace(&mut loaded.newest, fresh)),
                Err(error) => tracing::warn!(%error, "keeping the previous certificate of the routes"),
            }
        }
        let before = loaded.before.as_ref();
        let still = before.filter(|before| server == Some(before.certificate.as_ref()));
        still.unwrap_or(&loaded.newest).clone()
    }
}

impl CertificateFolder {
    /// The certificate as the files have it now, for a server of HTTP.
    #[must_use]
    pub fn for_http(&self) -> Arc<ServerConfig> {
        let mut config = ServerConfig::clone(&self.to_show(None).config);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

fn stamps(folder: &Path) -> Stamps {
    [CERTIFICATE_FILE, KEY_FILE].map(|name| {
        let metadata = std::fs::metadata(folder.join(name)).ok()?;
        Some((metadata.modified().ok()?, metadata.ino(), metadata.size()))
    })
}

fn load(folder: &Path) -> Result<Shown, CertificateError> {
    let unusable = |name: &str, what, detail: String| CertificateError::Unusable {
        path: folder.join(name),
        what,
        detail,
    };
    let pem = read(folder, CERTIFICATE_FILE)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(CERTIFICATE_FILE, "certificate", error.to_string()))?;
    let own = chain.first().cloned().ok_or_else(|| {
        let detail = "no PEM section \"CERTIFICATE\"".to_owned();
        unusable(CERTIFICATE_FILE, "certificate", detail)
    })?;
    let key = PrivateKeyDer::from_pem_slice(&read(folder, KEY_FILE)?)
        .map_err(|error| unusable(KEY_FILE, "key", error.to_string()))?;
    let config = config(chain, key).map_err(|source| CertificateError::Pair {
        folder: folder.to_owned(),
        source,
    })?;
    Ok(Shown {
        config: Arc::new(config),
        certificate: Arc::new(own),
    })
}

/// As PostgreSQL has it: TLS 1.2 and later, no tickets, no resumption.
fn config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

fn read(folder: &Path, name: &str) -> Result<Vec<u8>, CertificateError> {
    let path = folder.join(name);
    std::fs::read(&path).map_err(|source| CertificateError::Read { path, source })
}
