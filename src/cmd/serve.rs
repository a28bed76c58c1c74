//! The listening half of a member: HTTP on TCP and on the pod's unix socket, fed by the agent.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::agent::Published;
use crate::config::pod::Pod;
use crate::config::server::ServerArguments;
use crate::core::situation::SITUATIONS;
use crate::http::metrics::{Counters, RouteCounters};
use crate::http::serve::{Limits, ListenError, Listener, serve};
use crate::http::{HttpState, router};
use crate::proxy::RouteStats;

/// The pod's socket for operators' verbs, in the run directory.
pub(super) const SOCKET_NAME: &str = "podgres.sock";

/// A routing endpoint's name and counters.
pub(super) type Route = (&'static str, Arc<RouteStats>);

/// Listens where the pod says.
pub(super) async fn http_listeners(pod: &Pod, run_directory: &Path) -> Result<Vec<Listener>, ListenError> {
    let tcp = Listener::tcp(pod.bind_address(pod.arguments.http_port)).await?;
    let unix = Listener::unix(&run_directory.join(SOCKET_NAME)).await?;
    Ok(vec![tcp, unix])
}

/// Serves until the process ends.
pub(super) async fn serve_http(
    listeners: Vec<Listener>,
    pod: &Pod,
    server: &ServerArguments,
    published: &Published,
    routes: Vec<Route>,
) {
    let mut state = HttpState::new(
        published.view.clone(),
        published.beat.clone(),
        pod.arguments.peer_timeout,
    );
    state.visited = Arc::clone(&published.visited);
    let journal = published.journal.clone();
    state.decisions = Arc::new(move || journal.to_json());
    let agent = published.counters.clone();
    state.counters = Arc::new(move || Counters {
        situations: SITUATIONS.iter().map(|row| row.2).collect(),
        clones: agent.clones(),
        routes: routes.iter().map(counters).collect(),
    });
    let settings = settings(pod, server);
    state.settings = Arc::new(move || settings.clone());
    serve(
        listeners,
        router(state),
        Limits::default(),
        std::future::pending(),
    )
    .await;
}

fn counters((name, stats): &Route) -> RouteCounters {
    RouteCounters {
        route: (*name).to_owned(),
        sessions: stats.sessions.load(Ordering::Relaxed),
        held: stats.held.load(Ordering::Relaxed),
        sessions_total: stats.sessions_total.load(Ordering::Relaxed),
        refused_total: stats.refused().map(|(_, count)| count).sum(),
        cut_total: stats.cut_total.load(Ordering::Relaxed),
        cancel_requests_total: stats.cancels_total.load(Ordering::Relaxed),
    }
}

/// What `/config` shows: nothing secret is in it. `null` for a folder that was not mounted when this began.
fn settings(pod: &Pod, server: &ServerArguments) -> serde_json::Value {
    let arguments = &pod.arguments;
    serde_json::json!({
        "leadership": "fixed",
        "durability": "async",
        "first_ordinal": arguments.first_ordinal,
        "service": pod.service,
        "namespace": pod.namespace,
        "cluster_domain": arguments.cluster_domain,
        "peer_timeout_seconds": arguments.peer_timeout.as_secs_f64(),
        "stop_timeout_seconds": arguments.stop_timeout.as_secs_f64(),
        "reclone": arguments.reclone,
        "tls_directory": server.tls_directory(),
        "configuration_directory": server.configuration_directory(),
    })
}
