//! What PostgreSQL makes of `synchronous_standby_names` with the gate in it.

use std::time::Duration;

use podgres::core::synchronous_names::{parse, standby_names};

use super::{FOR_EVER, HANGS_FOR, SOON, acknowledged, attached, commit, count, gated_primary, session};
use crate::postgres_client::server::{TestServer, installations};
use crate::wait::eventually;

async fn set_names(server: &TestServer, text: &str) {
    server
        .sql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{text}'"))
        .await;
    server.sql("SELECT pg_reload_conf()").await;
}

#[tokio::test]
async fn postgresql_takes_each_form() {
    for programs in installations() {
        let server = TestServer::primary(&programs, "").await;
        let members = ["pg-1", "a\"b c", "Pg.ü,(*)"].map(str::to_owned);
        for (gate, members, quorum) in [
            (false, &members[..0], 0),
            (true, &members[..0], 0),
            (true, &members[..0], 1),
            (true, &members[..1], 1),
            (true, &members[..], 2),
            (true, &members[..], 7),
            (false, &members[..], 1),
            (false, &members[..], 3),
        ] {
            let text = standby_names(gate, members, quorum);
            set_names(&server, &text).await;
            eventually("the setting", async || {
                let client = session(&server).await;
                let row = client.query_one("SHOW synchronous_standby_names", &[]).await;
                row.expect("a row").get::<_, String>(0) == text
            })
            .await;
            assert!(parse(&text).is_some());
        }
    }
}

/// A gate that reconnects must not be counted twice, in place of a standby.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gate_does_not_pass_for_a_standby() {
    for programs in installations() {
        let server = gated_primary(&programs, "").await;
        let gate = attached(&server).await;
        gate.allow_until(FOR_EVER);
        acknowledged(&session(&server).await).await;
        set_names(&server, &standby_names(true, &["pg-1".to_owned()], 1)).await;
        eventually("the gate is one of a quorum", async || {
            let gates = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'";
            count(&server, gates).await == 1
        })
        .await;
        let client = session(&server).await;
        let waiting = tokio::spawn(async move { commit(&client).await });
        tokio::time::sleep(HANGS_FOR).await;
        for _ in 0..15 {
            let attachments = gate.status().attachment.count;
            server
                .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
                .await;
            eventually("the gate is back", async || {
                gate.status().attachment.count > attachments
            })
            .await;
        }
        tokio::time::sleep(HANGS_FOR).await;
        assert!(!waiting.is_finished(), "the gate was taken for a standby");

        // No WAL is written from now on, so only what the gate repeats can release the commit.
        set_names(&server, &standby_names(true, &[], 0)).await;
        let done = tokio::time::timeout(SOON, waiting).await;
        done.expect("in time").expect("a task").expect("a commit");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_and_the_gate_make_a_quorum() {
    for programs in installations() {
        let primary = gated_primary(&programs, "").await;
        let gate = attached(&primary).await;
        gate.allow_until(FOR_EVER);
        primary
            .sql("SELECT pg_create_physical_replication_slot('podgres_pg_1')")
            .await;
        let standby = primary.standby("podgres_pg_1", "").await;
        set_names(
            &primary,
            &standby_names(true, &["podgres_pg_1".to_owned(), "pg-2".to_owned()], 1),
        )
        .await;
        eventually("a quorum", async || {
            let both = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'";
            count(&primary, both).await == 2
        })
        .await;
        let client = session(&primary).await;
        acknowledged(&client).await;
        client
            .batch_execute("SET synchronous_commit = remote_apply")
            .await
            .expect("a setting");
        acknowledged(&client).await;
        gate.allow_until(0);
        let hanging = tokio::time::timeout(HANGS_FOR, commit(&client)).await;
        assert!(hanging.is_err(), "without the gate both standbys are needed");
        gate.allow_until(FOR_EVER);
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(standby);
        let client = session(&primary).await;
        let hanging = tokio::time::timeout(HANGS_FOR, commit(&client)).await;
        assert!(hanging.is_err(), "without a standby the gate is not enough");
    }
}
