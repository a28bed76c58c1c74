//! `podgres sidecar`: the agent for ever, with HTTP and the routing endpoints.

use std::sync::Arc;
use std::time::Duration;

use backon::{ConstantBuilder, Retryable as _};
use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::agent::{self, Agent, AgentError, Published, Until};
use crate::config::pod::{Pod, PodArguments, RouteArguments};
use crate::config::report::ReportArguments;
use crate::config::server::ServerArguments;
use crate::core::cluster::ClusterView;
use crate::core::routing::RouteMode;
use crate::core::situation::Situation;
use crate::http::serve::ListenError;
use crate::proxy::{Limits, Listener, RouteStats, SessionCounts};

use super::report::report;
use super::serve::{Route, http_listeners, serve_http};
use super::{ExitStatus, Failure, status_of, wiring};

#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pub pod: PodArguments,
    #[command(flatten)]
    pub server: ServerArguments,
    #[command(flatten)]
    pub routes: RouteArguments,
    #[command(flatten)]
    pub report: ReportArguments,
}

/// `podgres init` of the same pod may still answer on the port; how often and how long the sidecar asks for it.
const TAKE_OVER: ConstantBuilder = ConstantBuilder::new()
    .with_delay(Duration::from_millis(200))
    .with_max_times(5 * 60 * 10);

fn in_use(error: &ListenError) -> bool {
    match error {
        ListenError::InUse { .. } => true,
        ListenError::Tcp { source, .. } | ListenError::Unix { source, .. } => {
            source.kind() == std::io::ErrorKind::AddrInUse
        }
    }
}

/// Runs until TERM, INT, or a listener is lost.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let pod = arguments.pod.resolve()?;
    wiring::prepare_run_directory(&pod)?;
    // First of all the startup probe must find somebody: PostgreSQL starts after it.
    let listeners = (|| http_listeners(&pod, &pod.arguments.run_dir))
        .retry(TAKE_OVER)
        .when(in_use)
        .await
        .map_err(|error| Failure::from_error(ExitStatus::Overdue, &error))?;
    let routes = bind_routes(&pod).await?;
    let settings = agent::Settings {
        gate: true,
        ..wiring::agent_settings(&pod, arguments.server.tls_directory())
    };
    let (agent, published) = Agent::start(settings).map_err(|error| agent_failure(&error))?;
    if let Some(reporter) = arguments.report.reporter(&pod) {
        tokio::spawn(report(reporter, arguments.report, published.view.clone()));
    }
    let stats: Vec<Route> = routes.iter().map(|(name, ..)| (*name, Arc::default())).collect();
    let sessions = Arc::new(SessionCounts::default());
    let mut listening = JoinSet::new();
    for ((_, mode, socket), (_, stats)) in routes.into_iter().zip(&stats) {
        let counters = (Arc::clone(&sessions), Arc::clone(stats));
        listening.spawn(listener(socket, mode, &arguments.routes, &published, counters));
    }
    tokio::select! {
        outcome = agent.run(Until::Ended) => Err(Failure::new(ExitStatus::Bug, format!("the agent's loop ended: {outcome:?}"))),
        () = serve_http(listeners, &pod, &arguments.server, &published, stats.clone()) => Err(Failure::new(ExitStatus::Bug, "the HTTP server ended")),
        Some(_) = listening.join_next() => Err(Failure::new(ExitStatus::Overdue, "a routing endpoint has lost its socket")),
        ended = leave(&pod, published.clone()) => ended,
    }
}

/// After TERM, how long a holder of the Lease may take to hand over; a pod's grace period is longer.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(15);
/// Containers of a pod are told to end at about the same time.
const TOLD_TOGETHER: Duration = Duration::from_millis(700);

/// Waits for TERM; a pod that holds the Lease and is ending stays until somebody else holds it, or nobody.
async fn leave(pod: &Pod, published: Published) -> Result<(), Failure> {
    terminated().await?;
    let own = pod.name.to_string();
    let mut view = published.view;
    let holds = |view: &Arc<ClusterView>| view.lease_holder.as_deref() == Some(own.as_str());
    let ending = |view: &Arc<ClusterView>| {
        [
            Situation::Leaving,
            Situation::SupervisorUnreachable,
            Situation::HandingOver,
        ]
        .iter()
        .any(|situation| situation.name() == view.me.situation)
    };
    if !holds(&view.borrow()) {
        return Ok(());
    }
    let told = tokio::time::timeout(TOLD_TOGETHER, view.wait_for(|view| ending(view) || !holds(view)));
    if !matches!(told.await, Ok(Ok(_))) {
        // Only this container is to end: PostgreSQL goes on.
        return Ok(());
    }
    let gone = async { view.wait_for(|view| !holds(view)).await.map(|_| ()) };
    tokio::select! {
        _ = gone => {}
        () = tokio::time::sleep(HAND_OVER_LIMIT) => tracing::warn!("could not hand over the Lease in time"),
        _ = terminated() => {}
    }
    Ok(())
}

pub(super) fn agent_failure(error: &AgentError) -> Failure {
    Failure::from_error(ExitStatus::Settings, error)
}

type Bound = (&'static str, RouteMode, TcpListener);

async fn bind_routes(pod: &Pod) -> Result<Vec<Bound>, Failure> {
    let mut bound = Vec::new();
    for (name, mode, port) in [
        ("read_write", RouteMode::ReadWrite, pod.arguments.read_write_port),
        ("read_only", RouteMode::ReadOnly, pod.arguments.read_only_port),
    ] {
        let address = pod.bind_address(port);
        let socket = TcpListener::bind(address).await.map_err(|error| {
            Failure::new(
                status_of(&error),
                format!("could not listen on \"{address}\" for the {name} route: {error}"),
            )
        })?;
        bound.push((name, mode, socket));
    }
    Ok(bound)
}

fn listener(
    socket: TcpListener,
    mode: RouteMode,
    arguments: &RouteArguments,
    published: &Published,
    (sessions, stats): (Arc<SessionCounts>, Arc<RouteStats>),
) -> impl Future<Output = ()> + use<> {
    let listener = Listener {
        socket,
        policy: arguments.policy(mode),
        limits: Limits {
            max_connections: arguments.max_connections,
            hold: arguments.hold,
            ..Limits::default()
        },
        table: published.routes.clone(),
        sessions,
        stats,
    };
    async move {
        if let Err(error) = listener.run(std::future::pending()).await {
            tracing::error!(%error, "a routing endpoint has ended");
        }
    }
}

/// Ends with the first TERM or INT.
pub(super) async fn terminated() -> Result<(), Failure> {
    let watch = |kind| signal(kind).map_err(|error| Failure::from_error(ExitStatus::Bug, &error));
    let (mut term, mut int) = (watch(SignalKind::terminate())?, watch(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
