//! The HTTP server over real sockets: every path, every method, and clients that mean no good.

// A helper that fails fails its test; what a hostile client's own calls come to does not matter.
#![allow(clippy::expect_used, clippy::let_underscore_must_use)]

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podgres::core::cluster::check::CHECK_PATHS;
use podgres::core::cluster::{ClusterView, PeerContact, PeerEntry};
use podgres::core::member::Ordinal;
use podgres::core::status::MemberStatus;
use podgres::core::wal::Lsn;
use podgres::http::authorise::AdminToken;
use podgres::http::serve::{Limits, ListenError, Listener, serve};
use podgres::http::{Beat, HttpState, router};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// A streaming standby of "pg", from the text that another member would send.
pub(crate) fn standby(ordinal: u32) -> MemberStatus {
    member(ordinal, "standby", "streaming", true)
}

/// A primary of "pg".
pub(crate) fn primary(ordinal: u32) -> MemberStatus {
    member(ordinal, "primary", "running", false)
}

fn member(ordinal: u32, role: &str, state: &str, in_recovery: bool) -> MemberStatus {
    let value = json!({
        "name": format!("pg-{ordinal}"), "cluster": "pg", "ordinal": ordinal, "uid": "u",
        "role": role, "state": state, "situation": state, "message": "", "held_data": "some",
        "system_identifier": "7", "accepting": true, "writable": !in_recovery, "job": null,
        "server": {
            "server_version": 150_018, "system_identifier": "7", "timeline": 1, "in_recovery": in_recovery,
            "receiver_streaming": in_recovery, "flush_lsn": "0/3000100", "replay_lsn": "0/3000100",
            "upstream_lsn": null, "replay_age_ms": null, "postmaster_start_time": "", "replication": [],
            "slots": [], "oldest_wal_lsn": null, "wal_segment_size_bytes": 16_777_216, "replication_role": true,
        },
        "host": "127.0.0.1", "postgres_port": 5432, "http_port": 8008, "read_write_port": 6432,
        "read_only_port": 6433, "pids": null, "version": "0.1.0", "clones_total": 0,
    });
    serde_json::from_value(value).expect("a status")
}

pub(crate) fn view(me: MemberStatus) -> ClusterView {
    let peer = primary(0);
    let peer = PeerEntry {
        ordinal: Ordinal(0),
        name: peer.name.clone(),
        status: Some(peer),
        contact: PeerContact::Connected,
        heard_ms_ago: Some(1),
    };
    ClusterView {
        cluster: "pg".to_owned(),
        leadership: "fixed".to_owned(),
        durability: "async".to_owned(),
        term: 1,
        lease_holder: None,
        read_only: false,
        paused: false,
        peers: if me.ordinal == Ordinal(0) {
            vec![]
        } else {
            vec![peer]
        },
        me,
    }
}

/// A server on a free port of its own; ends with the test.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) view: watch::Sender<Arc<ClusterView>>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Server {
    pub(crate) async fn start(me: MemberStatus) -> Self {
        let limits = Limits::default();
        Self::start_with(me, limits, Duration::from_mins(1), |_| {}, vec![]).await
    }

    async fn start_with(
        me: MemberStatus,
        limits: Limits,
        beat: Duration,
        change: impl FnOnce(&mut HttpState),
        mut listeners: Vec<Listener>,
    ) -> Self {
        let (view, seen) = watch::channel(Arc::new(view(me)));
        let mut state = HttpState::new(seen, Beat::new(beat), Duration::from_secs(2));
        change(&mut state);
        let listener = Listener::tcp(SocketAddr::from(([127, 0, 0, 1], 0)))
            .await
            .expect("listen");
        let Listener::Tcp(tcp) = &listener else {
            panic!("not TCP")
        };
        let address = tcp.local_addr().expect("address");
        listeners.push(listener);
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(async move {
            serve(listeners, router(state), limits, async { drop(stopped.await) }).await;
        });
        Self {
            address,
            view,
            stop: Some(stop),
            running,
        }
    }

    /// Publishes a changed status of the member itself.
    pub(crate) fn change(&self, change: impl FnOnce(&mut MemberStatus)) {
        self.view.send_modify(|view| change(&mut Arc::make_mut(view).me));
    }

    async fn ask(&self, request: &str) -> Answer {
        let socket = TcpStream::connect(self.address).await.expect("connect");
        exchange(socket, request).await
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

async fn exchange(mut socket: impl AsyncReadExt + AsyncWriteExt + Unpin, request: &str) -> Answer {
    let request = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    send(&mut socket, &request).await
}

async fn send(socket: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), request: &str) -> Answer {
    socket.write_all(request.as_bytes()).await.expect("write");
    let mut text = String::new();
    timeout(PATIENCE, socket.read_to_string(&mut text))
        .await
        .expect("an answer in time")
        .expect("read");
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer: {text:?}"));
    Answer {
        status: head[9..12].parse().expect("status"),
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    }
}

#[tokio::test]
async fn every_path_answers_get_head_and_options() {
    let server = Server::start(standby(1)).await;
    let fails = [
        "/",
        "/primary",
        "/master",
        "/read-write",
        "/leader",
        "/standby-leader",
        "/standby_leader",
    ];
    let needs_sync = ["/synchronous", "/sync", "/quorum"];
    let pages = [
        "/patroni",
        "/cluster",
        "/history",
        "/config",
        "/metrics",
        "/debug/decisions",
    ];
    for path in CHECK_PATHS.iter().map(|(path, _)| *path).chain(pages) {
        let fails = fails.contains(&path) || needs_sync.contains(&path) || path.starts_with("/read-only-");
        let expected = if fails { 503 } else { 200 };
        for method in ["GET", "HEAD", "OPTIONS"] {
            let answer = server.ask(&format!("{method} {path}")).await;
            assert_eq!(answer.status, expected, "{method} {path}: {}", answer.body);
            assert_eq!(answer.body.is_empty(), method != "GET", "{method} {path}");
            if method == "GET" && path != "/metrics" {
                answer.json();
            }
        }
    }
    let probe = server
        .ask("GET /replica?lag=16MB&replication_state=streaming")
        .await;
    assert_eq!(
        (probe.status, probe.json()["reason"].as_str()),
        (
            200,
            Some(
                "standby, streaming, 0 bytes behind 0/3000100, which was told 0 ms ago, limit 16777216 bytes"
            )
        )
    );
    for (query, said) in [
        ("lag=x", "lag"),
        ("lag=%FF", "lag"),
        ("lag=1XB", "1XB"),
        ("mode=none", "apply or write"),
    ] {
        let answer = server.ask(&format!("GET /readiness?{query}")).await;
        assert_eq!(answer.status, 503, "{query}");
        assert!(answer.body.contains(said), "{query}: {}", answer.body);
    }
    let metrics = server.ask("GET /metrics").await;
    assert!(metrics.head.contains("application/openmetrics-text") && metrics.body.contains("# EOF"));
}

#[tokio::test]
async fn a_change_of_the_view_shows_in_the_next_answer() {
    let server = Server::start(primary(0)).await;
    assert_eq!(server.ask("GET /primary").await.status, 200);
    server.change(|me| me.writable = false);
    let answer = server.ask("GET /primary").await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("not allowed"), "{}", answer.body);
    let cluster = server.ask("GET /cluster").await.json();
    assert_eq!(cluster["members"][0]["writable"], false);
}

#[tokio::test]
async fn a_loop_that_stands_still_fails_liveness_but_not_startup() {
    let beat = Duration::from_millis(1);
    let server = Server::start_with(standby(1), Limits::default(), beat, |_| {}, vec![]).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    for (path, expected) in [
        ("/startup", 200),
        ("/liveness", 503),
        ("/readiness", 503),
        ("/cluster", 200),
    ] {
        assert_eq!(
            server.ask(&format!("GET {path}")).await.status,
            expected,
            "{path}"
        );
    }
}

#[tokio::test]
async fn what_would_change_something_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("podgres.sock");
    let unix = Listener::unix(&path).await.expect("listen");
    assert_eq!(
        std::fs::metadata(&path).expect("socket").permissions().mode() & 0o777,
        0o660
    );
    let token = |state: &mut HttpState| state.admin_token = AdminToken::new("right");
    let server = Server::start_with(
        primary(0),
        Limits::default(),
        Duration::from_mins(1),
        token,
        vec![unix],
    )
    .await;
    for method in ["POST", "PUT", "PATCH", "DELETE", "CONNECT", "BREW"] {
        for path in ["/switchover", "/cluster", "/primary"] {
            let answer = server.ask(&format!("{method} {path}")).await;
            assert_eq!(answer.status, 403, "{method} {path}");
            assert!(
                answer.json()["hint"].as_str().expect("hint").contains("Bearer"),
                "{method} {path}"
            );
        }
    }
    let with = async |token: &str, path: &str| {
        let mut socket = TcpStream::connect(server.address).await.expect("connect");
        let head = format!("Host: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n");
        send(&mut socket, &format!("POST {path} HTTP/1.1\r\n{head}")).await
    };
    assert_eq!(with("wrong", "/cluster").await.status, 403);
    let allowed = with("right", "/cluster").await;
    assert_eq!(allowed.status, 405);
    assert!(
        allowed.head.contains("allow: get, head, options"),
        "{}",
        allowed.head
    );
    assert_eq!(with("right", "/nowhere").await.status, 404);
    let local = UnixStream::connect(&path).await.expect("connect");
    assert_eq!(exchange(local, "POST /cluster").await.status, 405);
    assert_eq!(
        server.ask("GET /nowhere?x").await.json()["error"],
        "unknown path \"/nowhere\""
    );
}

#[tokio::test]
async fn a_dead_process_leaves_its_socket_and_a_living_one_keeps_it() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("podgres.sock");
    drop(Listener::unix(&path).await.expect("first"));
    assert!(path.exists(), "nobody removed it");
    let _second = Listener::unix(&path).await.expect("in place of the dead one");
    let third = Listener::unix(&path).await.expect_err("the second lives");
    assert!(matches!(third, ListenError::InUse { .. }), "{third}");
}

#[tokio::test]
async fn hostile_bytes_end_their_connection_and_nothing_else() {
    let server = Server::start(primary(0)).await;
    let long = "x".repeat(64 * 1024);
    let headers = "h: v\r\n".repeat(500);
    for hostile in [
        "\0\u{1}\u{2}\r\n\r\n".to_owned(),
        "\u{16}\u{3}\u{1}\0\u{5}\u{1}\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "GET / HTTP/9.9\r\n\r\n".to_owned(),
        format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{headers}\r\n"),
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n".to_owned(),
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
            .to_owned(),
        "GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(),
    ] {
        let mut socket = TcpStream::connect(server.address).await.expect("connect");
        // It may hang up before it has read everything.
        let _ = socket.write_all(hostile.as_bytes()).await;
        let mut answer = Vec::new();
        let read = timeout(PATIENCE, socket.read_to_end(&mut answer)).await;
        let shown: String = hostile.chars().take(30).collect();
        assert!(read.is_ok(), "still open after {shown:?}");
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{shown:?}");
    }
    assert_eq!(server.ask("GET /primary").await.status, 200);
}

#[tokio::test]
async fn a_slow_head_ends_at_its_limit_while_others_are_served() {
    let limits = Limits {
        head_timeout: Duration::from_millis(500),
        ..Limits::default()
    };
    let server = Server::start_with(primary(0), limits, Duration::from_mins(1), |_| {}, vec![]).await;
    let started = Instant::now();
    let (mut read, mut write) = TcpStream::connect(server.address)
        .await
        .expect("connect")
        .into_split();
    let drip = tokio::spawn(async move {
        for byte in b"GET / HTTP/1.1\r\nX: ".iter().chain(std::iter::repeat(&b'x')) {
            if write.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert_eq!(server.ask("GET /primary").await.status, 200);
    let mut answer = Vec::new();
    // A reset is as good an end as any.
    let _ = timeout(PATIENCE, read.read_to_end(&mut answer))
        .await
        .expect("ended");
    let took = started.elapsed();
    assert!(
        (Duration::from_millis(450)..Duration::from_secs(5)).contains(&took),
        "{took:?}"
    );
    timeout(PATIENCE, drip).await.expect("hung up").expect("drip");
}

#[tokio::test]
async fn idle_clients_hold_their_places_only_for_a_while_and_never_those_of_the_socket() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("podgres.sock");
    let unix = Listener::unix(&path).await.expect("listen");
    let limits = Limits {
        connections: 3,
        head_timeout: Duration::from_millis(700),
        ..Limits::default()
    };
    let server = Server::start_with(primary(0), limits, Duration::from_mins(1), |_| {}, vec![unix]).await;
    let mut idle = Vec::new();
    for _ in 0..3 {
        let mut socket = TcpStream::connect(server.address).await.expect("connect");
        socket
            .write_all(b"GET /startup HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .expect("write");
        let mut byte = [0];
        socket
            .read_exact(&mut byte)
            .await
            .expect("served, so it holds a place");
        idle.push(socket);
    }
    let started = Instant::now();
    let local = exchange(UnixStream::connect(&path).await.expect("connect"), "GET /startup").await;
    assert_eq!(local.status, 200);
    assert!(
        started.elapsed() < Duration::from_millis(300),
        "the socket has places of its own"
    );
    assert_eq!(server.ask("GET /startup").await.status, 200);
    assert!(
        started.elapsed() >= Duration::from_millis(300),
        "there was no place before"
    );
}

#[tokio::test]
async fn many_clients_at_once_all_get_their_answer() {
    let server = Server::start(primary(0)).await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let address = server.address;
        clients.spawn(async move {
            for path in ["/primary", "/cluster", "/metrics"] {
                let socket = TcpStream::connect(address).await.expect("connect");
                assert_eq!(exchange(socket, &format!("GET {path}")).await.status, 200);
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        done.expect("a client");
    }
}

/// The chunks of a stream, each of which is a line.
struct Lines(BufReader<TcpStream>);

impl Lines {
    async fn open(address: SocketAddr) -> Self {
        let mut socket = TcpStream::connect(address).await.expect("connect");
        socket
            .write_all(b"GET /peer/stream HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .expect("write");
        let mut lines = Self(BufReader::new(socket));
        while !lines.raw().await.expect("head").trim().is_empty() {}
        lines
    }

    /// `None` at the end.
    async fn raw(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = timeout(PATIENCE, self.0.read_line(&mut line))
            .await
            .expect("a line in time");
        read.ok().filter(|bytes| *bytes > 0).map(|_| line)
    }

    /// The next line that is JSON; chunk sizes and the ends of chunks are not objects.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Ok(value @ Value::Object(_)) = serde_json::from_str(&self.raw().await?) {
                return Some(value);
            }
        }
    }
}

#[tokio::test]
async fn a_stream_tells_news_at_once_and_beats_in_between() {
    let server = Server::start(standby(1)).await;
    let mut lines = Lines::open(server.address).await;
    let first = lines.next().await.expect("a line at once");
    assert_eq!(
        serde_json::from_value::<MemberStatus>(first).expect("status"),
        standby(1)
    );
    // 2 s of peer timeout make a beat each 500 ms.
    let started = Instant::now();
    for _ in 0..3 {
        assert_eq!(lines.next().await, Some(json!({})));
    }
    let took = started.elapsed();
    assert!(
        (Duration::from_millis(900)..Duration::from_millis(2500)).contains(&took),
        "{took:?}"
    );

    let started = Instant::now();
    server.change(|me| me.accepting = false);
    assert_eq!(lines.next().await.expect("news")["accepting"], false);
    assert!(
        started.elapsed() < Duration::from_millis(250),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn movement_alone_is_told_at_most_ten_times_a_second() {
    let server = Server::start(standby(1)).await;
    let mut lines = Lines::open(server.address).await;
    lines.next().await.expect("first");
    let mover = async {
        for step in 1..=200 {
            server.change(|me| me.server.as_mut().expect("server").flush_lsn = Lsn(0x300_0100 + step));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let reader = async {
        let mut told = 0;
        loop {
            let line = lines.next().await.expect("line");
            told += 1;
            if line["server"]["flush_lsn"] == Lsn(0x300_0100 + 200).to_string() {
                return told;
            }
        }
    };
    let started = Instant::now();
    let ((), told) = tokio::join!(mover, reader);
    let most = started.elapsed().as_millis() / 100 + 1;
    assert!(
        told >= 5 && told <= most,
        "{told} lines in {:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_shutdown_ends_streams_within_the_drain_limit() {
    let mut server = Server::start(standby(1)).await;
    let mut lines = Lines::open(server.address).await;
    lines.next().await.expect("first");
    let started = Instant::now();
    server.stop.take().expect("once").send(()).expect("running");
    while lines.next().await.is_some() {}
    timeout(PATIENCE, &mut server.running)
        .await
        .expect("ended")
        .expect("served");
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
    assert!(
        TcpStream::connect(server.address).await.is_err(),
        "nobody listens any more"
    );
}
