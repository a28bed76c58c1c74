//! Requests to the API server: crate `kube`'s settings, certificates and tokens, with our own limits.
//!
//! Every request ends within its limit and is sent once: a hidden retry would falsify the time that a renewal counts
//! from. An answer of 401 makes the settings be read again, once, since a token may have been replaced.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::{Request, StatusCode, header};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Config;
use kube::client::{AuthError, Body, ClientBuilder, ConfigExt};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use tower::ServiceExt as _;

use super::Reach;
use super::error::Failure;
use crate::clock::boottime_ms;
use crate::core::causes::causes;

/// etcd takes no object beyond 1.5 MiB.
const LARGEST_ANSWER_BYTES: usize = 4 << 20;
/// A dead connection is given up after about this time, whether or not something is being sent.
const DEAD_CONNECTION: Duration = Duration::from_secs(10);

/// What the API server said.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub retry_after: Option<Duration>,
    /// JSON, or null where it is not.
    pub body: Value,
    /// `CLOCK_BOOTTIME`, before the request was sent.
    pub sent_at_ms: u64,
}

/// A client that makes its connections, and reads its settings, when they are needed.
pub struct ApiClient {
    reach: Reach,
    limit: Duration,
    client: Mutex<Option<kube::Client>>,
}

impl ApiClient {
    /// `limit` bounds each request, connecting included.
    #[must_use]
    pub fn new(reach: Reach, limit: Duration) -> Self {
        Self {
            reach,
            limit,
            client: Mutex::new(None),
        }
    }

    /// The namespace that the settings name, e.g. the context of a kubeconfig file; else `default`.
    ///
    /// # Errors
    /// The settings cannot be used.
    pub async fn namespace(&self) -> Result<String, Failure> {
        Ok(self.client().await?.default_namespace().to_owned())
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// No answer within the limit. Whatever status came is an answer.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Failure> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let deadline = tokio::time::Instant::now() + self.limit;
        let mut retried = false;
        loop {
            let request = request(method, path, content_type, body.clone())?;
            let sent_at_ms = boottime_ms();
            let answer = tokio::time::timeout_at(deadline, async {
                let response = self.send(request).await?;
                let status = response.status();
                let retry_after = retry_after(&response);
                let body = collect(response.into_body()).await?;
                Ok(Answer {
                    status: status.as_u16(),
                    retry_after,
                    body,
                    sent_at_ms,
                })
            });
            let answer = answer.await.map_err(|_| self.out_of_time())??;
            if answer.status != StatusCode::UNAUTHORIZED.as_u16() || retried {
                return Ok(answer);
            }
            self.forget();
            retried = true;
        }
    }

    /// Opens a watch: its status and its lines, or the answer that refused it.
    pub(super) async fn lines(&self, path: &str) -> Result<Result<Lines, Answer>, Failure> {
        let sent_at_ms = boottime_ms();
        let opened = tokio::time::timeout(self.limit, async {
            let response = self
                .send(request("GET", path, "application/json", String::new())?)
                .await?;
            if response.status().is_success() {
                return Ok(Ok(Lines::new(response.into_body(), sent_at_ms)));
            }
            if response.status() == StatusCode::UNAUTHORIZED {
                self.forget();
            }
            Ok(Err(Answer {
                status: response.status().as_u16(),
                retry_after: retry_after(&response),
                body: collect(response.into_body()).await?,
                sent_at_ms,
            }))
        });
        opened.await.map_err(|_| self.out_of_time())?
    }

    fn out_of_time(&self) -> Failure {
        Failure::Lost(format!("none came within {} ms", self.limit.as_millis()))
    }

    /// The settings are read again for the next request.
    fn forget(&self) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn send(&self, request: Request<Body>) -> Result<hyper::Response<Body>, Failure> {
        let client = self.client().await?;
        client.send(request).await.map_err(|error| {
            let failure = failure(error);
            if matches!(failure, Failure::Settings(_)) {
                self.forget();
            }
            failure
        })
    }

    async fn client(&self) -> Result<kube::Client, Failure> {
        let known = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(client) = known {
            return Ok(client);
        }
        let config = config(&self.reach).await?;
        let client = connect(&config, self.limit)?;
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
        Ok(client)
    }
}

fn request(method: &str, path: &str, content_type: &str, body: String) -> Result<Request<Body>, Failure> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, content_type)
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, concat!("podgres/", env!("CARGO_PKG_VERSION")))
        .body(Body::from(body.into_bytes()))
        .map_err(|error| Failure::Settings(error.to_string()))
}

async fn config(reach: &Reach) -> Result<Config, Failure> {
    match reach {
        Reach::InCluster => Config::incluster_env().map_err(|error| settings(&error)),
        Reach::Kubeconfig { path, context } => {
            let file = Kubeconfig::read_from(path).map_err(|error| settings(&error))?;
            let options = KubeConfigOptions {
                context: context.clone(),
                ..KubeConfigOptions::default()
            };
            Config::from_custom_kubeconfig(file, &options)
                .await
                .map_err(|error| settings(&error))
        }
        Reach::Url { url, token_file } => {
            let url = url
                .parse()
                .map_err(|_| Failure::Settings(format!("invalid URL \"{url}\"")))?;
            let mut config = Config::new(url);
            config.auth_info = AuthInfo {
                token_file: token_file.as_ref().map(|path| path.display().to_string()),
                ..AuthInfo::default()
            };
            Ok(config)
        }
    }
}

/// `kube`'s stack of layers without its retries, its tracing and its sockets that wait for ever.
fn connect(config: &Config, limit: Duration) -> Result<kube::Client, Failure> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    // Less than the request's limit: "could not connect" is certain, "no answer" is not.
    connector.set_connect_timeout(Some(limit * 3 / 4));
    connector.set_keepalive(Some(DEAD_CONNECTION / 2));
    connector.set_keepalive_interval(Some(DEAD_CONNECTION / 5));
    connector.set_keepalive_retries(Some(2));
    connector.set_tcp_user_timeout(Some(DEAD_CONNECTION));
    let connector = config
        .rustls_https_connector_with_connector(connector)
        .map_err(|error| settings(&error))?;
    let client = legacy::Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(2)
        .pool_idle_timeout(Duration::from_secs(30))
        .build(connector)
        .map_err(Box::<dyn std::error::Error + Send + Sync>::from);
    let builder = ClientBuilder::new(client, config.default_namespace.clone())
        .with_layer(&config.base_uri_layer())
        .with_layer(&config.extra_headers_layer().map_err(|error| settings(&error))?);
    let auth = config.auth_layer().map_err(|error| settings(&error))?;
    Ok(match auth {
        Some(auth) => builder.with_layer(&auth).build(),
        None => builder.build(),
    })
}

fn settings(error: &dyn std::error::Error) -> Failure {
    Failure::Settings(chain(error))
}

fn failure(error: kube::Error) -> Failure {
    let kube::Error::Service(inner) = error else {
        return Failure::Lost(chain(&error));
    };
    // A token that cannot be sent, e.g. with an end of line in it.
    if let Some(error) = inner.downcast_ref::<AuthError>() {
        return settings(error);
    }
    match inner.downcast_ref::<legacy::Error>() {
        Some(error) if error.is_connect() => Failure::NotSent(chain(error)),
        _ => Failure::Lost(chain(inner.as_ref())),
    }
}

/// An error with its causes, without those that a cause repeats.
fn chain(error: &dyn std::error::Error) -> String {
    causes(error).fold(error.to_string(), |text, cause| {
        let said = cause.to_string();
        if text.contains(&said) {
            text
        } else {
            format!("{text}: {said}")
        }
    })
}

fn retry_after(response: &hyper::Response<Body>) -> Option<Duration> {
    let value = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

async fn collect(body: Body) -> Result<Value, Failure> {
    let bytes = http_body_util::Limited::new(body, LARGEST_ANSWER_BYTES)
        .collect()
        .await
        .map_err(|error| Failure::Lost(chain(error.as_ref())))?
        .to_bytes();
    Ok(serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

/// The lines of a watch's answer.
pub(super) struct Lines {
    body: Body,
    rest: BytesMut,
    /// `CLOCK_BOOTTIME`, before the watch was asked for.
    pub(super) sent_at_ms: u64,
}

impl Lines {
    fn new(body: Body, sent_at_ms: u64) -> Self {
        Self {
            body,
            rest: BytesMut::new(),
            sent_at_ms,
        }
    }

    /// The next line without its end; `None` at the end of the answer. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if let Some(at) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(at).freeze();
                self.rest.advance(1);
                return Ok(Some(line));
            }
            if self.rest.len() > LARGEST_ANSWER_BYTES {
                return Err(Failure::Lost("a watch event is too large".to_owned()));
            }
            let Some(frame) = self.body.frame().await else {
                return Ok(None);
            };
            let frame = frame.map_err(|error| Failure::Lost(chain(&error)))?;
            if let Ok(data) = frame.into_data() {
                self.rest.extend_from_slice(&data);
            }
        }
    }
}
