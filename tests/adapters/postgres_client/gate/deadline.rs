//! Acknowledgements end with the right and come back with it.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{
    FOR_EVER, HANGS_FOR, SOON, Writers, acknowledged, after, attached, commit, gated_primary, session,
};
use crate::postgres_client::server::installations;
use crate::postgresql::programs;
use crate::wait::eventually;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_gets_an_acknowledgement_after_the_deadline() {
    for programs in installations() {
        // A walsender that hears nothing for a second ends.
        let server = gated_primary(&programs, "wal_sender_timeout = 1s\n").await;
        let gate = attached(&server).await;
        let writers = Writers::start(&server, 6).await;
        tokio::time::sleep(HANGS_FOR).await;
        assert_eq!(writers.counts(), [0; 6], "without any right");

        gate.allow_until(after(Duration::from_secs(1)));
        writers.all_go_on().await;
        tokio::time::sleep(Duration::from_millis(1_300)).await;
        let lapsed = writers.counts();
        let confirmed = gate.status().confirmed_lsn;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(writers.counts(), lapsed, "after the deadline");
        let status = gate.status();
        assert_eq!(status.confirmed_lsn, confirmed);
        assert!(status.received_lsn > confirmed, "it goes on reading");
        assert_eq!(status.attachment.count, 1, "and stays: {status:?}");

        gate.allow_until(after(Duration::from_mins(1)));
        writers.all_go_on().await;
        assert_eq!(gate.status().attachment.count, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_taken_back_is_gone_when_the_call_returns() {
    let server = gated_primary(&programs(16), "").await;
    let gate = attached(&server).await;
    let _writers = Writers::start(&server, 4).await;
    for _ in 0..200 {
        gate.allow_until(FOR_EVER);
        tokio::time::sleep(Duration::from_millis(2)).await;
        gate.allow_until(0);
        let confirmed = gate.status().confirmed_lsn;
        tokio::time::sleep(Duration::from_millis(4)).await;
        assert_eq!(gate.status().confirmed_lsn, confirmed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_gate_confirms_nothing() {
    let server = gated_primary(&programs(15), "").await;
    let gate = attached(&server).await;
    gate.allow_until(FOR_EVER);
    let client = session(&server).await;
    acknowledged(&client).await;
    drop(gate);
    let hanging = tokio::time::timeout(HANGS_FOR, commit(&client)).await;
    assert!(hanging.is_err(), "{hanging:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_stop_ends_a_waiting_commit_without_an_acknowledgement() {
    for programs in installations() {
        let server = gated_primary(&programs, "").await;
        let gate = attached(&server).await;
        gate.allow_until(FOR_EVER);
        let client = session(&server).await;
        acknowledged(&client).await;
        gate.allow_until(0);
        let waiting = tokio::spawn(async move { commit(&client).await });
        eventually("the commit waits", async || {
            super::count(
                &server,
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'",
            )
            .await
                == 1
        })
        .await;
        let began = Instant::now();
        server.signal(Signal::INT);
        let answer = waiting.await.expect("a task");
        assert!(answer.is_err(), "acknowledged");
        eventually("the stop", async || {
            server.log().contains("database system is shut down")
        })
        .await;
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        eprintln!("fast stop without a right: {:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_stop_under_a_valid_right_is_clean() {
    let server = gated_primary(&programs(18), "").await;
    let gate = attached(&server).await;
    gate.allow_until(FOR_EVER);
    acknowledged(&session(&server).await).await;
    let began = Instant::now();
    server.signal(Signal::INT);
    eventually("the stop", async || {
        server.log().contains("database system is shut down")
    })
    .await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    eprintln!("fast stop under a right: {:?}", began.elapsed());
    eventually("the gate notices", async || !gate.status().attached()).await;
}
