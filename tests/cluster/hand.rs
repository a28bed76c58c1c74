//! Pods started by hand: a network with the demo's DNS server, and `init`, `sidecar` and `postgres` with the
//! environment that a manifest gives them, each started, killed and looked at on its own.
//!
//! For what a demo would hide: exit codes, a pod that must not start, a DNS server that is away.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podgres::core::member::{Ordinal, Topology};
use podgres::demo::dns::{Server, Zone};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::relay::Relay;

pub(crate) use crate::harness::LIMIT;
use crate::harness::{programs, wait_for};

pub(crate) const PASSWORD: &str = "correct-horse";
const DNS_PORT: u16 = 5300;

/// Loopback addresses, a folder and a DNS server of one cluster named `pg`.
pub(crate) struct Network {
    pub(crate) version: u32,
    zone: Zone,
    listed: BTreeMap<Ordinal, IpAddr>,
    runtime: tokio::runtime::Runtime,
    dns: Dns,
    network: [u8; 2],
    folder: tempfile::TempDir,
}

enum Dns {
    /// Takes questions and never answers.
    Silent(UdpSocket),
    Answering(#[expect(dead_code, reason = "ends when dropped")] Server),
    Changing,
}

impl Network {
    /// A network whose DNS server does not answer yet.
    pub(crate) fn silent(version: u32) -> Self {
        let (network, socket) = claim();
        let folder = tempfile::Builder::new()
            .prefix("pg")
            .tempdir()
            .expect("temporary folder");
        open_to_all(folder.path());
        let binary = folder.path().join("podgres");
        let original = env!("CARGO_BIN_EXE_podgres");
        if fs::hard_link(original, &binary).is_err() {
            fs::copy(original, &binary).expect("copy of podgres");
        }
        let topology = Topology {
            cluster: "pg".to_owned(),
            service: "pg".to_owned(),
            namespace: "default".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            first_ordinal: Ordinal(0),
        };
        Self {
            version,
            zone: Zone::new(topology, 5432).expect("zone"),
            listed: BTreeMap::new(),
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .expect("runtime"),
            dns: Dns::Silent(socket),
            network,
            folder,
        }
    }

    /// A network with DNS, and no pod in it.
    pub(crate) fn new(version: u32) -> Self {
        let mut network = Self::silent(version);
        network.answer();
        network
    }

    /// From now on DNS answers.
    pub(crate) fn answer(&mut self) {
        let Dns::Silent(socket) = std::mem::replace(&mut self.dns, Dns::Changing) else {
            panic!("DNS answers already");
        };
        drop(socket);
        let address = self.dns_address();
        let mut server = None;
        // A process that another test starts just now has the dropped socket until its exec.
        let bound = wait_for(LIMIT, || {
            server = self
                .runtime
                .block_on(Server::bind(address, self.zone.clone()))
                .ok();
            server.is_some()
        });
        assert!(bound, "could not bind {address}");
        self.dns = Dns::Answering(server.expect("DNS server"));
    }

    fn dns_address(&self) -> SocketAddr {
        SocketAddr::new(self.host(1), DNS_PORT)
    }

    fn host(&self, last: u8) -> IpAddr {
        let [a, b] = self.network;
        IpAddr::V4(Ipv4Addr::new(127, a, b, last))
    }

    pub(crate) fn address(&self, ordinal: u8) -> IpAddr {
        self.host(10 + ordinal)
    }

    /// Puts a pod's name into DNS.
    pub(crate) fn list(&mut self, ordinal: u8) {
        self.list_at(ordinal, self.address(ordinal));
    }

    /// Leads those who ask for a pod to PostgreSQL behind a slow network; its HTTP is out of reach there.
    pub(crate) fn list_behind_relay(&mut self, ordinal: u8, bytes_per_second: u32) -> Relay {
        let relay = self.host(60 + ordinal);
        self.list_at(ordinal, relay);
        let postgres = |address| SocketAddr::new(address, 5432);
        Relay::start(postgres(relay), postgres(self.address(ordinal)), bytes_per_second)
    }

    fn list_at(&mut self, ordinal: u8, address: IpAddr) {
        self.listed.insert(Ordinal(ordinal.into()), address);
        self.zone.set_pods(&self.listed).expect("names");
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        programs(self.version).join(name)
    }

    /// A file that the pods can read, with the parents that it needs.
    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        fs::write(&path, content).expect("file");
        give_away(&path);
        path
    }

    /// A pod in DNS, with an empty volume.
    pub(crate) fn pod(&mut self, ordinal: u8) -> Pod {
        self.list(ordinal);
        self.unnamed_pod(ordinal)
    }

    /// A pod that DNS does not know.
    pub(crate) fn unnamed_pod(&self, ordinal: u8) -> Pod {
        let name = format!("pg-{ordinal}");
        let directory = self.path().join(&name);
        let volume = directory.join("volume");
        for folder in ["", "volume", "run"] {
            let folder = directory.join(folder);
            fs::create_dir_all(&folder).expect("folder");
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).expect("mode");
            give_away(&folder);
        }
        let password = self.file("secret/password", &format!("{PASSWORD}\n"));
        let address = self.address(ordinal);
        let text = |path: &Path| path.to_str().expect("utf-8").to_owned();
        let run = text(&directory.join("run"));
        let environment = [
            ("POD_NAME", name.clone()),
            ("POD_NAMESPACE", "default".to_owned()),
            ("POD_UID", format!("{name}-{:08x}", fastrand::u32(..))),
            ("POD_IP", address.to_string()),
            ("PODGRES_LISTEN_ADDRESS", address.to_string()),
            ("PODGRES_RUN_DIR", run.clone()),
            ("PODGRES_SOCKET_DIRECTORIES", run),
            ("PODGRES_DNS_SERVER", self.dns_address().to_string()),
            ("PODGRES_REPORT_PIDS", "true".to_owned()),
            ("PODGRES_END_WITH_PARENT", "1".to_owned()),
            ("PODGRES_INITDB_SCRIPTS", text(&directory.join("no-scripts"))),
            ("PG_BINDIR", text(&programs(self.version))),
            ("PGDATA", text(&volume.join("pgdata"))),
            ("POSTGRES_PASSWORD_FILE", text(&password)),
            ("LANG", "C.UTF-8".to_owned()),
            ("PATH", std::env::var("PATH").expect("PATH")),
        ];
        let environment = environment.map(|(key, value)| (key.to_owned(), value));
        Pod {
            name,
            address,
            binary: self.path().join("podgres"),
            psql: self.program("psql"),
            directory,
            volume,
            environment: environment.into(),
            containers: Vec::new(),
        }
    }
}

/// A network that nobody else uses: its first address takes the DNS port.
fn claim() -> ([u8; 2], UdpSocket) {
    for _ in 0..200 {
        let network = [fastrand::u8(2..250), fastrand::u8(1..)];
        let address = Ipv4Addr::new(127, network[0], network[1], 1);
        if let Ok(socket) = UdpSocket::bind((address, DNS_PORT)) {
            return (network, socket);
        }
    }
    panic!("no free loopback network");
}

/// One pod: its volume, its settings, and its containers as far as they run.
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    pub(crate) directory: PathBuf,
    pub(crate) volume: PathBuf,
    pub(crate) environment: BTreeMap<String, String>,
    binary: PathBuf,
    psql: PathBuf,
    containers: Vec<Container>,
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
            text += &format!("--- {} {verb}\n{}\n", self.name, tail.join("\n"));
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
        self.sql("SELECT pg_reload_conf()");
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

fn drop_privileges(command: &mut Command) {
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
