//! A routing endpoint of a test, and clients of it: psql, tokio-postgres, bare sockets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use podgres::core::routing::{
    Affinity, OnPrimaryLoss, ReadOnlyFallback, RouteMode, RoutePolicy, RouteTable, Server,
};
use podgres::proxy::{
    Encryption, Knowledge, Limits, Listener, ListenerError, RefusalReason, RouteStats, SessionCounts,
    TotalConnections, Workers,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::NoTls;

use super::cluster::{PASSWORD, ROUTES, loopback};
use crate::postgresql::programs_with_tls;

pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Route {
    pub(super) address: SocketAddr,
    pub(super) stats: Arc<RouteStats>,
    pub(super) sessions: Arc<SessionCounts>,
    table: watch::Sender<Arc<RouteTable>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ListenerError>>,
}

pub(super) fn table(servers: Vec<Server>) -> RouteTable {
    let members = servers.iter().map(|server| (server.name.clone(), server.address));
    let members = members.collect();
    RouteTable {
        servers,
        members,
        ..RouteTable::default()
    }
}

/// `primary.…` leads to the primary from any endpoint, `strict.…` to a standby that lacks nothing.
fn named_policies() -> BTreeMap<String, RoutePolicy> {
    let strict = RoutePolicy {
        max_lag_bytes: 0,
        fallback: ReadOnlyFallback::None,
        on_primary_loss: OnPrimaryLoss::Refuse,
        ..RoutePolicy::new(RouteMode::ReadOnly)
    };
    let named = [
        ("primary", RoutePolicy::new(RouteMode::ReadWrite)),
        ("strict", strict),
    ];
    named.map(|(name, policy)| (name.to_owned(), policy)).into()
}

pub(super) fn short_hold() -> Limits {
    Limits {
        hold: Duration::from_millis(300),
        ..Limits::default()
    }
}

/// Longer than any test waits: what happens, happens before the end of the hold.
pub(super) fn long_hold() -> Limits {
    Limits {
        hold: PATIENCE * 3,
        ..Limits::default()
    }
}

/// Whom a route believes who the clients are, whether it tells the servers, and what it shares with others.
struct Manners {
    proxies: Option<&'static str>,
    clients: bool,
    total: Arc<TotalConnections>,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            proxies: Some("127.0.0.0/8"),
            clients: true,
            total: Arc::default(),
        }
    }
}

impl Route {
    pub(super) async fn read_write(limits: Limits, servers: Vec<Server>) -> Self {
        Self::start(RouteMode::ReadWrite, limits, table(servers)).await
    }

    pub(super) async fn read_only(limits: Limits, servers: Vec<Server>) -> Self {
        Self::start(RouteMode::ReadOnly, limits, table(servers)).await
    }

    /// As `read_only`, with encrypted sessions spread as all others.
    pub(super) async fn spread(limits: Limits, servers: Vec<Server>) -> Self {
        let policy = RoutePolicy {
            affinity: Affinity::None,
            ..RoutePolicy::new(RouteMode::ReadOnly)
        };
        Self::of(policy, limits, table(servers), None).await
    }

    pub(super) async fn start(mode: RouteMode, limits: Limits, table: RouteTable) -> Self {
        Self::start_with(mode, limits, table, None).await
    }

    pub(super) async fn start_with(
        mode: RouteMode,
        limits: Limits,
        table: RouteTable,
        encryption: Option<Encryption>,
    ) -> Self {
        Self::of(RoutePolicy::new(mode), limits, table, encryption).await
    }

    async fn of(
        policy: RoutePolicy,
        limits: Limits,
        table: RouteTable,
        encryption: Option<Encryption>,
    ) -> Self {
        Self::knowing(policy, limits, table, encryption, Knowledge::of_table).await
    }

    pub(super) async fn knowing(
        policy: RoutePolicy,
        limits: Limits,
        table: RouteTable,
        encryption: Option<Encryption>,
        knowledge: impl FnOnce(watch::Receiver<Arc<RouteTable>>) -> Knowledge,
    ) -> Self {
        let manners = Manners::default();
        Self::run(policy, limits, table, encryption, knowledge, manners).await
    }

    /// A route that shares its places with others.
    pub(super) async fn within(
        total: &Arc<TotalConnections>,
        mode: RouteMode,
        limits: Limits,
        servers: Vec<Server>,
    ) -> Self {
        let manners = Manners {
            total: Arc::clone(total),
            ..Manners::default()
        };
        let (policy, table) = (RoutePolicy::new(mode), table(servers));
        Self::run(policy, limits, table, None, Knowledge::of_table, manners).await
    }

    /// A read-write route that believes no balancer.
    pub(super) async fn without_proxies(servers: Vec<Server>) -> Self {
        let manners = Manners {
            proxies: None,
            ..Manners::default()
        };
        Self::read_write_with(manners, servers).await
    }

    /// A read-write route that leaves `application_name` alone.
    pub(super) async fn without_clients(servers: Vec<Server>) -> Self {
        let manners = Manners {
            clients: false,
            ..Manners::default()
        };
        Self::read_write_with(manners, servers).await
    }

    async fn read_write_with(manners: Manners, servers: Vec<Server>) -> Self {
        let (policy, limits) = (RoutePolicy::new(RouteMode::ReadWrite), Limits::default());
        Self::run(policy, limits, table(servers), None, Knowledge::of_table, manners).await
    }

    async fn run(
        policy: RoutePolicy,
        limits: Limits,
        table: RouteTable,
        encryption: Option<Encryption>,
        knowledge: impl FnOnce(watch::Receiver<Arc<RouteTable>>) -> Knowledge,
        manners: Manners,
    ) -> Self {
        let socket = TcpListener::bind((loopback(ROUTES), 0)).await.expect("port");
        let address = socket.local_addr().expect("address");
        let (sender, receiver) = watch::channel(Arc::new(table));
        let (stats, sessions) = (Arc::<RouteStats>::default(), Arc::<SessionCounts>::default());
        let listener = Listener {
            socket,
            policy,
            named_policies: named_policies(),
            limits,
            trusted_proxies: manners
                .proxies
                .map(|network| network.parse().expect("network"))
                .into_iter()
                .collect(),
            encryption,
            show_clients: manners.clients,
            knowledge: knowledge(receiver),
            sessions: Arc::clone(&sessions),
            reads: Arc::default(),
            stats: Arc::clone(&stats),
            total: manners.total,
            workers: Arc::new(Workers::here()),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(listener.run(async move {
            let _told_or_dropped = stopped.await;
        }));
        Self {
            address,
            stats,
            sessions,
            table: sender,
            stop,
            task,
        }
    }

    pub(super) fn set(&self, servers: Vec<Server>) {
        self.table.send_replace(Arc::new(table(servers)));
    }

    pub(super) async fn stop(self) {
        self.stop.send(()).expect("still running");
        let ended = timeout(Duration::from_secs(4), self.task)
            .await
            .expect("stops in time");
        ended.expect("no panic").expect("no error");
    }

    pub(super) fn refused(&self, reason: RefusalReason) -> u64 {
        let found = self.stats.refused().find(|(known, _)| *known == reason);
        found.expect("every reason is counted").1
    }

    pub(super) async fn psql(&self, options: &str, sql: &str) -> Output {
        let child = self.spawn_psql(options, sql);
        timeout(PATIENCE, child.wait_with_output())
            .await
            .expect("psql ends")
            .expect("psql")
    }

    pub(super) fn spawn_psql(&self, options: &str, sql: &str) -> tokio::process::Child {
        self.psql_command(options, &[sql]).spawn().expect("psql")
    }

    pub(super) fn psql_command(&self, options: &str, commands: &[&str]) -> tokio::process::Command {
        let (host, port) = (self.address.ip(), self.address.port());
        let mut psql = tokio::process::Command::new(programs_with_tls().join("psql"));
        psql.args(["-XAtq", "-v", "VERBOSITY=verbose"])
            .args(commands.iter().flat_map(|command| ["-c", command]))
            .arg("-d")
            .arg(format!(
                "host={host} port={port} dbname=postgres user=app {options}"
            ))
            .env_clear()
            .env("HOME", "/nonexistent")
            .env("LC_ALL", "C")
            .env("PGPASSWORD", PASSWORD)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        psql
    }

    /// A session without TLS and password: an unoptimised SCRAM client is slow. SCRAM is psql's part.
    pub(super) async fn connect(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config
            .host(self.address.ip().to_string())
            .port(self.address.port())
            .user("quick")
            .dbname("postgres")
            .ssl_mode(tokio_postgres::config::SslMode::Disable);
        let connecting = timeout(PATIENCE, config.connect(NoTls)).await;
        let (client, connection) = connecting.expect("an answer in time")?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Sends bytes, and returns what comes back until the other side closes.
    pub(super) async fn exchange(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).await.expect("connect");
        stream.write_all(bytes).await.expect("write");
        read_to_end(&mut stream).await
    }
}

/// A reset ends the answer as a close does.
pub(super) async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let reading = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    let _close_or_reset = reading.expect("closed in time");
    answer
}

/// Waits for a condition, with a limit.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < limit, "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Standard output of a success.
pub(super) fn answer(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Standard error of a failure.
pub(super) fn complaint(output: &Output) -> String {
    assert!(
        !output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The SQLSTATE of an `ErrorResponse`.
pub(super) fn sqlstate(message: &[u8]) -> String {
    assert_eq!(message.first(), Some(&b'E'), "{message:?}");
    let text = String::from_utf8_lossy(&message[5..]);
    let code = text.split('\0').find_map(|field| field.strip_prefix('C'));
    code.expect("a code").to_owned()
}

pub(super) fn code_of(error: &tokio_postgres::Error) -> String {
    let database_error = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
    assert!(
        database_error.detail().is_some() && database_error.hint().is_some(),
        "{error:?}"
    );
    database_error.code().code().to_owned()
}
