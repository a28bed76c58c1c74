use podgres::core::supervision::Upstream;
use podgres::postgres::replication::{UpstreamError, UpstreamFacts, probe_upstream};
use podgres::postgres::tls::ClientTls;
use tokio_postgres::config::SslMode;

use crate::authority::Authority;
use crate::postgresql::{programs, programs_with_tls};
use crate::user::temporary_directory;

use super::server::{LIMIT, PORT, TestServer, access, replication, superuser};
use crate::wait::eventually;

const NAME: &str = "pg-0.pg.default.svc.cluster.local";

/// A server with a certificate for [`NAME`], which takes the reload to come into force.
async fn server_with_tls(authority: &Authority) -> TestServer {
    let server = TestServer::primary(&programs_with_tls(), "").await;
    authority.issue(
        server.file("").as_path(),
        &format!("DNS:{NAME},DNS:*.wild.example"),
    );
    for (setting, file) in [("ssl_cert_file", "tls.crt"), ("ssl_key_file", "tls.key")] {
        let path = server.file(file).display().to_string();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
        server
            .sql(&format!("ALTER SYSTEM SET {setting} = '{path}'"))
            .await;
    }
    server.sql("ALTER SYSTEM SET ssl = on").await;
    server.sql("SELECT pg_reload_conf()").await;
    server
}

async fn probe(server: &TestServer, host: &str, tls: &ClientTls) -> Result<UpstreamFacts, UpstreamError> {
    let upstream = Upstream {
        host: host.to_owned(),
        ..server.as_upstream()
    };
    probe_upstream(&access(&upstream, &replication(), Some(tls)), LIMIT).await
}

#[tokio::test]
async fn the_upstream_is_verified_in_full() {
    let (ours, foreign) = (Authority::new("ours"), Authority::new("foreign"));
    let server = server_with_tls(&ours).await;
    let tls = ClientTls::open(ours.directory.path()).expect("ca.crt");
    eventually("TLS", async || probe(&server, NAME, &tls).await.is_ok()).await;
    for host in [&format!("{NAME}."), "pg-7.wild.example"] {
        probe(&server, host, &tls).await.expect(host);
    }
    for host in [
        "pg-1.pg.default.svc.cluster.local",
        "server",
        "a.b.wild.example",
        "127.0.0.1",
        "no name",
    ] {
        let error = probe(&server, host, &tls).await.expect_err(host);
        assert_eq!(error.cause(), "tls", "{host}: {error:?}");
        assert!(error.to_string().contains(host) && error.hint().is_some());
    }
    let other = ClientTls::open(foreign.directory.path()).expect("ca.crt");
    let error = probe(&server, NAME, &other)
        .await
        .expect_err("a foreign authority");
    assert_eq!(error.cause(), "tls", "{error:?}");
}

#[tokio::test]
async fn a_changed_authority_is_picked_up_and_a_broken_one_is_not() {
    let (before, after) = (Authority::new("before"), Authority::new("after"));
    let server = server_with_tls(&after).await;
    let folder = temporary_directory();
    let authority_file = folder.path().join("ca.crt");
    let put = |from: &Authority| {
        // As Kubernetes does: a new file takes the name at once.
        let fresh = folder.path().join("fresh");
        std::fs::copy(from.directory.path().join("ca.crt"), &fresh).expect("copy");
        std::fs::rename(&fresh, &authority_file).expect("rename");
    };
    put(&before);
    let tls = ClientTls::open(folder.path()).expect("ca.crt");
    eventually("TLS", async || {
        probe(&server, NAME, &tls)
            .await
            .expect_err("the old authority")
            .cause()
            == "tls"
    })
    .await;
    put(&after);
    probe(&server, NAME, &tls).await.expect("the new authority");
    std::fs::write(&authority_file, "half a fi").expect("write");
    probe(&server, NAME, &tls).await.expect("the last good authority");
    std::fs::remove_file(&authority_file).expect("remove");
    probe(&server, NAME, &tls).await.expect("the last good authority");
    put(&before);
    let error = probe(&server, NAME, &tls)
        .await
        .expect_err("the old authority again");
    assert_eq!(error.cause(), "tls");
}

#[tokio::test]
async fn tls_is_never_given_up_silently() {
    let authority = Authority::new("ours");
    let tls = ClientTls::open(authority.directory.path()).expect("ca.crt");
    let server = TestServer::primary(&programs(15), "").await;
    let error = probe(&server, NAME, &tls)
        .await
        .expect_err("a server without TLS");
    assert_eq!(error.cause(), "tls_unavailable", "{error:?}");
}

#[tokio::test]
async fn sql_clients_can_use_the_same_authority() {
    let authority = Authority::new("ours");
    let server = server_with_tls(&authority).await;
    let tls = ClientTls::open(authority.directory.path()).expect("ca.crt");
    eventually("TLS", async || probe(&server, NAME, &tls).await.is_ok()).await;
    let connect = async |host: &str| {
        let mut config = tokio_postgres::Config::new();
        config
            .host(host)
            .hostaddr(server.address)
            .port(PORT)
            .user("postgres")
            .password(superuser().password.expose())
            .ssl_mode(SslMode::Require)
            .channel_binding(tokio_postgres::config::ChannelBinding::Require);
        config.connect(tls.postgres_connector()).await.map(drop)
    };
    connect(NAME).await.expect("the right name");
    connect("other").await.expect_err("another name");
}
