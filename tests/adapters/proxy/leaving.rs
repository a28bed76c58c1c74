//! Servers that are left: who keeps a session counted, and for how long each is waited for.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use podgres::core::routing::{RouteMode, RoutePolicy, Server};
use podgres::proxy::Limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, NoTls};

use super::asked::knowledge;
use super::cluster::{PASSWORD, cluster, loopback, member};
use super::routes::{PATIENCE, Route, table, until};
use super::traffic::{WELCOME, begin, read_startup};
use crate::postgresql::programs_with_tls;

/// Shorter than what a client was waited for, and than its time to begin.
const SOON: Duration = Duration::from_secs(1);

fn leaving(server: Server) -> Server {
    Server {
        leaving: true,
        ..server
    }
}

async fn listening(last: u8) -> (TcpListener, SocketAddr) {
    let socket = TcpListener::bind((loopback(last), 0)).await.expect("port");
    let address = socket.local_addr().expect("address");
    (socket, address)
}

/// The relay waited two seconds for the client to close, as one does not that lies in a pool: so long did every planned move wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_counted_until_its_idle_client_had_noticed_the_end() {
    let (socket, address) = listening(95).await;
    let server = Server { address, ..member(0) };
    let write = Route::read_write(Limits::default(), vec![server]).await;
    let serving = tokio::spawn(async move {
        let (mut stream, _) = socket.accept().await.expect("a session");
        read_startup(&mut stream).await.expect("startup packet");
        stream.write_all(WELCOME).await.expect("welcome");
        stream
    });
    let mut client = begin(write.address).await;
    assert_eq!(write.sessions.of("pg-0"), 1);
    let mut stream = serving.await.expect("served");
    stream.write_all(b"goodbye").await.expect("last words");
    drop(stream);
    timeout(SOON, async {
        while write.sessions.of("pg-0") > 0 || write.stats.sessions.load(Ordering::Relaxed) > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("nobody is there any more");
    let mut words = Vec::new();
    client.read_to_end(&mut words).await.expect("an end");
    assert_eq!(words, b"goodbye", "what came last can be read");
}

/// Between the answer to its request and its first bytes of TLS, or of a startup packet: up to ten seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_did_not_begin_kept_its_server_counted() {
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    let _cluster = cluster();
    for (member_, name, expected) in [(member(1), "pg-1", b'S'), (member(2), "pg-2", b'N')] {
        let read = Route::read_only(Limits::default(), vec![member_.clone()]).await;
        let mut client = TcpStream::connect(read.address).await.expect("connect");
        client.write_all(&SSL_REQUEST).await.expect("asked");
        assert_eq!(client.read_u8().await.expect("answered"), expected);
        assert_eq!(read.sessions.of(name), 1);
        read.set(vec![leaving(member_)]);
        let left = timeout(SOON, async {
            while read.sessions.of(name) > 0 {
                sleep(Duration::from_millis(5)).await;
            }
        });
        left.await
            .unwrap_or_else(|_| panic!("still counted after {}", char::from(expected)));
    }
}

async fn in_transaction(route: &Route) -> (Client, String) {
    let client = route.connect().await.expect("session");
    client.batch_execute("BEGIN").await.expect("BEGIN");
    let address = client
        .query_one("SELECT host(inet_server_addr())", &[])
        .await
        .expect("row");
    (client, address.get(0))
}

/// The first long transaction began the drain, and its deadline was everybody's.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_had_to_leave_later_were_cut_at_the_first_ones_deadline() {
    let _cluster = cluster();
    let limits = Limits {
        drain_timeout: Duration::from_secs(3),
        ..Limits::default()
    };
    let (policy, servers) = (RoutePolicy::new(RouteMode::ReadOnly), vec![member(1), member(2)]);
    let read = Route::knowing(policy, limits, table(servers), None, knowledge).await;
    let sessions = [in_transaction(&read).await, in_transaction(&read).await];
    let first = loopback(2).to_string();
    let [early, late] = match sessions {
        [(one, at), (other, _)] if at == first => [one, other],
        [(one, _), (other, _)] => [other, one],
    };
    read.set(vec![leaving(member(1)), member(2)]);
    sleep(Duration::from_secs(2)).await;
    read.set(vec![leaving(member(1)), leaving(member(2))]);
    let cut = || read.stats.cut_total.load(Ordering::Relaxed);
    until("the first is cut", || early.is_closed() && cut() > 0).await;
    sleep(Duration::from_millis(300)).await;
    late.batch_execute("COMMIT")
        .await
        .expect("it has its own three seconds");
    until("it is ended between transactions", || late.is_closed()).await;
    assert_eq!(cut(), 1);
    let ended = || read.sessions.of("pg-1") + read.sessions.of("pg-2") == 0;
    timeout(PATIENCE, until("nobody is there", ended))
        .await
        .expect("in time");
}

/// A consumer of WAL is in no transaction and never idle: each planned move waited for it until the drain timeout.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_streamed_wal_held_a_planned_move_up() {
    let _cluster = cluster();
    let (policy, limits) = (RoutePolicy::new(RouteMode::ReadWrite), Limits::default());
    let write = Route::knowing(policy, limits, table(vec![member(0)]), None, knowledge).await;
    let directory = tempfile::tempdir().expect("directory");
    let mut consumer = consumer(&write, directory.path()).spawn().expect("pg_receivewal");
    streams(member(0).address).await;
    let ended = async {
        write.set(vec![leaving(member(0))]);
        until("nobody is there", || write.sessions.of("pg-0") == 0).await;
    };
    timeout(SOON, ended).await.expect("it is ended at once");
    let status = timeout(PATIENCE, consumer.wait()).await;
    assert!(!status.expect("it hears of it").expect("status").success());
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    assert_eq!(
        (count(&write.stats.drained_total), count(&write.stats.cut_total)),
        (1, 0)
    );
}

/// It speaks every second, so that its word is the last one now and then.
fn consumer(route: &Route, directory: &Path) -> Command {
    let mut program = Command::new(programs_with_tls().join("pg_receivewal"));
    let (host, port) = (route.address.ip().to_string(), route.address.port().to_string());
    program
        .args([
            "--no-loop",
            "--status-interval=1",
            "-U",
            "app",
            "-h",
            &host,
            "-p",
            &port,
            "-D",
        ])
        .arg(directory)
        .env_clear()
        .env("PGPASSWORD", PASSWORD)
        .env("PGSSLMODE", "disable")
        .kill_on_drop(true);
    program
}

async fn streams(server: SocketAddr) {
    let mut config = tokio_postgres::Config::new();
    config.host(server.ip().to_string()).port(server.port());
    let (client, connection) = config
        .user("postgres")
        .dbname("postgres")
        .connect(NoTls)
        .await
        .expect("a session");
    tokio::spawn(connection);
    let asked = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'pg_receivewal' AND state = 'streaming'";
    let streaming = async {
        while client.query_one(asked, &[]).await.expect("row").get::<_, i64>(0) == 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, streaming).await.expect("in time");
}
