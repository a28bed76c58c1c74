//! What changes something: who may, and how an order reaches the one who carries it out.
//!
//! Reads a body only of those who have shown their authority, or whose signature covers it, and never more than
//! [`BODY_LIMIT`] bytes of it. Carries nothing out itself.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt as _, Limited};
use serde_json::json;

use crate::core::operate::{Answer, Order, Outcome};
use crate::core::signature::SignedRequest;

use super::HttpState;
use super::authorise::{Challenge, Credentials, Origin, Unauthorised, check_bearer};
use super::handlers::{fresh, refusal};

/// Every path that takes an order by POST.
pub(super) const ORDER_PATHS: [&str; 9] = [
    "/switchover",
    "/failover",
    "/restart",
    "/reinitialize",
    "/pause",
    "/resume",
    "/read-only",
    "/sessions/end",
    "/sessions/route",
];

/// Where Patroni deletes an order that waits for its time.
pub(super) const SCHEDULED_BY_PATRONI: [&str; 2] = ["/switchover", "/restart"];

const BODY_LIMIT: usize = 64 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Lets reads pass, and of the rest only what has authority.
pub(super) async fn guard(State(state): State<HttpState>, request: Request, next: Next) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return next.run(request).await;
    }
    match authorised(&state, request).await {
        Ok(request) => next.run(request).await,
        Err(error) => {
            let status = StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::FORBIDDEN);
            let mut response = refusal(status, &error.to_string(), error.hint());
            if status == StatusCode::UNAUTHORIZED {
                let scheme = HeaderValue::from_static("Bearer");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
            }
            response
        }
    }
}

/// The request as it was, if it has authority.
async fn authorised(state: &HttpState, request: Request) -> Result<Request, Unauthorised> {
    let unknown = Origin::Tcp(std::net::SocketAddr::from(([0, 0, 0, 0], 0)));
    let origin = request.extensions().get::<Origin>().copied().unwrap_or(unknown);
    let authorization = request.headers().get(header::AUTHORIZATION).cloned();
    match Credentials::of(origin, authorization.as_ref().map(HeaderValue::as_bytes))? {
        Credentials::UnixSocket => Ok(request),
        Credentials::Bearer(given) => check_bearer(given, &(state.admin_token)()).map(|()| request),
        Credentials::Signature(signature) => signed(state, request, signature).await,
    }
}

async fn signed(state: &HttpState, request: Request, signature: &[u8]) -> Result<Request, Unauthorised> {
    let challenge = request.extensions().get::<Challenge>().and_then(Challenge::take);
    let challenge = challenge.ok_or(Unauthorised::NoChallenge)?;
    let (parts, body) = request.into_parts();
    let body = collected(body).await.map_err(|_| Unauthorised::WrongSignature)?;
    let key = (state.member_key)().ok_or(Unauthorised::WrongSignature)?;
    let covered = SignedRequest {
        challenge: &challenge,
        method: parts.method.as_str(),
        path: parts.uri.path_and_query().map_or("", |path| path.as_str()),
        body: &body,
    };
    if key.verifies(&covered, signature) {
        Ok(Request::from_parts(parts, Body::from(body)))
    } else {
        Err(Unauthorised::WrongSignature)
    }
}

async fn collected(body: Body) -> Result<Bytes, String> {
    let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_LIMIT).collect());
    match body.await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => Err(format!("could not read the request body: {error}")),
        Err(_) => Err(format!("no request body within {} s", BODY_TIMEOUT.as_secs())),
    }
}

/// `/challenge`: what the next signed request on this connection has to sign.
pub(super) async fn challenge(request: Request) -> Response {
    let drawn = request.extensions().get::<Challenge>().and_then(Challenge::draw);
    match drawn {
        Some(challenge) => fresh(json!({ "challenge": challenge })),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// Patroni's DELETE of an order that waits for its time: there is never one.
pub(super) async fn nothing_scheduled(uri: Uri) -> Response {
    let what = uri.path().trim_start_matches('/');
    let error = format!("no {what} is scheduled");
    let hint = "An order is carried out at once or not at all: there is none to delete.";
    refusal(StatusCode::NOT_FOUND, &error, hint)
}

/// Takes an order and answers how it ended.
pub(super) async fn take(State(state): State<HttpState>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let order = match collected(body).await {
        Ok(body) => Order::read(parts.uri.path(), &body),
        Err(error) => Err(Box::new(Answer::new(Outcome::Invalid, error))),
    };
    let answer = match order {
        Ok(order) => (state.operator)(order).await,
        Err(answer) => *answer,
    };
    let status = StatusCode::from_u16(answer.outcome.http_status()).unwrap_or(StatusCode::BAD_REQUEST);
    (status, fresh(json!(answer))).into_response()
}
