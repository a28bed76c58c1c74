use podgres::postgres::query::QueryError;
use podgres::postgres::replication::probe_upstream;
use podgres::postgres::roles::RoleChange;

use crate::postgresql::programs;

use super::server::{LIMIT, TestServer, access, installations, login, replication, superuser};

const PASSWORDS: [&str; 6] = [
    "it's",
    "back\\slash \\' \\n",
    "a:b:c",
    " spaces  around ",
    "pässwörd ☃ \u{a0} ﬁ",
    "\"double\" $1 %s ${HOME} ;--",
];

#[tokio::test]
async fn the_replication_role_is_written_only_when_it_differs() {
    for programs in installations() {
        let server = TestServer::primary(&programs, "").await;
        let mut local = server.local();
        let kept = local
            .ensure_replication_role(&replication(), LIMIT)
            .await
            .expect("second call");
        assert_eq!(kept, RoleChange::Unchanged);
        let flushed = server.status().await.flush_lsn;
        for _ in 0..3 {
            local
                .ensure_replication_role(&replication(), LIMIT)
                .await
                .expect("once more");
        }
        let status = local.status(false, LIMIT).await.expect("status");
        assert!(status.replication_role);
        assert!(
            status.flush_lsn.bytes_since(flushed) < 8192,
            "nothing but the server's own WAL"
        );

        for password in PASSWORDS {
            let rotated = login("podgres_replication", password);
            let change = local
                .ensure_replication_role(&rotated, LIMIT)
                .await
                .expect(password);
            assert_eq!(change, RoleChange::Altered, "{password}");
            let change = local
                .ensure_replication_role(&rotated, LIMIT)
                .await
                .expect(password);
            assert_eq!(change, RoleChange::Unchanged, "{password}");
            let upstream = server.as_upstream();
            probe_upstream(&access(&upstream, &rotated, None), LIMIT)
                .await
                .expect(password);
            assert!(local.status(false, LIMIT).await.expect("status").replication_role);
        }
        server.sql("ALTER ROLE podgres_replication NOREPLICATION").await;
        assert!(!local.status(false, LIMIT).await.expect("status").replication_role);
        let rotated = login("podgres_replication", PASSWORDS[5]);
        let change = local
            .ensure_replication_role(&rotated, LIMIT)
            .await
            .expect("rights");
        assert_eq!(change, RoleChange::Altered);
        no_secret_in_the_log(&server);
    }
}

fn no_secret_in_the_log(server: &TestServer) {
    let log = server.log();
    assert!(
        log.contains("ALTER ROLE podgres_replication NOREPLICATION"),
        "statements are logged"
    );
    assert!(!log.contains("SCRAM-SHA-256$"), "{log}");
    for password in PASSWORDS {
        assert!(!log.contains(password), "{password}");
    }
    assert!(
        !log.contains("pg_stat_wal_receiver"),
        "the status query fills the log"
    );
}

#[tokio::test]
async fn a_role_name_needs_no_particular_letters() {
    let server = TestServer::primary(&programs(15), "").await;
    for name in [
        "With \"Quotes\" and 'more'",
        "dash-and.dot",
        "rôle",
        &"long".repeat(20),
    ] {
        let (mut local, login) = (server.local(), login(name, "password"));
        let changes = [
            local.ensure_replication_role(&login, LIMIT).await.expect(name),
            local.ensure_replication_role(&login, LIMIT).await.expect(name),
        ];
        assert_eq!(changes, [RoleChange::Created, RoleChange::Unchanged], "{name}");
        assert!(
            local.status(false, LIMIT).await.expect("status").replication_role,
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_role_neither_waits_for_a_synchronous_standby_nor_minds_a_read_only_default() {
    let server = TestServer::primary(&programs(15), "").await;
    server
        .sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        .await;
    server
        .sql("ALTER SYSTEM SET default_transaction_read_only = on")
        .await;
    server.sql("SELECT pg_reload_conf()").await;
    let rotated = login("podgres_replication", "rotated");
    let change = server
        .local()
        .ensure_replication_role(&rotated, LIMIT)
        .await
        .expect("no wait");
    assert_eq!(change, RoleChange::Altered);
}

#[tokio::test]
async fn the_superuser_password_follows_its_file() {
    for programs in installations() {
        let server = TestServer::primary(&programs, "").await;
        let mut local = server.local();
        let change = local
            .ensure_superuser_password(&superuser(), LIMIT)
            .await
            .expect("same");
        assert_eq!(change, RoleChange::Unchanged);
        for password in PASSWORDS {
            let rotated = login("postgres", password);
            let change = local
                .ensure_superuser_password(&rotated, LIMIT)
                .await
                .expect(password);
            assert_eq!(change, RoleChange::Altered, "{password}");
            server.sql_as(&rotated, "SELECT 1").await.expect(password);
        }

        // A new process knows only the new password, an old one only the old: both get in.
        let current = login("postgres", PASSWORDS[5]);
        let mut stale = server.local();
        let change = stale
            .ensure_superuser_password(&current, LIMIT)
            .await
            .expect("way in");
        assert_eq!(change, RoleChange::Unchanged);
        stale.status(false, LIMIT).await.expect("status");

        // A change is only announced where it comes by replication: before that the old password counts, then the new.
        let mut announced = server.local();
        announced.expect_logins(current.clone(), replication());
        announced.status(false, LIMIT).await.expect("it has come");
        announced.expect_logins(login("postgres", "next"), replication());
        server
            .sql_as(
                &current,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'podgres'",
            )
            .await
            .expect("ended");
        announced.status(false, LIMIT).await.expect("it has not come");

        let error = server
            .local()
            .ensure_superuser_password(&login("postgres", "x"), LIMIT)
            .await;
        let error = error.expect_err("neither password");
        assert!(
            matches!(error, QueryError::AuthenticationFailed { .. }),
            "{error}"
        );
        assert!(!server.log().contains("SCRAM-SHA-256$"));
    }
}

#[tokio::test]
async fn a_standby_says_that_it_cannot_change_a_role() {
    let primary = TestServer::primary(&programs(15), "").await;
    let standby = primary.standby("podgres_pg_1", "primary_slot_name = ''").await;
    let mut local = standby.local();
    let change = local
        .ensure_replication_role(&replication(), LIMIT)
        .await
        .expect("equal");
    assert_eq!(change, RoleChange::Unchanged);
    let rotated = login("podgres_replication", "rotated");
    let error = local
        .ensure_replication_role(&rotated, LIMIT)
        .await
        .expect_err("a standby");
    assert!(matches!(error, QueryError::InRecovery { .. }), "{error}");
    assert!(!local.status(false, LIMIT).await.expect("status").replication_role);
}
