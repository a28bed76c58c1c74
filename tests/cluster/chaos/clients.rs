//! Writers through the read-write routes and readers through the read-only ones; what they may meet and what not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use podgres::demo::{DemoState, Target, dsn};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_postgres::{Client, Config, Error, NoTls};

use super::Stop;

const WRITERS: i32 = 4;
const READERS: usize = 3;
/// Between two statements of a session, for other tests' sake.
const PAUSE: Duration = Duration::from_millis(20);
/// Sessions are given up now and then, so that routes choose again.
const SESSION_STATEMENTS: usize = 200;
/// More than a route holds a connection, or a pod stays frozen, twice.
const STUCK: Duration = Duration::from_secs(40);

/// What the clients have met since the beginning.
#[derive(Default)]
pub(super) struct Seen {
    /// What the server has acknowledged, by writer.
    pub(super) acknowledged: Mutex<BTreeMap<i32, BTreeSet<i64>>>,
    /// What must not happen.
    pub(super) wrong: Mutex<Vec<String>>,
    /// Every number is tried once.
    number: AtomicI64,
    written: AtomicU64,
    cut_writes: AtomicU64,
    read: AtomicU64,
    cut_reads: AtomicU64,
    longest_without_read_ms: AtomicU64,
}

impl Seen {
    pub(super) fn summary(&self) -> String {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        format!(
            "{} rows acknowledged, {} writing sessions cut, {} reads, {} reading sessions cut, longest time of a reader \
             without an answer {:.1} s",
            of(&self.written),
            of(&self.cut_writes),
            of(&self.read),
            of(&self.cut_reads),
            Duration::from_millis(of(&self.longest_without_read_ms)).as_secs_f64(),
        )
    }

    /// Whether rows were acknowledged and read at all: without that, nothing was tested.
    pub(super) fn worked(&self) -> bool {
        [&self.written, &self.read]
            .iter()
            .all(|number| number.load(Ordering::Relaxed) > 0)
    }

    fn wrong(&self, what: String) {
        super::say(&format!("WRONG: {what}"));
        self.wrong.lock().expect("lock").push(what);
    }

    fn acknowledge(&self, writer: i32, number: i64) {
        self.written.fetch_add(1, Ordering::Relaxed);
        let mut acknowledged = self.acknowledged.lock().expect("lock");
        acknowledged.entry(writer).or_default().insert(number);
    }

    /// A session may be cut, or be told that no server takes it; any other error is wrong.
    fn ended(&self, who: &str, error: &Error) {
        let allowed = match error.as_db_error() {
            // 57P01 and 57P02 are how PostgreSQL itself cuts a session.
            Some(said) => ["57P01", "57P02", "57P03"].contains(&said.code().code()),
            None => true,
        };
        if !allowed {
            self.wrong(format!("{who}: {error:?}"));
        }
    }
}

/// Running clients.
pub(super) struct Clients {
    runtime: Runtime,
    tasks: JoinSet<()>,
    stop: Stop,
}

impl Clients {
    pub(super) fn start(directory: &Path, seen: &Arc<Seen>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("runtime");
        let (mut tasks, stop) = (JoinSet::new(), Stop::default());
        for writer in 0..WRITERS {
            let (directory, seen, stop) = (directory.to_owned(), seen.clone(), stop.clone());
            tasks.spawn_on(
                async move { write(writer, directory, &seen, &stop).await },
                runtime.handle(),
            );
        }
        for _ in 0..READERS {
            let (directory, seen, stop) = (directory.to_owned(), seen.clone(), stop.clone());
            tasks.spawn_on(
                async move { read(directory, &seen, &stop).await },
                runtime.handle(),
            );
        }
        Self { runtime, tasks, stop }
    }

    pub(super) fn stop(mut self) {
        self.stop.ask();
        self.runtime.block_on(async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.expect("client");
            }
        });
    }
}

/// One session through the route of any pod; `None` if there is none now.
async fn connect(directory: &Path, target: Target, who: &str, seen: &Seen) -> Option<Client> {
    let state = DemoState::load(directory).expect("demo.json").expect("a demo");
    let all: Config = dsn(&state, target).expect("dsn").parse().expect("dsn");
    let chosen = fastrand::usize(..all.get_hosts().len());
    let tokio_postgres::config::Host::Tcp(host) = &all.get_hosts()[chosen] else {
        panic!("{all:?}");
    };
    let mut config = Config::new();
    config.host(host).port(all.get_ports()[chosen]);
    config
        .user(all.get_user().expect("user"))
        .password(all.get_password().expect("password"))
        .dbname(all.get_dbname().expect("database"));
    match tokio::time::timeout(STUCK, config.connect(NoTls)).await {
        Ok(Ok((client, connection))) => {
            tokio::spawn(connection);
            return Some(client);
        }
        Ok(Err(error)) => seen.ended(&format!("{who} connecting to {host}"), &error),
        Err(_) => seen.wrong(format!("{who} waited for a session of {host} for {STUCK:?}")),
    }
    tokio::time::sleep(PAUSE * 5).await;
    None
}

async fn write(writer: i32, directory: PathBuf, seen: &Seen, stop: &Stop) {
    let who = format!("writer {writer}");
    while !stop.asked() {
        let Some(client) = connect(&directory, Target::ReadWrite, &who, seen).await else {
            continue;
        };
        for _ in 0..SESSION_STATEMENTS {
            if stop.asked() {
                break;
            }
            let number = seen.number.fetch_add(1, Ordering::Relaxed);
            let sql = format!(
                "INSERT INTO chaos VALUES ({writer}, {number}) RETURNING current_setting('data_directory') AS server"
            );
            let done = tokio::time::timeout(STUCK, client.simple_query(&sql)).await;
            match done.map(|done| done.map(|rows| first(&rows, 0))) {
                Ok(Ok(server)) if server.contains("data-demo-0/") => seen.acknowledge(writer, number),
                Ok(Ok(server)) => seen.wrong(format!("{server} took a write")),
                Ok(Err(error)) => {
                    seen.cut_writes.fetch_add(1, Ordering::Relaxed);
                    seen.ended(&who, &error);
                    break;
                }
                Err(_) => {
                    seen.wrong(format!("{who} waited for an answer for {STUCK:?}"));
                    break;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn read(directory: PathBuf, seen: &Seen, stop: &Stop) {
    let sql = "SELECT current_setting('data_directory'), (SELECT count(*) FROM chaos WHERE number % 7 = 0), \
               (SELECT coalesce(max(number), 0) FROM chaos WHERE writer = 0)";
    let mut last = Instant::now();
    while !stop.asked() {
        let Some(client) = connect(&directory, Target::ReadOnly, "reader", seen).await else {
            continue;
        };
        let mut before = (0, 0);
        for _ in 0..SESSION_STATEMENTS {
            if stop.asked() {
                break;
            }
            match tokio::time::timeout(STUCK, client.simple_query(sql)).await {
                Ok(Ok(rows)) => {
                    let number = |column| first(&rows, column).parse::<i64>().expect("a number");
                    let now = (number(1), number(2));
                    if now.0 < before.0 || now.1 < before.1 {
                        seen.wrong(format!(
                            "{} went back from {before:?} to {now:?}",
                            first(&rows, 0)
                        ));
                    }
                    before = now;
                    seen.read.fetch_add(1, Ordering::Relaxed);
                    let without = u64::try_from(last.elapsed().as_millis()).expect("small");
                    seen.longest_without_read_ms.fetch_max(without, Ordering::Relaxed);
                    last = Instant::now();
                }
                Ok(Err(error)) => {
                    seen.cut_reads.fetch_add(1, Ordering::Relaxed);
                    seen.ended("reader", &error);
                    break;
                }
                Err(_) => {
                    seen.wrong(format!("a reader waited for an answer for {STUCK:?}"));
                    break;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// A column of the first row.
fn first(rows: &[tokio_postgres::SimpleQueryMessage], column: usize) -> String {
    let found = rows.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(column),
        _ => None,
    });
    found.expect("a row").to_owned()
}
