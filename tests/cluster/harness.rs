//! Starts a demo, asks it through the shipped command line, waits for conditions with a limit.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longer than anything here takes on a busy machine; a wait ends as soon as its condition holds.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

/// The binary under test.
pub(crate) fn podgres() -> Command {
    Command::new(env!("CARGO_BIN_EXE_podgres"))
}

/// The folder of PostgreSQL's programs for a major version; a missing one fails the test.
pub(crate) fn programs(version: u32) -> PathBuf {
    let key = format!("PODGRES_TEST_PG{version}");
    let folder =
        std::env::var(&key).unwrap_or_else(|_| panic!("{key} is not set: run the tests by `make test`"));
    let folder = PathBuf::from(folder);
    assert!(
        folder.join("postgres").exists(),
        "{key}: no PostgreSQL in {}",
        folder.display()
    );
    folder
}

/// A demo that ends with the test.
pub(crate) struct Demo {
    pub(crate) directory: PathBuf,
    child: Option<Child>,
    /// Removed after `child` has ended.
    _folder: Option<tempfile::TempDir>,
}

/// How a demo is started.
pub(crate) struct Start {
    pub(crate) version: u32,
    pub(crate) arguments: Vec<String>,
}

impl Start {
    /// With a fixed primary.
    pub(crate) fn new(version: u32) -> Self {
        Self {
            version,
            arguments: vec!["--leadership".to_owned(), "fixed".to_owned()],
        }
    }

    /// With a Lease, as a demo is by default.
    pub(crate) fn lease(version: u32) -> Self {
        Self {
            version,
            arguments: vec!["--leadership".to_owned(), "lease".to_owned()],
        }
    }

    /// Adds command line words, e.g. `["--replicas", "1"]`.
    pub(crate) fn with(mut self, words: &[&str]) -> Self {
        self.arguments.extend(words.iter().map(|word| (*word).to_owned()));
        self
    }

    /// Starts in a folder of its own.
    pub(crate) fn run(self) -> Demo {
        let folder = tempfile::Builder::new()
            .prefix("pg")
            .tempdir()
            .expect("temporary folder");
        // The pods' user must be able to enter.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).expect("chmod");
        let directory = folder.path().join("demo");
        self.launch(&directory, Some(folder))
    }

    /// Starts in a folder that the caller keeps.
    pub(crate) fn run_in(self, directory: &Path) -> Demo {
        self.launch(directory, None)
    }

    fn launch(self, directory: &Path, folder: Option<tempfile::TempDir>) -> Demo {
        let child = podgres()
            .args(["demo", "--dir"])
            .arg(directory)
            .arg("--program-dir")
            .arg(programs(self.version))
            .args(&self.arguments)
            .stdout(Stdio::null())
            .spawn()
            .expect("podgres demo");
        Demo {
            directory: directory.to_owned(),
            child: Some(child),
            _folder: folder,
        }
    }
}

impl Demo {
    /// Runs `podgres demo VERB …` and expects it to succeed.
    pub(crate) fn ask(&self, words: &[&str]) -> String {
        let output = self.try_ask(words);
        assert!(
            output.status.success(),
            "demo {words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout)
            .expect("utf-8")
            .trim_end()
            .to_owned()
    }

    /// Runs an operator's verb (`podgres VERB … --dir`).
    pub(crate) fn verb(&self, words: &[&str]) -> Output {
        let mut command = podgres();
        command.args(words).arg("--dir").arg(&self.directory);
        command.stdin(Stdio::null()).output().expect("podgres")
    }

    /// The same, and expects it to succeed.
    pub(crate) fn done(&self, words: &[&str]) -> String {
        let output = self.verb(words);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {error}");
        String::from_utf8(output.stdout).expect("utf-8")
    }

    pub(crate) fn try_ask(&self, words: &[&str]) -> Output {
        podgres()
            .arg("demo")
            .args(words)
            .arg("--dir")
            .arg(&self.directory)
            .output()
            .expect("podgres demo")
    }

    /// `podgres status -o json`, if anybody answers.
    pub(crate) fn status(&self) -> Option<Value> {
        let output = podgres()
            .args(["status", "-o", "json", "--dir"])
            .arg(&self.directory)
            .output()
            .expect("podgres status");
        output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    /// Waits until the status fulfils a condition, and gives that status.
    pub(crate) fn wait(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let mut last = None;
        let fulfilled = wait_for(LIMIT, || {
            last = self.status();
            last.as_ref().is_some_and(&condition)
        });
        assert!(
            fulfilled,
            "{what} did not come about; last status: {last:#?}\n{}",
            self.logs()
        );
        last.expect("a status")
    }

    /// One primary and `standbys` streaming standbys, nobody else.
    pub(crate) fn wait_streaming(&self, standbys: usize) -> Value {
        self.wait(
            &format!("a primary with {standbys} streaming standbys"),
            |status| {
                let members = members(status);
                let count = |role: &str, state: &str| {
                    members
                        .iter()
                        .filter(|m| m["role"] == role && m["state"] == state)
                        .count()
                };
                members.len() == standbys + 1
                    && count("primary", "running") == 1
                    && count("standby", "streaming") == standbys
            },
        )
    }

    /// What a container has printed: `init`, `sidecar` or `postgres`.
    pub(crate) fn log(&self, pod: &str, container: &str) -> String {
        let path = self
            .directory
            .join("pods")
            .join(pod)
            .join(format!("{container}.log"));
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    }

    /// `demo.json`: addresses, ports, files; also while no pod answers.
    pub(crate) fn deployed(&self) -> podgres::demo::DemoState {
        let state = podgres::demo::DemoState::load(&self.directory).expect("demo.json");
        state.expect("a demo")
    }

    /// GET from a pod's HTTP port: code and body; `None` if nobody answers.
    pub(crate) fn get(&self, ordinal: u32, path: &str) -> Option<(u16, String)> {
        let state = self.deployed();
        let pod = state.pod(podgres::core::member::Ordinal(ordinal)).expect("a pod");
        crate::hand::http_get((pod.address, state.ports.http).into(), path)
    }

    /// PGDATA of a pod.
    pub(crate) fn data_directory(&self, pod: &str) -> PathBuf {
        self.directory
            .join("volumes")
            .join(format!("data-{pod}"))
            .join("pgdata")
    }

    /// Runs SQL by psql on one server, or through a route: `["--member", "0"]`, `["--read-only"]`, `[]`.
    pub(crate) fn sql(&self, target: &[&str], sql: &str) -> String {
        let output = self.try_sql(target, sql);
        assert!(
            output.status.success(),
            "{sql}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout)
            .expect("utf-8")
            .trim_end()
            .to_owned()
    }

    pub(crate) fn try_sql(&self, target: &[&str], sql: &str) -> Output {
        let mut words = vec!["dsn"];
        words.extend_from_slice(target);
        let dsn = self.ask(&words);
        Command::new(programs(16).join("psql"))
            .args(["-X", "-A", "-t", "-q", "-v", "VERBOSITY=verbose", "-c", sql])
            .arg(dsn)
            .env("LC_ALL", "C")
            .output()
            .expect("psql")
    }

    /// TERM to the demo; how it ended.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        let mut child = self.child.take()?;
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("TERM");
        child.wait().expect("wait").code()
    }

    fn logs(&self) -> String {
        let pods = std::fs::read_dir(self.directory.join("pods"))
            .into_iter()
            .flatten()
            .flatten();
        let mut text = String::new();
        for pod in pods {
            let name = pod.file_name().to_string_lossy().into_owned();
            for container in ["init", "sidecar", "postgres"] {
                let log = self.log(&name, container);
                let tail: Vec<&str> = log.lines().rev().take(15).collect();
                text.extend(["--- ", &name, " ", container, "\n"]);
                text.extend(tail.into_iter().rev().map(|line| format!("{line}\n")));
            }
        }
        text
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The members of a status.
pub(crate) fn members(status: &Value) -> &[Value] {
    status["members"].as_array().map_or(&[], Vec::as_slice)
}

/// One member of a status by its name.
pub(crate) fn member<'a>(status: &'a Value, name: &str) -> &'a Value {
    members(status)
        .iter()
        .find(|member| member["name"] == name)
        .unwrap_or(&Value::Null)
}

/// Tries until a condition holds; false after `limit`.
///
/// A look takes a quarter of the time at most: those that start processes would otherwise leave the servers little of the processor.
pub(crate) fn wait_for(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let began = Instant::now();
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        let pause = began.elapsed() * 3;
        std::thread::sleep(pause.clamp(Duration::from_millis(20), Duration::from_millis(300)));
    }
}
