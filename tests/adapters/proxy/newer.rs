//! A server newer than the others: PostgreSQL 18, built with TLS; and psycopg with a libpq as new.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use podgres::core::routing::Server;

use super::cluster::{Cluster, PASSWORD, loopback, member};
use super::routes::PATIENCE;
use crate::user::{give_away, run_as_server_user, temporary_directory};

const HBA: &str = "
host template1 app all trust
hostssl all all all scram-sha-256
";

/// psycopg, and PostgreSQL 18; got with the first call.
pub(super) fn clients() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target");
    let folder = target.join("clients");
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/clients");
    let installed = Command::new(tool).arg(&folder).status();
    assert!(installed.expect("tests/tools/clients").success());
    folder
}

/// One server, stopped with the last of the tests that use it.
pub(super) struct Newer {
    /// As a route is told of it: the primary.
    pub(super) server: Server,
    postmaster: Child,
    _directory: tempfile::TempDir,
    _cluster: Arc<Cluster>,
}

static SHARED: Mutex<Weak<Newer>> = Mutex::new(Weak::new());

/// The server that other tests use now, or a new one, with the certificate of `cluster`.
///
/// Into `template1` it lets `app` without a password, into other databases with TLS alone.
pub(super) fn newer(clients: &Path, cluster: &Arc<Cluster>) -> Arc<Newer> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let newer = Arc::new(Newer::start(&clients.join("postgresql18"), cluster));
        *shared = Arc::downgrade(&newer);
        newer
    })
}

impl Newer {
    fn start(programs: &Path, cluster: &Arc<Cluster>) -> Self {
        let mut server = member(0);
        server.address.set_ip(loopback(98));
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
        std::fs::write(data.join("pg_hba.conf"), HBA).expect("hba");
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
        let limit = Instant::now() + PATIENCE;
        let ready = || {
            let said = std::fs::read_to_string(data.join("postmaster.pid"));
            said.is_ok_and(|said| said.lines().nth(7).is_some_and(|state| state.trim() == "ready"))
        };
        while !ready() {
            assert!(Instant::now() < limit, "it does not take connections");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self {
            server,
            postmaster: postmaster.expect("postgres"),
            _directory: directory,
            _cluster: Arc::clone(cluster),
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
