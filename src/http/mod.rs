//! The HTTP server of a member, on TCP and on the pod's unix socket. It shows what the agent saw; it never looks itself.
//!
//! | path | answer |
//! |---|---|
//! | `/startup` `/liveness` `/readiness` | 200 or 503: the probes of a pod |
//! | `/` `/primary` `/read-write` `/leader` | 200 or 503: primary, and allowed to be; for `Accept: text/html` `/` is a page about the cluster |
//! | `/replica` `/read-only` `/synchronous` `/sync` `/asynchronous` `/async` `/quorum` `/health` … | 200 or 503: as Patroni defines them, all paths in [`CHECK_PATHS`] |
//! | `/patroni` | this member, in Patroni's words |
//! | `/cluster` | every member: what `podgres status -o json` prints |
//! | `/history` | every change of the primary, Patroni's rows |
//! | `/config` | the settings in force, without secrets |
//! | `/metrics` | `OpenMetrics` for those who accept it, else Prometheus' text format 0.0.4 |
//! | `/peer/stream` | this member's status, one JSON value per line (NDJSON): now and with every change; `{}` while nothing changes |
//! | `/debug/decisions` | the last decisions with their observations |
//! | `/explain` | why this member is what it is, and what a failover would do |
//! | `/challenge` | what a member signs next on this connection |
//! | `/position` | how far this member's server is, asked just now: what the routes measure freshness by |
//! | `/wait?lsn=0/3000060&timeout=2s` | 200 as soon as this member has replayed so far, else 503 |
//! | POST `/sessions/end` `/sessions/route` | orders of routes: end these sessions; a route is there |
//! | POST `/switchover` `/failover` `/restart` `/reinitialize` `/pause` `/resume` `/read-only` | orders, see [`core::operate`](crate::core::operate); PATCH or PUT `/config` takes `pause`; DELETE `/switchover` `/restart`: 404, nothing is ever scheduled |
//!
//! The others answer GET, HEAD and OPTIONS. Any other method changes something: 401 or 403 without authority
//! ([`authorise`]), else 405 where there is no such verb. An unknown path is 404. Every body is JSON, with three exceptions:
//! `/metrics` (text), `/peer/stream` (NDJSON), and `/` for a browser (HTML).

pub mod authorise;
pub mod beside;
mod deadline;
mod handlers;
pub mod metrics;
mod orders;
mod peer_stream;
mod position;
pub mod serve;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::routing::{MethodRouter, delete, get, post};
use futures_util::future::BoxFuture;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore, watch};

use crate::core::cluster::ClusterView;
use crate::core::cluster::check::CHECK_PATHS;
use crate::core::cluster::verdict::LoopAge;
use crate::core::operate::{Answer, Order, Outcome};
use crate::core::signature::MemberKey;
use crate::core::units::milliseconds;

use authorise::Token;
use handlers::Pairs;
use metrics::Counters;
pub use position::PositionSource;

/// A value that is made when somebody asks.
pub type Source<T> = Arc<dyn Fn() -> T + Send + Sync>;

/// Carries out an order, to its end or to a deadline of its own.
pub type Operator = Arc<dyn Fn(Order) -> BoxFuture<'static, Answer> + Send + Sync>;

/// The heartbeat of the agent's loop, shared between the loop and `/liveness`.
#[derive(Clone, Debug)]
pub struct Beat {
    epoch: Instant,
    last_turn_ms: Arc<AtomicU64>,
    limit: Duration,
}

impl Beat {
    /// Beats now; overdue after `limit` without [`Beat::turned`].
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self {
            epoch: Instant::now(),
            last_turn_ms: Arc::default(),
            limit,
        }
    }

    /// The loop has turned once more.
    pub fn turned(&self) {
        self.last_turn_ms
            .store(milliseconds(self.epoch.elapsed()), Ordering::Relaxed);
    }

    /// How long ago that was.
    #[must_use]
    pub fn age(&self) -> LoopAge {
        let now = milliseconds(self.epoch.elapsed());
        LoopAge {
            age_ms: now.saturating_sub(self.last_turn_ms.load(Ordering::Relaxed)),
            limit_ms: milliseconds(self.limit),
        }
    }
}

/// Everything that the handlers show.
#[derive(Clone)]
pub struct HttpState {
    pub view: watch::Receiver<Arc<ClusterView>>,
    pub beat: Beat,
    /// Silence that makes peers give up; a stream sends a line at least four times as often.
    pub peer_timeout: Duration,
    /// `/debug/decisions`.
    pub decisions: Source<Value>,
    /// Told when another member opens its stream.
    pub visited: Arc<Notify>,
    /// `/config`.
    pub settings: Source<Value>,
    /// What `/metrics` shows beyond the view.
    pub counters: Source<Counters>,
    /// Metrics that others keep themselves; their names must not clash with those of [`metrics`].
    pub registry: Arc<Registry>,
    /// The operator's token; asked for at each request that carries one.
    pub admin_token: Source<Token>,
    /// What the other members sign with.
    pub member_key: Source<Option<MemberKey>>,
    /// Carries out orders.
    pub operator: Operator,
    /// How far this member's server is.
    pub positions: PositionSource,
    /// Places of those who wait for replay.
    waits: Arc<Semaphore>,
}

impl HttpState {
    /// A state that shows `view`, and nothing yet of the rest.
    #[must_use]
    pub fn new(view: watch::Receiver<Arc<ClusterView>>, beat: Beat, peer_timeout: Duration) -> Self {
        Self {
            view,
            beat,
            peer_timeout,
            decisions: Arc::new(|| json!([])),
            visited: Arc::default(),
            settings: Arc::new(|| json!({})),
            counters: Arc::new(Counters::default),
            registry: Arc::default(),
            admin_token: Arc::new(|| Token::NotSet),
            member_key: Arc::new(|| None),
            operator: Arc::new(|_| {
                let nobody = Answer::new(Outcome::NotPossible, "nobody here carries out orders");
                Box::pin(std::future::ready(nobody))
            }),
            positions: PositionSource {
                position: Arc::new(|| Box::pin(std::future::ready(None))),
                wait: Arc::new(|_, _| Box::pin(std::future::ready(false))),
            },
            waits: Arc::new(Semaphore::new(position::MAX_WAITS)),
        }
    }
}

/// The routes of the module's table.
pub fn router(state: HttpState) -> Router {
    let mut router = Router::new()
        .route("/", get(handlers::root).options(handlers::root_without_body))
        .route("/patroni", shown(get(handlers::patroni)))
        .route("/cluster", shown(get(handlers::cluster)))
        .route("/explain", shown(get(handlers::explain)))
        .route("/position", shown(get(position::position)))
        .route("/wait", shown(get(position::wait)))
        .route("/history", shown(get(handlers::history)))
        .route(
            "/config",
            shown(get(handlers::config)).patch(orders::take).put(orders::take),
        )
        .route("/challenge", shown(get(orders::challenge)))
        .route("/metrics", shown(get(handlers::metrics)))
        .route("/peer/stream", shown(get(handlers::peer_stream)))
        .route("/debug/decisions", shown(get(handlers::decisions)));
    for (path, check) in CHECK_PATHS {
        if *path == "/" {
            continue;
        }
        let check = *check;
        let answer =
            async move |State(state): State<HttpState>, query: Pairs| handlers::check(check, &state, &query);
        let bare = async move |State(state): State<HttpState>, query: Pairs| {
            handlers::check_without_body(check, &state, &query)
        };
        router = router.route(path, get(answer).options(bare));
    }
    for path in orders::ORDER_PATHS {
        router = router.route(path, post(orders::take));
    }
    for path in orders::SCHEDULED_BY_PATRONI {
        router = router.route(path, delete(orders::nothing_scheduled));
    }
    router
        .fallback(handlers::unknown_path)
        .method_not_allowed_fallback(handlers::no_such_verb)
        .layer(axum::middleware::from_fn_with_state(state.clone(), orders::guard))
        .with_state(state)
}

/// OPTIONS on a page that is always there.
fn shown(route: MethodRouter<HttpState>) -> MethodRouter<HttpState> {
    route.options(|| async {})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_grows_old_and_is_young_again_after_a_turn() {
        let mut beat = Beat::new(Duration::from_millis(500));
        beat.epoch = Instant::now()
            .checked_sub(Duration::from_secs(5))
            .expect("a machine up for 5 s");
        let age = beat.age();
        assert!(age.age_ms >= 5000 && age.limit_ms == 500, "{age:?}");
        beat.clone().turned();
        assert!(beat.age().age_ms < 5000, "clones share the beat");
    }
}
