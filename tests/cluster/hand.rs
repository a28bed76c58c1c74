//! Pods started by hand: `init`, `sidecar` and `postgres` with the environment that a manifest gives them, each
//! started, killed and looked at on its own.
//!
//! For what a demo would hide: exit codes, a pod that must not start, a DNS server that is away.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::{LIMIT, wait_for};
use crate::network::PASSWORD;
use crate::plain::drop_privileges;

/// One pod: its volume, its settings, and its containers as far as they run.
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    pub(crate) directory: PathBuf,
    pub(crate) volume: PathBuf,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) binary: PathBuf,
    pub(crate) psql: PathBuf,
    pub(crate) containers: Vec<Container>,
}

impl Pod {
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.environment.insert(key.to_owned(), value.to_owned());
    }

    pub(crate) fn data_directory(&self) -> PathBuf {
        PathBuf::from(&self.environment["PGDATA"])
    }

    /// Starts one container: `init`, `sidecar` or `postgres`.
    pub(crate) fn start(&self, verb: &'static str) -> Container {
        let log = self.directory.join(format!("{verb}.log"));
        let file = File::options().create(true).append(true).open(&log).expect("log");
        let begin = file.metadata().expect("log").len();
        let mut command = Command::new(&self.binary);
        command
            .arg(verb)
            .env_clear()
            .envs(&self.environment)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("log"))
            .stderr(file);
        drop_privileges(&mut command);
        Container {
            child: command.spawn().expect("podgres"),
            log,
            begin,
        }
    }

    /// Runs `init` to its end; its exit code and what it printed.
    pub(crate) fn init(&self) -> (i32, String) {
        let mut init = self.start("init");
        let code = init.ended(LIMIT);
        (code.expect("init was killed"), init.log())
    }

    /// Runs `init`, which must succeed, then the other containers.
    pub(crate) fn run(&mut self) {
        let (code, log) = self.init();
        assert_eq!(code, 0, "init of {}:\n{log}", self.name);
        self.containers = ["sidecar", "postgres"].map(|verb| self.start(verb)).into();
    }

    /// TERM to what runs, as at the end of a pod.
    pub(crate) fn stop(&mut self) {
        for container in self.containers.iter_mut().rev() {
            container.signal(Signal::TERM);
            container.ended(LIMIT);
        }
        self.containers.clear();
    }

    /// GET from its HTTP port: code and body; `None` if nobody answers.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        http_get(SocketAddr::new(self.address, 8008), path)
    }

    /// How the pod describes itself in `/cluster`.
    pub(crate) fn status(&self) -> Option<Value> {
        let (_, body) = self.get("/cluster")?;
        let cluster: Value = serde_json::from_str(&body).ok()?;
        let mut members = cluster["members"].as_array()?.iter();
        members
            .find(|member| member["name"] == self.name.as_str())
            .cloned()
    }

    /// Waits for a situation whose message holds `words`.
    pub(crate) fn wait_situation(&self, situation: &str, words: &str) -> Value {
        let mut last = None;
        let come = wait_for(LIMIT, || {
            last = self.status();
            last.as_ref().is_some_and(|me| {
                me["situation"] == situation && me["message"].as_str().is_some_and(|m| m.contains(words))
            })
        });
        assert!(
            come,
            "not in {situation} ({words}) but {last:#?}\n{}",
            self.logs()
        );
        last.expect("a status")
    }

    pub(crate) fn wait_ready(&self) {
        let ready = || self.get("/readiness").is_some_and(|(code, _)| code == 200);
        assert!(
            wait_for(LIMIT, ready),
            "{} is not ready\n{}",
            self.name,
            self.logs()
        );
    }

    /// SQL as the superuser, straight to this pod's PostgreSQL; must succeed.
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.sql_in("postgres", sql)
    }

    pub(crate) fn sql_in(&self, database: &str, sql: &str) -> String {
        sql_at(&self.psql, self.address, database, sql)
            .unwrap_or_else(|error| panic!("{sql}: {error}\n{}", self.logs()))
    }

    /// All that its containers have printed.
    pub(crate) fn logs_whole(&self) -> String {
        let log = |verb| fs::read(self.directory.join(format!("{verb}.log"))).unwrap_or_default();
        let logs = ["init", "sidecar", "postgres"].map(log).concat();
        String::from_utf8_lossy(&logs).into_owned()
    }

    /// The last lines of all containers.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for verb in ["init", "sidecar", "postgres"] {
            let log = fs::read(self.directory.join(format!("{verb}.log"))).unwrap_or_default();
            let log = String::from_utf8_lossy(&log).into_owned();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(15)..];
            text.extend(["--- ", &self.name, " ", verb, "\n", &tail.join("\n"), "\n"]);
        }
        text
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // The end of each does the rest.
        while self.containers.pop().is_some() {}
    }
}

/// One running process; ended when dropped.
pub(crate) struct Container {
    child: Child,
    log: PathBuf,
    /// Where the log of this run begins.
    begin: u64,
}

impl Container {
    pub(crate) fn signal(&self, signal: Signal) {
        // It may just have ended by itself.
        kill_process(Pid::from_child(&self.child), signal).ok();
    }

    pub(crate) fn running(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Waits for the end: the exit code, or `None` if a signal ended it.
    pub(crate) fn ended(&mut self, limit: Duration) -> Option<i32> {
        assert!(
            wait_for(limit, || !self.running()),
            "did not end:\n{}",
            self.log()
        );
        self.child.wait().expect("wait").code()
    }

    pub(crate) fn log(&self) -> String {
        let bytes = fs::read(&self.log).expect("log");
        let begin = usize::try_from(self.begin).expect("small");
        String::from_utf8_lossy(&bytes[begin..]).into_owned()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if !self.running() {
            return;
        }
        // Twice is an immediate stop.
        self.signal(Signal::TERM);
        self.signal(Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.running() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// SQL as the superuser over TCP; what psql printed, or what it complained about.
pub(crate) fn sql_at(psql: &Path, address: IpAddr, database: &str, sql: &str) -> Result<String, String> {
    let output = Command::new(psql)
        .args([
            "-X",
            "-A",
            "-t",
            "-q",
            "-v",
            "VERBOSITY=verbose",
            "-v",
            "ON_ERROR_STOP=1",
        ])
        .args(["-U", "postgres", "-d", database, "-c", sql, "-h"])
        .arg(address.to_string())
        .env("LC_ALL", "C")
        .env("PGPASSWORD", PASSWORD)
        .env("PGCONNECT_TIMEOUT", "10")
        .output()
        .expect("psql");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end().to_owned();
    if output.status.success() {
        Ok(text(output.stdout))
    } else {
        Err(text(output.stderr))
    }
}

/// One GET with the connection closed behind it.
pub(crate) fn http_get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let limit = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, limit).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let code = head.split(' ').nth(1)?.parse().ok()?;
    Some((code, body.to_owned()))
}
