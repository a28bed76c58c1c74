//! Mounted files that are refused, where a server needs its configuration nevertheless.

use std::fs;
use std::path::{Path, PathBuf};

use podgres::core::supervision::ServerRole;
use podgres::postgres::error::describe;
use podgres::postgres::given::{Given, Source, give};
use podgres::postgres::{ServerSettings, conf, initdb};

use super::lab::{Lab, Server, as_postgres};

const ALONE: ServerRole = ServerRole::Standby { upstream: None };

struct Mounted {
    lab: Lab,
    settings: ServerSettings,
}

impl Mounted {
    /// A member with a user's folder and one for TLS, whose configuration has never been written.
    async fn new() -> Self {
        let lab = Lab::new(15);
        let mut settings = lab.settings(0);
        initdb::run(&settings).await.expect("initdb");
        let [conf, tls] = ["conf", "tls"].map(|name| lab.folder.path().join(name));
        for folder in [&conf, &tls] {
            fs::create_dir(folder).expect("mkdir");
        }
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            fs::write(tls.join(name), name).expect("write");
        }
        settings.user_configuration = Some(conf);
        settings.tls = Some(tls);
        Self { lab, settings }
    }

    fn put(&self, name: &str, content: &str) {
        fs::write(self.lab.folder.path().join(name), content).expect("write");
    }

    async fn give(&self, source: Source) -> Result<Given, String> {
        let given = give(&self.settings, &ALONE, source).await;
        given.map_err(|error| describe(&error))
    }

    /// What is given in `source`'s stead, and the complaint about the files as they are.
    async fn refused(&self, accepted: Given) -> String {
        let error = self.give(Source::Mounted).await.expect_err("refused");
        let given = self
            .give(Source::MountedOrAccepted)
            .await
            .expect("the accepted ones");
        assert_eq!((given.files, given.refused), (accepted.files, true));
        error
    }

    async fn accepted(&self) -> Given {
        let given = self.give(Source::MountedOrAccepted).await.expect("accepted");
        assert!(!given.refused);
        given
    }

    /// What a server reads besides PGDATA's own: the lines of the files that are included, and who may connect.
    fn read(&self) -> String {
        let run = |name: &str| fs::read_to_string(self.settings.run_directory.join(name)).expect("read");
        let includes: Vec<PathBuf> = run("postgresql.conf")
            .lines()
            .filter_map(|line| line.strip_prefix("include '")?.strip_suffix('\''))
            .map(PathBuf::from)
            .collect();
        assert!(
            includes
                .iter()
                .all(|file| file.starts_with(&self.settings.run_directory))
        );
        let texts = includes
            .iter()
            .map(|file| fs::read_to_string(file).expect("read"));
        texts.chain([run("pg_hba.conf")]).collect()
    }
}

#[test]
fn a_role_waited_for_mounted_files_that_postgresql_refuses() {
    as_postgres(|| async {
        let member = Mounted::new().await;
        member.put("conf/a.conf", "wrok_mem = 1\n");
        let error = member
            .give(Source::MountedOrAccepted)
            .await
            .expect_err("a new pod");
        assert!(error.contains("wrok_mem"), "{error}");
        member.put("conf/a.conf", "work_mem = '5MB'\n");
        member.put("conf/b.conf", "maintenance_work_mem = '33MB'\n");
        member.put("conf/pg_hba.conf", "local all all reject\n");
        let first = member.accepted().await;

        member.put("conf/pg_hba.conf", "local all all trust\n");
        for (line, reason) in [
            (
                "wrok_mem = 1\n",
                "unrecognized configuration parameter \"wrok_mem\"",
            ),
            (
                "max_slot_wal_keep_size = -1\n",
                "setting \"max_slot_wal_keep_size\" cannot be \"-1\"",
            ),
        ] {
            member.put("conf/a.conf", line);
            let error = member.refused(first).await;
            assert!(error.contains(reason), "{error}");
            let read = member.read();
            assert!(
                read.contains("'5MB'") && read.contains("'33MB'") && read.contains("reject"),
                "{read}"
            );
        }
        member.put("conf/a.conf", "work_mem = 'x\n");
        let file = member
            .settings
            .user_configuration
            .as_ref()
            .expect("a folder")
            .join("a.conf");
        let error = member.refused(first).await;
        assert!(error.contains(&file.display().to_string()), "{error}");

        member.put("conf/a.conf", "work_mem = '7MB'\n");
        fs::remove_file(file.with_file_name("b.conf")).expect("remove");
        assert_ne!(member.accepted().await.files, first.files);
        let read = member.read();
        assert!(
            read.contains("'7MB'") && !read.contains("'33MB'") && read.contains("trust"),
            "{read}"
        );
    });
}

#[test]
fn a_role_waited_for_mounted_files_that_cannot_be_read() {
    as_postgres(|| async {
        let member = Mounted::new().await;
        member.put("conf/a.conf", "work_mem = '5MB'\n");
        let key = member.lab.folder.path().join("tls/tls.key");
        let without = |key: &Path| fs::remove_file(key).expect("remove");
        without(&key);
        let error = member
            .give(Source::MountedOrAccepted)
            .await
            .expect_err("a new pod");
        assert!(error.contains("tls.key"), "{error}");
        member.put("tls/tls.key", "first");
        let first = member.accepted().await;
        without(&key);
        member.put("tls/tls.crt", "second");
        member.put("conf/a.conf", "work_mem = '6MB'\n");
        let error = member.refused(first).await;
        assert!(error.contains("tls.key"), "{error}");
        assert!(member.read().contains("'5MB'"));
        for (name, content) in [("tls.crt", "tls.crt"), ("tls.key", "first")] {
            let copy = member.settings.run_directory.join(name);
            assert_eq!(fs::read_to_string(copy).expect("read"), content);
        }
        let folder = member.settings.user_configuration.as_ref().expect("a folder");
        fs::rename(folder, folder.with_extension("away")).expect("rename");
        member.refused(first).await;
    });
}

#[test]
fn a_role_waited_for_what_alter_system_had_said() {
    as_postgres(|| async {
        let lab = Lab::new(16);
        let settings = lab.settings(0);
        initdb::run(&settings).await.expect("initdb");
        conf::write(&settings, &ServerRole::alone()).await.expect("write");
        let server = Server::start(settings.clone(), ServerRole::alone()).await;
        server.query("ALTER SYSTEM SET max_slot_wal_keep_size = -1").await;
        server.stop().await;
        for _ in 0..2 {
            let error = give(&settings, &ALONE, Source::Mounted)
                .await
                .expect_err("endangered");
            assert!(describe(&error).contains("max_slot_wal_keep_size"), "{error}");
            let given = give(&settings, &ALONE, Source::MountedOrAccepted).await;
            assert!(given.expect("the role comes first").refused);
        }
    });
}

/// Relative to where they stand.
#[test]
fn includes_of_the_users_files_are_found() {
    as_postgres(|| async {
        let mut member = Mounted::new().await;
        member.settings.tls = None;
        member.put("conf/a.conf", "include 'more'\n");
        member.put("conf/more", "work_mem = '9MB'\n");
        let server = Server::start(member.settings.clone(), ServerRole::alone()).await;
        assert_eq!(server.query("SHOW work_mem").await, "9MB");
        server.stop().await;
        member.put("conf/more", "wrok_mem = '9MB'\n");
        let error = member.give(Source::MountedOrAccepted).await.expect_err("no copy");
        assert!(error.contains("wrok_mem"), "{error}");
    });
}
