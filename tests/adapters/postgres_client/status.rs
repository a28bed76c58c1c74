use std::net::SocketAddr;
use std::time::{Duration, Instant};

use podgres::core::wal::{Lsn, TimelineId, WalPosition};
use podgres::postgres::query::{LocalServer, QueryError};
use podgres::postgres::replication::{UpstreamFacts, probe_upstream};
use rustix::process::Signal;

use crate::postgresql::programs;

use super::server::{LIMIT, PORT, TestServer, access, fresh_address, installations, login, replication};
use crate::wait::eventually;

const SLOT: &str = "podgres_pg_1";

#[tokio::test]
async fn status_of_a_primary_and_a_standby_through_a_promotion() {
    for programs in installations() {
        let primary = TestServer::primary(&programs, "").await;
        let mut local = primary.local();
        local
            .reconcile_slots(&[SLOT.to_owned()], LIMIT)
            .await
            .expect("slots");
        let standby = primary.standby(SLOT, "").await;
        let mut local_standby = standby.local();
        eventually("streaming", async || {
            local_standby
                .status(false, LIMIT)
                .await
                .expect("status")
                .receiver_streaming
        })
        .await;
        both_streaming(&primary, &mut local, &mut local_standby).await;
        receiver_gone(&standby, &mut local_standby, TimelineId(1)).await;
        promotion(&standby, &mut local_standby).await;
    }
}

async fn both_streaming(server: &TestServer, primary: &mut LocalServer, standby: &mut LocalServer) {
    server.sql("CREATE TABLE t AS SELECT 1").await;
    let above = primary.status(true, LIMIT).await.expect("primary's status");
    assert_eq!(above.server_version / 10_000, server.major_version());
    assert!(!above.in_recovery && !above.receiver_streaming && above.replication_role);
    assert_eq!(above.timeline, TimelineId(1));
    assert_eq!(above.wal_segment_size_bytes, 1 << 20);
    assert_eq!(above.upstream_lsn, None);
    let oldest = above.oldest_wal_lsn.expect("oldest WAL");
    assert!(oldest > Lsn(0) && oldest <= above.flush_lsn && oldest == oldest.segment_start(1 << 20));
    let [sender] = above.replication.as_slice() else {
        panic!("{above:?}")
    };
    assert_eq!(
        (sender.application_name.as_str(), sender.state.as_str()),
        (SLOT, "streaming")
    );
    assert!(sender.client_addr.is_some() && sender.pid > 0 && sender.sync_state == "async");
    assert_eq!(
        (sender.usename.as_str(), sender.sync_priority),
        ("podgres_replication", 0)
    );
    let [slot] = above.slots.as_slice() else {
        panic!("{above:?}")
    };
    assert!(slot.active && !slot.lost && slot.slot_name == SLOT && slot.restart_lsn.is_some());

    eventually("replay of what the primary wrote", async || {
        standby.status(false, LIMIT).await.expect("status").replay_lsn >= above.flush_lsn
    })
    .await;
    let below = standby.status(false, LIMIT).await.expect("standby's status");
    assert!(below.in_recovery && below.receiver_streaming && below.replication_role);
    assert_eq!(below.system_identifier, above.system_identifier);
    assert_eq!(below.timeline, TimelineId(1));
    assert!(below.upstream_lsn >= Some(above.flush_lsn) && below.flush_lsn >= below.replay_lsn);
    assert!(below.replay_age_ms.is_some() && below.oldest_wal_lsn.is_none());
    assert!(below.replication.is_empty() && below.postmaster_start_time.ends_with("+00"));
}

/// The standby still answers every query, as `pg_isready` would see it, but nothing new comes in.
async fn receiver_gone(standby: &TestServer, local: &mut LocalServer, timeline: TimelineId) {
    let nobody = fresh_address();
    standby
        .sql(&format!(
            "ALTER SYSTEM SET primary_conninfo = 'host={nobody} port=1'"
        ))
        .await;
    standby.sql("SELECT pg_reload_conf()").await;
    // One that is stopping has a row still.
    eventually("the end of the receiver", async || {
        let status = local.status(false, LIMIT).await.expect("status");
        !status.receiver_streaming && status.upstream_lsn.is_none()
    })
    .await;
    let status = local.status(true, LIMIT).await.expect("status");
    assert!(status.in_recovery);
    assert_eq!(status.timeline, timeline, "known without a receiver");
    assert!(status.flush_lsn >= status.replay_lsn && status.oldest_wal_lsn.is_some());
}

/// The connection lives on, so the same session must see the new role and timeline.
async fn promotion(standby: &TestServer, local: &mut LocalServer) {
    standby.sql("ALTER SYSTEM RESET primary_conninfo").await;
    let follower = standby.standby("podgres_pg_2", "primary_slot_name = ''").await;
    let before = local.status(false, LIMIT).await.expect("status");
    standby.sql("SELECT pg_promote()").await;
    let status = local.status(true, LIMIT).await.expect("status");
    assert!(!status.in_recovery && status.oldest_wal_lsn.is_some() && status.replay_age_ms.is_none());
    assert_eq!(status.timeline, TimelineId(2));

    let facts = facts(standby).await;
    assert_eq!(facts.identity.system_identifier, status.system_identifier);
    assert_eq!(facts.identity.position.timeline, TimelineId(2));
    assert_eq!(facts.in_recovery, Some(false));
    let [WalPosition { timeline, lsn }] = facts.history.ancestors.as_slice() else {
        panic!("{facts:?}")
    };
    assert!(*timeline == TimelineId(1) && *lsn >= before.replay_lsn);
    follow(&follower).await;
}

/// A standby that goes over to timeline 2 while it runs, and then loses its receiver again.
async fn follow(follower: &TestServer) {
    let mut local = follower.local();
    eventually("streaming on the new timeline", async || {
        let status = local.status(false, LIMIT).await.expect("status");
        status.receiver_streaming && status.timeline == TimelineId(2)
    })
    .await;
    let facts = facts(follower).await;
    assert_eq!(facts.in_recovery, Some(true));
    receiver_gone(follower, &mut local, TimelineId(2)).await;
}

async fn facts(server: &TestServer) -> UpstreamFacts {
    let (upstream, login) = (server.as_upstream(), replication());
    probe_upstream(&access(&upstream, &login, None), LIMIT)
        .await
        .expect("facts")
}

#[tokio::test]
async fn a_restarted_server_is_asked_over_a_new_connection() {
    let mut server = TestServer::primary(&programs(15), "").await;
    let mut local = server.local();
    let before = local.status(false, LIMIT).await.expect("status");
    server.restart();
    let after = local
        .status(false, LIMIT)
        .await
        .expect("status after the restart");
    assert_ne!(before.postmaster_start_time, after.postmaster_start_time);
    server
        .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'podgres'")
        .await;
    local
        .status(false, LIMIT)
        .await
        .expect("status after the end of the session");
}

#[tokio::test]
async fn a_server_that_hangs_costs_no_more_than_the_limit() {
    let server = TestServer::primary(&programs(15), "").await;
    let limit = Duration::from_millis(300);
    server.signal(Signal::STOP);
    let (began, mut local) = (Instant::now(), server.local());
    let error = local
        .status(false, limit)
        .await
        .expect_err("a stopped postmaster");
    assert!(matches!(error, QueryError::TimedOut { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5));
    server.signal(Signal::CONT);
    local.status(false, LIMIT).await.expect("status");
}

#[tokio::test]
async fn why_the_local_server_cannot_be_asked() {
    let server = TestServer::primary(&programs(15), "").await;
    let cold = server
        .standby("podgres_pg_1", "hot_standby = off\nprimary_slot_name = ''")
        .await;
    let error = cold
        .local()
        .status(false, LIMIT)
        .await
        .expect_err("no hot standby");
    assert!(matches!(error, QueryError::Starting { .. }), "{error}");

    let wrong = login("postgres", "wrong");
    let error = server
        .local_as(wrong.clone())
        .status(false, LIMIT)
        .await
        .expect_err("password");
    assert!(
        matches!(error, QueryError::AuthenticationFailed { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("\"postgres\"") && error.hint().is_some());

    let nobody = SocketAddr::new(fresh_address(), PORT);
    let error = LocalServer::at(nobody, None, wrong, replication())
        .status(false, LIMIT)
        .await
        .expect_err("nobody");
    assert!(matches!(error, QueryError::Unreachable { .. }), "{error}");
}
