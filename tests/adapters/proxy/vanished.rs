//! Peers that vanish without a word, and peers that are there and take nothing.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt as _;
use podgres::proxy::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Client, NoTls};

use super::cluster::{Cluster, cluster, loopback, member};
use super::ends::one_session;
use super::routes::{PATIENCE, Route, code_of, until};
use crate::namespaces::{Cut, has_run_inside, inside};

/// A peer that is silent for so long is taken for gone.
const BOUND: Duration = Duration::from_mins(1);
/// The kernel's timers are no finer than the pause between two probes; the rest is for a busy machine.
const ROOM: Duration = Duration::from_secs(20);

/// A client with an address of its own.
async fn client_from(from: IpAddr, route: &Route) -> Client {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((from, 0).into()).expect("an own address");
    let stream = socket.connect(route.address).await.expect("connect");
    let mut config = tokio_postgres::Config::new();
    config.user("quick").dbname("postgres");
    let (client, connection) = config.connect_raw(stream, NoTls).await.expect("session");
    tokio::spawn(connection);
    client
}

/// The port of the route's end of a session, as its server sees it.
async fn port_at_server(client: &Client) -> i32 {
    let sql = "SELECT client_port FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    client.query_one(sql, &[]).await.expect("row").get(0)
}

/// One session that fills its route.
struct Pair {
    what: &'static str,
    route: Route,
    client: Arc<Client>,
    port: i32,
}

impl Pair {
    async fn begin(what: &'static str, from: u8) -> Self {
        let route = Route::read_write(one_session(), vec![member(0)]).await;
        let client = client_from(loopback(from), &route).await;
        let port = port_at_server(&client).await;
        let error = route.connect().await.expect_err("it is full");
        assert_eq!(code_of(&error), "53300", "{what}");
        let client = Arc::new(client);
        Self {
            what,
            route,
            client,
            port,
        }
    }

    /// Asks, and leaves it to the caller who hears of the answer.
    fn ask(&self, sql: &'static str) -> JoinHandle<bool> {
        let client = Arc::clone(&self.client);
        tokio::spawn(async move { client.batch_execute(sql).await.is_ok() })
    }

    fn sessions(&self) -> u64 {
        self.route.stats.sessions.load(Ordering::Relaxed)
    }

    /// Drops what comes and goes on the route's connection to the server.
    fn cut_from_server(&self) -> Cut {
        let (server, port) = (loopback(1), self.port);
        Cut::new(&[
            format!("ip daddr {server} tcp sport {port}"),
            format!("ip saddr {server} tcp dport {port}"),
        ])
    }

    /// Waits until the route has noticed; how long it took, and that it takes the next client and has left the server.
    async fn ends(&self, cluster: &Cluster, since: Instant, server_is_there: bool) -> Duration {
        while self.sessions() > 0 {
            assert!(since.elapsed() < BOUND + ROOM, "{} is not noticed", self.what);
            sleep(Duration::from_millis(50)).await;
        }
        let took = since.elapsed();
        let next = self.route.connect().await;
        assert!(next.is_ok(), "{}: its place is not given back", self.what);
        if server_is_there {
            let sql = format!(
                "SELECT count(*) FROM pg_stat_activity WHERE client_port = {}",
                self.port
            );
            until(self.what, || cluster.admin(0, &sql) == "0").await;
        } else {
            until(self.what, || self.client.is_closed()).await;
        }
        took
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_vanish_without_a_word_are_noticed_within_about_a_minute() {
    let name = "peers_that_vanish_without_a_word_are_noticed_within_about_a_minute";
    if tokio::task::block_in_place(|| has_run_inside(&format!("proxy::vanished::{name}"))) {
        return;
    }
    assert!(inside(), "only root can have peers vanish: run this test as root");
    let cluster = cluster();
    let idle_client = Pair::begin("an idle client", 211).await;
    let busy_client = Pair::begin("a client whose answer is on its way", 212).await;
    let idle_server = Pair::begin("an idle server", 213).await;
    let busy_server = Pair::begin("a server that a statement is on its way to", 214).await;
    let mut cuts = Vec::new();
    let asked = busy_client.ask("SELECT pg_sleep(1)");
    let active = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    until("it is at work", || cluster.admin(0, active) == "1").await;
    let since = Instant::now();
    for from in [211, 212] {
        cuts.push(Cut::between(loopback(from), idle_client.route.address.ip()));
    }
    for pair in [&idle_server, &busy_server] {
        cuts.push(pair.cut_from_server());
    }
    let unanswered = busy_server.ask("SELECT 1");
    let (one, two, three, four) = tokio::join!(
        idle_client.ends(&cluster, since, true),
        busy_client.ends(&cluster, since, true),
        idle_server.ends(&cluster, since, false),
        busy_server.ends(&cluster, since, false),
    );
    println!("noticed after {:?}", [one, two, three, four]);
    for took in [one, two, three, four] {
        assert!(took > BOUND / 2, "before anything of TCP's could tell: {took:?}");
    }
    assert!(cuts.iter().all(|cut| cut.packets() > 0), "nothing was dropped");
    assert!(!unanswered.await.expect("no panic"), "there was no answer");
    asked.abort();
}

/// Longer than a peer may be silent.
const STALL: Duration = Duration::from_secs(75);

/// A session that speaks the protocol itself, so that it can leave the answer unread.
async fn asks_and_does_not_read(route: &Route, buffer_bytes: Option<u32>, bytes: usize) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    if let Some(size) = buffer_bytes {
        socket.set_recv_buffer_size(size).expect("a size");
    }
    let mut stream = socket.connect(route.address).await.expect("connect");
    let startup = b"\0\0\0\x26\0\x03\0\0user\0quick\0database\0postgres\0\0";
    stream.write_all(startup).await.expect("sent");
    while message(&mut stream).await.0 != b'Z' {}
    let query = format!(
        "SELECT repeat('x', 8000) FROM generate_series(1, {})\0",
        bytes / 8000
    );
    let length = u32::try_from(query.len() + 4).expect("short");
    let sent = [b"Q", &length.to_be_bytes()[..], query.as_bytes()].concat();
    stream.write_all(&sent).await.expect("sent");
    stream
}

async fn message(stream: &mut TcpStream) -> (u8, usize) {
    let kind = stream.read_u8().await.expect("a message");
    let length = stream.read_u32().await.expect("a length") as usize - 4;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.expect("a body");
    (kind, length)
}

/// The rows that come, to the end of the answer.
async fn rows(mut stream: TcpStream) -> usize {
    let mut rows = 0;
    loop {
        match message(&mut stream).await.0 {
            b'D' => rows += 1,
            b'Z' => return rows,
            _ => {}
        }
    }
}

/// Copies so many rows of 8000 bytes, the first of which has to wait for another transaction.
async fn copy(client: Client, rows: u32) -> u64 {
    let sink = client.copy_in("COPY taken FROM STDIN").await.expect("COPY");
    let mut sink = Box::pin(sink);
    for n in 0..rows {
        let row = Bytes::from(format!("{n}\t{}\n", "x".repeat(8000)));
        sink.send(row).await.expect("sent");
    }
    sink.as_mut().finish().await.expect("copied")
}

/// The kernel counts what a peer has no room for as unacknowledged: the session ended after a minute.
#[tokio::test(flavor = "multi_thread")]
async fn who_took_nothing_for_a_minute_was_taken_for_gone() {
    let cluster = cluster();
    let write = Route::read_write(Limits::default(), vec![member(0)]).await;
    cluster.admin(
        0,
        "CREATE TABLE taken (n int PRIMARY KEY, t text); GRANT ALL ON taken TO quick",
    );
    let owner = write.connect().await.expect("session");
    owner
        .batch_execute("BEGIN; INSERT INTO taken VALUES (0)")
        .await
        .expect("a lock");
    let copying = tokio::spawn(copy(write.connect().await.expect("session"), 2_000));
    // All of it fits into the kernel's buffers on the way, or most of it stays at the server.
    let some = asks_and_does_not_read(&write, Some(16 * 1024), 800_000).await;
    let much = asks_and_does_not_read(&write, None, 32_000_000).await;
    let begun = Instant::now();
    while begun.elapsed() < STALL {
        let sessions = write.stats.sessions.load(Ordering::Relaxed);
        assert_eq!(sessions, 4, "after {:?}", begun.elapsed());
        sleep(Duration::from_millis(100)).await;
    }
    owner.batch_execute("ROLLBACK").await.expect("unlocked");
    let ended = timeout(PATIENCE, async {
        (rows(some).await, rows(much).await, copying.await)
    })
    .await;
    let (some, much, copied) = ended.expect("they go on");
    assert_eq!((some, much, copied.expect("no panic")), (100, 4_000, 2_000));
    cluster.admin(0, "DROP TABLE taken");
}
