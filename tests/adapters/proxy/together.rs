//! Encryption that passes through: what cannot be read must still reach the right server.

use std::collections::BTreeSet;
use std::time::Duration;

use podgres::core::routing::Server;
use podgres::core::status::Role;
use podgres::proxy::Limits;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;

use super::cluster::{cluster, member};
use super::encrypted::{cancel, encrypted_client};
use super::routes::{PATIENCE, Route};

const WHERE: &str = "SELECT host(inet_server_addr())";

/// Two servers with TLS that serve reads.
fn two() -> Vec<Server> {
    let first = Server {
        role: Role::Standby,
        ..member(0)
    };
    vec![first, member(1)]
}

#[tokio::test(flavor = "multi_thread")]
async fn encrypted_cancel_requests_find_their_server_though_nobody_can_read_them() {
    let cluster = cluster();
    let read = Route::read_only(Limits::default(), two()).await;
    let (config, tls) = encrypted_client(&cluster, &read);
    let (mut servers, mut clients) = (BTreeSet::<String>::new(), Vec::new());
    for _ in 0..6 {
        let (client, connection) = config.connect(tls.postgres_connector()).await.expect("session");
        tokio::spawn(connection);
        servers.insert(client.query_one(WHERE, &[]).await.expect("row").get(0));
        clients.push(client);
    }
    assert_eq!(servers.len(), 1, "one client address, one server: {servers:?}");
    for client in clients {
        let token = client.cancel_token();
        let asleep = tokio::spawn(async move { client.batch_execute("SELECT pg_sleep(60)").await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        // Once is enough.
        cancel(&token, &read, &tls).await;
        let error = timeout(PATIENCE, asleep)
            .await
            .expect("in time")
            .expect("no panic");
        assert_eq!(
            error.expect_err("cancelled").code(),
            Some(&SqlState::QUERY_CANCELED)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_affinity_and_without_encryption_sessions_spread() {
    let cluster = cluster();
    let free = Route::spread(Limits::default(), two()).await;
    let (config, tls) = encrypted_client(&cluster, &free);
    let mut kept = Vec::new();
    for _ in 0..8 {
        let (client, connection) = config.connect(tls.postgres_connector()).await.expect("session");
        tokio::spawn(connection);
        kept.push(client);
    }
    assert_eq!((free.sessions.of("pg-0"), free.sessions.of("pg-1")), (4, 4));

    let read = Route::read_only(Limits::default(), two()).await;
    let mut plain = Vec::new();
    for _ in 0..8 {
        plain.push(read.connect().await.expect("session"));
    }
    assert_eq!((read.sessions.of("pg-0"), read.sessions.of("pg-1")), (4, 4));
}
