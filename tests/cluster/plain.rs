//! PostgreSQL's own programs and files, without podgres: a server that somebody else has set up, directories as they are.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{LIMIT, programs, wait_for};
use crate::network::{Network, PASSWORD};

/// PostgreSQL without podgres: what somebody else has set up.
pub(crate) struct Plain {
    directory: PathBuf,
    programs: PathBuf,
    address: IpAddr,
    child: Option<Child>,
}

impl Plain {
    /// A new cluster at `directory`, not started; local connections are trusted, others need a password.
    pub(crate) fn initdb(network: &Network, directory: &Path, ordinal: u8) -> Self {
        let password = network.file("secret/plain", PASSWORD);
        fs::create_dir(directory).expect("folder");
        give_away(directory);
        let mut initdb = as_postgres(&network.program("initdb"));
        initdb
            .args(["-U", "postgres", "--no-sync", "--encoding=UTF8", "--locale=C"])
            .args(["--auth-local=trust", "--auth-host=scram-sha-256", "-D"])
            .arg(directory)
            .arg(format!("--pwfile={}", password.display()));
        run(&mut initdb);
        Self {
            directory: directory.to_owned(),
            programs: programs(network.version),
            address: network.address(ordinal),
            child: None,
        }
    }

    /// Starts it on the address of its pod and waits until it is ready.
    pub(crate) fn start(&mut self) {
        let log = File::create(self.directory.with_extension("log")).expect("log");
        let mut postgres = as_postgres(&self.programs.join("postgres"));
        postgres
            .args(["-c", "fsync=off", "-c", "log_min_messages=fatal", "-D"])
            .arg(&self.directory)
            .args(["-h", &self.address.to_string(), "-k"])
            .arg(&self.directory)
            .stdout(log.try_clone().expect("log"))
            .stderr(log);
        self.child = Some(postgres.spawn().expect("postgres"));
        let answers = || self.try_sql("SELECT 1").is_ok();
        assert!(wait_for(LIMIT, answers), "PostgreSQL does not start");
    }

    pub(crate) fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    fn try_sql(&self, sql: &str) -> Result<String, String> {
        let output = Command::new(self.programs.join("psql"))
            .args([
                "-X",
                "-A",
                "-t",
                "-q",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                "postgres",
                "-d",
                "postgres",
            ])
            .args(["-c", sql, "-h"])
            .arg(&self.directory)
            .output()
            .expect("psql");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Who may connect from elsewhere, from now on: lines of `pg_hba.conf`.
    pub(crate) fn admit(&self, lines: &str) {
        let path = self.directory.join("pg_hba.conf");
        fs::write(&path, format!("local all all trust\n{lines}\n")).expect("pg_hba.conf");
        give_away(&path);
        if self.child.is_some() {
            self.sql("SELECT pg_reload_conf()");
        }
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill_process(Pid::from_child(&child), Signal::INT).ok();
            child.wait().expect("wait");
        }
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.stop();
    }
}

/// "Database system identifier", or another line of `pg_controldata`.
pub(crate) fn control_data(network: &Network, directory: &Path, key: &str) -> String {
    let output = Command::new(network.program("pg_controldata"))
        .arg(directory)
        .env("LC_ALL", "C")
        .output()
        .expect("pg_controldata");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {key} in {text}"))
        .trim()
        .to_owned()
}

/// Everything below a directory with its size and time of change: two equal listings mean that nothing was touched.
pub(crate) fn listing(directory: &Path) -> BTreeMap<PathBuf, (u64, Option<std::time::SystemTime>)> {
    let mut found = BTreeMap::new();
    let Ok(entries) = fs::read_dir(directory) else {
        return found;
    };
    for entry in entries.flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            found.extend(listing(&entry.path()));
        }
        found.insert(entry.path(), (metadata.len(), metadata.modified().ok()));
    }
    found
}

/// The sorted names in a directory.
pub(crate) fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("folder").flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Bytes of the files below a directory.
pub(crate) fn bytes_below(directory: &Path) -> u64 {
    listing(directory).values().map(|(length, _)| length).sum()
}

/// A program of PostgreSQL's, as the user that the pods run as.
pub(crate) fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .env("LC_ALL", "C")
        .current_dir("/");
    drop_privileges(&mut command);
    command
}

pub(crate) fn run(command: &mut Command) {
    let output = command.stderr(Stdio::piped()).output().expect("program");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
}

pub(crate) fn drop_privileges(command: &mut Command) {
    if let Some((user, group)) = postgres_user() {
        command.uid(user).gid(group);
    }
}

/// PostgreSQL refuses to run as root; the pods then run as the system's user for it.
pub(crate) fn postgres_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let mut numbers = line.expect("a user \"postgres\"").split(':').skip(2);
    let mut number = || numbers.next()?.parse().ok();
    Some((number()?, number()?))
}

pub(crate) fn give_away(path: &Path) {
    if let Some((user, group)) = postgres_user() {
        chown(path, Some(user), Some(group)).expect("chown");
    }
}

pub(crate) fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
}
