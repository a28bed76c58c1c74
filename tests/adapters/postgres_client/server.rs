//! Real PostgreSQL servers in temporary directories, each on a loopback address of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podgres::core::member::MemberName;
use podgres::core::status::ServerStatus;
use podgres::core::supervision::Upstream;
use podgres::postgres::query::{LocalServer, QueryError};
use podgres::postgres::replication::UpstreamAccess;
use podgres::postgres::tls::ClientTls;
use podgres::postgres::{Login, Secret};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::postgresql::programs;
use crate::user::{give_away, run_as_server_user, temporary_directory};
use crate::wait::eventually;

pub(super) const PORT: u16 = 5432;
pub(super) const LIMIT: Duration = Duration::from_secs(20);
const START_LIMIT: Duration = Duration::from_mins(1);
const SEGMENT_SIZE_MB: &str = "1";

const CONFIGURATION: &str = "
port = 5432
fsync = off
shared_buffers = 16MB
max_wal_senders = 8
max_replication_slots = 8
log_statement = all
log_replication_commands = on
log_min_duration_statement = 0
";

const RULES: &str = "
local all all scram-sha-256
host all all all scram-sha-256
host replication ghost all trust
host replication plain all password
host replication outsider all reject
host replication all all scram-sha-256
";

/// One running server; ended when dropped.
pub(super) struct TestServer {
    child: Child,
    directory: TempDir,
    programs: PathBuf,
    pub(super) address: IpAddr,
}

pub(super) fn login(user: &str, password: &str) -> Login {
    Login {
        user: user.to_owned(),
        password: Secret::new(password.to_owned()),
    }
}

pub(super) fn superuser() -> Login {
    login("postgres", "initial superuser's \\ password")
}

pub(super) fn replication() -> Login {
    login("podgres_replication", "initial replication password")
}

/// The program directories of all versions that tests run against.
pub(super) fn installations() -> [PathBuf; 3] {
    [15, 16, 18].map(programs)
}

impl TestServer {
    /// A new cluster with the replication role, a primary. `lines` go to the end of postgresql.conf.
    pub(super) async fn primary(programs: &Path, lines: &str) -> Self {
        let (directory, address) = (temporary_directory(), fresh_address());
        let password_file = directory.path().join("password");
        std::fs::write(&password_file, superuser().password.expose()).expect("password file");
        give_away(&password_file);
        let data = directory.path().join("data");
        run(command(programs, "initdb")
            .args([
                "--username=postgres",
                "--auth=scram-sha-256",
                "--no-sync",
                "--encoding=UTF8",
            ])
            .args(["--no-locale", "--wal-segsize", SEGMENT_SIZE_MB])
            .arg("--pwfile")
            .arg(&password_file)
            .arg("-D")
            .arg(&data));
        write(&data.join("pg_hba.conf"), RULES);
        let server = Self::start(programs, directory, address, lines).await;
        let mut local = server.local();
        local
            .ensure_replication_role(&replication(), LIMIT)
            .await
            .expect("replication role");
        server
    }

    /// A clone of this server that streams from it over `slot`.
    pub(super) async fn standby(&self, slot: &str, lines: &str) -> Self {
        let directory = temporary_directory();
        let data = directory.path().join("data");
        run(command(&self.programs, "pg_basebackup")
            .env("PGPASSWORD", replication().password.expose())
            .args([
                "-U",
                "podgres_replication",
                "-h",
                &self.address.to_string(),
                "-p",
                "5432",
            ])
            .args(["--checkpoint=fast", "--no-sync", "-X", "stream", "-D"])
            .arg(&data));
        write(&data.join("standby.signal"), "");
        let lines = format!(
            "primary_conninfo = 'host={} port=5432 user=podgres_replication password=''{}'' application_name={slot}'\n\
             primary_slot_name = '{slot}'\n{lines}",
            self.address,
            replication().password.expose(),
        );
        Self::start(&self.programs, directory, fresh_address(), &lines).await
    }

    async fn start(programs: &Path, directory: TempDir, address: IpAddr, lines: &str) -> Self {
        let data = directory.path().join("data");
        let place = directory.path().display();
        let text = format!(
            "{CONFIGURATION}listen_addresses = '{address}'\nunix_socket_directories = '{place}'\n{lines}"
        );
        write(&data.join("postgresql.conf"), &text);
        let server = Self {
            child: spawn(programs, &directory),
            directory,
            programs: programs.to_owned(),
            address,
        };
        server.wait_until_settled().await;
        server
    }

    /// Until it accepts connections, or refuses them for good since it is a standby without hot standby.
    async fn wait_until_settled(&self) {
        let mut local = self.local();
        eventually("the server's start", async || {
            match local.status(false, LIMIT).await {
                Ok(_) => true,
                Err(QueryError::Starting { message }) => message.ends_with("is not accepting connections"),
                Err(QueryError::Unreachable { .. }) => false,
                Err(error) => panic!("{error}\n{}", self.log()),
            }
        })
        .await;
    }

    /// Blocks the thread, so that open connections of this test do not notice until they are used.
    pub(super) fn restart(&mut self) {
        let starts = |server: &Self| server.log().matches("ready to accept connections").count();
        let (before, deadline) = (starts(self), Instant::now() + START_LIMIT);
        self.end();
        self.child = spawn(&self.programs, &self.directory);
        while starts(self) == before {
            assert!(Instant::now() < deadline, "{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a pid"), signal).expect("signal");
    }

    fn end(&mut self) {
        self.signal(Signal::QUIT);
        self.child.wait().expect("wait for PostgreSQL");
    }

    pub(super) fn local(&self) -> LocalServer {
        self.local_as(superuser())
    }

    /// The same, with another login.
    pub(super) fn local_as(&self, superuser: Login) -> LocalServer {
        LocalServer::at(
            SocketAddr::new(self.address, PORT),
            MemberName::parse("pg-0").ok(),
            superuser,
            replication(),
        )
    }

    pub(super) async fn status(&self) -> ServerStatus {
        self.local().status(true, LIMIT).await.expect("status")
    }

    pub(super) fn as_upstream(&self) -> Upstream {
        Upstream {
            host: self.address.to_string(),
            address: self.address,
            port: PORT,
            slot: "podgres_pg_1".to_owned(),
            application_name: None,
        }
    }

    pub(super) fn major_version(&self) -> u32 {
        let text = std::fs::read_to_string(self.directory.path().join("data/PG_VERSION"));
        text.expect("PG_VERSION").trim().parse().expect("a version")
    }

    /// Runs SQL as superuser with this password.
    pub(super) async fn sql_as(&self, who: &Login, statements: &str) -> Result<(), tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config
            .hostaddr(self.address)
            .port(PORT)
            .user(who.user.as_str())
            .password(who.password.expose())
            .dbname("postgres")
            .application_name("test");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        let driver = tokio::spawn(connection);
        let result = client.batch_execute(statements).await;
        driver.abort();
        result
    }

    pub(super) async fn sql(&self, statements: &str) {
        self.sql_as(&superuser(), statements).await.expect(statements);
    }

    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).expect("log")
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::CONT);
            self.end();
        }
    }
}

/// How a member reaches `upstream`.
pub(super) fn access<'a>(
    upstream: &'a Upstream,
    login: &'a Login,
    tls: Option<&'a ClientTls>,
) -> UpstreamAccess<'a> {
    UpstreamAccess {
        upstream,
        login,
        application_name: "pg-1",
        tls,
    }
}

/// An address that no other server uses: the kernel answers for all of 127.0.0.0/8.
pub(super) fn fresh_address() -> IpAddr {
    let [a, b, c] = [(); 3].map(|()| fastrand::u8(1..=254));
    IpAddr::V4(Ipv4Addr::new(127, a, b, c))
}

pub(super) fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("write");
    give_away(path);
}

fn command(programs: &Path, name: &str) -> Command {
    let mut command = Command::new(programs.join(name));
    command.stdin(Stdio::null()).env("LC_ALL", "C").current_dir("/");
    run_as_server_user(&mut command);
    command
}

fn run(command: &mut Command) {
    let output = command.output().expect("program");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn spawn(programs: &Path, directory: &TempDir) -> Child {
    let log = directory.path().join("log");
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .expect("log");
    command(programs, "postgres")
        .arg("-D")
        .arg(directory.path().join("data"))
        .stdout(log.try_clone().expect("log"))
        .stderr(log)
        .spawn()
        .expect("postgres")
}
