//! Three PostgreSQL servers: a primary and a standby with TLS, and a standby without.
//!
//! Shared by the tests that run at the same time, stopped and removed with the last of them.

use std::fs::{self, Permissions};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use podgres::core::routing::Server;
use podgres::core::status::Role;

use crate::authority::Authority;
use crate::postgresql::programs_with_tls;
use crate::user::{self, run_as_server_user};

pub(super) const PASSWORD: &str = "se'cret \\ passwörd";

/// Every member's certificate is for the names in this domain, and for the address of the routes.
pub(super) const DOMAIN: &str = "podgres.test";

/// The last byte of the address that all routes have.
pub(super) const ROUTES: u8 = 200;

const CONFIGURATION: &str = "
port = 5432
fsync = off
shared_buffers = 16MB
max_connections = 260
max_wal_senders = 5
wal_keep_size = 64MB
";
const HBA: &str = "
local all all trust
host replication postgres all trust
host all quick all trust
host all postgres all trust
host all all all scram-sha-256
host replication all all scram-sha-256
";

pub(super) struct Cluster {
    pub(super) authority: Authority,
    pub(super) directory: tempfile::TempDir,
    running: Vec<PathBuf>,
}

static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

/// The cluster that other tests use now, or a new one.
pub(super) fn cluster() -> Arc<Cluster> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let cluster = Arc::new(Cluster::start());
        *shared = Arc::downgrade(&cluster);
        cluster
    })
}

/// An address that no other test process uses.
pub(super) fn loopback(last: u8) -> IpAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    IpAddr::from([127, 64 + high % 64, low, last])
}

/// Member `n` as the agent would tell it: 0 is the primary, 1 and 2 are standbys, 2 without TLS.
pub(super) fn member(n: u8) -> Server {
    Server {
        name: format!("pg-{n}"),
        address: SocketAddr::new(loopback(n + 1), 5432),
        role: if n == 0 { Role::Primary } else { Role::Standby },
        streaming: true,
        http_address: SocketAddr::new(loopback(n + 1), 8008),
        lag_bytes: Some(0),
        staleness_ms: Some(0),
        leaving: false,
        answering: true,
        incarnation: 1,
    }
}

impl Cluster {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o711)).expect("mode");
        let mut cluster = Self {
            authority: Authority::new("routes"),
            directory,
            running: Vec::new(),
        };
        cluster.make_certificate();
        cluster.start_primary();
        cluster.start_standby(1, "on");
        cluster.start_standby(2, "off");
        cluster
    }

    /// Runs SQL as superuser on member `n`, around the routes.
    pub(super) fn admin(&self, n: u8, sql: &str) -> String {
        let socket = self.member_directory(n);
        let socket = socket.to_str().expect("path");
        run(
            "psql",
            &[
                "-XAtq",
                "-v",
                "ON_ERROR_STOP=1",
                "-h",
                socket,
                "-d",
                "postgres",
                "-c",
                sql,
            ],
        )
    }

    /// The folder with the servers' certificate and key, and the authority's certificate.
    pub(super) fn tls(&self) -> PathBuf {
        self.directory.path().join("tls")
    }

    fn member_directory(&self, n: u8) -> PathBuf {
        self.directory.path().join(format!("pg-{n}"))
    }

    fn make_member_directory(&self, n: u8) -> PathBuf {
        let directory = self.member_directory(n);
        fs::create_dir(&directory).expect("directory");
        give_away(&directory, 0o700);
        directory.join("data")
    }

    fn make_certificate(&self) {
        let folder = self.tls();
        fs::create_dir(&folder).expect("directory");
        fs::set_permissions(&folder, Permissions::from_mode(0o711)).expect("mode");
        let names = format!("DNS:{DOMAIN},DNS:*.{DOMAIN},IP:{}", loopback(ROUTES));
        self.authority.issue(&folder, &names);
        fs::copy(
            self.authority.directory.path().join("ca.crt"),
            folder.join("ca.crt"),
        )
        .expect("authority");
        for (file, mode) in [("tls.key", 0o600), ("tls.crt", 0o644), ("ca.crt", 0o644)] {
            give_away(&folder.join(file), mode);
        }
    }

    fn start_primary(&mut self) {
        let data = self.make_member_directory(0);
        let path = data.to_str().expect("path");
        run(
            "initdb",
            &[
                "-D",
                path,
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-locale",
                "-N",
            ],
        );
        let configuration = fs::read_to_string(data.join("postgresql.conf")).expect("configuration");
        let tls = format!(
            "ssl_cert_file = '{}'\nssl_key_file = '{}'\n",
            self.tls().join("tls.crt").display(),
            self.tls().join("tls.key").display()
        );
        fs::write(data.join("postgresql.conf"), configuration + CONFIGURATION + &tls).expect("configuration");
        fs::write(data.join("pg_hba.conf"), HBA).expect("hba");
        self.launch(0, &data, "on");
        self.running.push(data);
        let password = PASSWORD.replace('\'', "''");
        self.admin(
            0,
            &format!("CREATE ROLE app LOGIN REPLICATION PASSWORD '{password}'"),
        );
        self.admin(0, "CREATE ROLE quick LOGIN");
        self.admin(0, "CREATE TABLE item (name text); GRANT ALL ON item TO app");
    }

    fn start_standby(&mut self, n: u8, tls: &str) {
        let data = self.run_standby(n, tls);
        self.running.push(data);
    }

    /// A standby beside those that all tests share.
    pub(super) fn further_standby(&self, n: u8) -> Further {
        Further(self.run_standby(n, "on"))
    }

    fn run_standby(&self, n: u8, tls: &str) -> PathBuf {
        let data = self.make_member_directory(n);
        let path = data.to_str().expect("path");
        let primary = loopback(1).to_string();
        run(
            "pg_basebackup",
            &[
                "-D", path, "-h", &primary, "-U", "postgres", "-R", "-c", "fast", "-X", "stream",
            ],
        );
        self.launch(n, &data, tls);
        let streams = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'";
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while self.admin(n, streams) != "1" {
            assert!(std::time::Instant::now() < limit, "pg-{n} does not stream");
        }
        data
    }

    fn launch(&self, n: u8, data: &Path, tls: &str) {
        let socket = self.member_directory(n);
        let options = format!(
            "-c listen_addresses={} -c unix_socket_directories={} -c ssl={tls}",
            loopback(n + 1),
            socket.display()
        );
        let log = socket.join("log");
        let (data_path, log) = (data.to_str().expect("path"), log.to_str().expect("path"));
        run(
            "pg_ctl",
            &[
                "start", "-w", "-t", "60", "-s", "-D", data_path, "-l", log, "-o", &options,
            ],
        );
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for data in self.running.iter().rev() {
            stop(data);
        }
    }
}

fn stop(data: &Path) {
    let stopped = as_postgres("pg_ctl")
        .args(["stop", "-w", "-s", "-m", "immediate", "-D"])
        .arg(data)
        .status();
    // One that had begun to stop may have come to its end by itself.
    let gone = || !data.join("postmaster.pid").exists();
    let stopped = stopped.is_ok_and(|status| status.success()) || gone();
    assert!(
        stopped || std::thread::panicking(),
        "could not stop {}",
        data.display()
    );
}

/// A server of one test, stopped with it.
pub(super) struct Further(PathBuf);

impl Further {
    /// Has it refuse new sessions, and wait for those that there are.
    pub(super) fn begin_to_stop(&self) {
        let data = self.0.to_str().expect("path");
        run("pg_ctl", &["stop", "-W", "-s", "-m", "smart", "-D", data]);
    }
}

impl Drop for Further {
    fn drop(&mut self) {
        stop(&self.0);
    }
}

fn give_away(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("mode");
    user::give_away(path);
}

fn as_postgres(program: &str) -> Command {
    let mut command = Command::new(programs_with_tls().join(program));
    run_as_server_user(&mut command)
        .current_dir("/")
        .env_clear()
        .env("LC_ALL", "C");
    command
}

fn run(program: &str, arguments: &[&str]) -> String {
    let done = as_postgres(program).args(arguments).output().expect(program);
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(done.stdout).expect("text").trim().to_owned()
}
