//! What the tests share: settings, a user that PostgreSQL accepts, and servers started by the adapters.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use podgres::core::data_directory::{DataDirectory, DataDirectoryFacts};
use podgres::core::supervision::{CloneReason, ServerRole, Upstream};
use podgres::postgres::basebackup::CloneRequest;
use podgres::postgres::postmaster_pid::{PostmasterStatus, read_postmaster_pid};
use podgres::postgres::{Login, Secret, ServerSettings, conf, data_directory, initdb, process, signal_file};
use rustix::process::{Gid, Pid, Signal, Uid, kill_process};
use tempfile::TempDir;

use crate::postgresql::programs;
use crate::user::server_user;
use crate::wait::eventually;

pub(super) const LIMIT: Duration = Duration::from_mins(1);
pub(super) const SUPERUSER_PASSWORD: &str = r#"pl "a'i\n: $%{} geheim"#;
pub(super) const REPLICATION_PASSWORD: &str = r"r'e\p:l i\\c#ät€ ü ";

pub(super) fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs `work` as a user that PostgreSQL does not refuse; its threads and children inherit that.
pub(super) fn as_postgres<F, T>(work: impl FnOnce() -> F + Send + 'static) -> T
where
    F: Future<Output = T>,
    T: Send + 'static,
{
    let thread = std::thread::spawn(move || {
        if let Some((user, group)) = server_user() {
            let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
            rustix::thread::set_thread_groups(&[]).expect("setgroups");
            rustix::thread::set_thread_res_gid(group, group, group).expect("setgid");
            rustix::thread::set_thread_res_uid(user, user, user).expect("setuid");
        }
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime")
            .block_on(work())
    });
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A folder with a volume and a run directory for each member; one loopback address each.
pub(super) struct Lab {
    pub folder: TempDir,
    pub programs: PathBuf,
}

impl Lab {
    pub(super) fn new(major: u32) -> Self {
        Self {
            folder: tempfile::Builder::new()
                .prefix("pg")
                .tempdir_in("/tmp")
                .expect("tempdir"),
            programs: programs(major),
        }
    }

    pub(super) fn settings(&self, ordinal: u32) -> ServerSettings {
        let member = format!("pg-{ordinal}");
        let pod = self.folder.path().join(&member);
        let address = fresh_address();
        std::fs::create_dir_all(pod.join("volume")).expect("volume");
        ServerSettings {
            data_directory: pod.join("volume/data"),
            program_directory: self.programs.clone(),
            run_directory: pod.join("run"),
            socket_directories: vec![pod.join("run")],
            listen_addresses: address.to_string(),
            local_address: address,
            port: 5432,
            superuser: login("postgres", SUPERUSER_PASSWORD),
            replication: login("podgres_replication", REPLICATION_PASSWORD),
            database: "postgres".into(),
            initdb_arguments: Vec::new(),
            host_auth_method: "scram-sha-256".into(),
            initdb_scripts: pod.join("initdb.d"),
            user_configuration: None,
            tls: None,
            stop_timeout: Duration::from_secs(3),
            gated: false,
            archive_command: None,
            restore_program: None,
            member,
        }
    }

    /// A running primary, member 0.
    pub(super) async fn primary(&self) -> Server {
        let settings = self.settings(0);
        initdb::run(&settings).await.expect("initdb");
        Server::start(settings, ServerRole::alone()).await
    }
}

pub(super) fn login(user: &str, password: &str) -> Login {
    Login {
        user: user.into(),
        password: Secret::new(password.into()),
    }
}

/// 127.x.y.z, different for every call in this process and most likely in all.
pub(super) fn fresh_address() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = std::process::id().wrapping_mul(251) + NEXT.fetch_add(1, Ordering::Relaxed);
    // Neither 0 nor 255, and no two numbers that follow one another are one address.
    let (c, [.., a, b]) = (1 + number % 254, (number / 254).to_be_bytes());
    let c = u8::try_from(c).expect("below 255");
    IpAddr::V4(Ipv4Addr::new(127, a.max(1), b, c))
}

/// A postmaster that was started through the adapters; killed when dropped.
pub(super) struct Server {
    pub settings: ServerSettings,
    pub child: tokio::process::Child,
}

impl Server {
    pub(super) async fn start(settings: ServerSettings, role: ServerRole) -> Self {
        data_directory::repair_mode(&settings).await.expect("mode");
        signal_file::prepare_role(&settings, &role).await.expect("role");
        conf::write(&settings, &role).await.expect("configuration");
        let log = std::fs::File::create(settings.run_directory.join("log")).expect("log");
        let mut command = process::postmaster_command(&settings).expect("command");
        let child = command
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("postgres");
        let mut server = Self { settings, child };
        server.ready().await;
        server
    }

    async fn ready(&mut self) {
        let pid = self.child.id();
        eventually("the server to be ready", async || {
            let ended = self.child.try_wait().expect("wait");
            assert!(
                ended.is_none(),
                "PostgreSQL ended with {ended:?}:\n{}",
                self.log()
            );
            read_postmaster_pid(&self.settings)
                .is_some_and(|read| Some(read.pid) == pid && read.status == PostmasterStatus::Ready)
        })
        .await;
    }

    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.settings.run_directory.join("log")).unwrap_or_default()
    }

    pub(super) async fn connect(&self) -> tokio_postgres::Client {
        connect(
            &self.settings,
            &self.settings.superuser.user,
            self.settings.superuser.password.expose(),
        )
        .await
        .expect("connect")
    }

    /// The first column of the first row as text.
    pub(super) async fn query(&self, sql: &str) -> String {
        let client = self.connect().await;
        let messages = client.simple_query(sql).await.expect(sql);
        messages
            .iter()
            .find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("").to_owned()),
                _ => None,
            })
            .unwrap_or_default()
    }

    pub(super) async fn stop(mut self) -> ServerSettings {
        signal(self.child.id().expect("running"), Signal::INT);
        let status = tokio::time::timeout(LIMIT, self.child.wait())
            .await
            .expect("stops")
            .expect("wait");
        assert!(status.success(), "{status}:\n{}", self.log());
        self.settings.clone()
    }

    /// This server as the upstream of member `ordinal`, with a slot of its own.
    pub(super) async fn upstream(&self, ordinal: u32) -> Upstream {
        let slot = format!("podgres_pg_{ordinal}");
        let have = self
            .query(&format!(
                "SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'"
            ))
            .await;
        if have == "0" {
            self.query(&format!(
                "SELECT pg_create_physical_replication_slot('{slot}', true)"
            ))
            .await;
        }
        Upstream {
            host: "pg-0.pg.default.svc.cluster.local".into(),
            address: self.settings.local_address,
            port: self.settings.port,
            slot,
            application_name: None,
        }
    }

    /// What member `ordinal` needs to clone this server.
    pub(super) async fn clone_for(&self, ordinal: u32, reason: CloneReason) -> CloneRequest {
        CloneRequest {
            upstream: self.upstream(ordinal).await,
            system_identifier: facts(&self.settings).await.system_identifier,
            reason,
        }
    }
}

pub(super) async fn connect(
    settings: &ServerSettings,
    user: &str,
    password: &str,
) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::Config::new()
        .host(settings.local_address.to_string())
        .port(settings.port)
        .user(user)
        .password(password)
        .dbname("postgres")
        .connect(tokio_postgres::NoTls)
        .await?;
    tokio::spawn(connection);
    Ok(client)
}

pub(super) async fn facts(settings: &ServerSettings) -> DataDirectoryFacts {
    match data_directory::inspect(settings).await.expect("inspect") {
        DataDirectory::Complete(facts) => facts,
        other => panic!("not complete: {other:?}"),
    }
}

/// PGDATA is absent or complete, never anything between.
pub(super) async fn absent_or_complete(settings: &ServerSettings) -> bool {
    match data_directory::inspect(settings).await.expect("inspect") {
        DataDirectory::Empty => false,
        DataDirectory::Complete(_) => true,
        DataDirectory::Unusable { detail } => panic!("torn: {detail}"),
    }
}

pub(super) fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("pid");
    kill_process(pid, signal).expect("kill");
}

/// Every process of which an argument is `directory`, or that works in it.
pub(super) fn processes_on(directory: &Path) -> Vec<u32> {
    let wanted = directory.to_str().expect("plain path");
    let pids = std::fs::read_dir("/proc").expect("/proc").flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            arguments
                .split(|b| *b == 0)
                .any(|argument| argument == wanted.as_bytes())
                || cwd.starts_with(wanted)
        })
        .collect()
}

/// Files below `directory` that contain `secret`.
pub(super) fn files_with(directory: &Path, secret: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("read_dir").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_with(&path, secret));
        } else if std::fs::read(&path)
            .unwrap_or_default()
            .windows(secret.len())
            .any(|window| window == secret.as_bytes())
        {
            found.push(path);
        }
    }
    found
}

pub(super) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .expect("read_dir")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
