//! psycopg's own libpq, as new as PostgreSQL 18, through routes that pass TLS on and that end it: direct TLS (`sslnegotiation=direct`), and protocol
//! 3.2 with its long cancel keys. PostgreSQL 15 closes direct connections, and answers with protocol 3.0.

use std::path::Path;
use std::process::Stdio;

use podgres::core::routing::RouteMode;
use podgres::proxy::Limits;
use tokio::time::timeout;

use super::cluster::{Cluster, DOMAIN, PASSWORD, cluster, member};
use super::encrypted;
use super::newer::{clients, newer};
use super::routes::{PATIENCE, Route};

/// Logs in with channel binding, asks where it is, and cancels a query of its own.
const CLIENT: &str = "
import sys, threading, psycopg
assert psycopg.pq.version() >= 180000, psycopg.pq.version()
with psycopg.connect(sys.argv[1], autocommit=True) as session:
    asked = 'SELECT ssl, current_setting(%s)::int / 10000 FROM pg_stat_ssl WHERE pid = pg_backend_pid()'
    print(*session.execute(asked, ['server_version_num']).fetchone(), session.info.full_protocol_version)
    again = threading.Timer(0.2, lambda: [session.cancel_safe(timeout=5) for _ in range(3)])
    again.start()
    try:
        session.execute('SELECT pg_sleep(60)')
    except psycopg.errors.QueryCanceled:
        print('cancelled')
    again.join()
";

/// What the client prints, or why it fails.
async fn client(
    clients: &Path,
    cluster: &Cluster,
    route: &Route,
    negotiation: &str,
) -> Result<String, String> {
    let password = PASSWORD.replace('\\', "\\\\").replace('\'', "\\'");
    let authority = cluster.tls().join("ca.crt");
    let conninfo = format!(
        "host=any.{DOMAIN} hostaddr={} port={} dbname=postgres user=app password='{password}' max_protocol_version=3.2 \
         sslnegotiation={negotiation} sslmode=verify-full sslrootcert={} channel_binding=require connect_timeout=10",
        route.address.ip(),
        route.address.port(),
        authority.display(),
    );
    let python = tokio::process::Command::new(clients.join("python/bin/python"))
        .args(["-c", CLIENT, &conninfo])
        .stdin(Stdio::null())
        .output();
    let output = timeout(PATIENCE, python).await.expect("in time").expect("python");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn libpq_and_postgresql_18_agree_on_tls_and_protocol_through_the_routes() {
    let (cluster, clients) = (cluster(), clients());
    let newer = newer(&clients, &cluster);
    let pass = Route::read_write(Limits::default(), vec![newer.server.clone()]).await;
    let servers = vec![newer.server.clone()];
    let end = encrypted::route(&cluster, RouteMode::ReadWrite, Limits::default(), servers).await;
    for (route, negotiation) in [
        (&pass, "direct"),
        (&pass, "postgres"),
        (&end, "direct"),
        (&end, "postgres"),
    ] {
        let said = client(&clients, &cluster, route, negotiation).await;
        assert_eq!(said.as_deref(), Ok("True 18 30002\ncancelled\n"), "{negotiation}");
    }

    let older = Route::read_write(Limits::default(), vec![member(0)]).await;
    let said = client(&clients, &cluster, &older, "postgres").await;
    assert_eq!(
        said.as_deref(),
        Ok("True 15 30000\ncancelled\n"),
        "it negotiates down"
    );
    // No fallback: what is asked for is direct TLS and nothing else.
    let refused = client(&clients, &cluster, &older, "direct").await;
    let reason = refused.expect_err("PostgreSQL 15 does not speak it");
    assert!(
        reason.contains("SSL error") || reason.contains("closed the connection"),
        "{reason}"
    );
}
