//! An S3 bucket, and what every remote store shares: HTTP and TLS by what podgres has anyway (hyper, rustls), instead of a
//! second stack.

use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use hyper_util::rt::TokioExecutor;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
    HttpResponseBody, HttpService,
};
use object_store::{ClientOptions, RetryConfig};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use super::settings::{Destination, StoreSettings};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const PATIENCE: Patience = Patience {
    // A part of 8 MiB at 140 kB/s.
    answer_limit: Duration::from_mins(1),
    silence_limit: Duration::from_secs(30),
};
const IDLE_LIMIT: Duration = Duration::from_secs(30);
/// How long one operation is tried again on errors that may pass.
const RETRY_LIMIT: Duration = Duration::from_mins(2);
const RETRIES: usize = 8;

/// The client of a bucket; connects at the first use.
pub(super) fn bucket(settings: &StoreSettings) -> Result<AmazonS3, object_store::Error> {
    let Destination::S3 { bucket, .. } = &settings.destination else {
        return Err(failed("the destination is no bucket"));
    };
    let mut builder = AmazonS3Builder::new().with_bucket_name(bucket);
    let mut endpoint_in_clear = false;
    for (key, value) in settings
        .aws
        .iter()
        .map(|(key, value)| (key.as_str(), value))
        .chain(
            credentials(settings.credentials_file.as_deref())?
                .iter()
                .map(|(key, value)| (key.as_str(), value)),
        )
    {
        endpoint_in_clear |= key.contains("endpoint") && value.starts_with("http://");
        if let Ok(key) = key.parse::<AmazonS3ConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    builder
        .with_allow_http(endpoint_in_clear)
        .with_http_connector(connector(settings)?)
        .with_retry(retry())
        .build()
}

/// Our HTTP client, with the certificate authorities of the settings.
pub(super) fn connector(settings: &StoreSettings) -> Result<Connector, object_store::Error> {
    Ok(Connector {
        client: client(settings.authority_file.as_deref())?,
    })
}

/// How long a remote store is tried.
pub(super) fn retry() -> RetryConfig {
    RetryConfig {
        max_retries: RETRIES,
        retry_timeout: RETRY_LIMIT,
        ..RetryConfig::default()
    }
}

/// The first profile of a file as the AWS command line keeps it.
fn credentials(file: Option<&Path>) -> Result<Vec<(String, String)>, object_store::Error> {
    let Some(file) = file else {
        return Ok(Vec::new());
    };
    let text = std::fs::read_to_string(file)
        .map_err(|error| failed(format!("could not read \"{}\": {error}", file.display())))?;
    Ok(profile(&text))
}

fn profile(text: &str) -> Vec<(String, String)> {
    let mut lines = text
        .lines()
        .map(str::trim)
        .skip_while(|line| line.is_empty() || line.starts_with(['[', '#']));
    let mut found = Vec::new();
    for line in lines.by_ref().take_while(|line| !line.starts_with('[')) {
        if let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
            found.push((key.trim().to_lowercase(), value.trim().to_owned()));
        }
    }
    found
}

type Requests = Client<HttpsConnector<TcpConnector>, HttpRequestBody>;

#[derive(Debug)]
pub(super) struct Connector {
    client: Requests,
}

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Service {
            client: self.client.clone(),
            patience: PATIENCE,
        }))
    }
}

/// How long a store may take.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// From the first byte of a request to the head of its answer.
    answer_limit: Duration,
    /// Between two pieces of an answer.
    silence_limit: Duration,
}

#[derive(Debug)]
struct Service {
    client: Requests,
    patience: Patience,
}

#[async_trait::async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = tokio::time::timeout(self.patience.answer_limit, self.client.request(request));
        let answer = answer
            .await
            .map_err(|late| HttpError::new(HttpErrorKind::Timeout, late))?
            .map_err(refused)?;
        let (head, body) = answer.into_parts();
        let body = Unsilent {
            body: Box::pin(body),
            silence_limit: self.patience.silence_limit,
            silence: Box::pin(tokio::time::sleep(self.patience.silence_limit)),
        };
        Ok(HttpResponse::from_parts(head, HttpResponseBody::new(body)))
    }
}

/// The body of an answer, as long as something comes.
struct Unsilent {
    body: std::pin::Pin<Box<hyper::body::Incoming>>,
    silence_limit: Duration,
    silence: std::pin::Pin<Box<tokio::time::Sleep>>,
}

impl hyper::body::Body for Unsilent {
    type Data = bytes::Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        use std::task::Poll;
        match self.body.as_mut().poll_frame(context) {
            Poll::Ready(frame) => {
                let until = tokio::time::Instant::now() + self.silence_limit;
                self.silence.as_mut().reset(until);
                Poll::Ready(
                    frame.map(|frame| {
                        frame.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error))
                    }),
                )
            }
            Poll::Pending => {
                std::task::ready!(self.silence.as_mut().poll(context));
                let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
                Poll::Ready(Some(Err(HttpError::new(HttpErrorKind::Timeout, late))))
            }
        }
    }
}

fn refused(error: hyper_util::client::legacy::Error) -> HttpError {
    let kind = if error.is_connect() {
        HttpErrorKind::Connect
    } else {
        HttpErrorKind::Interrupted
    };
    HttpError::new(kind, error)
}

fn client(authority_file: Option<&Path>) -> Result<Requests, object_store::Error> {
    let mut tcp = TcpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT_LIMIT));
    tcp.set_nodelay(true);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .with_root_certificates(authorities(authority_file)?)
        .with_no_client_auth();
    let https = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Ok(Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE_LIMIT)
        .build(https))
}

/// Those of the machine, and those of the file.
fn authorities(file: Option<&Path>) -> Result<RootCertStore, object_store::Error> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = file {
        let unusable =
            |error: &dyn std::fmt::Display| failed(format!("could not use \"{}\": {error}", file.display()));
        let opened = std::fs::File::open(file).map_err(|error| unusable(&error))?;
        for certificate in CertificateDer::pem_reader_iter(BufReader::new(opened)) {
            let certificate = certificate.map_err(|error| unusable(&error))?;
            roots.add(certificate).map_err(|error| unusable(&error))?;
        }
    }
    Ok(roots)
}

pub(super) fn failed(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> object_store::Error {
    object_store::Error::Generic {
        store: "destination",
        source: why.into(),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn the_first_profile_of_a_credentials_file() {
        let text =
            "# note\n[default]\naws_access_key_id = AK\nAWS_SECRET_ACCESS_KEY=s=e/c\n\n[other]\nregion=x\n";
        let expected = [("aws_access_key_id", "AK"), ("aws_secret_access_key", "s=e/c")];
        assert_eq!(
            profile(text),
            expected.map(|(key, value)| (key.to_owned(), value.to_owned()))
        );
    }

    const SHORT: Duration = Duration::from_millis(300);
    const LONG: Duration = Duration::from_mins(5);

    /// Asks a store that reads the request, says so much, and no more.
    async fn ask_silent(said: &'static str, patience: Patience) -> Result<HttpResponse, HttpError> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut first = [0; 1];
            stream.read_exact(&mut first).await.expect("a request");
            stream.write_all(said.as_bytes()).await.expect("written");
            // The connection stays open.
            std::future::pending::<()>().await;
        });
        let request = hyper::Request::get(format!("http://{address}/bucket/key"));
        let request = request.body(HttpRequestBody::empty()).expect("a request");
        let client = client(None).expect("a client");
        let service = Service { client, patience };
        tokio::time::timeout(LONG / 10, service.call(request))
            .await
            .expect("somebody gives up")
    }

    #[tokio::test]
    async fn a_store_that_never_answers_is_given_up() {
        let patience = Patience {
            answer_limit: SHORT,
            silence_limit: LONG,
        };
        let late = ask_silent("", patience).await.expect_err("no answer");
        assert_eq!(late.kind(), HttpErrorKind::Timeout);
    }

    #[tokio::test]
    async fn a_store_that_stops_in_the_middle_of_an_answer_is_given_up() {
        let patience = Patience {
            answer_limit: LONG,
            silence_limit: SHORT,
        };
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf";
        let mut body = ask_silent(head, patience).await.expect("the head").into_body();
        let half = body.frame().await.expect("a frame").expect("data").into_data();
        assert_eq!(half.ok().as_deref(), Some(&b"half"[..]));
        let late = tokio::time::timeout(LONG / 10, body.frame())
            .await
            .expect("somebody gives up");
        assert_eq!(
            late.expect("a frame").expect_err("the rest never comes").kind(),
            HttpErrorKind::Timeout
        );
    }
}
