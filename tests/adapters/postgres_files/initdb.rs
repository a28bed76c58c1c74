//! A new cluster, from nothing to a server that knows its logins.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use podgres::core::supervision::ServerRole;
use podgres::postgres::error::{JobError, describe};
use podgres::postgres::{ServerSettings, initdb};

use super::lab::{
    Lab, REPLICATION_PASSWORD, SUPERUSER_PASSWORD, Server, absent_or_complete, as_postgres, connect,
    files_with, login, names,
};

fn script(settings: &ServerSettings, name: &str, content: impl AsRef<[u8]>) {
    fs::create_dir_all(&settings.initdb_scripts).expect("mkdir");
    fs::write(settings.initdb_scripts.join(name), content).expect("write");
}

fn compress(program: &str, text: &str) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().expect("file");
    fs::write(file.path(), text).expect("write");
    let output = std::process::Command::new(program)
        .arg("-c")
        .stdin(fs::File::open(file.path()).expect("open"))
        .output()
        .expect(program);
    assert!(output.status.success());
    output.stdout
}

fn no_traces(settings: &ServerSettings) {
    let volume = settings.data_directory.parent().expect("parent");
    assert_eq!(names(volume), ["data"]);
    assert!(
        !settings.run_directory.join("initdb").exists(),
        "the private directory is left"
    );
}

fn scripts(settings: &ServerSettings) {
    script(
        settings,
        "10.sql",
        "CREATE TABLE steps (name text);\nINSERT INTO steps VALUES ('sql');",
    );
    script(
        settings,
        "20.sh",
        "set -u\ndocker_process_sql -c \"INSERT INTO steps VALUES ('sourced in $PGDATA')\"\n\
         env > \"$PGHOST/../environment\"\n",
    );
    script(
        settings,
        "30.sh",
        "#!/bin/sh\nexec psql -v ON_ERROR_STOP=1 -U \"$POSTGRES_USER\" -d \"$POSTGRES_DB\" \
         -c \"INSERT INTO steps VALUES ('executed')\"\n",
    );
    let executable = settings.initdb_scripts.join("30.sh");
    fs::set_permissions(executable, fs::Permissions::from_mode(0o755)).expect("chmod");
    let step = |name: &str| format!("INSERT INTO steps VALUES ('{name}');\n");
    script(settings, "40.sql.gz", compress("gzip", &step("gz")));
    script(settings, "50.sql.xz", compress("xz", &step("xz")));
    script(settings, "60.sql.zst", compress("zstd", &step("zst")));
    script(settings, "70.txt", "not run");
    script(settings, ".hidden.sql", "not even SQL");
}

#[test]
fn a_new_cluster_has_its_database_role_and_scripts() {
    for major in [15, 16, 18] {
        as_postgres(move || async move {
            let lab = Lab::new(major);
            let mut settings = lab.settings(0);
            settings.superuser = login("Ad min-1", SUPERUSER_PASSWORD);
            settings.replication = login("re'pl \"x\\", REPLICATION_PASSWORD);
            settings.database = "Shop \"1\"".into();
            settings.initdb_arguments = vec!["--wal-segsize=4".into(), "--lc-messages=C".into()];
            scripts(&settings);
            initdb::run(&settings).await.expect("initdb");
            no_traces(&settings);
            for secret in [SUPERUSER_PASSWORD, REPLICATION_PASSWORD] {
                assert_eq!(
                    files_with(lab.folder.path(), secret),
                    Vec::<std::path::PathBuf>::new()
                );
            }
            let environment =
                fs::read_to_string(settings.run_directory.join("environment")).expect("environment");
            assert!(environment.contains("POSTGRES_DB=Shop \"1\"\n"), "{environment}");
            assert!(!environment.contains("PASSWORD"), "{environment}");

            let server = Server::start(settings, ServerRole::alone()).await;
            logins_work(&server).await;
            assert_eq!(server.query("SHOW data_checksums").await, "on");
            assert_eq!(server.query("SHOW wal_segment_size").await, "4MB");
            steps_ran(&server).await;
            server.stop().await;
        });
    }
}

async fn logins_work(server: &Server) {
    let replication = &server.settings.replication;
    assert!(
        connect(&server.settings, &replication.user, REPLICATION_PASSWORD)
            .await
            .is_ok()
    );
    assert!(
        connect(&server.settings, &replication.user, "wrong")
            .await
            .is_err()
    );
    assert!(
        connect(&server.settings, &server.settings.superuser.user, "wrong")
            .await
            .is_err()
    );
    let stored = server
        .query("SELECT bool_and(rolpassword LIKE 'SCRAM-SHA-256$%') FROM pg_authid WHERE rolcanlogin")
        .await;
    assert_eq!(stored, "t");
}

async fn steps_ran(server: &Server) {
    let (client, connection) = tokio_postgres::Config::new()
        .host(server.settings.local_address.to_string())
        .port(server.settings.port)
        .user(&server.settings.superuser.user)
        .password(SUPERUSER_PASSWORD)
        .dbname("Shop \"1\"")
        .connect(tokio_postgres::NoTls)
        .await
        .expect("connect");
    tokio::spawn(connection);
    let rows = client.query("SELECT name FROM steps", &[]).await.expect("steps");
    let steps: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert!(steps[1].starts_with("sourced in ") && steps[1].ends_with(".podgres-staging"));
    assert_eq!(
        (steps[0].as_str(), &steps[2..]),
        (
            "sql",
            ["executed", "gz", "xz", "zst"].map(String::from).as_slice()
        )
    );
}

#[test]
fn row_65_a_failing_script_leaves_nothing_and_the_next_run_completes() {
    as_postgres(|| async {
        let lab = Lab::new(15);
        let settings = lab.settings(0);
        for (name, content, expected) in [
            ("1.sql", "SELECT 1;\nSELEKT 2;\n".as_bytes(), "syntax error"),
            (
                "1.sh",
                b"echo from the script >&2; false; echo not reached".as_slice(),
                "from the script",
            ),
            ("1.sql.gz", b"no archive".as_slice(), "not in gzip format"),
        ] {
            script(&settings, name, content);
            let error = initdb::run(&settings).await.expect_err(name);
            assert!(describe(&error).contains(expected), "{}", describe(&error));
            assert!(!error.refused());
            assert!(!absent_or_complete(&settings).await);
            assert!(names(settings.data_directory.parent().expect("parent")).is_empty());
            fs::remove_file(settings.initdb_scripts.join(name)).expect("remove");
        }
        initdb::run(&settings).await.expect("initdb");
        no_traces(&settings);
    });
}

#[test]
fn data_and_dangerous_arguments_are_refused() {
    as_postgres(|| async {
        let lab = Lab::new(15);
        let mut settings = lab.settings(0);
        settings.initdb_arguments = vec!["--waldir=/elsewhere".into()];
        let error = initdb::run(&settings).await.expect_err("waldir");
        assert!(
            error.refused() && error.to_string().contains("--waldir"),
            "{error}"
        );
        settings.initdb_arguments.clear();
        settings.superuser = login("ad\"min", SUPERUSER_PASSWORD);
        let error = initdb::run(&settings).await.expect_err("quote");
        assert!(
            error.refused() && error.to_string().contains("cannot contain a quote"),
            "{error}"
        );
        settings.superuser = login("postgres", SUPERUSER_PASSWORD);
        fs::create_dir(&settings.data_directory).expect("mkdir");
        fs::write(settings.data_directory.join("precious"), "data").expect("write");
        let error = initdb::run(&settings).await.expect_err("not empty");
        assert!(
            matches!(&error, JobError::NotEmpty { found, .. } if found == "\"precious\""),
            "{error}"
        );
        assert!(error.refused());
        assert_eq!(
            fs::read_to_string(settings.data_directory.join("precious")).expect("read"),
            "data"
        );
    });
}

#[test]
fn initdbs_own_words_reach_the_message() {
    as_postgres(|| async {
        let lab = Lab::new(15);
        let mut settings = lab.settings(0);
        settings.initdb_arguments = vec!["--locale=xx_YY".into()];
        let error = initdb::run(&settings).await.expect_err("no such locale");
        assert!(
            error.to_string().contains("invalid locale name \"xx_YY\""),
            "{error}"
        );
        assert!(!error.to_string().contains("geheim"));
        assert!(!absent_or_complete(&settings).await);
    });
}

#[test]
fn missing_parents_are_made_and_existing_ones_left() {
    as_postgres(|| async {
        let lab = Lab::new(18);
        let mut settings = lab.settings(0);
        let volume = settings
            .data_directory
            .parent()
            .map(Path::to_owned)
            .expect("parent");
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o755)).expect("chmod");
        settings.data_directory = volume.join("18/docker");
        initdb::run(&settings).await.expect("initdb");
        assert!(absent_or_complete(&settings).await);
        assert_eq!(
            fs::metadata(&volume).expect("stat").permissions().mode() & 0o7777,
            0o755
        );
    });
}
