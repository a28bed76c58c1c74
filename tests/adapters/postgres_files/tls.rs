//! Replication over TLS, with a key that a Secret volume made readable for the group.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use podgres::core::supervision::{CloneReason, JobProgress, ServerRole};
use podgres::postgres::error::describe;
use podgres::postgres::rewind::{self, RewindRequest};
use podgres::postgres::{basebackup, conf, initdb};
use tokio::sync::watch;

use super::lab::{Lab, Server, as_postgres, facts, processes_on};
use crate::wait::eventually;

const HOST: &str = "pg-0.pg.default.svc.cluster.local";

fn openssl(folder: &Path, arguments: &[&str]) {
    let output = Command::new("openssl")
        .current_dir(folder)
        .args(arguments)
        .output()
        .expect("openssl");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// `ca.crt`, `tls.crt` for `host` and `tls.key`, as a Secret volume under fsGroup shows them.
fn certificates(folder: &Path, host: &str) {
    fs::create_dir_all(folder).expect("mkdir");
    let new = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ];
    openssl(
        folder,
        &[
            &new[..],
            &[
                "-subj",
                "/CN=test authority",
                "-keyout",
                "ca.key",
                "-out",
                "ca.crt",
            ],
        ]
        .concat(),
    );
    let name = format!("subjectAltName=DNS:{host}");
    openssl(
        folder,
        &[
            &new[..],
            &[
                "-subj",
                "/CN=server",
                "-addext",
                &name,
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-CA",
                "ca.crt",
                "-CAkey",
                "ca.key",
                "-keyout",
                "tls.key",
                "-out",
                "tls.crt",
            ],
        ]
        .concat(),
    );
    fs::remove_file(folder.join("ca.key")).expect("remove");
    fs::set_permissions(folder.join("tls.key"), fs::Permissions::from_mode(0o640)).expect("chmod");
}

#[test]
fn members_replicate_over_verified_tls_only() {
    as_postgres(|| async {
        let lab = Lab::new(15);
        let good = lab.folder.path().join("good");
        let stranger = lab.folder.path().join("stranger");
        certificates(&good, HOST);
        certificates(&stranger, HOST);
        let mut settings = lab.settings(0);
        settings.tls = Some(good.clone());
        initdb::run(&settings).await.expect("initdb");
        let primary = Server::start(settings, ServerRole::alone()).await;
        let clone = primary.clone_for(1, CloneReason::Empty).await;
        let (progress, _) = watch::channel(JobProgress::default());

        let mut settings = lab.settings(1);
        let error = basebackup::run(&settings, &clone, &progress)
            .await
            .map(|()| "plain is accepted");
        // sslmode=prefer: the server offers TLS, so this works without verification.
        assert_eq!(error.expect("clone"), "plain is accepted");
        fs::remove_dir_all(&settings.data_directory).expect("remove");

        settings.tls = Some(stranger);
        let error = basebackup::run(&settings, &clone, &progress)
            .await
            .expect_err("other authority");
        assert!(
            describe(&error).contains("invalid peer certificate"),
            "{}",
            describe(&error)
        );

        settings.tls = Some(good);
        let mut misnamed = clone.clone();
        misnamed.upstream.host = "pg-7.pg.default.svc.cluster.local".into();
        let error = basebackup::run(&settings, &misnamed, &progress)
            .await
            .expect_err("other name");
        assert!(
            describe(&error).contains("certificate not valid for name"),
            "{}",
            describe(&error)
        );

        basebackup::run(&settings, &clone, &progress)
            .await
            .expect("clone");
        let upstream = Some(clone.upstream.clone());
        let standby = Server::start(settings, ServerRole::Standby { upstream }).await;
        eventually("a receiver over TLS", async || {
            let sql = "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_replication USING (pid)";
            primary.query(sql).await == "t"
        })
        .await;
        assert_eq!(standby.query("SHOW ssl").await, "on");
        let key = standby.settings.run_directory.join("tls.key");
        assert_eq!(
            fs::metadata(key).expect("stat").permissions().mode() & 0o7777,
            0o600
        );
    });
}

#[test]
fn a_former_primary_is_rewound_over_verified_tls() {
    as_postgres(|| async {
        let lab = Lab::new(15);
        let good = lab.folder.path().join("good");
        certificates(&good, HOST);
        let [mut settings, mut second] = [0, 1].map(|ordinal| lab.settings(ordinal));
        settings.tls = Some(good.clone());
        second.tls = Some(good);
        initdb::run(&settings).await.expect("initdb");
        let mut first = Server::start(settings.clone(), ServerRole::alone()).await;
        let clone = first.clone_for(1, CloneReason::Empty).await;
        let (progress, _) = watch::channel(JobProgress::default());
        basebackup::run(&second, &clone, &progress).await.expect("clone");
        let upstream = Some(clone.upstream);
        let second = Server::start(second, ServerRole::Standby { upstream }).await;
        assert_eq!(second.query("SELECT pg_promote()").await, "t");
        first.query("CREATE TABLE lost ()").await;
        first.child.kill().await.expect("kill");
        eventually("the end of its processes", async || {
            processes_on(&settings.data_directory).is_empty()
        })
        .await;

        let mut rewind = RewindRequest {
            upstream: second.upstream(0).await,
            system_identifier: facts(&settings).await.system_identifier,
        };
        let role = ServerRole::Standby {
            upstream: Some(rewind.upstream.clone()),
        };
        conf::write(&settings, &role).await.expect("configuration");
        let host = std::mem::replace(
            &mut rewind.upstream.host,
            "pg-7.pg.default.svc.cluster.local".into(),
        );
        let error = rewind::run(&settings, &rewind, &progress)
            .await
            .expect_err("other name");
        assert!(
            describe(&error).contains("certificate not valid for name"),
            "{}",
            describe(&error)
        );
        rewind.upstream.host = host;
        rewind::run(&settings, &rewind, &progress).await.expect("rewind");
        let first = Server::start(settings, role).await;
        eventually("a receiver over TLS", async || {
            let sql = "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_replication USING (pid)";
            second.query(sql).await == "t"
        })
        .await;
        assert_eq!(first.query("SELECT to_regclass('lost') IS NULL").await, "t");
    });
}
