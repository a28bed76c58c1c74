//! How far this member's server is: for the routes of all members, and for pooled clients that wait for their own writes.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::rejection::QueryRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use futures_util::future::BoxFuture;
use serde_json::json;

use super::HttpState;
use super::handlers::{Pairs, fresh, refusal};
use crate::core::routing::freshness::{Position, written_end};
use crate::core::units;
use crate::core::wal::Lsn;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_TIMEOUT: Duration = Duration::from_mins(1);
/// Each holds a connection for seconds. The rest of them is for probes, orders and peers.
pub(super) const MAX_WAITS: usize = 64;

/// What can be asked of the local server's position.
#[derive(Clone)]
pub struct PositionSource {
    /// Now; `None` if it has none that means anything.
    pub position: Arc<dyn Fn() -> BoxFuture<'static, Option<Position>> + Send + Sync>,
    /// True as soon as it has replayed so far, false if it has not in time.
    pub wait: Arc<dyn Fn(Lsn, Duration) -> BoxFuture<'static, bool> + Send + Sync>,
}

pub(super) async fn position(State(state): State<HttpState>) -> Response {
    match (state.positions.position)().await {
        Some(position) => fresh(json!(position)),
        None => refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            "the server tells no position now",
            "It is not running, or it runs as a primary without the right to be one.",
        ),
    }
}

pub(super) async fn wait(State(state): State<HttpState>, query: Pairs) -> Response {
    let (lsn, timeout) = match read(&query) {
        Ok(read) => read,
        Err(error) => {
            let hint =
                "Ask e.g. /wait?lsn=0/3000060&timeout=2s, with what pg_current_wal_insert_lsn() returned.";
            return refusal(StatusCode::BAD_REQUEST, &error, hint);
        }
    };
    let Ok(_place) = state.waits.try_acquire() else {
        let hint = "Ask again in a moment.";
        return refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many clients wait for replay already",
            hint,
        );
    };
    let reached = (state.positions.wait)(written_end(lsn), timeout).await;
    let status = if reached {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, fresh(json!({ "lsn": lsn, "reached": reached }))).into_response()
}

fn read(query: &Pairs) -> Result<(Lsn, Duration), String> {
    let pairs = query.as_ref().map_err(QueryRejection::body_text)?;
    let value = |key: &str| {
        pairs
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    };
    let lsn = value("lsn").ok_or("\"lsn\" is missing")?;
    let lsn = lsn.parse().map_err(|error| format!("{error}"))?;
    let timeout = value("timeout").map(units::duration).transpose()?;
    Ok((lsn, timeout.unwrap_or(DEFAULT_TIMEOUT).min(MAX_TIMEOUT)))
}

#[cfg(test)]
mod tests {
    use axum::extract::Query;

    use super::*;

    fn query(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        owned.collect()
    }

    #[test]
    fn the_wait_has_a_bound_whatever_is_asked() {
        let read = |pairs: &[(&str, &str)]| read(&Ok(Query(query(pairs))));
        assert_eq!(
            read(&[("lsn", "0/3000060")]),
            Ok((Lsn(0x300_0060), DEFAULT_TIMEOUT))
        );
        assert_eq!(
            read(&[("lsn", "0/1"), ("timeout", "1h")]),
            Ok((Lsn(1), MAX_TIMEOUT))
        );
        for bad in [
            vec![],
            vec![("lsn", "7")],
            vec![("lsn", "0/1"), ("timeout", "soon")],
        ] {
            assert!(read(&bad).is_err(), "{bad:?}");
        }
    }
}
