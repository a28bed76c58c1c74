//! What is said about directories of every kind.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use podgres::core::data_directory::{ControlState, DataDirectory};
use podgres::core::supervision::ServerRole;
use podgres::postgres::{data_directory, initdb};
use rustix::process::Signal;

use super::lab::{Lab, Server, as_postgres, facts, signal};

#[test]
fn directories_that_are_none_are_told_apart() {
    as_postgres(|| async {
        let lab = Lab::new(15);
        let settings = lab.settings(0);
        let inspect = async || data_directory::inspect(&settings).await.expect("inspect");
        let detail = async || match inspect().await {
            DataDirectory::Unusable { detail } => detail,
            other => panic!("{other:?}"),
        };
        let pgdata = &settings.data_directory;
        assert_eq!(inspect().await, DataDirectory::Empty);
        fs::create_dir(pgdata).expect("mkdir");
        assert_eq!(inspect().await, DataDirectory::Empty);
        fs::create_dir(pgdata.join("lost+found")).expect("mkdir");
        assert_eq!(inspect().await, DataDirectory::Empty);

        fs::write(pgdata.join("PG_VERSION"), "15\n").expect("write");
        assert_eq!(
            detail().await,
            "holds \"PG_VERSION\", but no \"global/pg_control\""
        );
        fs::create_dir(pgdata.join("global")).expect("mkdir");
        fs::write(pgdata.join("global/pg_control"), [0; 8192]).expect("write");
        assert!(detail().await.contains("damaged"), "{}", detail().await);
        fs::write(pgdata.join("global/pg_control"), "").expect("write");
        assert!(detail().await.contains("pg_controldata"), "{}", detail().await);
        fs::remove_file(pgdata.join("PG_VERSION")).expect("remove");
        assert!(detail().await.contains("PG_VERSION"));

        fs::remove_dir_all(pgdata).expect("remove");
        fs::write(pgdata, "").expect("write");
        assert_eq!(detail().await, "is not a directory");
    });
}

#[test]
fn a_cluster_is_described_on_every_version() {
    for major in [15, 16, 18] {
        as_postgres(move || async move {
            let lab = Lab::new(major);
            let settings = lab.settings(0);
            initdb::run(&settings).await.expect("initdb");
            let new = facts(&settings).await;
            assert_eq!(new.major_version, major);
            assert_eq!(new.timeline.0, 1);
            assert_eq!(new.control_state, ControlState::ShutDown);
            assert!(!new.standby_signal && !new.recovery_signal && !new.backup_label);

            let server = Server::start(settings.clone(), ServerRole::alone()).await;
            let identifier = server
                .query("SELECT system_identifier FROM pg_control_system()")
                .await;
            assert_eq!(identifier, new.system_identifier.to_string());
            signal(server.child.id().expect("running"), Signal::KILL);
            drop(server);
            let killed = facts(&settings).await;
            assert_eq!(killed.control_state, ControlState::InProduction);
            assert!(killed.control_lsn >= new.control_lsn);
            fs::write(settings.data_directory.join("standby.signal"), "").expect("write");
            fs::write(settings.data_directory.join("backup_label"), "").expect("write");
            let signalled = facts(&settings).await;
            assert!(signalled.standby_signal && signalled.backup_label);
        });
    }
}

#[test]
fn the_version_is_the_directorys_not_the_programs() {
    as_postgres(|| async {
        let lab = Lab::new(15);
        let mut settings = lab.settings(0);
        initdb::run(&settings).await.expect("initdb");
        settings.program_directory = Lab::new(18).programs;
        assert_eq!(facts(&settings).await.major_version, 15);
    });
}

#[test]
fn row_76_a_mode_from_fsgroup_is_repaired() {
    as_postgres(|| async {
        let lab = Lab::new(15);
        let settings = lab.settings(0);
        data_directory::repair_mode(&settings)
            .await
            .expect("absent is fine");
        initdb::run(&settings).await.expect("initdb");
        let volume = settings.data_directory.parent().expect("parent");
        for path in [volume, &settings.data_directory] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o2770)).expect("chmod");
        }
        // Server::start repairs the mode; without that PostgreSQL would refuse.
        Server::start(settings.clone(), ServerRole::alone())
            .await
            .stop()
            .await;
        let mode = |path: &std::path::Path| fs::metadata(path).expect("stat").permissions().mode() & 0o7777;
        assert_eq!(mode(&settings.data_directory), 0o700);
        assert_eq!(mode(volume), 0o2770, "the parent must stay as it is");
    });
}
