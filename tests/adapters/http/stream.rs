//! `/peer/stream`: news at once, beats between, an end in time.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use podgres::core::status::MemberStatus;
use podgres::core::wal::Lsn;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::lab::{PATIENCE, Server, standby};

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
