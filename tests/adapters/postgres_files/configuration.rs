//! Generated configuration, as PostgreSQL itself reads it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use podgres::core::supervision::{ServerRole, Upstream};
use podgres::postgres::error::{ConfigurationError, describe};
use podgres::postgres::{ServerSettings, conf, initdb, passfile, signal_file};

use super::lab::{Lab, Server, as_postgres, login};

fn user_file(lab: &Lab, settings: &mut ServerSettings, name: &str, content: &str) {
    let folder = lab.folder.path().join("user's conf");
    fs::create_dir_all(&folder).expect("mkdir");
    fs::write(folder.join(name), content).expect("write");
    settings.user_configuration = Some(folder);
}

fn upstream() -> Upstream {
    Upstream {
        host: "pg-1.pg".into(),
        address: "127.0.0.9".parse().expect("address"),
        port: 5432,
        slot: "podgres_pg_0".into(),
        application_name: None,
    }
}

#[test]
fn the_later_file_wins_and_podgres_last() {
    for major in [15, 16, 18] {
        as_postgres(move || async move {
            let lab = Lab::new(major);
            let mut settings = lab.settings(0);
            settings.member = "it's\\pg-0".into();
            user_file(
                &lab,
                &mut settings,
                "20.conf",
                "work_mem = '5MB'\nport = 1\nmax_wal_senders = 20\n",
            );
            user_file(
                &lab,
                &mut settings,
                "10.conf",
                "work_mem = '3MB'\nhot_standby = off\n",
            );
            user_file(&lab, &mut settings, "notes.txt", "no configuration");
            initdb::run(&settings).await.expect("initdb");
            let auto_conf = settings.data_directory.join("postgresql.auto.conf");
            let kept = "# by hand\nmaintenance_work_mem = '77MB'\n";
            fs::write(
                &auto_conf,
                format!("listen_addresses = '*'\n{kept}PORT = '2'\ncluster_name 'x'\n"),
            )
            .expect("write");
            let server = Server::start(settings, ServerRole::alone()).await;
            for (name, expected) in [
                ("work_mem", "5MB"),
                ("max_wal_senders", "20"),
                ("maintenance_work_mem", "77MB"),
                ("wal_log_hints", "on"),
                ("cluster_name", "it's\\pg-0"),
                ("hot_standby", "on"),
                ("port", "5432"),
                ("primary_conninfo", ""),
                ("listen_addresses", server.settings.listen_addresses.as_str()),
                ("password_encryption", "scram-sha-256"),
            ] {
                assert_eq!(server.query(&format!("SHOW {name}")).await, expected, "{name}");
            }
            assert_eq!(fs::read_to_string(&auto_conf).expect("read"), kept);
            assert_eq!(
                server
                    .query("SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL")
                    .await,
                "0"
            );
            assert_eq!(
                server
                    .query("SELECT count(*) FROM pg_file_settings WHERE error IS NOT NULL")
                    .await,
                "0"
            );
            only_named_variables(&server);
            server.stop().await;
        });
    }
}

fn only_named_variables(server: &Server) {
    let pid = server.child.id().expect("running");
    let environment = fs::read(format!("/proc/{pid}/environ")).expect("environ");
    for variable in String::from_utf8_lossy(&environment)
        .split('\0')
        .filter(|v| !v.is_empty())
    {
        let name = variable.split('=').next().unwrap_or_default();
        let known = [
            "PATH",
            "HOME",
            "LANG",
            "TZ",
            "LD_LIBRARY_PATH",
            "PGDATA",
            "PG_GRANDPARENT_PID",
        ];
        assert!(
            known.contains(&name) || name.starts_with("LC_"),
            "{name} reached PostgreSQL"
        );
    }
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).expect("cmdline");
    assert!(!String::from_utf8_lossy(&arguments).contains("geheim"));
}

#[test]
fn what_endangers_the_cluster_is_refused_and_the_old_file_stays() {
    as_postgres(|| async {
        let lab = Lab::new(15);
        let mut settings = lab.settings(0);
        initdb::run(&settings).await.expect("initdb");
        conf::write(&settings, &ServerRole::alone()).await.expect("write");
        let good = fs::read_to_string(conf::path(&settings)).expect("read");
        for (line, expected) in [
            (
                "max_slot_wal_keep_size = -1",
                "setting \"max_slot_wal_keep_size\" cannot be \"-1\"",
            ),
            (
                "wal_level = minimal\nmax_wal_senders = 0",
                "setting \"wal_level\" cannot be \"minimal\"",
            ),
            (
                "wrok_mem = 1",
                "unrecognized configuration parameter \"wrok_mem\"",
            ),
            ("work_mem = 'x", "syntax error"),
        ] {
            user_file(&lab, &mut settings, "a.conf", line);
            let error = conf::write(&settings, &ServerRole::alone())
                .await
                .expect_err(line);
            assert!(
                error.refused() && describe(&error).contains(expected),
                "{}",
                describe(&error)
            );
            assert_eq!(fs::read_to_string(conf::path(&settings)).expect("read"), good);
        }
        user_file(&lab, &mut settings, "a.conf", "max_slot_wal_keep_size = 1GB");
        conf::write(&settings, &ServerRole::alone())
            .await
            .expect("a limit may be chosen");
        fs::write(
            settings.data_directory.join("postgresql.auto.conf"),
            "max_slot_wal_keep_size = '-1'\n",
        )
        .expect("write");
        let error = conf::write(&settings, &ServerRole::alone())
            .await
            .expect_err("ALTER SYSTEM");
        assert!(matches!(error, ConfigurationError::Setting { .. }), "{error}");
    });
}

#[test]
fn generated_files_are_private() {
    as_postgres(|| async {
        let lab = Lab::new(15);
        let settings = lab.settings(0);
        initdb::run(&settings).await.expect("initdb");
        let role = ServerRole::Standby {
            upstream: Some(upstream()),
        };
        conf::write(&settings, &role).await.expect("write");
        let mode = |path: std::path::PathBuf| fs::metadata(path).expect("stat").permissions().mode() & 0o7777;
        assert_eq!(mode(settings.run_directory.clone()), 0o700);
        assert_eq!(mode(conf::path(&settings)), 0o600);
        assert_eq!(mode(passfile::path(&settings)), 0o600);
        let text = fs::read_to_string(conf::path(&settings)).expect("read");
        assert!(
            text.contains("hostaddr=127.0.0.9") && !text.contains("geheim"),
            "{text}"
        );
        assert!(text.contains("primary_slot_name = 'podgres_pg_0'"), "{text}");
    });
}

#[test]
fn row_67_a_standbys_directory_is_not_started_as_a_primary() {
    as_postgres(|| async {
        let lab = Lab::new(15);
        let settings = lab.settings(0);
        initdb::run(&settings).await.expect("initdb");
        let standby = ServerRole::Standby { upstream: None };
        signal_file::prepare_role(&settings, &ServerRole::alone())
            .await
            .expect("primary");
        signal_file::prepare_role(&settings, &standby)
            .await
            .expect("standby");
        signal_file::prepare_role(&settings, &standby)
            .await
            .expect("twice");
        assert!(settings.data_directory.join("standby.signal").exists());
        let error = signal_file::prepare_role(&settings, &ServerRole::alone())
            .await
            .expect_err("primary");
        assert!(
            matches!(error, ConfigurationError::StandbySignal { .. }),
            "{error}"
        );
        assert!(settings.data_directory.join("standby.signal").exists());
    });
}

#[test]
fn the_users_rules_follow_podgres_own() {
    as_postgres(|| async {
        let lab = Lab::new(16);
        let mut settings = lab.settings(0);
        settings.superuser = login("admin", "p");
        user_file(
            &lab,
            &mut settings,
            "pg_hba.conf",
            "host all all all reject\nlocal all all trust",
        );
        initdb::run(&settings).await.expect("initdb");
        let server = Server::start(settings, ServerRole::alone()).await;
        let rules = "SELECT string_agg(type || ' ' || array_to_string(user_name, ',') || ' ' || auth_method, '; ' \
                     ORDER BY line_number) FROM pg_hba_file_rules";
        assert_eq!(
            server.query(rules).await,
            "host podgres_replication scram-sha-256; host podgres_replication scram-sha-256; \
             host podgres_replication scram-sha-256; host podgres_replication scram-sha-256; \
             host admin scram-sha-256; host admin scram-sha-256; host all reject; local all trust"
        );
    });
}
