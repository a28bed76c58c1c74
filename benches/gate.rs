//! What the commit gate costs: single-row inserts and a bulk load, with the gate and without, by turns on one server; alone, where
//! commits wait for nothing else, and with two receivers of its WAL that flush, one of which they wait for (`majority` of three).
//!
//! `cargo bench --bench gate`; reads the folder of PostgreSQL's programs from `PODGRES_TEST_PG15` (as the tests do), the
//! number of rounds from `ROUNDS` (5) and their length from `SECONDS` (4).
#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a measurement ends with its first failure"
)]

#[path = "../tests/support/postgresql.rs"]
mod postgresql;
#[path = "../tests/support/user.rs"]
mod user;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podgres::core::data_directory::SystemIdentifier;
use podgres::core::synchronous_names::standby_names;
use podgres::postgres::gate::{Gate, GateSettings, GateTarget};
use podgres::postgres::{Login, Secret};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const CLIENTS: [u32; 3] = [1, 8, 32];

/// Commits wait for one of these besides the gate, or for none.
const STANDBYS: [&[&str]; 2] = [&[], &["pg-1", "pg-2"]];

const LOAD: &str = "INSERT INTO entries SELECT generate_series(1, 8000000)";

struct Server {
    child: Child,
    programs: PathBuf,
    directory: TempDir,
    address: SocketAddr,
}

impl Server {
    fn start() -> Self {
        let (programs, directory) = (postgresql::programs(15), user::temporary_directory());
        let [a, b] = [(); 2].map(|()| fastrand::u8(64..250));
        let address = SocketAddr::from(([127, a, b, 1], 5432));
        let place = directory.path().display().to_string();
        let data = format!("{place}/data");
        run(program(&programs, "initdb").args(["-U", "postgres", "-A", "trust", "-D", &data]));
        let child = program(&programs, "postgres")
            .args(["-D", &data, "-h", &address.ip().to_string(), "-k", &place])
            .args(["-c", "max_wal_size=8GB", "-c", "autovacuum=off"])
            .stderr(Stdio::null())
            .spawn()
            .expect("postgres");
        let server = Self {
            child,
            programs,
            directory,
            address,
        };
        let deadline = Instant::now() + Duration::from_mins(1);
        while !server
            .client("psql")
            .args(["-c", "SELECT 1"])
            .output()
            .is_ok_and(|output| output.status.success())
        {
            assert!(Instant::now() < deadline, "PostgreSQL does not start");
            std::thread::sleep(Duration::from_millis(100));
        }
        server
    }

    /// Receives the WAL as `member` and flushes it, as a standby does.
    fn receiver(&self, member: &str) -> Receiver {
        let place = self.directory.path().join(member);
        std::fs::create_dir(&place).expect("directory");
        user::give_away(&place);
        let child = self
            .client("pg_receivewal")
            .env("PGAPPNAME", member)
            .args(["--synchronous", "--no-loop", "-D"])
            .arg(&place)
            .stderr(Stdio::null())
            .spawn();
        Receiver(child.expect("pg_receivewal"))
    }

    fn client(&self, name: &str) -> Command {
        let mut command = program(&self.programs, name);
        command
            .env("PGHOST", self.address.ip().to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        command
    }

    fn sql(&self, statement: &str) -> String {
        run(self.client("psql").args(["-XAtqc", statement]))
    }

    fn wait_for_commits_on(&self, names: &str) {
        self.sql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'"));
        self.sql("SELECT pg_reload_conf()");
        std::thread::sleep(Duration::from_millis(500));
    }

    /// Transactions a second, and how many milliseconds each took.
    fn insert(&self, clients: u32, seconds: &str) -> (f64, Vec<f64>) {
        let script = self.directory.path().join("insert.sql");
        std::fs::write(&script, "INSERT INTO entries VALUES (1);\n").expect("script");
        let log = self.directory.path().join("insert");
        let clients = clients.to_string();
        let report = run(self
            .client("pgbench")
            .args([
                "-n", "-M", "prepared", "-c", &clients, "-j", "1", "-T", seconds, "-l",
            ])
            .arg("--log-prefix")
            .arg(&log)
            .arg("-f")
            .arg(script));
        let line = report.lines().find_map(|line| line.strip_prefix("tps = "));
        let rate = line
            .and_then(|line| line.split(' ').next()?.parse().ok())
            .expect("tps");
        (rate, self.latencies())
    }

    /// Reads pgbench's logs and removes them.
    fn latencies(&self) -> Vec<f64> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.directory.path()).expect("directory") {
            let entry = entry.expect("directory");
            if entry.file_name().to_string_lossy().starts_with("insert.") && entry.file_name() != "insert.sql"
            {
                let text = std::fs::read_to_string(entry.path()).expect("log");
                let microseconds = |line: &str| line.split(' ').nth(2)?.parse().ok();
                found.extend(
                    text.lines()
                        .filter_map(microseconds)
                        .map(|time: f64| time / 1_000.0),
                );
                std::fs::remove_file(entry.path()).expect("log");
            }
        }
        found
    }

    fn load(&self) -> f64 {
        self.sql("TRUNCATE entries; CHECKPOINT");
        let began = Instant::now();
        self.sql(LOAD);
        began.elapsed().as_secs_f64()
    }
}

/// Ends with this.
struct Receiver(Child);

impl Drop for Receiver {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .expect("a pid");
        kill_process(pid, Signal::INT).expect("signal");
        self.child.wait().expect("wait for PostgreSQL");
    }
}

fn program(programs: &std::path::Path, name: &str) -> Command {
    let mut command = Command::new(programs.join(name));
    command
        .current_dir("/")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    user::run_as_server_user(&mut command);
    command
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("program");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Processor seconds of the gate's thread, user and system.
fn gate_seconds() -> (f64, f64) {
    let tasks = std::fs::read_dir("/proc/self/task").expect("tasks");
    let stat = tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok())
        .find(|stat| stat.contains("(gate)"))
        .expect("the gate's thread");
    let fields: Vec<f64> = stat
        .split(") ")
        .nth(1)
        .expect("fields")
        .split(' ')
        .map(|f| f.parse().unwrap_or(0.0))
        .collect();
    (fields[11] / 100.0, fields[12] / 100.0)
}

fn quantile(numbers: &mut [f64], share: f64) -> f64 {
    numbers.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let at = (numbers.len() as f64 * share) as usize;
    numbers[at]
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn main() {
    let server = Server::start();
    let target = GateTarget {
        address: server.address,
        login: Login {
            user: "postgres".to_owned(),
            password: Secret::new(String::new()),
        },
        system_identifier: SystemIdentifier(
            server
                .sql("SELECT system_identifier FROM pg_control_system()")
                .parse()
                .expect("a number"),
        ),
    };
    server.sql("CREATE TABLE entries (entry bigint)");
    let gate = Gate::start(GateSettings::default()).expect("a thread");
    gate.allow_until(u64::MAX);
    let (rounds, seconds) = (
        setting("ROUNDS", "5").parse().expect("rounds"),
        setting("SECONDS", "4"),
    );

    for standbys in STANDBYS {
        let receivers: Vec<Receiver> = standbys.iter().map(|member| server.receiver(member)).collect();
        println!(
            "commits wait for {} of {} standbys besides:",
            receivers.len() / 2,
            receivers.len()
        );
        measure(&server, (&gate, &target), standbys, (rounds, &seconds));
    }
    println!("{:?}", gate.status());
}

fn measure(
    server: &Server,
    (gate, target): (&Gate, &GateTarget),
    standbys: &[&str],
    (rounds, seconds): (usize, &str),
) {
    let names: Vec<String> = standbys.iter().map(|name| (*name).to_owned()).collect();
    let quorum = u32::from(!names.is_empty());
    let mut rates = vec![[Vec::new(), Vec::new()]; CLIENTS.len()];
    let mut latencies = rates.clone();
    let mut loads = [Vec::new(), Vec::new()];
    let mut load_cost = (0.0, 0.0);
    for round in 0..rounds {
        for turn in 0..2 {
            let gated = (round + turn) % 2 == 1;
            gate.want(gated.then(|| target.clone()));
            server.wait_for_commits_on(&standby_names(gated, &names, quorum));
            for (at, clients) in CLIENTS.into_iter().enumerate() {
                let (rate, times) = server.insert(clients, seconds);
                rates[at][usize::from(gated)].push(rate);
                latencies[at][usize::from(gated)].extend(times);
            }
            if round < 3 && names.is_empty() {
                let before = gate_seconds();
                loads[usize::from(gated)].push(server.load());
                if gated {
                    let after = gate_seconds();
                    load_cost = (after.0 - before.0, after.1 - before.1);
                }
            }
        }
    }
    for (at, clients) in CLIENTS.into_iter().enumerate() {
        let [without, with] = rates[at].each_mut().map(|rates| quantile(rates, 0.5));
        println!(
            "{clients:2} clients: {without:5.0} tps without, {with:5.0} with the gate: {:.2}x",
            with / without
        );
        // On a busy machine the fastest transactions tell more than those that waited for a processor.
        for share in [0.1, 0.25, 0.5] {
            let [without, with] = latencies[at].each_mut().map(|times| quantile(times, share));
            println!(
                "    fastest {:.0} %: {without:.3} ms, {with:.3} ms: {:+.3} ms",
                share * 100.0,
                with - without
            );
        }
    }
    if names.is_empty() {
        let [without, with] = loads.each_mut().map(|seconds| quantile(seconds, 0.5));
        println!(
            "bulk load: {without:.2} s without, {with:.2} s with the gate, whose thread used {:.2} s user, {:.2} s system",
            load_cost.0, load_cost.1
        );
    }
}
