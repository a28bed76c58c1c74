//! The HTTP server of `podgres route`: probes, and the metrics of its endpoints.
//!
//! | path | answer |
//! |---|---|
//! | `/liveness` | 200: the process answers |
//! | `/readiness` | 200 while a server is known and the endpoints take connections, else 503 |
//! | `/metrics` | `OpenMetrics` or the text format before it, as asked for: the families of a member's page that concern routes |

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use super::Source;
use super::handlers::unknown_path;
use super::metrics::{self, RouteCounters};

/// What the pages show.
#[derive(Clone)]
pub struct RouteState {
    pub counters: Source<Vec<RouteCounters>>,
    /// Names of the servers that are known; none once the endpoints stop.
    pub servers: Source<Vec<String>>,
}

/// The pages of the module's table.
pub fn router_of_routes(state: RouteState) -> Router {
    Router::new()
        .route("/liveness", get(async || Json(json!({ "state": "running" }))))
        .route("/readiness", get(readiness))
        .route("/metrics", get(metrics))
        .fallback(unknown_path)
        .with_state(state)
}

async fn readiness(State(state): State<RouteState>) -> Response {
    let servers = (state.servers)();
    let code = if servers.is_empty() {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    (code, Json(json!({ "servers": servers }))).into_response()
}

async fn metrics(State(state): State<RouteState>, headers: HeaderMap) -> Response {
    metrics::answer(metrics::page_of_routes(&(state.counters)()), &headers)
}
