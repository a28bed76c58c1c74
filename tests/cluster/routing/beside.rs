//! `podgres route`: the endpoints of a process that is no member, which finds the members by DNS.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use podgres::demo::Target;
use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::{Config, NoTls};

use super::clients::{Clients, Counts, Work, config};
use super::{leased, primary};
use crate::hand::http_get;
use crate::harness::{Demo, podgres, wait_for};

pub(super) const PATIENCE: Duration = Duration::from_secs(20);
pub(super) const READ_WRITE: u16 = 7432;
pub(super) const READ_ONLY: u16 = 7433;
const STRICT: u16 = 7434;
const STATUS: u16 = 7435;

/// A route beside an application, on an address of its own.
pub(super) struct Beside {
    child: Child,
    address: IpAddr,
}

impl Beside {
    fn start(demo: &Demo) -> Self {
        Self::with_password(demo, Some(&demo.deployed().password_file))
    }

    /// Without the members' password, as it is deployed beside an application.
    pub(super) fn without_password(demo: &Demo) -> Self {
        Self::with_password(demo, None)
    }

    fn with_password(demo: &Demo, password_file: Option<&Path>) -> Self {
        let state = demo.deployed();
        // The last byte of a loopback address that no pod of a demo has.
        let IpAddr::V4(pod) = state.pods[0].address else {
            panic!("a demo has IPv4 addresses");
        };
        let [a, b, c, _] = pod.octets();
        let address = IpAddr::from([a, b, c, 250]);
        let child = podgres()
            .env_clear()
            .args([
                "route",
                "--cluster",
                "demo",
                "--dns-server",
                &state.dns_server().to_string(),
            ])
            .args(["--http-port", &state.ports.http.to_string()])
            .args(["--listen-address", &address.to_string()])
            .args(["--read-write-port", &READ_WRITE.to_string()])
            .args(["--read-only-port", &READ_ONLY.to_string()])
            .args([
                "--listen",
                &format!("{STRICT},name=strict,max_lag=0,fallback=none"),
            ])
            .args(["--status-address", &SocketAddr::new(address, STATUS).to_string()])
            .envs(password_file.map(|file| ("PODGRES_REPLICATION_PASSWORD_FILE", file)))
            .stdout(Stdio::null())
            .spawn()
            .expect("podgres route");
        let route = Self { child, address };
        let ready = || route.get("/readiness").is_some_and(|(code, _)| code == 200);
        assert!(wait_for(PATIENCE, ready), "{:?}", route.get("/readiness"));
        route
    }

    pub(super) fn get(&self, path: &str) -> Option<(u16, String)> {
        http_get(SocketAddr::new(self.address, STATUS), path)
    }

    /// Through one of its endpoints.
    pub(super) fn config(&self, demo: &Demo, port: u16) -> Config {
        let plain = config(&demo.directory, Target::ReadWrite);
        let mut config = Config::new();
        config.host(self.address.to_string()).port(port);
        config.user(plain.get_user().expect("a user"));
        config.password(plain.get_password().expect("a password"));
        config.dbname("postgres");
        config
    }

    /// Whether a session through that endpoint is on a standby.
    pub(super) fn on_standby(&self, demo: &Demo, port: u16) -> bool {
        let config = self.config(demo, port);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(async {
            let (client, connection) = config.connect(NoTls).await.expect("session");
            tokio::spawn(connection);
            let row = client.query_one("SELECT pg_is_in_recovery()", &[]).await;
            row.expect("row").get(0)
        })
    }

    /// TERM; how it ends.
    pub(super) fn stop(mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("TERM");
        self.child.wait().expect("wait").code()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runtimes leave the soft limit at 1024 for programs of another age; a few hundred sessions then took the files of all else.
#[test]
fn a_route_kept_the_soft_limit_of_open_files() {
    let status = SocketAddr::from(([127, 213, 7, 1], STATUS));
    let mut child = Command::new("prlimit")
        .arg("--nofile=256:1000")
        .arg(env!("CARGO_BIN_EXE_podgres"))
        .args(["route", "--cluster", "nobody", "--dns-server", "127.213.7.2:53"])
        .args(["--listen-address", "127.213.7.1", "--status-address"])
        .arg(status.to_string())
        .env_clear()
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("prlimit");
    let up = wait_for(PATIENCE, || {
        http_get(status, "/liveness").is_some_and(|(code, _)| code == 200)
    });
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id()));
    kill_process(Pid::from_child(&child), Signal::TERM).expect("TERM");
    let mut told = String::new();
    let mut stderr = child.stderr.take().expect("a pipe");
    stderr.read_to_string(&mut told).expect("text");
    child.wait().expect("wait");
    assert!(up, "{told}");
    let limits = limits.expect("limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files"));
    let files: Vec<&str> = files.expect("a line").split_whitespace().collect();
    assert_eq!(files[3..5], ["1000", "1000"]);
    assert!(
        told.contains("the limit of open files allows fewer connections") && told.contains("\"most\":150"),
        "{told}"
    );
}

/// The beginning of a session, on a connection that is kept.
fn knock(at: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(at).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    let startup = b"\0\0\0\x12\0\x03\0\0user\0app\0\0";
    stream.write_all(startup).expect("sent");
    stream
}

/// Nobody is there to serve: the first session is held, and that is the one that this process has for all its endpoints.
#[test]
fn the_endpoints_of_a_route_had_no_limit_in_common() {
    let at = |port| SocketAddr::from(([127, 213, 7, 3], port));
    let child = podgres()
        .args(["route", "--cluster", "nobody", "--dns-server", "127.213.7.4:53"])
        .args(["--listen-address", "127.213.7.3", "--status-address"])
        .arg(at(STATUS).to_string())
        .args(["--hold", "10min"])
        .env_clear()
        .env("PODGRES_MAX_CONNECTIONS_TOTAL", "1")
        .stdout(Stdio::null())
        .spawn()
        .expect("podgres route");
    let route = Beside {
        child,
        address: at(STATUS).ip(),
    };
    let counted = |line: &str| {
        let page = route.get("/metrics");
        page.is_some_and(|(_, page)| page.lines().any(|found| found == line))
    };
    let shown = |line: &str| assert!(wait_for(PATIENCE, || counted(line)), "{line}");
    shown("podgres_route_held{route=\"read_write\"} 0");
    let held = knock(at(6432));
    shown("podgres_route_held{route=\"read_write\"} 1");
    let mut told = Vec::new();
    knock(at(6433)).read_to_end(&mut told).expect("a refusal");
    let told = String::from_utf8_lossy(&told).into_owned();
    for words in [
        "\0C53300\0Msorry, too many clients already on all endpoints together\0D",
        "The endpoints of this process together relay at most 1 sessions.",
    ] {
        assert!(told.contains(words), "{told}");
    }
    shown("podgres_route_refused_total{route=\"read_only\",reason=\"too_many_in_total\"} 1");
    let mut cancel = TcpStream::connect(at(6433)).expect("connect");
    cancel
        .write_all(b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x01\0\0\0\x02")
        .expect("sent");
    shown("podgres_route_cancel_requests_total{route=\"read_only\"} 1");
    drop(held);
    shown("podgres_route_held{route=\"read_write\"} 0");
    let _held = knock(at(6433));
    shown("podgres_route_held{route=\"read_only\"} 1");
    assert_eq!(route.stop(), Some(0));
}

#[test]
fn a_route_beside_an_application_serves_policies_and_drains_with_the_members() {
    let demo = leased(&[]);
    demo.sql(&[], "CREATE TABLE work (n int)");
    let route = Beside::start(&demo);
    assert!(!route.on_standby(&demo, READ_WRITE));
    // Freshness is known only as far back as it has asked.
    assert!(wait_for(PATIENCE, || route.on_standby(&demo, READ_ONLY)));
    assert!(route.on_standby(&demo, STRICT));
    assert_eq!(route.get("/liveness").expect("an answer").0, 200);
    let page = route.get("/metrics").expect("an answer").1;
    for part in [
        "podgres_route_sessions_opened_total{route=\"strict\"} 1",
        "podgres_route_sessions_opened_total{route=\"read_write\"} 1",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }

    let start = |port, work, number| Clients::start_as(&route.config(&demo, port), &NoTls, work, number);
    let writers = start(READ_WRITE, Work::Write, 6);
    let readers = start(READ_ONLY, Work::Read, 2);
    for _ in 0..2 {
        writers.wait_for_more(50);
        let before = primary(&demo.status().expect("status"));
        demo.done(&["switchover"]);
        writers.wait_for_more(50);
        assert_ne!(before, primary(&demo.wait_streaming(2)));
    }
    writers.counts.assert_moved();
    readers.counts.assert_moved();

    demo.done(&["read-only", "on", "--reason", "a test"]);
    let refused = || Counts::get(&writers.counts.read_only) > 0;
    assert!(wait_for(PATIENCE, refused), "{:?}", writers.counts);
    assert!(route.on_standby(&demo, READ_WRITE));
    demo.done(&["read-only", "off"]);
    writers.wait_for_more(20);
    let (writers, readers) = (writers.stop(), readers.stop());
    writers.assert_moved();
    readers.assert_moved();
    let there = demo.sql(&[], "SELECT count(*) FROM work");
    assert_eq!(there, Counts::get(&writers.done).to_string());
    assert_eq!(route.stop(), Some(0));
}
