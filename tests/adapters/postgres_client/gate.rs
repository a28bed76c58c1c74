//! The commit gate against real PostgreSQL: what is acknowledged when, and how soon.

mod attaching;
mod deadline;
mod names;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use podgres::clock::boottime_ms;
use podgres::core::data_directory::SystemIdentifier;
use podgres::postgres::gate::{Gate, GateSettings, GateTarget};
use tokio_postgres::Client;

use super::server::{PORT, TestServer, replication, superuser};
use crate::wait::eventually;

/// A right that does not end while a test runs.
const FOR_EVER: u64 = u64::MAX;

/// Longer than any commit takes that may be acknowledged, also on a busy machine.
const HANGS_FOR: Duration = Duration::from_millis(700);

/// For what is to take milliseconds.
const SOON: Duration = Duration::from_secs(5);

/// A primary on which nothing is acknowledged without the gate, and a table.
async fn gated_primary(programs: &Path, lines: &str) -> TestServer {
    let lines = format!("synchronous_standby_names = 'FIRST 1 (podgres_gate)'\n{lines}");
    let server = TestServer::primary(programs, &lines).await;
    server
        .sql("SET synchronous_commit = local; CREATE TABLE entries (entry bigint)")
        .await;
    server
}

fn start() -> Gate {
    Gate::start(GateSettings::default()).expect("a thread")
}

async fn target(server: &TestServer) -> GateTarget {
    let system_identifier = server.status().await.system_identifier;
    target_of(server, system_identifier)
}

fn target_of(server: &TestServer, system_identifier: SystemIdentifier) -> GateTarget {
    GateTarget {
        address: SocketAddr::new(server.address, PORT),
        login: replication(),
        system_identifier,
    }
}

/// A gate that is attached, without a right.
async fn attached(server: &TestServer) -> Gate {
    let gate = start();
    gate.want(Some(target(server).await));
    until_attached(&gate).await;
    gate
}

async fn until_attached(gate: &Gate) {
    let mut attachment = gate.watch();
    let attached = attachment.wait_for(|attachment| attachment.timeline.is_some());
    let attached = tokio::time::timeout(Duration::from_secs(30), attached).await;
    assert!(matches!(attached, Ok(Ok(_))), "{:?}", gate.status());
}

async fn session(server: &TestServer) -> Client {
    let mut config = tokio_postgres::Config::new();
    config
        .hostaddr(server.address)
        .port(PORT)
        .user(superuser().user.as_str())
        .password(superuser().password.expose())
        .dbname("postgres");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.expect("a session");
    tokio::spawn(connection);
    client
}

/// One commit.
async fn commit(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("INSERT INTO entries VALUES (1)").await
}

/// One commit that is to be acknowledged, and how long it took.
async fn acknowledged(client: &Client) -> Duration {
    let began = Instant::now();
    let done = tokio::time::timeout(Duration::from_secs(30), commit(client)).await;
    done.expect("an acknowledgement in time").expect("a commit");
    began.elapsed()
}

/// Sessions that commit one row after the other.
struct Writers {
    acknowledged: Vec<Arc<AtomicU64>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    async fn start(server: &TestServer, sessions: usize) -> Self {
        let (mut acknowledged, mut tasks) = (Vec::new(), Vec::new());
        for _ in 0..sessions {
            let client = session(server).await;
            let count = Arc::new(AtomicU64::new(0));
            acknowledged.push(Arc::clone(&count));
            tasks.push(tokio::spawn(async move {
                while commit(&client).await.is_ok() {
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }));
        }
        Self { acknowledged, tasks }
    }

    fn counts(&self) -> Vec<u64> {
        let load = |count: &Arc<AtomicU64>| count.load(Ordering::SeqCst);
        self.acknowledged.iter().map(load).collect()
    }

    /// Waits until each session has had another commit acknowledged.
    async fn all_go_on(&self) {
        let before = self.counts();
        eventually("every session goes on", async || {
            self.counts()
                .iter()
                .zip(&before)
                .all(|(now, before)| now > before)
        })
        .await;
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A deadline so far from now.
fn after(duration: Duration) -> u64 {
    boottime_ms() + u64::try_from(duration.as_millis()).expect("a short time")
}

async fn count(server: &TestServer, query: &str) -> i64 {
    let row = session(server).await.query_one(query, &[]).await;
    row.expect(query).get(0)
}
