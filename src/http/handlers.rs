//! One function per path; each takes the newest view and shows one side of it.

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Value, json};

use crate::core::cluster::check::{Check, CheckQuery};
use crate::core::cluster::explain;
use crate::core::cluster::json::{cluster_json, known_ms_ago};
use crate::core::cluster::page::page;
use crate::core::cluster::patroni::{history_json, patroni_json};
use crate::core::cluster::verdict::{Verdict, answer};
use crate::core::cluster::{ClusterView, LagMode};

use super::orders::ORDER_PATHS;
use super::{HttpState, metrics, peer_stream};

pub(super) type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// `/`: the dashboard for a browser, for others whether this is the primary.
pub(super) async fn root(State(state): State<HttpState>, headers: HeaderMap, query: Pairs) -> Response {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    if !accepted.is_some_and(|accepted| accepted.contains("text/html")) {
        return check(Check::Primary, &state, &query);
    }
    let view = state.view.borrow().clone();
    let page = page(&cluster_json(&view), &view.me.name);
    ([(header::CACHE_CONTROL, "no-store")], Html(page)).into_response()
}

/// 200 or 503 with the reason; the checks about PostgreSQL carry what `/patroni` shows too, as Patroni's do.
pub(super) fn check(check: Check, state: &HttpState, query: &Pairs) -> Response {
    let view = state.view.borrow().clone();
    let verdict = judge(check, state, &view, query);
    let mut body = match check {
        Check::Startup | Check::Liveness => json!({}),
        _ => patroni_json(&view),
    };
    if let Value::Object(fields) = &mut body {
        fields.insert("check".to_owned(), json!(check.as_str()));
        fields.insert("reason".to_owned(), json!(verdict.reason));
        if !matches!(check, Check::Startup | Check::Liveness) {
            fields.insert(
                "lag_bytes".to_owned(),
                json!(view.lag_bytes(&view.me, LagMode::Apply)),
            );
            fields.insert("primary_lsn_known_ms_ago".to_owned(), json!(known_ms_ago(&view)));
        }
    }
    (status(&verdict), fresh(body)).into_response()
}

pub(super) async fn root_without_body(State(state): State<HttpState>, query: Pairs) -> StatusCode {
    check_without_body(Check::Primary, &state, &query)
}

/// The status alone, for OPTIONS.
pub(super) fn check_without_body(check: Check, state: &HttpState, query: &Pairs) -> StatusCode {
    let view = state.view.borrow().clone();
    status(&judge(check, state, &view, query))
}

fn judge(check: Check, state: &HttpState, view: &ClusterView, query: &Pairs) -> Verdict {
    let query = match query {
        Ok(Query(pairs)) => {
            CheckQuery::from_pairs(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())))
        }
        Err(rejection) => CheckQuery {
            invalid: Some(format!("could not read the query: {}", rejection.body_text())),
            ..CheckQuery::default()
        },
    };
    answer(check, &query, view, state.beat.age())
}

fn status(verdict: &Verdict) -> StatusCode {
    if verdict.passed {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// A JSON body that nobody between may keep.
pub(super) fn fresh(body: Value) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

pub(super) async fn patroni(State(state): State<HttpState>) -> Response {
    let view = state.view.borrow().clone();
    fresh(patroni_json(&view))
}

pub(super) async fn cluster(State(state): State<HttpState>) -> Response {
    let view = state.view.borrow().clone();
    let mut body = cluster_json(&view);
    if let Value::Object(fields) = &mut body {
        fields.insert("observed_ms_ago".to_owned(), json!(state.beat.age().age_ms));
    }
    fresh(body)
}

pub(super) async fn explain(State(state): State<HttpState>) -> Response {
    let view = state.view.borrow().clone();
    fresh(json!(explain::explain(&view)))
}

pub(super) async fn history(State(state): State<HttpState>) -> Response {
    let view = state.view.borrow().clone();
    fresh(history_json(
        view.lease.as_ref().map_or(&[], |record| &record.history),
    ))
}

pub(super) async fn config(State(state): State<HttpState>) -> Response {
    fresh((state.settings)())
}

pub(super) async fn decisions(State(state): State<HttpState>) -> Response {
    fresh((state.decisions)())
}

pub(super) async fn metrics(State(state): State<HttpState>, headers: HeaderMap) -> Response {
    let view = state.view.borrow().clone();
    let page = metrics::page(&view, &(state.counters)(), state.beat.age(), &state.registry);
    metrics::answer(page, &headers)
}

pub(super) async fn peer_stream(method: Method, State(state): State<HttpState>) -> Response {
    let body = if method == Method::GET {
        state.visited.notify_one();
        peer_stream::body(state.view.clone(), state.peer_timeout / 4, state.beat.epoch)
    } else {
        Body::empty()
    };
    let headers = [
        (header::CONTENT_TYPE, "application/x-ndjson"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, body).into_response()
}

pub(super) async fn unknown_path(request: Request) -> Response {
    let path: String = request.uri().path().chars().take(100).collect();
    let hint = instead_of(&path)
        .unwrap_or("The paths are Patroni's, e.g. /readiness, /primary, /replica, /cluster, /metrics.");
    refusal(StatusCode::NOT_FOUND, &format!("unknown path \"{path}\""), hint)
}

/// What takes the place of Patroni's paths that are not here.
fn instead_of(path: &str) -> Option<&'static str> {
    match path {
        "/reload" => Some(
            "Mounted *.conf files, Secrets and certificates are applied when they change; the other settings are the pod's \
             environment: change the StatefulSet.",
        ),
        "/failsafe" => Some(
            "The primary stays on its peers' confirmations while the Kubernetes API is away: there is nothing to set.",
        ),
        "/sigterm" => Some("Delete the pod: a primary hands over before it stops."),
        "/citus" | "/mpp" => Some("There is no Citus here: each cluster stands for itself."),
        _ => None,
    }
}

pub(super) async fn no_such_verb(method: Method, uri: Uri) -> Response {
    let (hint, allowed) = match uri.path() {
        "/config" => (
            "This path answers GET, HEAD and OPTIONS, and takes PATCH and PUT.",
            "GET, HEAD, OPTIONS, PATCH, PUT",
        ),
        "/read-only" => (
            "This path answers GET, HEAD and OPTIONS, and takes POST.",
            "GET, HEAD, OPTIONS, POST",
        ),
        path if ORDER_PATHS.contains(&path) => ("This path takes POST.", "POST"),
        _ => ("This path answers GET, HEAD and OPTIONS.", "GET, HEAD, OPTIONS"),
    };
    let mut response = refusal(
        StatusCode::METHOD_NOT_ALLOWED,
        &format!("method {method} is not supported on this path"),
        hint,
    );
    let allowed = HeaderValue::from_static(allowed);
    response.headers_mut().insert(header::ALLOW, allowed);
    response
}

pub(super) fn refusal(status: StatusCode, error: &str, hint: &str) -> Response {
    (status, fresh(json!({ "error": error, "hint": hint }))).into_response()
}
