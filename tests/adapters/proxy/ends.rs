//! How sessions end before the client wants it, and who is not let in.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use podgres::core::routing::{RouteMode, Server};
use podgres::core::status::Role;
use podgres::proxy::{Limits, RefusalReason, TotalConnections};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use super::cluster::{cluster, member};
use super::routes::{PATIENCE, Route, answer, code_of, complaint, long_hold, until};

async fn answers(client: &tokio_postgres::Client) -> bool {
    let asking = timeout(PATIENCE, client.query_one("SELECT 1", &[])).await;
    asking.expect("an answer or an end").is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_survives_lag_and_is_cut_when_the_role_changes() {
    let _cluster = cluster();
    let read = Route::read_only(Limits::default(), vec![member(1)]).await;
    let client = read.connect().await.expect("session");
    read.set(vec![Server {
        lag_bytes: None,
        streaming: false,
        ..member(1)
    }]);
    assert!(answers(&client).await);
    read.set(vec![Server {
        role: Role::Primary,
        answering: true,
        incarnation: 2,
        ..member(1)
    }]);
    until("the client notices", || client.is_closed()).await;
    assert_eq!(read.stats.cut_total.load(Ordering::Relaxed), 1);
    until("nothing is counted", || {
        read.stats.sessions.load(Ordering::Relaxed) == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demoted_primary_loses_its_sessions_at_once() {
    let cluster = cluster();
    let write = Route::read_write(Limits::default(), vec![member(0)]).await;
    let child = write.spawn_psql("sslmode=require application_name=cut_me", "SELECT pg_sleep(5)");
    let active =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cut_me' AND state = 'active'";
    until("psql works", || cluster.admin(0, active) == "1").await;
    let begun = Instant::now();
    write.set(vec![Server {
        role: Role::Standby,
        ..member(0)
    }]);
    let output = timeout(PATIENCE, child.wait_with_output())
        .await
        .expect("in time")
        .expect("psql");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(
        complaint(&output).contains("server closed the connection unexpectedly")
            || complaint(&output).contains("SSL connection has been closed unexpectedly")
            || complaint(&output).contains("SSL SYSCALL error"),
        "{output:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn replication_is_for_read_write_only() {
    let _cluster = cluster();
    let read = Route::read_only(Limits::default(), vec![member(1)]).await;
    for value in ["true", "on", "1", "database"] {
        let options = format!("sslmode=disable replication={value}");
        let text = complaint(&read.psql(&options, "IDENTIFY_SYSTEM").await);
        assert!(
            text.contains("replication connections are not accepted on a read-only endpoint"),
            "{text}"
        );
    }
    assert_eq!(read.refused(RefusalReason::Replication), 4);
    let write = Route::read_write(Limits::default(), vec![member(0)]).await;
    let output = write
        .psql("sslmode=disable replication=database", "IDENTIFY_SYSTEM")
        .await;
    assert!(answer(&output).ends_with("|postgres"), "{output:?}");
    let off = read.psql("sslmode=disable replication=off", "SELECT 1").await;
    assert_eq!(answer(&off), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_is_53300_and_leaves_room_for_cancel_requests() {
    let _cluster = cluster();
    let limits = Limits {
        max_connections: 2,
        ..Limits::default()
    };
    let write = Route::read_write(limits, vec![member(0)]).await;
    let first = write.connect().await.expect("first");
    let second = write.connect().await.expect("second");
    let error = write.connect().await.expect_err("one too many");
    assert_eq!(code_of(&error), "53300");
    let text = complaint(&write.psql("sslmode=prefer", "SELECT 1").await);
    assert!(text.contains("FATAL:  sorry, too many clients already"), "{text}");
    assert_eq!(write.refused(RefusalReason::TooManyConnections), 2);

    let token = second.cancel_token();
    let asleep = tokio::spawn(async move { second.batch_execute("SELECT pg_sleep(60)").await });
    let limit = Instant::now() + PATIENCE;
    while !asleep.is_finished() {
        assert!(Instant::now() < limit, "not cancelled");
        let stream = TcpStream::connect(write.address).await.expect("connect");
        token.cancel_query_raw(stream, NoTls).await.expect("sent");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(first);
    until("there is room", || {
        write.stats.sessions.load(Ordering::Relaxed) < 2
    })
    .await;
    assert_eq!(answer(&write.psql("", "SELECT 1").await), "1");
}

/// One session in all, and of each client: only cancel requests come in beside it.
pub(super) fn one_session() -> Limits {
    Limits {
        max_connections: 1,
        max_connections_per_client: 1,
        ..Limits::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_request_through_a_full_endpoint_ends_the_query() {
    let _cluster = cluster();
    let write = Route::read_write(one_session(), vec![member(0)]).await;
    let client = write.connect().await.expect("session");
    let error = write.connect().await.expect_err("it is full");
    assert_eq!(code_of(&error), "53300");
    let token = client.cancel_token();
    let cancel = async || {
        let stream = TcpStream::connect(write.address).await.expect("connect");
        token.cancel_query_raw(stream, NoTls).await.expect("sent");
    };
    assert_cancelled(client, cancel).await;
    let counted = write.stats.cancels_total.load(Ordering::Relaxed);
    assert!(counted > 0, "it went through this endpoint");
}

/// Each endpoint had its own limit alone: what a process could take on grew with each `--listen`.
#[tokio::test(flavor = "multi_thread")]
async fn endpoints_of_one_process_had_no_limit_in_common() {
    let _cluster = cluster();
    let total = Arc::new(TotalConnections::at_most(2));
    let write = Route::within(&total, RouteMode::ReadWrite, Limits::default(), vec![member(0)]).await;
    let read = Route::within(&total, RouteMode::ReadOnly, long_hold(), vec![member(1)]).await;
    let own = Route::within(&total, RouteMode::ReadWrite, one_session(), vec![member(0)]).await;
    let reader = read.connect().await.expect("first");
    read.set(Vec::new());
    until("its session is cut", || reader.is_closed()).await;
    let held = read.spawn_psql("sslmode=disable", "SELECT 1");
    until("one that is held counts", || {
        read.stats.held.load(Ordering::Relaxed) == 1
    })
    .await;
    let writer = own.connect().await.expect("second");

    let error = write.connect().await.expect_err("one too many of all");
    assert_eq!(code_of(&error), "53300");
    assert_eq!(write.refused(RefusalReason::TooManyInTotal), 1);
    let text = complaint(&write.psql("sslmode=prefer", "SELECT 1").await);
    for words in [
        "FATAL:  sorry, too many clients already on all endpoints together",
        "DETAIL:  The endpoints of this process together relay at most 2 sessions.",
        "HINT:  Close sessions, use a connection pool, or raise PODGRES_MAX_CONNECTIONS_TOTAL.",
    ] {
        assert!(text.contains(words), "{text}");
    }
    let error = own.connect().await.expect_err("its own limit comes first");
    assert_eq!(code_of(&error), "53300");
    assert_eq!(own.refused(RefusalReason::TooManyConnections), 1);

    let token = writer.cancel_token();
    assert_cancelled(writer, async || {
        let stream = TcpStream::connect(write.address).await.expect("connect");
        token.cancel_query_raw(stream, NoTls).await.expect("sent");
    })
    .await;
    until("the place of the ended session is free", || {
        own.stats.sessions.load(Ordering::Relaxed) == 0
    })
    .await;
    assert_eq!(answer(&write.psql("sslmode=disable", "SELECT 1").await), "1");
    read.set(vec![member(1)]);
    let output = timeout(PATIENCE, held.wait_with_output()).await;
    assert_eq!(answer(&output.expect("in time").expect("psql")), "1");
}

/// Cancels what the session does until it has ended, and expects it to say so.
pub(super) async fn assert_cancelled(client: tokio_postgres::Client, cancel: impl AsyncFn()) {
    let asleep = tokio::spawn(async move { client.batch_execute("SELECT pg_sleep(60)").await });
    let limit = Instant::now() + PATIENCE;
    while !asleep.is_finished() {
        assert!(Instant::now() < limit, "not cancelled");
        cancel().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let error = asleep.await.expect("no panic").expect_err("cancelled");
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_refuses_the_held_cuts_the_rest_and_closes_the_port() {
    let _cluster = cluster();
    let read = Route::read_only(Limits::default(), vec![member(1)]).await;
    let client = read.connect().await.expect("session");
    read.set(vec![Server {
        lag_bytes: None,
        ..member(1)
    }]);
    let held = read.spawn_psql("sslmode=disable", "SELECT 1");
    until("it is held", || read.stats.held.load(Ordering::Relaxed) == 1).await;
    let address = read.address;
    read.stop().await;
    let text = complaint(&held.wait_with_output().await.expect("psql"));
    assert!(
        text.contains("FATAL:  the routing endpoint is shutting down"),
        "{text}"
    );
    until("the session is cut", || client.is_closed()).await;
    assert!(TcpStream::connect(address).await.is_err());
}
