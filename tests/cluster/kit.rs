//! What several groups of tests need beside a demo of their own: one that they share, HTTP, `/proc`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Demo, LIMIT, Start, member, programs, wait_for};

/// A healthy demo of three pods for tests that do not disturb it. It ends with the last test that holds it: a
/// static itself is never dropped.
pub(crate) fn shared() -> Arc<Demo> {
    static SHARED: Mutex<Weak<Demo>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(demo) = shared.upgrade() {
        return demo;
    }
    let demo = Arc::new(Start::new(16).run());
    demo.wait_streaming(2);
    *shared = Arc::downgrade(&demo);
    demo
}

impl Demo {
    /// `demo.json`.
    pub(crate) fn state(&self) -> Value {
        let text = std::fs::read(self.directory.join("demo.json")).expect("demo.json");
        serde_json::from_slice(&text).expect("JSON")
    }

    /// A process of a pod: `supervisor`, `postgres` or `sidecar`.
    pub(crate) fn pid(&self, pod: &str, process: &str) -> u32 {
        let status = self.status().expect("a status");
        pid_in(&status, pod, process)
    }

    /// The address of a server, with its port: what the status calls `http_port`, `read_only_port`, …
    pub(crate) fn address(&self, pod: &str, port: &str) -> String {
        let status = self.status().expect("a status");
        let found = member(&status, pod);
        let (host, port) = (found["host"].as_str(), found[port].as_u64());
        format!("{}:{}", host.expect("host"), port.expect("port"))
    }

    /// A connection string to a route of one pod alone.
    pub(crate) fn route(&self, pod: &str, port: &str) -> String {
        let dsn = self.ask(&["dsn", "--member", "0"]);
        let (login, rest) = dsn.split_once('@').expect("a login");
        let (_, database) = rest.split_once('/').expect("a database");
        format!("{login}@{}/{database}", self.address(pod, port))
    }

    /// Waits until a query on one server gives `expected`.
    pub(crate) fn wait_sql(&self, target: &[&str], sql: &str, expected: &str) {
        let mut last = String::new();
        let came = wait_for(LIMIT, || {
            let output = self.try_sql(target, sql);
            String::from_utf8_lossy(&output.stdout)
                .trim_end()
                .clone_into(&mut last);
            output.status.success() && last == expected
        });
        assert!(came, "{sql} on {target:?} gave \"{last}\", not \"{expected}\"");
    }

    /// The standby has replayed what the primary has written until now.
    pub(crate) fn wait_replayed(&self, primary: &str, standby: &str) {
        let written = self.sql(&["--member", primary], "SELECT pg_current_wal_insert_lsn()");
        let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
        self.wait_sql(&["--member", standby], &replayed, "t");
    }

    /// What `pg_controldata` says of a pod's data directory, by name.
    pub(crate) fn control_data(&self, pod: &str) -> BTreeMap<String, String> {
        control_data(&self.data_directory(pod))
    }
}

/// `pg_controldata` of a data directory, by name.
pub(crate) fn control_data(directory: &Path) -> BTreeMap<String, String> {
    let output = Command::new(programs(16).join("pg_controldata"))
        .arg(directory)
        .env("LC_ALL", "C")
        .output()
        .expect("pg_controldata");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

/// A process of a pod in a status that was asked for before.
pub(crate) fn pid_in(status: &Value, pod: &str, process: &str) -> u32 {
    let pid = member(status, pod)["pids"][process].as_u64();
    let pid = pid.unwrap_or_else(|| panic!("{pod} has no {process} in {status:#}"));
    u32::try_from(pid).expect("a pid")
}

/// Sends a signal to one process of a demo.
pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(pid.expect("a pid"), signal).expect("kill");
}

/// Runs psql with a connection string.
pub(crate) fn psql(dsn: &str, sql: &str) -> Output {
    psql_command(dsn, sql).output().expect("psql")
}

pub(crate) fn psql_command(dsn: &str, sql: &str) -> Command {
    let mut command = Command::new(programs(16).join("psql"));
    command
        .args(["-X", "-A", "-t", "-q", "-v", "VERBOSITY=verbose", "-c", sql, dsn])
        .env("LC_ALL", "C");
    command
}

/// Standard output without the last end of line; a command that failed fails the test.
pub(crate) fn answer(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {error}", output.status);
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// The body of an HTTP answer.
pub(crate) fn http_get(address: &str, path: &str) -> String {
    let answer = http(address, path);
    answer.split_once("\r\n\r\n").expect("a head").1.to_owned()
}

/// The status of an HTTP answer.
pub(crate) fn http_status(address: &str, path: &str) -> u16 {
    let answer = http(address, path);
    let status = answer
        .split_whitespace()
        .nth(1)
        .and_then(|status| status.parse().ok());
    status.unwrap_or_else(|| panic!("{answer}"))
}

fn http(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connect");
    let limit = Some(Duration::from_secs(10));
    stream.set_read_timeout(limit).expect("timeout");
    // 1.0: no chunks in the answer.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").expect("request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    answer
}

/// How often a text occurs in a log.
pub(crate) fn count(log: &str, text: &str) -> usize {
    log.matches(text).count()
}

/// What the server itself has logged in a container: not its sessions, and not the checkpoints, which come at any time.
pub(crate) fn server_lines(log: &str) -> Vec<&str> {
    log.lines()
        .filter(|line| is_of_the_server(line))
        .filter(|line| !line.contains("checkpoint") && !line.contains("restartpoint"))
        // Where a standby's own WAL ends; it then asks for more.
        .filter(|line| !line.contains("invalid record length at "))
        .collect()
}

/// `… [123] LOG:  …`: sessions have their user between the two, and at times an unknown database in brackets.
fn is_of_the_server(line: &str) -> bool {
    let before = line
        .split_once("] LOG:  ")
        .and_then(|(before, _)| before.rsplit_once('['));
    before.is_some_and(|(_, pid)| pid.parse::<u32>().is_ok())
}

/// A process in `/proc`.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) name: String,
}

/// Every process of this machine.
pub(crate) fn processes() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(process).collect()
}

fn process(pid: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, rest) = stat.rsplit_once(')')?;
    // The state comes first.
    let mut fields = rest.split_whitespace();
    Some(Process {
        pid,
        name: head.split_once('(')?.1.to_owned(),
        parent: fields.nth(1)?.parse().ok()?,
    })
}

/// A process and everything that descends from it.
pub(crate) fn family(root: u32) -> Vec<Process> {
    let all = processes();
    let mut family: Vec<Process> = all.iter().filter(|one| one.pid == root).cloned().collect();
    let mut next = 0;
    while next < family.len() {
        let parent = family[next].pid;
        family.extend(all.iter().filter(|one| one.parent == parent).cloned());
        next += 1;
    }
    family
}

/// The words of a process' command line, or its environment: `cmdline`, `environ`.
pub(crate) fn words(pid: u32, file: &str) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/{file}")).expect("a running process");
    let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

/// The program that a process runs.
pub(crate) fn program_of(pid: u32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// A temporary folder that the pods' user may enter.
pub(crate) fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("pg").tempdir().expect("a folder");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).expect("chmod");
    folder
}
