//! While no server fits: connections are held, then refused with words that help.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use podgres::core::routing::{RouteMode, Server};
use podgres::core::status::Role;
use podgres::proxy::{Limits, RefusalReason};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use super::cluster::{cluster, loopback, member};
use super::encrypted;
use super::routes::{PATIENCE, Route, answer, code_of, complaint, long_hold, short_hold, table, until};

fn dead(name: &str) -> Server {
    Server {
        name: name.to_owned(),
        address: SocketAddr::new(loopback(99), 5432),
        ..member(1)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_connection_is_served_by_the_first_server_that_fits() {
    let _cluster = cluster();
    for options in ["sslmode=disable", "sslmode=require channel_binding=require"] {
        let write = Route::read_write(long_hold(), vec![member(1)]).await;
        let child = write.spawn_psql(options, "SELECT pg_is_in_recovery()");
        until("it is held", || write.stats.held.load(Ordering::Relaxed) == 1).await;
        write.set(vec![member(2), member(1)]);
        write.set(vec![member(1), member(0)]);
        let output = child.wait_with_output().await.expect("psql");
        assert_eq!(answer(&output), "f", "{options}");
        assert_eq!(write.stats.held.load(Ordering::Relaxed), 0);
        assert_eq!(write.stats.held_total.load(Ordering::Relaxed), 1);
        assert!(write.stats.held_microseconds_total.load(Ordering::Relaxed) > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_hold_the_refusal_says_what_is_missing() {
    let mut missing = table(vec![member(1)]);
    missing.members.insert(member(0).name, member(0).address);
    let write = Route::start(RouteMode::ReadWrite, short_hold(), missing).await;
    for options in ["sslmode=disable", "sslmode=prefer"] {
        let text = complaint(&write.psql(options, "SELECT 1").await);
        for part in [
            "FATAL:  no server is available for read-write sessions",
            "server \"pg-1\" is a standby",
            &format!("member {} does not accept connections", member(0).address),
            "HINT:  Connect again once the cluster has a primary.",
        ] {
            assert!(text.contains(part), "{options}: {text}");
        }
    }
    let error = write.connect().await.expect_err("no primary");
    assert_eq!(code_of(&error), "57P03");
    assert!(write.psql("sslmode=require", "SELECT 1").await.stdout.is_empty());
    assert_eq!(write.refused(RefusalReason::NoServer), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_primaries_stop_writes_and_not_reads() {
    let _cluster = cluster();
    let mut second = member(2);
    second.role = Role::Primary;
    let servers = vec![member(0), second, member(1)];
    let write = Route::read_write(short_hold(), servers.clone()).await;
    let read = Route::read_only(short_hold(), servers).await;
    let error = write.connect().await.expect_err("split");
    assert_eq!(code_of(&error), "57P03");
    assert!(
        error
            .as_db_error()
            .is_some_and(|e| e.message().contains("more than one")),
        "{error:?}"
    );
    assert_eq!(write.refused(RefusalReason::SeveralPrimaries), 1);
    assert_eq!(answer(&read.psql("", "SELECT pg_is_in_recovery()").await), "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_connect_costs_no_error() {
    let _cluster = cluster();
    let read = Route::spread(Limits::default(), vec![dead("pg-9"), member(1)]).await;
    answers_past_a_failure(&read, "sslmode=prefer").await;
    assert_eq!(read.sessions.of("pg-9"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_connections_and_is_silent_is_passed_over() {
    let _cluster = cluster();
    let silent = TcpListener::bind((loopback(98), 0)).await.expect("port");
    let mut deaf = member(2);
    deaf.address = silent.local_addr().expect("address");
    let limits = Limits {
        answer_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let read = Route::spread(limits, vec![deaf, member(1)]).await;
    for options in ["sslmode=require", "sslmode=disable"] {
        answers_past_a_failure(&read, options).await;
    }
}

/// Asks until a server that fails was tried first, which is a matter of chance: of two servers each is first half the times.
async fn answers_past_a_failure(route: &Route, options: &str) {
    let failures = || route.stats.connect_failures_total.load(Ordering::Relaxed);
    let before = failures();
    for _ in 0..64 {
        assert_eq!(answer(&route.psql(options, "SELECT 1").await), "1");
        if failures() > before {
            return;
        }
    }
    panic!("{options}: the server that fails was never tried");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_last_candidate_the_connection_waits_for_the_table() {
    let _cluster = cluster();
    let read = Route::read_only(long_hold(), vec![dead("pg-9")]).await;
    let child = read.spawn_psql("", "SELECT 1");
    until("it is held", || read.stats.held.load(Ordering::Relaxed) == 1).await;
    read.set(vec![dead("pg-9"), member(1)]);
    assert_eq!(answer(&child.wait_with_output().await.expect("psql")), "1");
    let refusing = Route::read_only(short_hold(), vec![dead("pg-9")]).await;
    let text = complaint(&refusing.psql("", "SELECT 1").await);
    assert!(
        text.contains("server \"pg-9\" did not take the connection: Connection refused"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_gives_up_is_no_longer_held() {
    let write = Route::read_write(long_hold(), vec![]).await;
    let child = write.spawn_psql("", "SELECT 1");
    until("it is held", || write.stats.held.load(Ordering::Relaxed) == 1).await;
    drop(child);
    until("it is forgotten", || {
        write.stats.held.load(Ordering::Relaxed) == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn held_connections_are_bounded() {
    let limits = Limits {
        max_held: 1,
        ..Limits::default()
    };
    let write = Route::read_write(limits, vec![]).await;
    let _held = write.spawn_psql("", "SELECT 1");
    until("one is held", || write.stats.held.load(Ordering::Relaxed) == 1).await;
    let error = write.connect().await.expect_err("no room");
    assert_eq!(code_of(&error), "53300");
    assert_eq!(write.refused(RefusalReason::TooManyHeld), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_loses_its_role_during_the_attempt_is_not_used() {
    let _cluster = cluster();
    let slow = TcpListener::bind((loopback(96), 0)).await.expect("port");
    let mut old = member(0);
    old.name = "old".to_owned();
    old.address = slow.local_addr().expect("address");
    for options in ["sslmode=require", "sslmode=disable"] {
        let write = Route::read_write(Limits::default(), vec![old.clone()]).await;
        let child = write.spawn_psql(options, "SELECT 1");
        let (mut attempt, _from) = slow.accept().await.expect("attempt");
        write.set(vec![member(0)]);
        // Too late, and perhaps to nobody.
        drop(attempt.write_all(b"S").await);
        assert_eq!(answer(&child.wait_with_output().await.expect("psql")), "1");
        assert_eq!(write.stats.cut_total.load(Ordering::Relaxed), 0);
    }
}

/// Its "the database system is shutting down" was passed on, with another standby beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_stopping_turned_new_sessions_away() {
    let cluster = cluster();
    let stopping = cluster.further_standby(3);
    let read = Route::read_only(short_hold(), vec![member(3)]).await;
    let kept = read.connect().await.expect("session");
    stopping.begin_to_stop();
    let direct = || async {
        let mut config = tokio_postgres::Config::new();
        config
            .host(loopback(4).to_string())
            .user("quick")
            .dbname("postgres");
        let refused = config.connect(NoTls).await.err();
        refused.and_then(|error| error.code().cloned())
    };
    let limit = Instant::now() + PATIENCE;
    while direct().await != Some(SqlState::CANNOT_CONNECT_NOW) {
        assert!(Instant::now() < limit, "it goes on");
    }

    let servers = vec![member(0), member(1), member(3)];
    let ended = encrypted::route(&cluster, RouteMode::ReadOnly, short_hold(), servers.clone()).await;
    read.set(servers);
    for _ in 0..20 {
        let client = read.connect().await.expect("another serves");
        let row = client.query_one("SELECT host(inet_server_addr())", &[]).await;
        assert_eq!(row.expect("row").get::<_, String>(0), loopback(2).to_string());
        assert_eq!(answer(&ended.psql("sslmode=require", "SELECT 1").await), "1");
    }
    read.set(vec![member(3)]);
    let error = read.connect().await.expect_err("nobody else is there");
    let text = format!("{error:?}");
    assert!(text.contains("it takes no sessions just now (57P03)"), "{text}");
    assert!(
        kept.simple_query("SELECT 1").await.is_ok(),
        "who was there goes on"
    );
}
