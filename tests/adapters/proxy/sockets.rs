//! The kernel's side of a relayed session: what is read back from its sockets.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use podgres::core::routing::RouteMode;
use podgres::proxy::Limits;
use rustix::net::sockopt;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use tokio_postgres::Client;

use super::cluster::{cluster, member};
use super::encrypted::{self, encrypted_client};
use super::routes::Route;

/// This process' own connection of which that is true: its own address, and the peer's.
fn connection(is: impl Fn(SocketAddr, SocketAddr) -> bool) -> TcpStream {
    let process = pidfd_open(getpid(), PidfdFlags::empty()).expect("this process");
    let numbers = fs::read_dir("/proc/self/fd").expect("descriptors").flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let copies = numbers.filter_map(|number| pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok());
    let ends = |socket: &TcpStream| Some((socket.local_addr().ok()?, socket.peer_addr().ok()?));
    let found = copies.map(TcpStream::from);
    let mut found = found.filter(|socket| ends(socket).is_some_and(|(own, peer)| is(own, peer)));
    found.next().expect("a connection")
}

/// A peer that vanished is noticed within a minute, whether bytes are on their way to it or not; small messages are not held back.
fn assert_watched(socket: &TcpStream, side: &str) {
    assert!(sockopt::tcp_nodelay(socket).expect("option"), "{side}");
    assert!(sockopt::socket_keepalive(socket).expect("option"), "{side}");
    let idle = sockopt::tcp_keepidle(socket).expect("option");
    let interval = sockopt::tcp_keepintvl(socket).expect("option");
    let probes = sockopt::tcp_keepcnt(socket).expect("option");
    assert_eq!(idle + interval * probes, Duration::from_mins(1), "{side}");
    assert_eq!(
        sockopt::tcp_user_timeout(socket).expect("option"),
        60_000,
        "{side}"
    );
}

/// The relay's socket to the client, and the one to the server.
async fn assert_both_watched(client: &Client, route: &Route, kind: &str) {
    let client_side = connection(|own, _peer| own == route.address);
    assert_watched(&client_side, &format!("{kind}, to the client"));
    let relay = "SELECT client_port FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    let port: i32 = client.query_one(relay, &[]).await.expect("row").get(0);
    let server_side = connection(|own, peer| i32::from(own.port()) == port && peer == member(0).address);
    assert_watched(&server_side, &format!("{kind}, to the server"));
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_of_a_session_are_watched_for_peers_that_vanish() {
    let cluster = cluster();
    let pass = Route::read_write(Limits::default(), vec![member(0)]).await;
    let client = pass.connect().await.expect("session");
    assert_both_watched(&client, &pass, "passed through").await;

    let servers = vec![member(0)];
    let end = encrypted::route(&cluster, RouteMode::ReadWrite, Limits::default(), servers).await;
    let (config, tls) = encrypted_client(&cluster, &end);
    let (client, connection) = config.connect(tls.postgres_connector()).await.expect("session");
    tokio::spawn(connection);
    assert_both_watched(&client, &end, "ended").await;
}
