//! Clients get through, to the right server, with what they asked for.

use std::collections::BTreeMap;
use std::time::Duration;

use podgres::core::routing::Server;
use podgres::proxy::Limits;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::NoTls;

use super::cluster::{cluster, loopback, member};
use super::routes::{PATIENCE, Route, answer, complaint, until};

const WHERE_AND_HOW: &str =
    "SELECT inet_server_addr(), pg_is_in_recovery(), ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

#[tokio::test(flavor = "multi_thread")]
async fn psql_reaches_the_right_server_with_and_without_tls() {
    let _cluster = cluster();
    let write = Route::read_write(Limits::default(), vec![member(0), member(1)]).await;
    let read = Route::read_only(Limits::default(), vec![member(0), member(1)]).await;
    for (options, tls) in [
        ("sslmode=disable", "f"),
        ("sslmode=allow", "f"),
        ("sslmode=prefer", "t"),
        ("sslmode=require", "t"),
        ("sslmode=require channel_binding=require", "t"),
    ] {
        let got = answer(&write.psql(options, WHERE_AND_HOW).await);
        assert_eq!(got, format!("{}|f|{tls}", loopback(1)), "{options}");
        let got = answer(&read.psql(options, WHERE_AND_HOW).await);
        assert_eq!(got, format!("{}|t|{tls}", loopback(2)), "{options}");
    }
    let refused = write
        .psql("sslmode=disable channel_binding=require", "SELECT 1")
        .await;
    assert!(complaint(&refused).contains("channel binding"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_that_a_client_verifies_is_the_servers() {
    let cluster = cluster();
    let write = Route::read_write(Limits::default(), vec![member(0)]).await;
    let authority = cluster.tls().join("ca.crt");
    let verify = format!("sslmode=verify-ca sslrootcert={}", authority.display());
    assert_eq!(answer(&write.psql(&verify, "SELECT 1").await), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_says_so_through_the_endpoint() {
    let _cluster = cluster();
    let read = Route::read_only(Limits::default(), vec![member(2)]).await;
    let got = answer(&read.psql("sslmode=prefer", WHERE_AND_HOW).await);
    assert_eq!(got, format!("{}|t|f", loopback(3)));
    let refused = complaint(&read.psql("sslmode=require", "SELECT 1").await);
    assert!(refused.contains("server does not support SSL"), "{refused}");
    until("the client that left is forgotten", || {
        read.sessions.of("pg-2") == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_work_on_read_write_and_fail_on_a_standby_with_25006() {
    let _cluster = cluster();
    let servers = vec![member(0), member(1)];
    let write = Route::read_write(Limits::default(), servers.clone()).await;
    let read = Route::read_only(Limits::default(), servers).await;
    let insert = "INSERT INTO item VALUES ('a') RETURNING name";
    assert_eq!(answer(&write.psql("", insert).await), "a");
    let refused = complaint(&read.psql("", insert).await);
    assert!(refused.contains("25006"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_falls_back_to_the_primary() {
    let _cluster = cluster();
    let mut late = member(1);
    late.lag_bytes = Some(1 << 30);
    let read = Route::read_only(Limits::default(), vec![member(0), late]).await;
    let got = answer(&read.psql("", WHERE_AND_HOW).await);
    assert_eq!(got, format!("{}|f|t", loopback(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_request_finds_its_server_through_another_endpoint() {
    let _cluster = cluster();
    let servers = vec![member(0), member(1), member(2)];
    let write = Route::read_write(Limits::default(), servers.clone()).await;
    let read = Route::read_only(Limits::default(), servers).await;
    let session = read.connect().await.expect("session");
    let token = session.cancel_token();
    let asleep = tokio::spawn(async move { session.batch_execute("SELECT pg_sleep(60)").await });
    let stopped = timeout(PATIENCE, async {
        // A cancel that comes before the query is forgotten by the server: try until it is seen.
        while !asleep.is_finished() {
            let other = TcpStream::connect(write.address).await.expect("connect");
            token.cancel_query_raw(other, NoTls).await.expect("sent");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        asleep.await.expect("no panic").expect_err("cancelled")
    });
    let error = stopped.await.expect("cancelled in time");
    assert_eq!(
        error.code(),
        Some(&tokio_postgres::error::SqlState::QUERY_CANCELED)
    );
    assert_eq!(
        write
            .stats
            .sessions_total
            .load(std::sync::atomic::Ordering::Relaxed),
        0
    );
}

/// Each cancel held its turn, one of 16, until the silent member too had closed, and waited for it in the same two seconds.
#[tokio::test(flavor = "multi_thread")]
async fn cancels_in_a_burst_were_lost_while_a_member_was_silent() {
    const BURST: i64 = 40;
    let _cluster = cluster();
    // The kernel takes connections and bytes for it.
    let silent = TcpListener::bind((loopback(77), 0)).await.expect("port");
    let frozen = Server {
        address: silent.local_addr().expect("address"),
        streaming: false,
        ..member(2)
    };
    let write = Route::read_write(Limits::default(), vec![member(0), frozen]).await;
    let mut asleep = JoinSet::new();
    let mut tokens = Vec::new();
    for _ in 0..BURST {
        let session = write.connect().await.expect("session");
        tokens.push(session.cancel_token());
        asleep.spawn(async move { session.batch_execute("SELECT pg_sleep(20)").await });
    }
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(20)'";
    let counting = write.connect().await.expect("session");
    let all_asleep = async {
        while counting.query_one(busy, &[]).await.expect("row").get::<_, i64>(0) < BURST {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, all_asleep).await.expect("in time");
    for token in tokens {
        tokio::spawn(async move { token.cancel_query(NoTls).await });
    }
    let cancelled = async {
        while let Some(ended) = asleep.join_next().await {
            let error = ended.expect("no panic").expect_err("cancelled");
            assert_eq!(
                error.code(),
                Some(&tokio_postgres::error::SqlState::QUERY_CANCELED)
            );
        }
    };
    let all = timeout(Duration::from_secs(5), cancelled).await;
    all.expect("every one is cancelled before it ends by itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_in_psql_cancels_under_tls() {
    let cluster = cluster();
    let write = Route::read_write(Limits::default(), vec![member(0), member(1)]).await;
    let child = write.spawn_psql("sslmode=require application_name=ctrl_c", "SELECT pg_sleep(60)");
    let sleeps =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ctrl_c' AND wait_event = 'PgSleep'";
    until("psql sleeps", || cluster.admin(0, sleeps) == "1").await;
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).expect("running");
    let pid = rustix::process::Pid::from_raw(pid).expect("pid");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signal");
    let output = timeout(PATIENCE, child.wait_with_output())
        .await
        .expect("in time")
        .expect("psql");
    assert!(complaint(&output).contains("57014"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_spread_over_the_standbys() {
    let _cluster = cluster();
    let read = Route::read_only(Limits::default(), vec![member(0), member(1), member(2)]).await;
    let mut clients = Vec::new();
    let mut by_server = BTreeMap::<String, usize>::new();
    for _ in 0..20 {
        let client = read.connect().await.expect("session");
        let row = client
            .query_one("SELECT host(inet_server_addr())", &[])
            .await
            .expect("row");
        *by_server.entry(row.get(0)).or_default() += 1;
        clients.push(client);
    }
    let expected = [(loopback(2).to_string(), 10), (loopback(3).to_string(), 10)];
    assert_eq!(by_server, BTreeMap::from(expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_connections_at_once() {
    let _cluster = cluster();
    let read = std::sync::Arc::new(Route::read_only(Limits::default(), vec![member(1), member(2)]).await);
    let mut clients = JoinSet::new();
    for number in 0..200_i32 {
        let route = std::sync::Arc::clone(&read);
        clients.spawn(async move {
            let client = route.connect().await.expect("session");
            let row = client
                .query_one("SELECT $1::int4", &[&number])
                .await
                .expect("row");
            assert_eq!(row.get::<_, i32>(0), number);
            client
        });
    }
    let clients = timeout(3 * PATIENCE, clients.join_all()).await.expect("in time");
    let counts = (read.sessions.of("pg-1"), read.sessions.of("pg-2"));
    assert_eq!(counts.0 + counts.1, 200);
    assert!(counts.0.abs_diff(counts.1) <= 20, "{counts:?}");
    drop(clients);
    until("all sessions end", || {
        read.sessions.of("pg-1") + read.sessions.of("pg-2") == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_results_pass_whole() {
    let _cluster = cluster();
    let read = Route::read_only(Limits::default(), vec![member(1)]).await;
    for options in ["sslmode=disable", "sslmode=require"] {
        let output = read
            .psql(options, "SELECT repeat('x', 10000) FROM generate_series(1, 2000)")
            .await;
        assert_eq!(answer(&output).len(), 2000 * 10001 - 1, "{options}");
    }
}
