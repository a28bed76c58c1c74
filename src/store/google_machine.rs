//! Tokens of the machine's own service account, from Google's metadata server: on Google's machines, and on GKE for whom its
//! workload identity is meant.
//!
//! Not the crate's own way: it asks for four minutes where there is no such server, and ends without a word on what is
//! missing. A server that is only late, as in a pod's first seconds, is waited for.
//!
//! Source: <https://cloud.google.com/compute/docs/access/authenticate-workloads>.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use object_store::ClientOptions;
use object_store::CredentialProvider;
use object_store::client::{HttpClient, HttpConnector as _, HttpRequestBody};
use object_store::gcp::GcpCredential;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::http::Connector;

/// The second one does without DNS.
const HOSTS: [&str; 2] = ["metadata.google.internal", "169.254.169.254"];
const PATH: &str = "computeMetadata/v1/instance/service-accounts/default/token";
const FLAVOR: &str = "Metadata-Flavor";
const ASK_LIMIT: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(500);
/// The server has the next token by then.
const BEFORE_EXPIRY: Duration = Duration::from_mins(4);

/// Asks again shortly before a token expires.
pub(super) struct Machine {
    client: HttpClient,
    hosts: Vec<String>,
    bucket: String,
    known: Mutex<Option<(Arc<GcpCredential>, Instant)>>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Machine").field(&self.hosts).finish()
    }
}

#[derive(Deserialize)]
struct Token {
    access_token: String,
    expires_in: u64,
}

/// There are no credentials to be had.
#[derive(Debug, thiserror::Error)]
#[error("GOOGLE_APPLICATION_CREDENTIALS is not set, and the machine has no service account: {problem}")]
struct NoCredentials {
    problem: String,
}

enum Trouble {
    MayPass(String),
    Final(String),
}

impl Machine {
    /// `host` instead of Google's own, with a port if it is not 80.
    pub(super) fn new(
        connector: &Connector,
        host: Option<&str>,
        bucket: &str,
    ) -> Result<Self, object_store::Error> {
        let hosts = match host {
            Some(host) => vec![host.to_owned()],
            None => HOSTS.map(str::to_owned).to_vec(),
        };
        Ok(Self {
            client: connector.connect(&ClientOptions::new())?,
            hosts,
            bucket: bucket.to_owned(),
            known: Mutex::new(None),
        })
    }

    async fn fetch(&self) -> Result<Token, NoCredentials> {
        let begun = Instant::now();
        loop {
            let mut problem = String::new();
            for host in &self.hosts {
                match self.ask(host).await {
                    Ok(token) => return Ok(token),
                    Err(Trouble::Final(problem)) => return Err(NoCredentials { problem }),
                    Err(Trouble::MayPass(found)) => problem = found,
                }
            }
            if begun.elapsed() > LIMIT {
                return Err(NoCredentials { problem });
            }
            sleep(PAUSE).await;
        }
    }

    async fn ask(&self, host: &str) -> Result<Token, Trouble> {
        let server = format!("metadata server \"{host}\"");
        let request = Request::get(format!("http://{host}/{PATH}"))
            .header(FLAVOR, "Google")
            .body(HttpRequestBody::empty())
            .map_err(|_| Trouble::Final(format!("there cannot be a {server}")))?;
        let silent = || Trouble::MayPass(format!("{server} does not answer"));
        let answered = timeout(ASK_LIMIT, async {
            let answer = self.client.execute(request).await?;
            let (head, body) = answer.into_parts();
            Ok((head, body.bytes().await?))
        });
        let answered: Result<_, object_store::client::HttpError> = answered.await.map_err(|_| silent())?;
        let (head, body) = answered.map_err(|_| silent())?;
        // Other clouds have servers at this address, which know nothing of it.
        if !head.headers.contains_key(FLAVOR) {
            return Err(Trouble::Final(format!("there is no {server} of Google's")));
        }
        if !head.status.is_success() {
            let text = String::from_utf8_lossy(&body);
            let problem = format!("{server} says {}: {}", head.status, text.trim());
            let passes = head.status.is_server_error() || head.status.as_u16() == 429;
            return Err(if passes {
                Trouble::MayPass(problem)
            } else {
                Trouble::Final(problem)
            });
        }
        serde_json::from_slice(&body).map_err(|_| Trouble::Final(format!("{server} gives no token")))
    }
}

#[async_trait::async_trait]
impl CredentialProvider for Machine {
    type Credential = GcpCredential;

    async fn get_credential(&self) -> Result<Arc<GcpCredential>, object_store::Error> {
        let mut known = self.known.lock().await;
        if let Some((credential, until)) = &*known
            && Instant::now() < *until
        {
            return Ok(Arc::clone(credential));
        }
        let asked = Instant::now();
        let token = self
            .fetch()
            .await
            .map_err(|error| object_store::Error::Unauthenticated {
                path: format!("gs://{}", self.bucket),
                source: error.into(),
            })?;
        let lasts = Duration::from_secs(token.expires_in).saturating_sub(BEFORE_EXPIRY);
        let credential = Arc::new(GcpCredential {
            bearer: token.access_token,
        });
        *known = Some((Arc::clone(&credential), asked + lasts));
        Ok(credential)
    }
}
