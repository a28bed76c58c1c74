//! Applications: each runs transactions through the routes, comes back when its session has ended, and counts
//! where that happened.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use podgres::core::member::Ordinal;
use podgres::demo::{DemoState, Target, dsn};
use tokio::task::JoinHandle;
use tokio_postgres::config::LoadBalanceHosts;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Client, Config, NoTls, Row, Socket};

use crate::harness::Demo;

const PATIENCE: Duration = Duration::from_secs(30);

/// What has happened to all clients together.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) done: AtomicU64,
    /// Sessions that ended between two transactions, with 57P01: nothing to repeat.
    pub(super) between: AtomicU64,
    /// Those that ended there without a word, or with another.
    pub(super) closed: AtomicU64,
    /// Sessions that ended in the middle of one.
    pub(super) broken: AtomicU64,
    /// Connections that were refused, or never answered.
    pub(super) refused: AtomicU64,
    /// Writes that a standby refused (25006).
    pub(super) read_only: AtomicU64,
    pub(super) longest_ms: AtomicU64,
    /// Why transactions broke and sessions closed, for the message of a test that fails.
    causes: Mutex<Vec<String>>,
}

impl Counts {
    pub(super) fn get(count: &AtomicU64) -> u64 {
        count.load(Ordering::Relaxed)
    }

    /// As it is to be through a planned move: no transaction broke, nobody was refused, and who had to leave was told so.
    pub(super) fn assert_moved(&self) {
        for count in [&self.broken, &self.refused, &self.closed] {
            assert_eq!(Self::get(count), 0, "{self:?}");
        }
    }

    fn note(&self, count: &AtomicU64, cause: String) {
        count.fetch_add(1, Ordering::Relaxed);
        self.causes.lock().expect("causes").push(cause);
    }
}

/// Whether a new session ends up on a standby; `None` if it comes to nothing.
pub(super) fn on_standby(config: &Config) -> Option<bool> {
    Some(new_session(config)?.0)
}

/// When a new session began at its server, if that is a standby, or is none, as wanted.
pub(super) fn begun_on(config: &Config, standby: bool) -> Option<SystemTime> {
    let (on_standby, begun) = new_session(config)?;
    (on_standby == standby).then_some(begun)
}

fn new_session(config: &Config) -> Option<(bool, SystemTime)> {
    const ASK: &str =
        "SELECT pg_is_in_recovery(), backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(async {
        let (client, connection) = config.connect(NoTls).await.ok()?;
        tokio::spawn(connection);
        let row = client.query_one(ASK, &[]).await.ok()?;
        Some((row.get(0), row.get(1)))
    })
}

/// Writes a row of `work`, and asks for its token on the same session.
pub(super) async fn written(writer: &Client, n: u32) -> String {
    let insert = format!("INSERT INTO work VALUES ({n})");
    writer.batch_execute(&insert).await.expect("insert");
    let asked = "SELECT pg_current_wal_insert_lsn()::text";
    writer.query_one(asked, &[]).await.expect("token").get(0)
}

/// The one row that a session of its own is given, by these options.
pub(super) async fn answered(config: &Config, options: &str, sql: &str) -> Row {
    let mut config = config.clone();
    config.options(options);
    let (client, connection) = config.connect(NoTls).await.expect("a session");
    tokio::spawn(connection);
    client.query_one(sql, &[]).await.expect("a row")
}

/// Sessions that the routes of all pods have ended between two transactions, and those they have cut.
pub(super) fn drained_and_cut(demo: &Demo) -> (u64, u64) {
    let pods = demo.deployed().pods.len();
    let pages = (0..u32::try_from(pods).expect("few"))
        .map(|ordinal| demo.get(ordinal, "/metrics").expect("a page").1);
    let pages = pages.collect::<Vec<_>>().join("\n");
    let sum = |name: &str| {
        let counts = pages
            .lines()
            .filter(|line| line.starts_with(&format!("{name}_total{{")));
        let counts = counts.map(|line| {
            line.rsplit(' ')
                .next()
                .expect("a value")
                .parse::<u64>()
                .expect("a count")
        });
        counts.sum()
    };
    (sum("podgres_route_drained"), sum("podgres_route_cut"))
}

/// What a transaction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Write,
    Read,
    /// Writes, several transactions sent ahead of the answers.
    WriteAhead,
}

/// Transactions that are on their way at once.
const AHEAD: usize = 8;

/// Clients on threads of their own, until they are stopped.
pub(super) struct Clients {
    pub(super) counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    runtime: tokio::runtime::Runtime,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Clients {
    pub(super) fn start(directory: &Path, target: Target, work: Work, number: usize) -> Self {
        Self::start_as(&config(directory, target), &NoTls, work, number)
    }

    /// With connections of any kind.
    pub(super) fn start_as<T>(config: &Config, tls: &T, work: Work, number: usize) -> Self
    where
        T: MakeTlsConnect<Socket, Stream: Send + 'static, TlsConnect: Send> + Clone + Send + 'static,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("runtime");
        let (counts, stop) = (Arc::<Counts>::default(), Arc::<AtomicBool>::default());
        let tasks = (0..number).map(|_| {
            let connector = (config.clone(), tls.clone());
            let client = run(connector, work, Arc::clone(&counts), Arc::clone(&stop));
            runtime.spawn(client)
        });
        let tasks = tasks.collect();
        Self {
            counts,
            stop,
            runtime,
            tasks,
        }
    }

    /// Waits for so many more transactions.
    pub(super) fn wait_for_more(&self, transactions: u64) {
        let until = Counts::get(&self.counts.done) + transactions;
        let began = Instant::now();
        while Counts::get(&self.counts.done) < until {
            assert!(began.elapsed() < PATIENCE, "{:?}", self.counts);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Lets all finish what they do.
    pub(super) fn stop(self) -> Arc<Counts> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let ending = async { tokio::time::timeout(PATIENCE, task).await };
            let ended = self.runtime.block_on(ending);
            ended.expect("a client ends").expect("no panic");
        }
        self.counts
    }
}

/// The routes of one pod alone.
pub(super) fn config_of(demo: &Demo, ordinal: u32, target: Target) -> Config {
    let (all, state) = (config(&demo.directory, target), demo.deployed());
    let port = *all.get_ports().first().expect("a port");
    let mut one = Config::new();
    let pod = state.pod(Ordinal(ordinal)).expect("a pod");
    one.host(pod.address.to_string())
        .port(port)
        .user(all.get_user().expect("a user"))
        .password(all.get_password().expect("a password"))
        .dbname(&state.database);
    one
}

/// The routes of all pods, in any order.
pub(super) fn config(directory: &Path, target: Target) -> Config {
    let state = DemoState::load(directory).expect("demo.json").expect("a demo");
    let dsn = dsn(&state, target).expect("dsn");
    let mut config: Config = dsn.parse().expect("connection string");
    config.load_balance_hosts(LoadBalanceHosts::Random);
    config
}

async fn run<T>((config, tls): (Config, T), work: Work, counts: Arc<Counts>, stop: Arc<AtomicBool>)
where
    T: MakeTlsConnect<Socket, Stream: Send + 'static, TlsConnect: Send> + Clone,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    let add = |count: &AtomicU64| {
        count.fetch_add(1, Ordering::Relaxed);
    };
    while !stop.load(Ordering::Relaxed) {
        let connecting = tokio::time::timeout(PATIENCE, config.connect(tls.clone()));
        let Ok(Ok((client, connection))) = connecting.await else {
            add(&counts.refused);
            continue;
        };
        let mut connection = tokio::spawn(connection);
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let (done, failed) = match work {
                Work::WriteAhead => ahead(&client).await,
                Work::Write | Work::Read => match transaction(&client, work).await {
                    Ok(()) => (1, None),
                    Err(failed) => (0, Some(failed)),
                },
            };
            counts.done.fetch_add(done, Ordering::Relaxed);
            match failed {
                None => {}
                Some(Failed::Between(error)) => {
                    match told(error, &client, &mut connection).await {
                        None => add(&counts.between),
                        Some(cause) => counts.note(&counts.closed, cause),
                    }
                    // Its last word is said, though the close may still be on its way.
                    break;
                }
                Some(Failed::ReadOnly) => add(&counts.read_only),
                Some(Failed::Inside(error)) => counts.note(&counts.broken, error.to_string()),
            }
            let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            counts.longest_ms.fetch_max(took, Ordering::Relaxed);
            if client.is_closed() {
                break;
            }
        }
        connection.abort();
    }
}

/// `None` if the server has told the session to end (57P01), before or in answer to `BEGIN`; else what happened.
async fn told(
    error: tokio_postgres::Error,
    client: &Client,
    connection: &mut JoinHandle<Result<(), tokio_postgres::Error>>,
) -> Option<String> {
    let left = |error: &tokio_postgres::Error| error.code() == Some(&SqlState::ADMIN_SHUTDOWN);
    if left(&error) {
        return None;
    }
    if !client.is_closed() {
        return Some(error.to_string());
    }
    // What no statement was there to be answered with ends the connection.
    match tokio::time::timeout(PATIENCE, connection).await {
        Ok(Ok(Err(ended))) if left(&ended) => None,
        ended => Some(format!("{error}: {ended:?}")),
    }
}

enum Failed {
    /// Nothing had been answered: it can be repeated without a thought.
    Between(tokio_postgres::Error),
    Inside(tokio_postgres::Error),
    ReadOnly,
}

async fn transaction(client: &Client, work: Work) -> Result<(), Failed> {
    client.batch_execute("BEGIN").await.map_err(Failed::Between)?;
    let statement = match work {
        Work::Write | Work::WriteAhead => "INSERT INTO work VALUES (1)",
        Work::Read => "SELECT count(*) FROM work WHERE n < 0",
    };
    if let Err(error) = client.batch_execute(statement).await {
        if error.code().is_some_and(|code| code.code() == "25006") {
            client.batch_execute("ROLLBACK").await.map_err(Failed::Inside)?;
            return Err(Failed::ReadOnly);
        }
        return Err(Failed::Inside(error));
    }
    // A real transaction has its pauses.
    tokio::time::sleep(Duration::from_millis(2)).await;
    client.batch_execute("COMMIT").await.map_err(Failed::Inside)
}

/// Sends transactions without waiting for answers: how many were acknowledged, and how the first that was not ended.
async fn ahead(client: &Client) -> (u64, Option<Failed>) {
    let statements = ["BEGIN", "INSERT INTO work VALUES (1)", "COMMIT"];
    let sent = (0..AHEAD).flat_map(|_| statements.map(|statement| client.batch_execute(statement)));
    let answers = futures_util::future::join_all(sent).await;
    let answered = answers.iter().take_while(|answer| answer.is_ok()).count();
    let error = answers.into_iter().find_map(Result::err);
    let done = u64::try_from(answered / statements.len()).expect("few");
    let failed = error.map(|error| match answered % statements.len() {
        0 => Failed::Between(error),
        _ => Failed::Inside(error),
    });
    (done, failed)
}
