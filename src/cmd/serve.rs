//! The listening half of a member: HTTP on TCP and on the pod's unix socket, fed by the agent.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::agent::{Published, Standing, member_key};
use crate::clock::boottime_ms;
use crate::config::InvalidSetting;
use crate::config::pod::Pod;
use crate::config::server::ServerArguments;
use crate::core::operate::{Answer, Outcome};
use crate::core::policy::Leadership;
use crate::core::situation::SITUATIONS;
use crate::http::authorise::{AdminToken, Token};
use crate::http::metrics::{Counters, LeaseCounters, RouteCounters, ServerCounters};
use crate::http::serve::{Limits, ListenError, Listener, ServerTls, serve};
use crate::http::{HttpState, PositionSource, router};
use crate::proxy::{CertificateFolder, RouteStats, ServerStats};

use super::wiring::read_logins;
use super::{ExitStatus, Failure, file_status};

/// The pod's socket for operators' verbs, in the run directory.
pub(super) const SOCKET_NAME: &str = "podgres.sock";

/// A routing endpoint's name and counters.
pub(super) type Route = (String, Arc<RouteStats>);

/// The certificate in the mounted folder, if there is one.
pub(super) fn server_tls(folder: Option<&Path>) -> Result<Option<ServerTls>, Failure> {
    let Some(folder) = folder else { return Ok(None) };
    let certificate =
        CertificateFolder::open(folder).map_err(|error| Failure::from_error(ExitStatus::Settings, &error))?;
    Ok(Some(Arc::new(move || certificate.for_http())))
}

/// Listens where the pod says.
pub(super) async fn http_listeners(
    pod: &Pod,
    run_directory: &Path,
    tls: Option<&ServerTls>,
) -> Result<Vec<Listener>, ListenError> {
    let tcp = Listener::tcp(pod.bind_address(pod.arguments.network.http_port)).await?;
    let tcp = tcp.with_tls(tls.cloned());
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
        pod.arguments.network.peer_timeout,
    );
    state.visited = Arc::clone(&published.visited);
    let journal = published.journal.clone();
    state.decisions = Arc::new(move || journal.to_json());
    let agent = published.counters.clone();
    let led = pod.policy().leadership == Leadership::Lease;
    state.counters = Arc::new(move || Counters {
        situations: SITUATIONS.iter().map(|row| row.2).collect(),
        clones: agent.clones(),
        routes: routes.iter().map(counters).collect(),
        lease: led.then(|| lease_counters(&agent.standing())),
        diverged: agent.standing().diverged,
    });
    give_authority(&mut state, pod, published);
    state.positions = positions(published);
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

fn positions(published: &Published) -> PositionSource {
    let (asked, waited) = (Arc::clone(&published.positions), Arc::clone(&published.positions));
    PositionSource {
        position: Arc::new(move || {
            let positions = Arc::clone(&asked);
            Box::pin(async move { positions.position().await })
        }),
        wait: Arc::new(move |lsn, limit| {
            let positions = Arc::clone(&waited);
            Box::pin(async move { positions.wait(lsn, limit).await })
        }),
    }
}

/// Who may change something, and who does it then. An order goes on though the one who gave it has gone.
fn give_authority(state: &mut HttpState, pod: &Pod, published: &Published) {
    let file = pod.arguments.admin_token_file.clone();
    state.admin_token = Arc::new(move || admin_token(file.as_deref()));
    let (logins, cluster) = (read_logins(), pod.name.cluster.clone());
    state.member_key = Arc::new(move || member_key(&logins, &cluster));
    let operator = Arc::clone(&published.operator);
    state.operator = Arc::new(move |order| {
        let operator = Arc::clone(&operator);
        let carried_out = tokio::spawn(async move { operator.carry_out(order).await });
        Box::pin(async move {
            let lost = |_| Answer::new(Outcome::Failed, "the order was lost");
            carried_out.await.unwrap_or_else(lost)
        })
    });
}

/// A token that cannot be read would shut every operator out, and nobody would know until one is needed. Later on a file may be
/// away for a moment, while it is exchanged.
pub(super) fn check_admin_token(file: Option<&Path>) -> Result<(), Failure> {
    let Some(file) = file else { return Ok(()) };
    let key = "PODGRES_ADMIN_TOKEN_FILE";
    let shown = file.display();
    let problem = match std::fs::read_to_string(file) {
        Ok(text) if AdminToken::new(&text).is_some() => return Ok(()),
        Ok(_) => format!("\"{shown}\" is empty"),
        Err(error) if file_status(&error) == ExitStatus::Permission => {
            let problem = format!("could not read \"{shown}\": {error}");
            return Err(Failure::new(ExitStatus::Permission, problem));
        }
        Err(error) => format!("could not read \"{shown}\": {error}"),
    };
    Err(InvalidSetting::new(key, problem, "mount a Secret whose key holds the token").into())
}

/// The token as the file has it now, so that a rotated one counts at once.
fn admin_token(file: Option<&Path>) -> Token {
    let Some(file) = file else { return Token::NotSet };
    match std::fs::read_to_string(file) {
        Ok(text) => AdminToken::new(&text).map_or(Token::Unusable, Token::Set),
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "could not read the admin token file");
            Token::Unusable
        }
    }
}

fn lease_counters(standing: &Standing) -> LeaseCounters {
    let now_ms = boottime_ms();
    let age = |since: Option<u64>| since.map(|since_ms| now_ms.saturating_sub(since_ms));
    LeaseCounters {
        age_ms: age(standing.changed_at_ms),
        answered_ms_ago: age(standing.answered_at_ms),
        right_ms: standing
            .gate_until_ms
            .checked_sub(now_ms)
            .filter(|rest| *rest > 0),
        gate_attached: standing.gate_attached,
        errors_total: standing.errors,
    }
}

/// What an endpoint has counted so far.
pub(super) fn counters((name, stats): &Route) -> RouteCounters {
    RouteCounters {
        route: name.clone(),
        sessions: stats.sessions.load(Ordering::Relaxed),
        held: stats.held.load(Ordering::Relaxed),
        sessions_total: stats.sessions_total.load(Ordering::Relaxed),
        held_total: stats.held_total.load(Ordering::Relaxed),
        held_microseconds_total: stats.held_microseconds_total.load(Ordering::Relaxed),
        bytes_to_server_total: stats.bytes_to_server_total.load(Ordering::Relaxed),
        bytes_to_client_total: stats.bytes_to_client_total.load(Ordering::Relaxed),
        refused_total: stats
            .refused()
            .map(|(reason, count)| (reason.as_str(), count))
            .collect(),
        drained_total: stats.drained_total.load(Ordering::Relaxed),
        connect_failures_total: stats.connect_failures_total.load(Ordering::Relaxed),
        servers: stats.servers().into_iter().map(server_counters).collect(),
        cut_total: stats.cut_total.load(Ordering::Relaxed),
        cancel_requests_total: stats.cancels_total.load(Ordering::Relaxed),
    }
}

fn server_counters((server, stats): (String, ServerStats)) -> ServerCounters {
    ServerCounters {
        server,
        sessions_total: stats.sessions_total,
        connect_microseconds_total: stats.connect_microseconds_total,
        staleness_milliseconds_total: stats.staleness_milliseconds_total,
    }
}

/// What `/config` shows: nothing secret is in it. `null` for a folder that was not mounted when this began.
fn settings(pod: &Pod, server: &ServerArguments) -> serde_json::Value {
    let arguments = &pod.arguments;
    serde_json::json!({
        "leadership": pod.policy().leadership.as_str(),
        "durability": pod.policy().durability,
        "first_ordinal": arguments.first_ordinal,
        "service": pod.service,
        "namespace": pod.namespace,
        "cluster_domain": arguments.cluster_domain,
        "peer_timeout_seconds": arguments.network.peer_timeout.as_secs_f64(),
        "stop_timeout_seconds": arguments.stop_timeout.as_secs_f64(),
        "reclone": arguments.reclone,
        "tls_directory": server.tls_directory(),
        "configuration_directory": server.configuration_directory(),
    })
}
