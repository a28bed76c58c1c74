//! When the gate attaches, to whom, and how soon.

use std::time::{Duration, Instant};

use podgres::core::data_directory::SystemIdentifier;

use super::{
    FOR_EVER, HANGS_FOR, SOON, acknowledged, attached, commit, count, gated_primary, session, start, target,
    target_of, until_attached,
};
use crate::postgres_client::server::installations;
use crate::postgresql::programs;
use crate::wait::eventually;

const WAITING: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_wait_already_are_released() {
    for programs in installations() {
        let server = gated_primary(&programs, "autovacuum = off\n").await;
        let client = session(&server).await;
        let waiting = tokio::spawn(async move { commit(&client).await });
        eventually("the commit waits", async || count(&server, WAITING).await == 1).await;
        let gate = start();
        gate.allow_until(FOR_EVER);
        let target = target(&server).await;
        let began = Instant::now();
        gate.want(Some(target));
        waiting.await.expect("a task").expect("a commit");
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        eprintln!("from attaching to a release: {:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_comes_back_in_milliseconds() {
    for programs in installations() {
        let mut server = gated_primary(&programs, "").await;
        let gate = attached(&server).await;
        gate.allow_until(FOR_EVER);
        for _ in 0..5 {
            let client = session(&server).await;
            acknowledged(&client).await;
            server
                .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
                .await;
            let took = acknowledged(&client).await;
            assert!(took < SOON, "{took:?}");
            eprintln!("after the end of the walsender: {took:?}");
        }
        assert!(gate.status().attachment.count >= 5, "{:?}", gate.status());
        for _ in 0..3 {
            server.restart();
            let began = Instant::now();
            acknowledged(&session(&server).await).await;
            assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
            eprintln!("after the server is ready: {:?}", began.elapsed());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_is_refused() {
    let server = gated_primary(&programs(15), "").await;
    let gate = start();
    gate.allow_until(FOR_EVER);
    gate.want(Some(target_of(&server, SystemIdentifier(7))));
    eventually("a refusal", async || {
        let error = gate.status().attachment.last_error;
        error.is_some_and(|error| error.contains("expected 7"))
    })
    .await;
    gate.want(Some(target(&server).await));
    acknowledged(&session(&server).await).await;
    gate.want(None);
    eventually("detached", async || !gate.status().attached()).await;
    let client = session(&server).await;
    assert!(tokio::time::timeout(HANGS_FOR, commit(&client)).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_refused_until_it_is_promoted() {
    for programs in installations() {
        let primary = gated_primary(&programs, "").await;
        let gate = attached(&primary).await;
        gate.allow_until(FOR_EVER);
        primary
            .sql("SELECT pg_create_physical_replication_slot('podgres_pg_1')")
            .await;
        let standby = primary
            .standby(
                "podgres_pg_1",
                "synchronous_standby_names = 'FIRST 1 (podgres_gate)'\n",
            )
            .await;
        acknowledged(&session(&primary).await).await;
        gate.want(Some(target(&standby).await));
        eventually("a refusal", async || {
            let error = gate.status().attachment.last_error;
            !gate.status().attached() && error.is_some_and(|error| error.contains("standby"))
        })
        .await;
        let began = Instant::now();
        standby.sql("SELECT pg_promote()").await;
        let promoted = began.elapsed();
        until_attached(&gate).await;
        eprintln!("promoted {promoted:?}, attached {:?}", began.elapsed());
        acknowledged(&session(&standby).await).await;
        assert_eq!(
            gate.status().attachment.timeline.map(|timeline| timeline.0),
            Some(2)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gates_are_never_attached_at_a_time() {
    for programs in installations() {
        let server = gated_primary(&programs, "").await;
        let (first, second) = (attached(&server).await, start());
        first.allow_until(FOR_EVER);
        second.allow_until(FOR_EVER);
        second.want(Some(target(&server).await));
        eventually("the second stays away", async || {
            let error = second.status().attachment.last_error;
            error.is_some_and(|error| error.contains("another gate"))
        })
        .await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(
            (first.status().attached(), second.status().attachment.count),
            (true, 0)
        );
        acknowledged(&session(&server).await).await;
        drop(first);
        acknowledged(&session(&server).await).await;
        assert!(second.status().attached());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wrong_password_is_named_and_the_right_one_taken_up() {
    let server = gated_primary(&programs(16), "").await;
    let gate = start();
    gate.allow_until(FOR_EVER);
    let right = target(&server).await;
    let mut wrong = right.clone();
    wrong.login.password = podgres::postgres::Secret::new("wrong".to_owned());
    gate.want(Some(wrong));
    eventually("a refusal", async || {
        let error = gate.status().attachment.last_error;
        error.is_some_and(|error| error.contains("refused the password"))
    })
    .await;
    gate.want(Some(right));
    acknowledged(&session(&server).await).await;
}
