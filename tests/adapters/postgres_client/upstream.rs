use std::time::Duration;

use podgres::core::wal::TimelineId;
use podgres::postgres::Login;
use podgres::postgres::replication::{ReplicationClient, UpstreamError, probe_upstream};
use tokio::net::TcpListener;

use crate::postgresql::programs;

use super::server::{LIMIT, TestServer, access, fresh_address, installations, login, replication};

#[tokio::test]
async fn an_upstream_is_identified() {
    for programs in installations() {
        let server = TestServer::primary(&programs, "").await;
        let status = server.status().await;
        let (upstream, login) = (server.as_upstream(), replication());
        let facts = probe_upstream(&access(&upstream, &login, None), LIMIT)
            .await
            .expect("facts");
        assert_eq!(facts.identity.system_identifier, status.system_identifier);
        assert_eq!(facts.identity.position.timeline, TimelineId(1));
        assert!(facts.identity.position.lsn >= status.flush_lsn);
        assert_eq!(
            (facts.in_recovery, facts.history.ancestors.len()),
            (Some(false), 0)
        );
        let version = facts.server_version.expect("version");
        assert!(
            version.starts_with(&server.major_version().to_string()),
            "{version}"
        );
    }
}

#[tokio::test]
async fn each_refusal_has_its_own_name() {
    for programs in installations() {
        let server = TestServer::primary(&programs, "").await;
        server
            .sql(
                "CREATE ROLE plain LOGIN REPLICATION PASSWORD 'x'; CREATE ROLE outsider LOGIN REPLICATION;
                  CREATE ROLE reader LOGIN PASSWORD 'x'; CREATE ROLE locked REPLICATION PASSWORD 'x'",
            )
            .await;
        let cold = server
            .standby("podgres_pg_1", "hot_standby = off\nprimary_slot_name = ''")
            .await;
        for (server, who, cause) in [
            (&server, login("podgres_replication", "wrong"), "wrong_password"),
            (&server, login("nobody", "x"), "wrong_password"),
            (&server, login("outsider", "x"), "no_hba_entry"),
            (&server, login("ghost", "x"), "role_missing"),
            (&server, login("locked", "x"), "role_missing"),
            (&server, login("reader", "x"), "not_permitted"),
            (&server, login("plain", "x"), "authentication_method"),
            (&cold, replication(), "starting"),
        ] {
            let error = refusal(server, &who).await;
            assert_eq!(error.cause(), cause, "{}: {error:?}", who.user);
            assert!(error.hint().is_some() || cause == "starting");
            assert!(!error.to_string().ends_with('.') && !error.to_string().contains('\n'));
        }
    }
}

async fn refusal(server: &TestServer, who: &Login) -> UpstreamError {
    let upstream = server.as_upstream();
    probe_upstream(&access(&upstream, who, None), LIMIT)
        .await
        .expect_err("a refusal")
}

#[tokio::test]
async fn the_last_walsender_is_named() {
    let server = TestServer::primary(&programs(15), "max_wal_senders = 1\n").await;
    let (upstream, login) = (server.as_upstream(), replication());
    let access = access(&upstream, &login, None);
    let mut client = ReplicationClient::connect(&access, LIMIT)
        .await
        .expect("the first");
    let error = refusal(&server, &login).await;
    assert_eq!(error.cause(), "too_many_connections", "{error}");

    let error = client
        .timeline_history(TimelineId(77))
        .await
        .expect_err("no such timeline");
    assert!(
        matches!(&error, UpstreamError::Server { sqlstate, .. } if sqlstate == "58P01"),
        "{error:?}"
    );
    client
        .identify_system()
        .await
        .expect("an error does not end the conversation");
    let error = client
        .read_replication_slot("A\"")
        .await
        .expect_err("no slot name");
    assert_eq!(error.cause(), "invalid_slot_name");
    client.close().await;
}

#[tokio::test]
async fn nobody_there_and_nobody_answering() {
    let (login, limit) = (replication(), Duration::from_millis(300));
    let mut upstream = podgres::core::supervision::Upstream {
        host: "nobody".to_owned(),
        address: fresh_address(),
        port: 5432,
        slot: "podgres_pg_1".to_owned(),
        application_name: None,
    };
    let error = probe_upstream(&access(&upstream, &login, None), LIMIT)
        .await
        .expect_err("nobody");
    assert_eq!(error.cause(), "refused", "{error:?}");

    let silent = TcpListener::bind((fresh_address(), 0)).await.expect("listener");
    let address = silent.local_addr().expect("address");
    (upstream.address, upstream.port) = (address.ip(), address.port());
    let error = probe_upstream(&access(&upstream, &login, None), limit)
        .await
        .expect_err("silence");
    assert_eq!(error.cause(), "timed_out", "{error:?}");
}
