//! A standby made from a running primary, and the clones that are refused.

use std::fs;

use podgres::core::data_directory::SystemIdentifier;
use podgres::core::supervision::{CloneReason, JobProgress, ServerRole};
use podgres::postgres::error::{JobError, describe};
use podgres::postgres::{Secret, ServerSettings, basebackup, data_directory};
use tokio::sync::watch;

use super::lab::{
    Lab, REPLICATION_PASSWORD, SUPERUSER_PASSWORD, Server, absent_or_complete, as_postgres, facts,
    files_with, names,
};
use crate::wait::eventually;

async fn run(
    settings: &ServerSettings,
    clone: &basebackup::CloneRequest,
) -> (Result<(), JobError>, JobProgress) {
    let (sender, receiver) = watch::channel(JobProgress::default());
    let result = basebackup::run(settings, clone, &sender).await;
    let progress = *receiver.borrow();
    (result, progress)
}

#[test]
fn row_21_an_empty_directory_becomes_a_streaming_standby() {
    for major in [15, 16, 18] {
        as_postgres(move || async move {
            let lab = Lab::new(major);
            let primary = lab.primary().await;
            primary
                .query("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
                .await;
            primary
                .query("ALTER SYSTEM SET primary_conninfo = 'password=oldsecret'")
                .await;
            primary.query("ALTER SYSTEM SET work_mem = '7MB'").await;
            let settings = lab.settings(1);
            let clone = primary.clone_for(1, CloneReason::Empty).await;
            let (result, progress) = run(&settings, &clone).await;
            result.expect("clone");
            assert!(
                progress.total_bytes > 1 << 20 && progress.done_bytes > 1 << 20,
                "{progress:?}"
            );
            assert!(progress.bytes_per_second > 0);
            assert_eq!(names(settings.data_directory.parent().expect("parent")), ["data"]);
            let made = facts(&settings).await;
            assert_eq!(made.system_identifier, clone.system_identifier);
            assert!(made.standby_signal && made.backup_label);
            for secret in [SUPERUSER_PASSWORD, REPLICATION_PASSWORD, "oldsecret"] {
                let found = files_with(&settings.data_directory, secret);
                assert!(found.is_empty(), "{found:?}");
            }
            let role = ServerRole::Standby {
                upstream: Some(clone.upstream.clone()),
            };
            let standby = Server::start(settings, role).await;
            streams(&primary, &standby).await;
            standby.stop().await;
            primary.stop().await;
        });
    }
}

async fn streams(primary: &Server, standby: &Server) {
    primary.query("INSERT INTO t VALUES (4711)").await;
    eventually("the row on the standby", async || {
        standby.query("SELECT count(*) FROM t WHERE n = 4711").await == "1"
    })
    .await;
    let state = "SELECT application_name || ' ' || state FROM pg_stat_replication";
    assert_eq!(primary.query(state).await, "pg-1 streaming");
    assert_eq!(standby.query("SHOW work_mem").await, "7MB");
    assert_eq!(
        standby.query("SELECT slot_name FROM pg_stat_wal_receiver").await,
        "podgres_pg_1"
    );
    let log = standby.log();
    assert!(log.contains("ready to accept read-only connections"), "{log}");
    assert!(log.contains("started streaming WAL from primary"), "{log}");
}

#[test]
fn row_66_a_foreign_upstream_is_refused_and_leaves_nothing() {
    as_postgres(|| async {
        let lab = Lab::new(16);
        let primary = lab.primary().await;
        let settings = lab.settings(1);
        let mut clone = primary.clone_for(1, CloneReason::Empty).await;
        clone.system_identifier = SystemIdentifier(clone.system_identifier.0 + 1);
        let error = run(&settings, &clone).await.0.expect_err("foreign");
        assert!(matches!(error, JobError::ForeignUpstream { .. }), "{error}");
        assert!(error.refused());
        assert!(names(settings.data_directory.parent().expect("parent")).is_empty());
    });
}

#[test]
fn a_foreign_upstream_does_not_replace_anything() {
    as_postgres(|| async {
        let lab = Lab::new(15);
        let primary = lab.primary().await;
        let settings = lab.settings(1);
        let mut clone = primary.clone_for(1, CloneReason::Empty).await;
        run(&settings, &clone).await.0.expect("clone");
        let before = facts(&settings).await;
        clone.system_identifier = SystemIdentifier(1);
        clone.reason = CloneReason::Diverged;
        let error = run(&settings, &clone).await.0.expect_err("foreign");
        assert!(error.refused(), "{error}");
        assert_eq!(facts(&settings).await, before);
    });
}

#[test]
fn trouble_with_the_connection_may_be_tried_again() {
    as_postgres(|| async {
        let lab = Lab::new(18);
        let primary = lab.primary().await;
        let clone = primary.clone_for(1, CloneReason::Empty).await;
        let mut settings = lab.settings(1);
        settings.replication.password = Secret::new("wrong geheim".into());
        let error = run(&settings, &clone).await.0.expect_err("wrong password");
        let text = describe(&error);
        assert!(
            !error.refused() && text.contains("password authentication failed"),
            "{text}"
        );
        assert!(!text.contains("geheim"), "{text}");

        settings.replication.password = Secret::new(REPLICATION_PASSWORD.into());
        let mut missing = clone.clone();
        missing.upstream.slot = "nobodys".into();
        let error = run(&settings, &missing).await.0.expect_err("no slot");
        assert!(
            !error.refused() && describe(&error).contains("nobodys"),
            "{error}"
        );

        primary.stop().await;
        let error = run(&settings, &clone).await.0.expect_err("nobody there");
        assert!(
            !error.refused() && describe(&error).contains("refused"),
            "{error}"
        );
        assert!(!absent_or_complete(&settings).await);
    });
}

#[test]
fn only_a_reason_replaces_data() {
    as_postgres(|| async {
        let lab = Lab::new(15);
        let primary = lab.primary().await;
        let settings = lab.settings(1);
        fs::create_dir(&settings.data_directory).expect("mkdir");
        let own = settings.data_directory.join("own");
        fs::write(&own, "").expect("write");
        let mut clone = primary.clone_for(1, CloneReason::Empty).await;
        let error = run(&settings, &clone).await.0.expect_err("not empty");
        assert!(
            matches!(error, JobError::NotEmpty { .. }) && error.refused(),
            "{error}"
        );
        assert!(own.exists());
        for reason in [
            CloneReason::Requested,
            CloneReason::WalGone,
            CloneReason::Diverged,
        ] {
            clone.reason = reason;
            run(&settings, &clone).await.0.expect("clone");
            assert!(!own.exists());
            assert!(absent_or_complete(&settings).await);
            assert_eq!(names(settings.data_directory.parent().expect("parent")), ["data"]);
        }
        // A running server is never replaced.
        let role = ServerRole::Standby { upstream: None };
        let standby = Server::start(settings.clone(), role).await;
        let error = run(&settings, &clone).await.0.expect_err("in use");
        assert!(matches!(error, JobError::InUse { .. }), "{error}");
        assert_eq!(standby.query("SELECT 1").await, "1");
    });
}

#[test]
fn a_clone_acknowledges_no_commit() {
    as_postgres(|| async {
        let lab = Lab::new(15);
        let primary = lab.primary().await;
        primary
            .query("CREATE TABLE big AS SELECT repeat(md5(i::text), 20) FROM generate_series(1, 200000) i")
            .await;
        primary
            .query("ALTER SYSTEM SET synchronous_standby_names = '\"pg-1\"'")
            .await;
        primary.query("SELECT pg_reload_conf()").await;
        let settings = lab.settings(1);
        let clone = primary.clone_for(1, CloneReason::Empty).await;
        let job = run(&settings, &clone);
        let seen = async {
            let mut names = std::collections::BTreeSet::new();
            eventually("the clone's WAL receiver", async || {
                let row = primary
                    .query("SELECT string_agg(application_name || ' ' || sync_state, ',') FROM pg_stat_replication")
                    .await;
                names.extend(row.split(',').map(str::to_owned));
                names.iter().any(|name| name.starts_with("pg-1-clone"))
            })
            .await;
            names
        };
        let ((result, _), seen) = tokio::join!(job, seen);
        result.expect("clone");
        assert!(
            seen.iter().all(|row| row.is_empty() || row == "pg-1-clone async"),
            "{seen:?}"
        );
        data_directory::inspect(&settings).await.expect("inspect");
    });
}

#[test]
fn a_killed_clone_left_tablespaces_that_every_later_one_stumbled_over() {
    for major in [15, 18] {
        as_postgres(move || async move {
            let lab = Lab::new(major);
            let primary = lab.primary().await;
            let outside = lab.folder.path().join("outside");
            fs::create_dir(&outside).expect("mkdir");
            primary
                .query(&format!(
                    "CREATE TABLESPACE \"Big one\" LOCATION '{}'",
                    outside.display()
                ))
                .await;
            let held = names(&outside);
            let settings = lab.settings(1);
            let volume = settings.data_directory.parent().expect("parent").to_owned();
            let mut clone = primary.clone_for(1, CloneReason::Empty).await;
            let error = run(&settings, &clone).await.0.expect_err("tablespace");
            assert!(
                matches!(&error, JobError::Tablespaces { names, .. } if names == "\"Big one\""),
                "{error}"
            );
            assert!(
                error.refused() && error.to_string().contains("pg_default"),
                "{error}"
            );
            assert!(names(&volume).is_empty());
            assert_eq!(names(&outside), held);

            // Without them, and with one inside the data directory, all is well.
            primary.query("DROP TABLESPACE \"Big one\"").await;
            let client = primary.connect().await;
            for statement in [
                "SET allow_in_place_tablespaces = on",
                "CREATE TABLESPACE inside LOCATION ''",
                "CREATE TABLE t TABLESPACE inside AS SELECT 1",
            ] {
                client.batch_execute(statement).await.expect(statement);
            }
            run(&settings, &clone).await.0.expect("clone");
            let before = facts(&settings).await;

            // A directory that stands is kept.
            primary
                .query(&format!(
                    "CREATE TABLESPACE again LOCATION '{}'",
                    outside.display()
                ))
                .await;
            clone.reason = CloneReason::Diverged;
            let error = run(&settings, &clone).await.0.expect_err("tablespace");
            assert!(matches!(error, JobError::Tablespaces { .. }), "{error}");
            assert_eq!(facts(&settings).await, before);
            assert_eq!(names(&volume), ["data"]);
        });
    }
}
