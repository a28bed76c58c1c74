//! Sockets that somebody else holds, hostile bytes, slow and many clients.

use std::sync::Arc;
use std::time::{Duration, Instant};

use podgres::http::HttpState;
use podgres::http::serve::{Limits, ListenError, Listener};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::lab::{PATIENCE, Server, exchange, primary};

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

/// A causal read, or a pooled client, waits for seconds: so long nobody else was heard, the kubelet and other members included.
#[tokio::test]
async fn those_who_wait_for_replay_took_every_place() {
    let limits = Limits {
        connections: 96,
        ..Limits::default()
    };
    let never = |state: &mut HttpState| {
        state.positions.wait = Arc::new(|_, limit| {
            Box::pin(async move {
                tokio::time::sleep(limit).await;
                false
            })
        });
    };
    let server = Server::start_with(primary(0), limits, Duration::from_mins(1), never, vec![]).await;
    let mut waiting = Vec::new();
    let mut refused = 0;
    for _ in 0..96 {
        let mut socket = TcpStream::connect(server.address).await.expect("connect");
        let request = b"GET /wait?lsn=0/1&timeout=30s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        socket.write_all(request).await.expect("write");
        let mut start = [0; 12];
        match timeout(Duration::from_millis(100), socket.read_exact(&mut start)).await {
            Ok(read) => {
                read.expect("an answer");
                assert_eq!(&start, b"HTTP/1.1 503");
                refused += 1;
            }
            Err(_waits) => waiting.push(socket),
        }
    }
    let alive = timeout(Duration::from_secs(5), server.ask("GET /liveness")).await;
    assert_eq!(alive.expect("there is room for others").status, 200);
    assert!(waiting.len() >= 32 && refused > 0, "{} wait", waiting.len());
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
