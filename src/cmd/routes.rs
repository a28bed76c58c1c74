//! The routing endpoints of a process: bound, fed with what is known, served on threads of their own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::agent::{Positions, Published, follow_freshness, member_key};
use crate::config::limits::sessions_within;
use crate::config::pod::Pod;
use crate::config::routes::{RouteArguments, TlsArgument};
use crate::core::member::Topology;
use crate::core::operate::{Answer, EndedSessions, Order};
use crate::core::routing::listen::Listen;
use crate::core::routing::settling::settled_term;
use crate::core::routing::{RouteMode, RoutePolicy, RouteTable, Server};
use crate::core::signature::MemberKey;
use crate::peers::{PositionAsker, Reach, ReplayWaits, Way, send_signed_order};
use crate::postgres::tls::ClientTls;
use crate::proxy::{
    AskPosition, Authority, CertificateFolder, Encryption, EndSessions, Knowledge, Limits, Listener, Network,
    Reads, RouteStats, SessionCounts, TotalConnections, WaitForReplay, Workers,
};
use crate::watched;

use super::open_files;
use super::serve::Route;
use super::{ExitStatus, Failure, status_of, wiring};

/// Between two questions for a member's position, at most and at least.
const ASK_PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_millis(50)];
/// While a server leaves, its sessions are counted so often.
const LEFT_PAUSE: Duration = Duration::from_millis(10);
/// How often a route that is no member's makes itself known.
const TELL_PAUSE: Duration = Duration::from_secs(1);
/// For one order to end idle sessions.
const END_LIMIT: Duration = Duration::from_millis(900);
/// For one answer to where a server is.
const ASK_LIMIT: Duration = Duration::from_millis(500);
/// Sessions in one order.
const END_BATCH: usize = 1000;

/// Bound and not served yet.
pub(super) struct Endpoints {
    encryption: Option<Encryption>,
    show_clients: bool,
    trusted_proxies: Vec<Network>,
    total: TotalConnections,
    bound: Vec<(Listen, Limits, TcpListener, Arc<RouteStats>)>,
}

impl Endpoints {
    pub(super) async fn bind(
        listens: Vec<Listen>,
        arguments: &RouteArguments,
        encryption: Option<Encryption>,
        address: impl Fn(u16) -> SocketAddr,
    ) -> Result<Self, Failure> {
        let most = open_files::raise().map_or(usize::MAX, |files| sessions_within(files, listens.len()));
        let mut bound = Vec::new();
        for listen in listens {
            let address = address(listen.port);
            let socket = TcpListener::bind(address).await.map_err(|error| {
                let name = &listen.name;
                let text = format!("could not listen on \"{address}\" for the {name} route: {error}");
                Failure::new(status_of(&error), text)
            })?;
            let mut limits = arguments.limits(&listen);
            if limits.max_connections > most {
                let (route, given) = (&listen.name, limits.max_connections);
                tracing::warn!(
                    route,
                    given,
                    most,
                    "the limit of open files allows fewer connections"
                );
                limits.max_connections = most;
            }
            bound.push((listen, limits, socket, Arc::default()));
        }
        let trusted_proxies = arguments.trusted_proxies.clone();
        Ok(Self {
            encryption,
            show_clients: arguments.show_clients,
            trusted_proxies,
            total: arguments.total_connections(),
            bound,
        })
    }

    /// By the endpoints' names.
    pub(super) fn stats(&self) -> Vec<Route> {
        let stats = |(listen, _, _, stats): &(Listen, _, _, Arc<RouteStats>)| {
            (listen.name.clone(), Arc::clone(stats))
        };
        self.bound.iter().map(stats).collect()
    }

    /// What each promises, by its name.
    pub(super) fn policies(&self) -> Vec<(String, RoutePolicy)> {
        let policy = |(listen, ..): &(Listen, _, _, _)| (listen.name.clone(), listen.policy.clone());
        self.bound.iter().map(policy).collect()
    }

    /// How often members are asked, so that the strictest bound can be kept.
    pub(super) fn ask_pause(&self) -> Duration {
        let reads = self
            .bound
            .iter()
            .filter(|(listen, ..)| listen.policy.mode == RouteMode::ReadOnly);
        let strictest = reads.map(|(listen, ..)| listen.policy.max_staleness_ms).min();
        let [most, least] = ASK_PAUSES;
        strictest.map_or(most, |ms| Duration::from_millis(ms / 20).clamp(least, most))
    }

    /// Serves all until `stopped` says so; each task ends when its endpoint has.
    pub(super) fn serve(
        self,
        knowledge: &Knowledge,
        sessions: &Arc<SessionCounts>,
        stopped: &watch::Receiver<bool>,
    ) -> Result<JoinSet<()>, Failure> {
        let workers = Workers::start().map_err(|error| Failure::from_error(ExitStatus::Bug, &error))?;
        let (workers, reads) = (Arc::new(workers), Arc::<Reads>::default());
        let total = Arc::new(self.total);
        let mut listening = JoinSet::new();
        let named: BTreeMap<_, _> = self
            .bound
            .iter()
            .map(|(listen, ..)| (listen.name.clone(), listen.policy.clone()))
            .collect();
        for (listen, limits, socket, stats) in self.bound {
            let listener = Listener {
                socket,
                policy: listen.policy,
                named_policies: named.clone(),
                limits,
                trusted_proxies: self.trusted_proxies.clone(),
                encryption: self.encryption.as_ref().map(Encryption::another),
                show_clients: self.show_clients,
                knowledge: knowledge.clone(),
                sessions: Arc::clone(sessions),
                reads: Arc::clone(&reads),
                stats,
                total: Arc::clone(&total),
                workers: Arc::clone(&workers),
            };
            let mut stopped = stopped.clone();
            listening.spawn(async move {
                let stop = async move { drop(stopped.wait_for(|stop| *stop).await) };
                if let Err(error) = listener.run(stop).await {
                    tracing::error!(%error, "a routing endpoint has ended");
                }
            });
        }
        Ok(listening)
    }
}

/// What terminates TLS, if that is asked for.
pub(super) fn encryption(
    arguments: &RouteArguments,
    folder: Option<&Path>,
    topology: &Topology,
) -> Result<Option<Encryption>, Failure> {
    if arguments.tls == TlsArgument::PassThrough {
        return Ok(None);
    }
    let folder = folder.ok_or_else(|| {
        Failure::new(
            ExitStatus::Settings,
            "TLS cannot be terminated without a certificate",
        )
        .hint("Mount tls.crt, tls.key and ca.crt of the cluster and give their folder in PODGRES_TLS_DIR.")
    })?;
    let certificate =
        CertificateFolder::open(folder).map_err(|error| Failure::from_error(ExitStatus::Settings, &error))?;
    let authority = authority(folder)?;
    let domain = topology.service_host();
    Ok(Some(Encryption::new(Arc::new(certificate), authority, domain)))
}

/// By which members are verified.
pub(super) fn authority(folder: &Path) -> Result<Authority, Failure> {
    let authority =
        ClientTls::open(folder).map_err(|error| Failure::from_error(ExitStatus::Settings, &error))?;
    Ok(Arc::new(move || authority.config()))
}

/// All members, by the address of their HTTP.
#[derive(Clone)]
pub(super) struct Members {
    pub(super) table: watch::Receiver<Arc<RouteTable>>,
    pub(super) way: Way,
}

impl Members {
    fn at(&self, address: SocketAddr) -> Reach {
        let table = self.table.borrow();
        self.way.to(Self::name(&table, address), address)
    }

    /// One that is no server any more may still have sessions to end.
    fn name(table: &RouteTable, address: SocketAddr) -> &str {
        let mut members = table.members.iter();
        let named = members.find(|(_, member)| member.ip() == address.ip());
        named.map_or("", |(name, _)| name)
    }
}

/// What the endpoints of a pod know and whom they ask.
pub(super) fn knowledge(
    published: &Published,
    table: watch::Receiver<Arc<RouteTable>>,
    pod: &Pod,
    ask_pause: Duration,
) -> Knowledge {
    let own = Arc::clone(&published.positions);
    let (logins, cluster) = (wiring::read_logins(), pod.name.cluster.clone());
    let members = Members {
        table: published.routes.clone(),
        way: published.way.clone(),
    };
    Knowledge {
        table,
        freshness: Some(follow_freshness(
            published.view.clone(),
            Some(Arc::clone(&own)),
            ask_pause,
            members.way.clone(),
        )),
        wait_for_replay: Some(replay_waiter(members.clone(), Some((pod.name.to_string(), own)))),
        ask_position: Some(position_asker(members.clone())),
        end_sessions: Some(session_ender(
            members,
            Arc::new(move || member_key(&logins, &cluster)),
        )),
    }
}

/// Says which leaving servers the routes of this process have left, and for which term the earlier primaries: no
/// session is there, and none begins.
///
/// An attempt counts as a session from before it begins, and comes to nothing by the `table` that it is given in the end.
pub(super) async fn tell_left(
    published: Published,
    mut table: watch::Receiver<Arc<RouteTable>>,
    sessions: Arc<SessionCounts>,
) {
    loop {
        let (leaving, term, settled) = {
            let table = table.borrow_and_update();
            let leaving = table.servers.iter().filter(|server| server.leaving);
            let leaving: Vec<String> = leaving.map(|server| server.name.clone()).collect();
            (leaving, table.term, settled_term(&table, &sessions.primaries()))
        };
        let left = leaving.iter().filter(|name| sessions.of(name) == 0);
        watched::set(&published.routes_left, Some(left.cloned().collect()));
        if settled.is_some() {
            watched::set(&published.routes_term, settled);
        }
        let waiting = !leaving.is_empty() || settled != term;
        tokio::select! {
            changed = table.changed() => if changed.is_err() { return },
            () = sleep(LEFT_PAUSE), if waiting => {}
        }
    }
}

/// Says to every server, again and again, that this route is there, and whether it has left one that is leaving: a
/// planned move waits for it. For a route that is no member's.
pub(super) async fn make_known(
    members: Members,
    sessions: Arc<SessionCounts>,
    key: Arc<dyn Fn() -> Option<MemberKey> + Send + Sync>,
) {
    let route = format!("{:016x}", fastrand::u64(..));
    let mut table = members.table.clone();
    let mut told: BTreeMap<SocketAddr, (Instant, bool)> = BTreeMap::new();
    loop {
        let servers: Vec<(SocketAddr, bool, bool)> = {
            let table = table.borrow_and_update();
            let word = |server: &Server| {
                let left = server.leaving && sessions.of(&server.name) == 0;
                (server.http_address, server.leaving, left)
            };
            table.servers.iter().map(word).collect()
        };
        for &(address, _, left) in &servers {
            let due = |(at, known): &(Instant, bool)| *known != left || at.elapsed() >= TELL_PAUSE;
            if told.get(&address).is_none_or(due)
                && let Some(key) = key()
            {
                told.insert(address, (Instant::now(), left));
                let order = Order::Route {
                    route: route.clone(),
                    left,
                };
                let member = members.at(address);
                tokio::spawn(async move {
                    drop(send_signed_order(member, &order, &key, END_LIMIT).await);
                });
            }
        }
        let leaving = servers.iter().any(|(_, leaving, _)| *leaving);
        tokio::select! {
            changed = table.changed() => if changed.is_err() { return },
            () = sleep(if leaving { LEFT_PAUSE } else { TELL_PAUSE }) => {}
        }
    }
}

/// `own`: the member of this process, which needs no request.
pub(super) fn replay_waiter(members: Members, own: Option<(String, Arc<Positions>)>) -> WaitForReplay {
    let waits = Arc::new(ReplayWaits::default());
    Arc::new(move |address, lsn, wait| {
        if let Some((name, positions)) = &own
            && Members::name(&members.table.borrow(), address) == name
        {
            let positions = Arc::clone(positions);
            return Box::pin(async move { positions.wait(lsn, wait).await });
        }
        let (member, waits) = (members.at(address), Arc::clone(&waits));
        Box::pin(async move { waits.wait(&member, lsn, wait).await.unwrap_or(false) })
    })
}

pub(super) fn position_asker(members: Members) -> AskPosition {
    Arc::new(move |address| {
        let mut asker = PositionAsker::new(members.at(address));
        Box::pin(async move { asker.ask(ASK_LIMIT).await.ok().flatten() })
    })
}

/// Members take the order only signed.
pub(super) fn session_ender(
    members: Members,
    key: Arc<dyn Fn() -> Option<MemberKey> + Send + Sync>,
) -> EndSessions {
    Arc::new(move |address, clients, which| {
        let (key, member) = (key(), members.at(address));
        Box::pin(async move {
            let key = key.ok_or("the replication password is not known")?;
            let mut all = EndedSessions::default();
            for batch in clients.chunks(END_BATCH) {
                let order = Order::EndSessions {
                    clients: batch.to_vec(),
                    which,
                };
                let sent = send_signed_order(member.clone(), &order, &key, END_LIMIT).await;
                let (_, body) = sent.map_err(|error| error.to_string())?;
                let answer: Answer = serde_json::from_value(body).map_err(|error| error.to_string())?;
                all.ended.extend(answer.clients.ok_or(answer.message)?);
                all.working.extend(answer.working.into_iter().flatten());
            }
            Ok(all)
        })
    })
}
