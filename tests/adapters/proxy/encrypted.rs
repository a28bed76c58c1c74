//! TLS that ends at the endpoint: who gets in, what is verified, and that everything else is as without it.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use podgres::core::routing::{RouteMode, Server};
use podgres::postgres::tls::ClientTls;
use podgres::proxy::{CertificateFolder, Encryption, Limits, RefusalReason};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::tls::MakeTlsConnect;

use super::cluster::{Cluster, DOMAIN, cluster, loopback, member};
use super::ends::{assert_cancelled, one_session};
use super::routes::{PATIENCE, Route, answer, complaint, read_to_end, short_hold, table, until};
use crate::user::temporary_directory;

const WHERE_AND_HOW: &str =
    "SELECT inet_server_addr(), pg_is_in_recovery(), ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
const IN_RECOVERY: &str = "SELECT pg_is_in_recovery()";

/// By the certificate in one folder, with servers verified by the authority in another.
fn encryption(certificate: &Path, authority: &Path) -> Encryption {
    let authority = ClientTls::open(authority).expect("authority");
    let certificate = CertificateFolder::open(certificate).expect("certificate");
    let authority: podgres::proxy::Authority = Arc::new(move || authority.config());
    Encryption::new(Arc::new(certificate), authority, DOMAIN.to_owned())
}

pub(super) async fn route(cluster: &Cluster, mode: RouteMode, limits: Limits, servers: Vec<Server>) -> Route {
    let encryption = encryption(&cluster.tls(), &cluster.tls());
    Route::start_with(mode, limits, table(servers), Some(encryption)).await
}

fn verified(cluster: &Cluster, route: &Route) -> String {
    let (authority, address) = (cluster.tls().join("ca.crt"), route.address.ip());
    let authority = authority.display();
    format!("sslmode=verify-full sslrootcert={authority} hostaddr={address} host=pg-0.{DOMAIN}")
}

pub(super) fn encrypted_client(cluster: &Cluster, route: &Route) -> (tokio_postgres::Config, ClientTls) {
    let mut config = tokio_postgres::Config::new();
    config
        .host(format!("any.{DOMAIN}"))
        .hostaddr(route.address.ip())
        .port(route.address.port())
        .user("quick")
        .dbname("postgres")
        .ssl_mode(SslMode::Require);
    (config, ClientTls::open(&cluster.tls()).expect("authority"))
}

/// A cancel request inside TLS through `route`, as libpq 17 sends it.
pub(super) async fn cancel(token: &tokio_postgres::CancelToken, route: &Route, tls: &ClientTls) {
    let stream = TcpStream::connect(route.address).await.expect("connect");
    let mut connector = tls.postgres_connector();
    let host = format!("any.{DOMAIN}");
    let connect = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut connector, &host);
    let sent = token.cancel_query_raw(stream, connect.expect("name")).await;
    sent.expect("sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_verify_the_certificate_and_bind_to_it() {
    let cluster = cluster();
    let servers = vec![member(0), member(1)];
    let write = route(&cluster, RouteMode::ReadWrite, Limits::default(), servers.clone()).await;
    let read = route(&cluster, RouteMode::ReadOnly, Limits::default(), servers).await;
    for (options, tls) in [
        ("sslmode=disable", "f"),
        ("sslmode=prefer", "t"),
        ("sslmode=require channel_binding=require", "t"),
        ("sslmode=require channel_binding=disable", "t"),
    ] {
        let got = answer(&write.psql(options, WHERE_AND_HOW).await);
        assert_eq!(got, format!("{}|f|{tls}", loopback(1)), "{options}");
        let got = answer(&read.psql(options, WHERE_AND_HOW).await);
        assert_eq!(got, format!("{}|t|{tls}", loopback(2)), "{options}");
    }
    let full = format!("{} channel_binding=require", verified(&cluster, &read));
    assert_eq!(answer(&read.psql(&full, IN_RECOVERY).await), "t");
    until("all sessions are over", || {
        read.stats.sessions.load(Ordering::Relaxed) == 0
    })
    .await;
    assert!(read.stats.bytes_to_client_total.load(Ordering::Relaxed) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn wishes_are_read_inside_tls_and_by_its_host_name() {
    let cluster = cluster();
    let standby = Server {
        staleness_ms: Some(5_000),
        lag_bytes: Some(7),
        ..member(1)
    };
    let servers = vec![member(0), standby];
    let read = route(&cluster, RouteMode::ReadOnly, short_hold(), servers).await;
    let host = format!("hostaddr={} sslmode=require", read.address.ip());
    for (options, standby) in [
        ("", "t"),
        ("options='-c podgres.max_staleness=4s'", "f"),
        ("options='-c podgres.max_staleness=6s'", "t"),
        ("host=primary.db.test", "f"),
    ] {
        let words = format!("{host} {options}");
        assert_eq!(
            answer(&read.psql(&words, IN_RECOVERY).await),
            standby,
            "{options}"
        );
    }
    let strict = complaint(
        &read
            .psql(&format!("{host} host=strict.db.test"), IN_RECOVERY)
            .await,
    );
    assert!(
        strict.contains("\"pg-1\" is a standby of unknown") || strict.contains("is 7 bytes behind"),
        "{strict}"
    );
    let replication = format!("{host} replication=true");
    let refused = complaint(&read.psql(&replication, "IDENTIFY_SYSTEM").await);
    assert!(
        refused.contains("replication connections are not accepted"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_certificate_than_the_servers_is_refused_until_it_is_changed() {
    let cluster = cluster();
    let own = temporary_directory();
    cluster.authority.issue(own.path(), &format!("DNS:*.{DOMAIN}"));
    let encryption = encryption(own.path(), &cluster.tls());
    let servers = table(vec![member(0)]);
    let write = Route::start_with(RouteMode::ReadWrite, short_hold(), servers, Some(encryption)).await;
    for options in ["channel_binding=prefer", "channel_binding=disable"] {
        let words = format!("sslmode=require {options}");
        let refused = complaint(&write.psql(&words, "SELECT 1").await);
        for part in [
            "FATAL:  server \"pg-0\" has another certificate than the routing endpoint",
            "DETAIL:  SCRAM",
            "HINT:  Give the endpoint and all members the same tls.crt and tls.key",
        ] {
            assert!(refused.contains(part), "{refused}");
        }
    }
    assert_eq!(write.refused(RefusalReason::OtherCertificate), 2);
    // A key without its certificate is not taken; both are.
    for file in ["tls.key", "tls.crt"] {
        let plain = answer(&write.psql("sslmode=disable", "SELECT 1").await);
        assert_eq!(plain, "1", "plain clients are the server's matter");
        complaint(&write.psql("sslmode=require", "SELECT 1").await);
        fs::copy(cluster.tls().join(file), own.path().join(file)).expect("copy");
    }
    let words = "sslmode=require channel_binding=require";
    assert_eq!(answer(&write.psql(words, "SELECT 1").await), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_be_verified_gets_no_session() {
    let cluster = cluster();
    let stranger = crate::authority::Authority::new("stranger");
    let encryption = encryption(&cluster.tls(), stranger.directory.path());
    let servers = table(vec![member(0)]);
    let write = Route::start_with(RouteMode::ReadWrite, short_hold(), servers, Some(encryption)).await;
    let refused = complaint(&write.psql("sslmode=require", "SELECT 1").await);
    assert!(
        refused.contains("did not take the connection") && refused.contains("UnknownIssuer"),
        "{refused}"
    );
    let without = route(&cluster, RouteMode::ReadOnly, short_hold(), vec![member(2)]).await;
    let refused = complaint(&without.psql("sslmode=require", "SELECT 1").await);
    assert!(refused.contains("it does not support SSL"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_cancel_request_finds_its_server() {
    let cluster = cluster();
    let servers = vec![member(0), member(1)];
    let read = route(&cluster, RouteMode::ReadOnly, Limits::default(), servers.clone()).await;
    let (config, tls) = encrypted_client(&cluster, &read);
    let (client, connection) = config.connect(tls.postgres_connector()).await.expect("session");
    tokio::spawn(connection);
    // Through an endpoint that would lead to the other server.
    let write = route(&cluster, RouteMode::ReadWrite, Limits::default(), servers).await;
    let token = client.cancel_token();
    assert_cancelled(client, async || cancel(&token, &write, &tls).await).await;
    assert_eq!(write.stats.sessions_total.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_cancel_request_through_a_full_endpoint_ends_the_query() {
    let cluster = cluster();
    let write = route(&cluster, RouteMode::ReadWrite, one_session(), vec![member(0)]).await;
    let (config, tls) = encrypted_client(&cluster, &write);
    let (client, connection) = config.connect(tls.postgres_connector()).await.expect("session");
    tokio::spawn(connection);
    let refused = complaint(&write.psql("sslmode=require", "SELECT 1").await);
    assert!(
        refused.contains("too many clients already"),
        "it is full: {refused}"
    );
    let token = client.cancel_token();
    assert_cancelled(client, async || cancel(&token, &write, &tls).await).await;
    let counted = write.stats.cancels_total.load(Ordering::Relaxed);
    assert!(counted > 0, "it went through this endpoint");
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_tls_must_name_the_protocol() {
    let cluster = cluster();
    let write = route(&cluster, RouteMode::ReadWrite, Limits::default(), vec![member(0)]).await;
    let (mut config, tls) = encrypted_client(&cluster, &write);
    config.ssl_negotiation(SslNegotiation::Direct);
    let mut named = rustls::ClientConfig::clone(&tls.config());
    named.alpn_protocols = vec![b"postgresql".to_vec()];
    let connector = tokio_postgres_rustls::MakeRustlsConnect::new(named);
    let (client, connection) = config.connect(connector).await.expect("session");
    tokio::spawn(connection);
    let row = client.query_one(WHERE_AND_HOW, &[]).await.expect("row");
    assert!(row.get::<_, bool>(2), "the way to the server is encrypted");

    let stream = TcpStream::connect(write.address).await.expect("connect");
    let name = format!("any.{DOMAIN}").try_into().expect("name");
    let mut nameless = tls.connector().connect(name, stream).await.expect("handshake");
    let mut said = Vec::new();
    let reading = timeout(PATIENCE, nameless.read_to_end(&mut said)).await;
    drop(reading.expect("an end in time"));
    assert!(String::from_utf8_lossy(&said).contains("08P01"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_passes_whole_both_ways() {
    let cluster = cluster();
    let write = route(&cluster, RouteMode::ReadWrite, Limits::default(), vec![member(0)]).await;
    let (config, tls) = encrypted_client(&cluster, &write);
    let (client, connection) = config.connect(tls.postgres_connector()).await.expect("session");
    tokio::spawn(connection);
    client
        .batch_execute("CREATE TEMP TABLE bulk (line text)")
        .await
        .expect("table");
    let sink = client
        .copy_in::<_, bytes::Bytes>("COPY bulk FROM STDIN")
        .await
        .expect("copy");
    let mut sink = Box::pin(sink);
    let line = bytes::Bytes::from(format!("{}\n", "x".repeat(9_999)));
    for _ in 0..2_000 {
        futures_util::SinkExt::send(&mut sink, line.clone())
            .await
            .expect("sent");
    }
    assert_eq!(sink.as_mut().finish().await.expect("copied"), 2_000);
    let rows = client.query("SELECT line FROM bulk", &[]).await.expect("rows");
    let bytes: usize = rows.iter().map(|row| row.get::<_, &str>(0).len()).sum();
    assert_eq!(bytes, 2_000 * 9_999);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_told_inside_tls_and_plain_bytes_are_no_startup_packet() {
    let cluster = cluster();
    let limits = Limits {
        max_connections: 1,
        ..Limits::default()
    };
    let write = route(&cluster, RouteMode::ReadWrite, limits, vec![member(0)]).await;
    let (config, tls) = encrypted_client(&cluster, &write);
    let (client, connection) = config.connect(tls.postgres_connector()).await.expect("session");
    tokio::spawn(connection);
    let refused = complaint(&write.psql("sslmode=require", "SELECT 1").await);
    assert!(
        refused.contains("FATAL:  sorry, too many clients already"),
        "{refused}"
    );
    // A lost primary: the session is cut, and what is new is told so.
    write.set(vec![member(1)]);
    until("the session is cut", || client.is_closed()).await;
    assert_eq!(write.stats.cut_total.load(Ordering::Relaxed), 1);

    let mut stream = TcpStream::connect(write.address).await.expect("connect");
    stream
        .write_all(&[0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f])
        .await
        .expect("SSLRequest");
    assert_eq!(stream.read_u8().await.expect("answer"), b'S');
    let startup = b"\0\0\0\x12\0\x03\0\0user\0app\0\0";
    stream.write_all(startup).await.expect("startup packet");
    let said = read_to_end(&mut stream).await;
    assert_eq!(said.first(), Some(&0x15), "an alert: {said:?}");
    let greedy = write
        .exchange(&[&[0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f], &startup[..]].concat())
        .await;
    assert!(String::from_utf8_lossy(&greedy).contains("received unencrypted data after SSL request"));
}
