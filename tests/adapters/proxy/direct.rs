//! Direct TLS (`sslnegotiation=direct`) through a route that passes TLS on, with a libpq and a server that speak it: psycopg's own libpq, and
//! PostgreSQL 17 built with TLS. PostgreSQL 15 closes such connections.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use podgres::core::routing::Server;
use podgres::proxy::Limits;
use tokio::time::timeout;

use super::cluster::{Cluster, DOMAIN, PASSWORD, cluster, loopback, member};
use super::routes::{PATIENCE, Route, until};
use crate::user::{give_away, run_as_server_user, temporary_directory};

/// Logs in with channel binding, asks where it is, and cancels a query of its own, all in direct TLS.
const CLIENT: &str = "
import sys, threading, psycopg
assert psycopg.pq.version() >= 170000, psycopg.pq.version()
with psycopg.connect(sys.argv[1], autocommit=True) as session:
    asked = 'SELECT ssl, current_setting(%s)::int / 10000 FROM pg_stat_ssl WHERE pid = pg_backend_pid()'
    print(*session.execute(asked, ['server_version_num']).fetchone())
    again = threading.Timer(0.2, lambda: [session.cancel_safe(timeout=5) for _ in range(3)])
    again.start()
    try:
        session.execute('SELECT pg_sleep(60)')
    except psycopg.errors.QueryCanceled:
        print('cancelled')
    again.join()
";

/// psycopg, and PostgreSQL 17; got with the first call.
fn clients() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target");
    let folder = target.join("clients");
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/clients");
    let installed = Command::new(tool).arg(&folder).status();
    assert!(installed.expect("tests/tools/clients").success());
    folder
}

/// One server, stopped with the test.
struct Newer {
    postmaster: Child,
    _directory: tempfile::TempDir,
}

impl Newer {
    fn start(programs: &Path, cluster: &Cluster, server: &Server) -> Self {
        let directory = temporary_directory();
        let (data, password) = (directory.path().join("data"), directory.path().join("password"));
        std::fs::write(&password, PASSWORD).expect("password");
        give_away(&password);
        // Where the server's user may not go to the programs, a copy is made that it may run.
        let own = directory.path().join("native");
        let copied = Command::new("cp").arg("-a").args([programs, &own]).status();
        assert!(copied.expect("cp").success());
        let program = |name: &str| {
            let mut command = Command::new(own.join("bin").join(name));
            run_as_server_user(&mut command)
                .env_clear()
                .env("LC_ALL", "C")
                .current_dir(directory.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null());
            command
        };
        let made = program("initdb")
            .args([
                "-U",
                "app",
                "-A",
                "scram-sha-256",
                "-E",
                "UTF8",
                "--no-locale",
                "-N",
                "-D",
            ])
            .arg(&data)
            .arg("--pwfile")
            .arg(&password)
            .status();
        assert!(made.expect("initdb").success());
        std::fs::write(data.join("pg_hba.conf"), "hostssl all all all scram-sha-256\n").expect("hba");
        let settings = format!(
            "listen_addresses = '{}'\nport = {}\nunix_socket_directories = ''\nfsync = off\nshared_buffers = 16MB\n\
             ssl = on\nssl_cert_file = '{}'\nssl_key_file = '{}'\n",
            server.address.ip(),
            server.address.port(),
            cluster.tls().join("tls.crt").display(),
            cluster.tls().join("tls.key").display(),
        );
        std::fs::write(data.join("postgresql.auto.conf"), settings).expect("settings");
        let postmaster = program("postgres")
            .arg("-D")
            .arg(&data)
            .stderr(Stdio::null())
            .spawn();
        Self {
            postmaster: postmaster.expect("postgres"),
            _directory: directory,
        }
    }
}

impl Drop for Newer {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.postmaster);
        // It may have ended by itself.
        rustix::process::kill_process(pid, rustix::process::Signal::QUIT).ok();
        drop(self.postmaster.wait());
    }
}

/// What the client prints, or why it fails.
async fn client(clients: &Path, cluster: &Cluster, route: &Route) -> Result<String, String> {
    let password = PASSWORD.replace('\\', "\\\\").replace('\'', "\\'");
    let authority = cluster.tls().join("ca.crt");
    let conninfo = format!(
        "host=any.{DOMAIN} hostaddr={} port={} dbname=postgres user=app password='{password}' sslnegotiation=direct \
         sslmode=verify-full sslrootcert={} channel_binding=require connect_timeout=10",
        route.address.ip(),
        route.address.port(),
        authority.display(),
    );
    let python = tokio::process::Command::new(clients.join("python/bin/python"))
        .args(["-c", CLIENT, &conninfo])
        .stdin(Stdio::null())
        .output();
    let output = timeout(PATIENCE, python).await.expect("in time").expect("python");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn libpq_and_postgresql_17_agree_on_direct_tls_through_the_route() {
    let (cluster, clients) = (cluster(), clients());
    let mut server = member(0);
    server.address.set_ip(loopback(98));
    let programs = clients.join("postgresql17");
    let _newer = Newer::start(&programs, &cluster, &server);
    until("it listens", || {
        std::net::TcpStream::connect(server.address).is_ok()
    })
    .await;
    let write = Route::read_write(Limits::default(), vec![server]).await;
    let said = client(&clients, &cluster, &write).await;
    assert_eq!(said.as_deref(), Ok("True 17\ncancelled\n"));

    // No fallback: what is asked for is direct TLS and nothing else.
    let older = Route::read_write(Limits::default(), vec![member(0)]).await;
    let refused = client(&clients, &cluster, &older).await;
    let reason = refused.expect_err("PostgreSQL 15 does not speak it");
    assert!(
        reason.contains("SSL error") || reason.contains("closed the connection"),
        "{reason}"
    );
}
