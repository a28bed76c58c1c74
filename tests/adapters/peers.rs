//! Following other members: real streams, dead ones, silent ones and liars.

// A helper that fails fails its test; what a hostile client's own calls come to does not matter.
#![allow(clippy::expect_used, clippy::let_underscore_must_use)]

mod encrypted;
mod replay;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use podgres::core::cluster::PeerContact;
use podgres::core::member::Ordinal;
use podgres::core::status::MemberStatus;
use podgres::core::wal::Lsn;
use podgres::http::serve::{Limits, Listener, serve};
use podgres::http::{Beat, HttpState, router};
use podgres::peers::{PeerSnapshot, Peers, RequestError, Way, ask, get_json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::http::{Server, primary, standby, view};

const PATIENCE: Duration = Duration::from_secs(20);
const PEER_TIMEOUT: Duration = Duration::from_secs(2);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn following(address: SocketAddr) -> Peers {
    following_within(address, PEER_TIMEOUT)
}

fn following_within(address: SocketAddr, peer_timeout: Duration) -> Peers {
    let mut peers = Peers::new("pg", peer_timeout, Way::plain());
    peers.set_targets(vec![(Ordinal(1), vec![address.ip()], address.port())]);
    peers
}

/// Waits for news until the peer is as wanted.
async fn until(peers: &mut Peers, wanted: impl Fn(&PeerSnapshot) -> bool) -> PeerSnapshot {
    let waiting = async {
        loop {
            match peers.snapshot().remove(&Ordinal(1)) {
                Some(peer) if wanted(&peer) => return peer,
                _ => peers.changed().await,
            }
        }
    };
    timeout(PATIENCE, waiting).await.expect("the news in time")
}

async fn until_contact(peers: &mut Peers, contact: PeerContact) -> PeerSnapshot {
    until(peers, |peer| peer.contact == contact).await
}

/// A listener that says `answer` to everybody and keeps the connection open; counts its visitors.
async fn liar(answer: Vec<u8>) -> (SocketAddr, Arc<AtomicUsize>, JoinHandle<()>) {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.expect("listen");
    let address = listener.local_addr().expect("address");
    let visitors = Arc::new(AtomicUsize::new(0));
    let counted = visitors.clone();
    let running = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let mut request = [0; 1024];
            let _ = socket.read(&mut request).await;
            // A visitor that has heard enough may be gone already.
            let _ = socket.write_all(&answer).await;
            open.push(socket);
        }
    });
    (address, visitors, running)
}

fn http(lines: &[u8]) -> Vec<u8> {
    [b"HTTP/1.1 200 OK\r\n\r\n", lines].concat()
}

fn line(status: &MemberStatus) -> Vec<u8> {
    let mut line = serde_json::to_vec(status).expect("status");
    line.push(b'\n');
    line
}

#[tokio::test]
async fn a_change_arrives_and_movement_does_not_wake() {
    let server = Server::start(standby(1)).await;
    let mut peers = following(server.address);
    let peer = until_contact(&mut peers, PeerContact::Connected).await;
    assert_eq!(peer.status, Some(standby(1)));
    let entry = peer.entry("pg", Ordinal(1), Instant::now());
    assert!(entry.connected() && entry.name == "pg-1" && entry.heard_ms_ago.is_some_and(|age| age < 2000));

    let started = Instant::now();
    server.change(|me| me.situation = "upstream_lost".to_owned());
    until(&mut peers, |peer| {
        peer.status
            .as_ref()
            .is_some_and(|s| s.situation == "upstream_lost")
    })
    .await;
    assert!(
        started.elapsed() < Duration::from_millis(500),
        "{:?}",
        started.elapsed()
    );

    server.change(|me| me.server.as_mut().expect("server").replay_lsn = Lsn(0x400_0000));
    let news = timeout(Duration::from_millis(700), peers.changed()).await;
    assert!(news.is_err(), "a position is no news");
    let status = peers
        .snapshot()
        .remove(&Ordinal(1))
        .and_then(|peer| peer.status)
        .expect("status");
    assert_eq!(
        status.server.expect("server").replay_lsn,
        Lsn(0x400_0000),
        "but it is there to be read"
    );
}

#[tokio::test]
async fn heartbeats_keep_an_idle_peer_for_longer_than_the_timeout() {
    let server = Server::start(standby(1)).await;
    // The server beats each 500 ms.
    let mut peers = following_within(server.address, Duration::from_millis(900));
    until_contact(&mut peers, PeerContact::Connected).await;
    let news = timeout(Duration::from_millis(2500), peers.changed()).await;
    assert!(news.is_err(), "{:?}", peers.snapshot());
    let heard = peers.snapshot()[&Ordinal(1)].heard_at.expect("heard");
    assert!(
        heard.elapsed() < Duration::from_millis(900),
        "{:?}",
        heard.elapsed()
    );
}

#[tokio::test]
async fn a_killed_peer_is_news_at_once_and_keeps_its_last_word() {
    let server = Server::start(standby(1)).await;
    let address = server.address;
    let mut peers = following(address);
    until_contact(&mut peers, PeerContact::Connected).await;
    let started = Instant::now();
    drop(server);
    let peer = until(&mut peers, |peer| peer.contact != PeerContact::Connected).await;
    assert!(
        started.elapsed() < Duration::from_millis(500),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(peer.status, Some(standby(1)));
    until_contact(&mut peers, PeerContact::Refused).await;
    assert!(
        started.elapsed() < PEER_TIMEOUT,
        "a refusal needs no timeout: {:?}",
        started.elapsed()
    );

    // It comes back at the same address, with other news.
    let listener = TcpListener::bind(address).await.expect("listen again");
    let (_view, seen) = watch::channel(Arc::new(view(primary(1))));
    let state = HttpState::new(seen, Beat::new(PATIENCE), PEER_TIMEOUT);
    let listeners = vec![Listener::Tcp(listener, None)];
    let running = tokio::spawn(serve(
        listeners,
        router(state),
        Limits::default(),
        std::future::pending(),
    ));
    let peer = until_contact(&mut peers, PeerContact::Connected).await;
    assert_eq!(peer.status, Some(primary(1)));
    running.abort();
}

#[tokio::test]
async fn silence_is_news_after_the_timeout() {
    let (address, _, running) = liar(http(&line(&standby(1)))).await;
    let limit = Duration::from_millis(600);
    let mut peers = following_within(address, limit);
    until_contact(&mut peers, PeerContact::Connected).await;
    let started = Instant::now();
    let peer = until_contact(&mut peers, PeerContact::TimedOut).await;
    let took = started.elapsed();
    assert!(
        (Duration::from_millis(500)..Duration::from_millis(1500)).contains(&took),
        "{took:?}"
    );
    assert_eq!(peer.status, Some(standby(1)));
    running.abort();
}

#[tokio::test]
async fn an_answer_that_never_begins_times_out() {
    let (address, _, running) = liar(Vec::new()).await;
    let mut peers = following_within(address, Duration::from_millis(300));
    let peer = until_contact(&mut peers, PeerContact::TimedOut).await;
    assert_eq!(peer.status, None);
    running.abort();
}

#[tokio::test]
async fn garbage_and_strangers_are_never_believed_and_seldom_visited() {
    let mut foreign = standby(1);
    foreign.cluster = "other".to_owned();
    let mut renamed = standby(1);
    renamed.name = "other-1".to_owned();
    let endless = vec![b'['; 300 * 1024];
    let mut tests = tokio::task::JoinSet::new();
    for (what, answer) in [
        ("no HTTP", b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec()),
        (
            "not found",
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
        ),
        ("no JSON", http(b"hello\n")),
        ("another type", http(b"{\"name\": 1}\n")),
        (
            "deep nesting",
            http(&[vec![b'['; 100_000], b"\n".to_vec()].concat()),
        ),
        ("a line without end", http(&endless)),
        ("another cluster", http(&line(&foreign))),
        ("another name", http(&line(&renamed))),
        ("another ordinal", http(&line(&standby(2)))),
    ] {
        tests.spawn(async move {
            let (address, visitors, running) = liar(answer).await;
            let mut peers = following(address);
            let peer = until_contact(&mut peers, PeerContact::Invalid).await;
            assert_eq!(peer.status, None, "{what}");
            let before = visitors.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(2)).await;
            let visits = visitors.load(Ordering::Relaxed) - before;
            assert!((1..=12).contains(&visits), "{what}: {visits} visits in 2 s");
            running.abort();
        });
    }
    while let Some(done) = tests.join_next().await {
        done.expect("a case");
    }
}

#[tokio::test]
async fn targets_come_move_and_go() {
    let first = Server::start(standby(1)).await;
    let mut moved = standby(1);
    moved.uid = "second".to_owned();
    let second = Server::start(moved).await;
    let mut peers = Peers::new("pg", PEER_TIMEOUT, Way::plain());
    let target = |server: &Server| vec![(Ordinal(1), vec![LOOPBACK], server.address.port())];

    peers.set_targets(vec![(Ordinal(1), vec![], 8008)]);
    assert_eq!(peers.snapshot()[&Ordinal(1)].contact, PeerContact::Unknown);
    peers.set_targets(target(&first));
    until_contact(&mut peers, PeerContact::Connected).await;

    // The name has no address for a moment: the open stream goes on.
    peers.set_targets(vec![(Ordinal(1), vec![], 8008)]);
    let news = timeout(Duration::from_millis(700), peers.changed()).await;
    assert!(news.is_err(), "{:?}", peers.snapshot());

    peers.set_targets(target(&second));
    until(&mut peers, |peer| {
        peer.status.as_ref().is_some_and(|s| s.uid == "second")
    })
    .await;

    peers.set_targets(vec![]);
    timeout(PATIENCE, peers.changed()).await.expect("going is news");
    assert!(peers.snapshot().is_empty());
}

#[tokio::test]
async fn of_several_addresses_the_one_that_answers_is_followed() {
    let server = Server::start(standby(1)).await;
    let mut peers = Peers::new("pg", PEER_TIMEOUT, Way::plain());
    let nobody = IpAddr::from([127, 0, 0, 77]);
    peers.set_targets(vec![(Ordinal(1), vec![nobody, LOOPBACK], server.address.port())]);
    until_contact(&mut peers, PeerContact::Connected).await;
}

#[tokio::test]
async fn a_question_asked_once() {
    let server = Server::start(standby(1)).await;
    assert_eq!(
        ask(server.address, PEER_TIMEOUT).await.expect("status"),
        standby(1)
    );

    let cluster = get_json(&format!("http://{}", server.address), "/cluster", PEER_TIMEOUT)
        .await
        .expect("cluster");
    assert_eq!(cluster["members"][1]["name"], "pg-1");
    let failed = get_json(&format!("http://{}", server.address), "/primary", PEER_TIMEOUT).await;
    let failed = failed.expect_err("a standby").to_string();
    assert!(
        failed.contains("503") && failed.contains("not the primary"),
        "{failed}"
    );

    let address = server.address;
    drop(server);
    // The listener ends a moment after its task; until then it accepts and resets.
    let refused = async {
        while ask(address, PEER_TIMEOUT)
            .await
            .expect_err("nobody there")
            .contact()
            != PeerContact::Refused
        {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, refused).await.expect("refused");
    let (silent, _, running) = liar(http(b"{}\n")).await;
    let started = Instant::now();
    let late = ask(silent, Duration::from_millis(300))
        .await
        .expect_err("no status");
    assert!(matches!(late, RequestError::TimedOut { .. }), "{late}");
    assert!(started.elapsed() < Duration::from_secs(2));
    running.abort();
}

#[tokio::test]
async fn the_pods_own_socket_answers_too() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("podgres.sock");
    let (_view, seen) = watch::channel(Arc::new(view(standby(1))));
    let state = HttpState::new(seen, Beat::new(PATIENCE), PEER_TIMEOUT);
    let listeners = vec![Listener::unix(&path).await.expect("listen")];
    let running = tokio::spawn(serve(
        listeners,
        router(state),
        Limits::default(),
        std::future::pending(),
    ));
    let url = format!("unix:{}", path.display());
    let patroni = get_json(&url, "/patroni", PEER_TIMEOUT).await.expect("patroni");
    assert_eq!(patroni["patroni"]["name"], "pg-1");
    for url in ["pg-0", "https://pg-0:8008", "ftp://x", "", "http://"] {
        let error = get_json(url, "/cluster", PEER_TIMEOUT).await.expect_err(url);
        assert!(matches!(error, RequestError::Url { .. }), "{url}: {error}");
    }
    let gone = get_json("unix:/nowhere/podgres.sock", "/cluster", PEER_TIMEOUT).await;
    assert!(matches!(gone, Err(RequestError::Connect { .. })), "{gone:?}");
    running.abort();
}
