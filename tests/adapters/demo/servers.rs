//! A real PostgreSQL server in a pod, frozen, thawed and killed with all its children.

use std::time::{Duration, Instant};

use podgres::core::member::Ordinal;
use podgres::demo::control::Request;
use podgres::demo::{DemoState, Target, dsn};

use crate::postgresql;

use super::lab::{Demo, LIMIT, REAL, state_of};

/// A session of the pod's own server.
async fn session(state: &DemoState) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let text = dsn(state, Target::Member(Ordinal(0))).expect("a connection string");
    let (client, connection) = tokio_postgres::connect(&text, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn session_when_up(state: &DemoState) -> tokio_postgres::Client {
    let began = Instant::now();
    loop {
        match session(state).await {
            Ok(client) => return client,
            Err(error) => assert!(began.elapsed() < LIMIT, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_postmaster_and_its_children_are_frozen_thawed_and_killed() {
    let demo = Demo::of(REAL, |options| {
        options.replicas = Some(1);
        options.grace = Duration::from_millis(300);
        options.program_directory = postgresql::programs(18);
    })
    .await;
    let status = demo.until_running(1).await;
    let client = session_when_up(&demo.state()).await;
    client
        .batch_execute("create table t as select 1 as i")
        .await
        .expect("a table");
    let members = demo.processes(&status.pods[0]);
    // Two shells, the postmaster, its five or more, and this session.
    assert!(members.len() >= 9, "{members:?}");
    demo.done(Request::Freeze { ordinal: Ordinal(0) }).await;
    assert!(
        members
            .iter()
            .all(|pid| state_of(*pid).is_none_or(|state| matches!(state, 'T' | 'D' | 'Z'))),
        "{members:?}"
    );
    let asked = client.query_one("select i from t", &[]);
    tokio::pin!(asked);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut asked).await;
    assert!(early.is_err(), "a frozen server answered");
    demo.done(Request::Thaw { ordinal: Ordinal(0) }).await;
    let row = tokio::time::timeout(LIMIT, asked)
        .await
        .expect("an answer")
        .expect("a row");
    assert_eq!(row.get::<_, i32>(0), 1);
    demo.done(Request::DeletePod {
        ordinal: Ordinal(0),
        force: true,
        wipe_volume: false,
        move_address: true,
    })
    .await;
    assert!(
        members
            .iter()
            .all(|pid| state_of(*pid).is_none_or(|state| state == 'Z')),
        "{members:?}"
    );
    // The volume is as the kill left it, and the next server recovers from that.
    demo.until_running(1).await;
    let client = session_when_up(&demo.state()).await;
    let row = client.query_one("select i from t", &[]).await.expect("a row");
    assert_eq!(row.get::<_, i32>(0), 1);
    demo.stop().await;
}
