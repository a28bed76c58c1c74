//! How other members are reached: over TLS where the cluster has certificates, else plain.
//!
//! Members are verified as `verify-full` does it, by the name of their pod. Never falls back to plain.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::client::{Connection, RequestError};

/// By which members are verified, as of now.
pub type Authority = Arc<dyn Fn() -> Arc<ClientConfig> + Send + Sync>;

/// How all members of a cluster are reached.
#[derive(Clone, Default)]
pub struct Way {
    tls: Option<(Authority, String)>,
}

/// One member at one address.
#[derive(Clone, Debug)]
pub struct Reach {
    way: Way,
    name: String,
    address: SocketAddr,
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domain = self.tls.as_ref().map(|(_, domain)| domain);
        f.debug_struct("Way").field("domain", &domain).finish()
    }
}

impl Way {
    /// Without TLS.
    #[must_use]
    pub fn plain() -> Self {
        Self::default()
    }

    /// Over TLS. `domain` follows a member's name in its certificate, without the dot between.
    #[must_use]
    pub fn verified(authority: Authority, domain: String) -> Self {
        Self {
            tls: Some((authority, domain)),
        }
    }

    /// The member `name` where it is now.
    #[must_use]
    pub fn to(&self, name: &str, address: SocketAddr) -> Reach {
        Reach {
            way: self.clone(),
            name: name.to_owned(),
            address,
        }
    }
}

/// Whoever answers there, without TLS.
impl From<SocketAddr> for Reach {
    fn from(address: SocketAddr) -> Self {
        Way::plain().to("", address)
    }
}

impl Reach {
    pub(super) fn target(&self) -> String {
        self.address.to_string()
    }

    pub(super) async fn connect(&self) -> Result<Connection, RequestError> {
        let target = self.target();
        let failed = |source| RequestError::Connect {
            target: target.clone(),
            source,
        };
        let socket = TcpStream::connect(self.address).await.map_err(failed)?;
        match &self.way.tls {
            None => Connection::start(socket, &target).await,
            Some((authority, domain)) => {
                let name = ServerName::try_from(format!("{}.{domain}", self.name));
                let name = name.map_err(|error| failed(io::Error::other(error)))?;
                let stream = TlsConnector::from(authority()).connect(name, socket).await;
                Connection::start(stream.map_err(failed)?, &target).await
            }
        }
    }
}
