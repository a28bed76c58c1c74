//! What an endpoint needs to terminate TLS, and its own way into a server: TLS again, and never without.
//!
//! Servers are verified as `verify-full` does it, by the name of their pod. Never accepts one whose certificate is not
//! the one that the client was shown: SCRAM binds the password's proof to it.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificate::{CertificateFolder, Shown};
use super::{answer, startup};

/// For the beginning of a server's answer.
const FIRST_WORDS_BYTES: usize = 1024;

/// By which servers are verified, as of now.
pub type Authority = Arc<dyn Fn() -> Arc<ClientConfig> + Send + Sync>;

/// How an endpoint terminates TLS.
pub struct Encryption {
    certificate: Arc<CertificateFolder>,
    authority: Authority,
    /// What follows a member's name in its certificate, without the dot between.
    domain: String,
    /// What a server behind this endpoint has shown last.
    servers_show: Mutex<Option<CertificateDer<'static>>>,
}

/// The server has another certificate than the endpoint.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("its certificate is not the endpoint's")]
pub(super) struct OtherCertificate;

/// A connection to a server in TLS, and what it has said so far.
#[derive(Debug)]
pub(super) struct ServerTls {
    pub(super) stream: TlsStream<TcpStream>,
    pub(super) said: Vec<u8>,
}

impl fmt::Debug for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encryption")
            .field("certificate", &self.certificate)
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}

impl Encryption {
    /// `domain` follows a member's name in its certificate, without the dot between.
    #[must_use]
    pub fn new(certificate: Arc<CertificateFolder>, authority: Authority, domain: String) -> Self {
        Self {
            certificate,
            authority,
            domain,
            servers_show: Mutex::default(),
        }
    }

    /// For another endpoint, which may lead to other servers.
    #[must_use]
    pub fn another(&self) -> Self {
        let (certificate, authority) = (Arc::clone(&self.certificate), Arc::clone(&self.authority));
        Self::new(certificate, authority, self.domain.clone())
    }

    /// What the next client is shown.
    pub(super) fn to_show(&self) -> Shown {
        let server = self.servers_show.lock().unwrap_or_else(PoisonError::into_inner);
        self.certificate.to_show(server.as_ref())
    }

    /// The files have changed, and no server has shown the new certificate yet.
    pub(super) fn is_behind(&self) -> bool {
        self.to_show().certificate != self.certificate.to_show(None).certificate
    }

    /// TLS with the member over a fresh connection.
    pub(super) async fn encrypt(
        &self,
        mut stream: TcpStream,
        member: &str,
    ) -> io::Result<TlsStream<TcpStream>> {
        stream.write_all(&startup::SSL_REQUEST).await?;
        match stream.read_u8().await? {
            b'S' => {}
            b'N' => return Err(io::Error::other("it does not support SSL")),
            _ => return Err(io::Error::other("it answered the request for TLS with an error")),
        }
        let name = ServerName::try_from(format!("{member}.{}", self.domain)).map_err(io::Error::other)?;
        let connector = TlsConnector::from((self.authority)());
        let stream = connector.connect(name, stream).await?;
        self.note(shown_by(&stream));
        Ok(stream)
    }

    /// A session's connection: the server has shown `certificate`, has been told `startup`, and begins to answer.
    pub(super) async fn open(
        &self,
        stream: TcpStream,
        member: &str,
        certificate: &CertificateDer<'_>,
        startup: &[u8],
    ) -> io::Result<ServerTls> {
        let mut stream = self.encrypt(stream, member).await?;
        if shown_by(&stream) != Some(certificate) {
            return Err(io::Error::other(OtherCertificate));
        }
        stream.write_all(startup).await?;
        stream.flush().await?;
        let mut said = Vec::with_capacity(FIRST_WORDS_BYTES);
        match stream.read_buf(&mut said).await? {
            0 => Err(io::Error::other("it closed the connection without an answer")),
            _ if answer::cannot_connect_now(&said) == Some(true) => {
                Err(io::Error::other(answer::NO_SESSIONS_NOW))
            }
            _ => Ok(ServerTls { stream, said }),
        }
    }

    fn note(&self, shown: Option<&CertificateDer<'_>>) {
        let mut known = self.servers_show.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref() != shown {
            *known = shown.map(|shown| shown.clone().into_owned());
        }
    }
}

fn shown_by(stream: &TlsStream<TcpStream>) -> Option<&CertificateDer<'static>> {
    stream.get_ref().1.peer_certificates()?.first()
}
