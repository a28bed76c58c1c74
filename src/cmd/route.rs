//! `podgres route`: the routing endpoints alone, beside an application or as a Deployment; members by DNS only.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::sync::watch;

use crate::agent::{Outside, OutsideSettings, follow_freshness};
use crate::config::limits::{check_label, check_peer_timeout};
use crate::config::pod::NetworkArguments;
use crate::config::routes::RouteArguments;
use crate::config::{InvalidSetting, ProcessEnvironment, server};
use crate::core::member::Ordinal;
use crate::core::signature::MemberKey;
use crate::http::beside::{RouteState, router_of_routes};
use crate::http::serve as http;
use crate::peers::Way;
use crate::proxy::{Knowledge, SessionCounts};

use super::names::Names;
use super::routes::{
    self, Endpoints, Members, encryption, make_known, position_asker, replay_waiter, session_ender,
};
use super::serve::{Route, counters};
use super::settling::settled;
use super::sidecar::{agent_failure, terminated};
use super::{ExitStatus, Failure};

/// No primary has the right to be one for longer without renewing its Lease, by the members' default.
const LONGEST_RIGHT: Duration = Duration::from_secs(10);

#[derive(Args, Debug)]
pub struct Arguments {
    /// Name of the StatefulSet
    #[arg(long, env = "PODGRES_CLUSTER")]
    pub cluster: String,
    #[command(flatten)]
    pub names: Names,
    /// Lowest ordinal (spec.ordinals.start)
    #[arg(long, env = "PODGRES_FIRST_ORDINAL", default_value_t = 0)]
    pub first_ordinal: u32,
    /// Where to listen
    #[arg(long, env = "PODGRES_LISTEN_ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub listen_address: IpAddr,
    /// Folder with tls.crt, tls.key and ca.crt of the cluster, for --tls terminate
    #[arg(long, env = "PODGRES_TLS_DIR", default_value = "/etc/podgres/tls")]
    pub tls_dir: PathBuf,
    /// Where /metrics, /liveness and /readiness are, IP:PORT [default: nowhere]
    #[arg(long, env = "PODGRES_STATUS_ADDRESS")]
    pub status_address: Option<SocketAddr>,
    #[command(flatten)]
    pub network: NetworkArguments,
    #[command(flatten)]
    pub routes: RouteArguments,
}

/// What would only show as a cluster that nobody ever finds.
fn check(arguments: &Arguments) -> Result<(), InvalidSetting> {
    check_label("PODGRES_CLUSTER", &arguments.cluster)?;
    arguments.names.check()?;
    check_peer_timeout(arguments.network.peer_timeout, None)
}

/// Runs until TERM or INT.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    check(&arguments)?;
    let listens = arguments.routes.listeners(
        arguments.network.read_write_port,
        arguments.network.read_only_port,
    )?;
    let address = |port| SocketAddr::new(arguments.listen_address, port);
    let folder = Some(arguments.tls_dir.as_path()).filter(|folder| folder.is_dir());
    let settings = outside_settings(&arguments, folder)?;
    let encryption = encryption(&arguments.routes, folder, &settings.topology)?;
    let endpoints = Endpoints::bind(listens, &arguments.routes, encryption, address).await?;
    let way = settings.way.clone();
    let outside = Outside::follow(settings).map_err(|error| agent_failure(&error))?;
    let secret = server::replication_secret(&ProcessEnvironment)?;
    let cluster = arguments.cluster.clone();
    let key = move || {
        secret
            .as_ref()
            .map(|secret| MemberKey::derive(&cluster, secret.expose()))
    };
    let key: Arc<dyn Fn() -> Option<MemberKey> + Send + Sync> = Arc::new(key);
    let sessions = Arc::new(SessionCounts::default());
    let table = outside.routes.clone();
    let members = Members { table, way };
    if key().is_some() {
        tokio::spawn(make_known(
            members.clone(),
            Arc::clone(&sessions),
            Arc::clone(&key),
        ));
    }
    let knowledge = Knowledge {
        freshness: Some(follow_freshness(
            outside.view,
            None,
            endpoints.ask_pause(),
            members.way.clone(),
        )),
        table: settled(outside.routes, LONGEST_RIGHT),
        wait_for_replay: Some(replay_waiter(members.clone(), None)),
        ask_position: Some(position_asker(members.clone())),
        // Without the secret members end nobody's sessions for this route: they are cut when they must leave.
        end_sessions: key().is_some().then(|| session_ender(members, key)),
    };
    let (stop, stopped) = watch::channel(false);
    let pages = pages(endpoints.stats(), &knowledge, stopped.clone());
    serve_pages(arguments.status_address, pages).await?;
    let mut listening = endpoints.serve(&knowledge, &sessions, &stopped)?;
    tokio::select! {
        _ = listening.join_next() => Err(Failure::new(ExitStatus::Overdue, "a routing endpoint has lost its socket")),
        ended = terminated() => {
            stop.send_replace(true);
            while listening.join_next().await.is_some() {}
            ended
        }
    }
}

fn pages(endpoints: Vec<Route>, knowledge: &Knowledge, stopped: watch::Receiver<bool>) -> RouteState {
    let table = knowledge.table.clone();
    RouteState {
        counters: Arc::new(move || endpoints.iter().map(counters).collect()),
        servers: Arc::new(move || {
            let table = table.borrow();
            let servers = table.servers.iter().filter(|_| !*stopped.borrow());
            servers.map(|server| server.name.clone()).collect()
        }),
    }
}

/// Until the process ends.
async fn serve_pages(address: Option<SocketAddr>, pages: RouteState) -> Result<(), Failure> {
    let Some(address) = address else {
        return Ok(());
    };
    let listener = http::Listener::tcp(address)
        .await
        .map_err(|error| Failure::from_error(ExitStatus::Overdue, &error))?;
    let router = router_of_routes(pages);
    tokio::spawn(http::serve(
        vec![listener],
        router,
        http::Limits::default(),
        std::future::pending(),
    ));
    Ok(())
}

fn outside_settings(arguments: &Arguments, tls: Option<&Path>) -> Result<OutsideSettings, Failure> {
    let first_ordinal = Ordinal(arguments.first_ordinal);
    let topology = arguments.names.topology(&arguments.cluster, first_ordinal);
    let way = match tls {
        None => Way::plain(),
        Some(folder) => Way::verified(routes::authority(folder)?, topology.service_host()),
    };
    Ok(OutsideSettings {
        way,
        topology,
        dns_server: arguments.network.dns_server,
        http_port: arguments.network.http_port,
        peer_timeout: arguments.network.peer_timeout,
    })
}
