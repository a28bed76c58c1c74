//! `podgres sidecar`: the agent for ever, with HTTP and the routing endpoints.

use std::sync::Arc;
use std::time::Duration;

use backon::{ConstantBuilder, Retryable as _};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::agent::{self, Agent, AgentError, Published, Until};
use crate::config::pod::{Pod, PodArguments};
use crate::config::report::ReportArguments;
use crate::config::routes::RouteArguments;
use crate::config::server::ServerArguments;
use crate::core::cluster::ClusterView;
use crate::core::manifests::{HAND_OVER_SECONDS, STOP_SECONDS};
use crate::core::situation::Situation;
use crate::core::units::milliseconds;
use crate::http::serve::{ListenError, Listener, ServerTls};

use crate::proxy::SessionCounts;

use super::report::report;
use super::routes::{self, Endpoints};
use super::serve::{check_admin_token, http_listeners, serve_http, server_tls};
use super::settling::settled;
use super::slices::keep_slices;
use super::{ExitStatus, Failure, wiring};

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
    .with_max_times(5 * 60 * TAKE_OVER_MINUTES);
const TAKE_OVER_MINUTES: usize = 10;

/// Listens for HTTP, as soon as whoever has the port leaves it.
async fn listen(pod: &Pod, tls: Option<&ServerTls>) -> Result<Vec<Listener>, Failure> {
    let mut told = false;
    let listeners = (|| http_listeners(pod, &pod.arguments.run_dir, tls))
        .retry(TAKE_OVER)
        .when(in_use)
        .notify(|error, _| {
            if !std::mem::replace(&mut told, true) {
                let minutes = TAKE_OVER_MINUTES;
                tracing::warn!("{error}: another process has it; trying again for up to {minutes} min");
            }
        })
        .await;
    listeners.map_err(|error| {
        let hint = "Which process of this pod listens there? PODGRES_HTTP_PORT names another port.";
        let in_use = in_use(&error);
        let failure = Failure::from_error(ExitStatus::Overdue, &error);
        if in_use { failure.hint(hint) } else { failure }
    })
}

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
    check_admin_token(pod.arguments.admin_token_file.as_deref())?;
    let ports = (
        pod.arguments.network.read_write_port,
        pod.arguments.network.read_only_port,
    );
    let listens = arguments.routes.listeners(ports.0, ports.1)?;
    let folder = arguments.server.tls_directory();
    let encryption = routes::encryption(&arguments.routes, folder.as_deref(), &wiring::topology(&pod))?;
    let tls = server_tls(folder.as_deref())?;
    // Before all that may take time the startup probe must find somebody: PostgreSQL starts after it.
    let listeners = listen(&pod, tls.as_ref()).await?;
    let address = |port| pod.bind_address(port);
    let endpoints = Endpoints::bind(listens, &arguments.routes, encryption, address).await?;
    let mut settings = agent::Settings {
        gate: true,
        ..wiring::agent_settings(&pod, folder)
    };
    settings.policy.times.drain_timeout_ms = milliseconds(arguments.routes.drain_timeout);
    let slices = arguments.report.slices(&pod)?;
    let (agent, published) = Agent::start(settings).map_err(|error| agent_failure(&error))?;
    if let Some(reporter) = arguments.report.reporter(&pod) {
        tokio::spawn(report(reporter, arguments.report, published.view.clone()));
    }
    let stats = endpoints.stats();
    let longest_right = Duration::from_millis(pod.policy().times.renew_deadline_ms);
    let table = settled(published.routes.clone(), longest_right);
    let knowledge = routes::knowledge(&published, table.clone(), &pod, endpoints.ask_pause());
    if let Some(api) = slices {
        let (cluster, view) = (pod.name.cluster.clone(), published.view.clone());
        tokio::spawn(keep_slices(
            api,
            cluster,
            endpoints.policies(),
            knowledge.clone(),
            view,
        ));
    }
    let (stop, stopped) = watch::channel(false);
    let sessions = Arc::new(SessionCounts::default());
    tokio::spawn(routes::tell_left(published.clone(), table, Arc::clone(&sessions)));
    let mut listening = endpoints.serve(&knowledge, &sessions, &stopped)?;
    tokio::select! {
        outcome = agent.run(Until::Ended) => Err(Failure::new(ExitStatus::Bug, format!("the agent's loop ended: {outcome:?}"))),
        () = serve_http(listeners, &pod, &arguments.server, &published, stats) => Err(Failure::new(ExitStatus::Bug, "the HTTP server ended")),
        Some(_) = listening.join_next() => Err(Failure::new(ExitStatus::Overdue, "a routing endpoint has lost its socket")),
        ended = leave(&pod, published.clone()) => {
            stop.send_replace(true);
            while listening.join_next().await.is_some() {}
            ended
        }
    }
}

/// After TERM, how long a holder of the Lease may take to hand over; a pod's grace period is longer.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(STOP_SECONDS + HAND_OVER_SECONDS);
/// Containers of a pod are told to end at about the same time.
const TOLD_TOGETHER: Duration = Duration::from_millis(700);

/// Waits for TERM; a pod that holds the Lease and is ending stays until somebody else holds it, or nobody.
async fn leave(pod: &Pod, published: Published) -> Result<(), Failure> {
    terminated().await?;
    let own = pod.name.to_string();
    let mut view = published.view;
    // A pod that does not reach the API server has its peers' word that somebody else does.
    let overtaken = |view: &Arc<ClusterView>| {
        let terms = view
            .peers
            .iter()
            .filter_map(|peer| Some(peer.status.as_ref()?.leadership.as_ref()?.term));
        terms.max() > Some(view.term)
    };
    let holds =
        |view: &Arc<ClusterView>| view.lease_holder.as_deref() == Some(own.as_str()) && !overtaken(view);
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
