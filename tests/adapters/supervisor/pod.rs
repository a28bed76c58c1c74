//! One pod for a test: a directory, an address, a supervisor process, and ways to look at what it does.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use podgres::core::supervision::{
    Postmaster, ServerRole, SupervisorReply, SupervisorRequest, SupervisorStatus,
};
use podgres::supervisor_client::{SupervisorClient, SupervisorClientError};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::postgresql::programs;
use crate::user::{run_as_server_user, server_user};

use super::machine::{children_of, gone, initdb, own, postmaster, run_as_postgres, template_15};
use super::process::{ADDRESS, GATED, MEMBER, PANIC, PROGRAMS, ROOT, STOP_TIMEOUT_MS};

/// Appears in the supervisor's environment and settings and must appear nowhere else.
pub(super) const PASSWORD: &str = "dolphin-staircase-42";
/// Longer than anything here takes on a busy machine.
pub(super) const LIMIT: Duration = Duration::from_mins(1);

pub(super) struct Pod {
    root: tempfile::TempDir,
    pub(super) programs: PathBuf,
    template: Option<Arc<tempfile::TempDir>>,
    address: IpAddr,
    pub(super) stop_timeout: Duration,
    pub(super) client: SupervisorClient,
    process: Option<Child>,
    in_namespace: bool,
    pub(super) member: String,
    /// With `leadership=lease`.
    pub(super) gated: bool,
}

impl Pod {
    /// A pod whose data directory does not exist.
    pub(super) fn empty() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let root = tempfile::Builder::new().prefix("supervisor").tempdir().unwrap();
        own(root.path());
        fs::create_dir(root.path().join("volume")).unwrap();
        own(&root.path().join("volume"));
        let [.., high, low] = std::process::id().to_be_bytes();
        let count = u8::try_from(COUNT.fetch_add(1, Ordering::Relaxed)).unwrap();
        Self {
            programs: programs(15),
            address: Ipv4Addr::new(127, high.max(1), low, count).into(),
            stop_timeout: Duration::from_secs(30),
            client: SupervisorClient::new(root.path().join("supervisor.sock")),
            template: None,
            process: None,
            in_namespace: false,
            member: "pg-0".to_owned(),
            gated: false,
            root,
        }
    }

    /// A pod with a cleanly stopped cluster of PostgreSQL 15.
    pub(super) fn with_data() -> Self {
        let mut pod = Self::empty();
        let template = template_15();
        run_as_postgres(
            Command::new("cp")
                .arg("-a")
                .arg(template.path().join("data"))
                .arg(pod.data()),
        );
        pod.template = Some(template);
        pod
    }

    pub(super) fn with_data_of_18() -> Self {
        let mut pod = Self::empty();
        pod.programs = programs(18);
        initdb(&pod.programs, &pod.data());
        pod
    }

    pub(super) fn path(&self) -> &Path {
        self.root.path()
    }

    pub(super) fn data(&self) -> PathBuf {
        self.root.path().join("volume/data")
    }

    pub(super) fn address(&self) -> IpAddr {
        self.address
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.root.path().join("supervisor.sock")
    }

    /// Starts the supervisor and waits until it answers.
    pub(super) async fn supervise(&mut self) {
        let command = self.command(&std::env::current_exe().unwrap(), &[]);
        self.supervise_by(command).await;
    }

    /// As [`Self::supervise`], but as process 1 of a process namespace of its own.
    pub(super) async fn supervise_as_process_1(&mut self) {
        let (uid, gid) = server_user().expect("this test makes a namespace and must be run as root");
        let (uid, gid) = (uid.to_string(), gid.to_string());
        let test = std::env::current_exe().unwrap();
        let mut arguments = vec!["--pid", "--fork", "--kill-child", "--mount-proc", "setpriv"];
        arguments.extend([
            "--reuid",
            &uid,
            "--regid",
            &gid,
            "--clear-groups",
            test.to_str().unwrap(),
        ]);
        let mut command = self.command("unshare".as_ref(), &arguments);
        command.uid(0).gid(0);
        self.in_namespace = true;
        self.supervise_by(command).await;
    }

    /// As [`Self::supervise`], but the supervisor panics when the file `panic` appears in [`Self::path`].
    pub(super) async fn supervise_with_a_bug(&mut self) {
        let mut command = self.command(&std::env::current_exe().unwrap(), &[]);
        command.env(PANIC, self.path().join("panic"));
        self.supervise_by(command).await;
    }

    async fn supervise_by(&mut self, mut command: Command) {
        self.process = Some(command.spawn().unwrap());
        let begun = Instant::now();
        while let Err(error) = self.try_ask(SupervisorRequest::Status).await {
            assert!(
                begun.elapsed() < LIMIT,
                "supervisor does not answer: {error}\n{}",
                self.log()
            );
            assert_eq!(
                self.process.as_mut().unwrap().try_wait().unwrap(),
                None,
                "{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.path().join("log"))
            .unwrap();
        let mut command = Command::new(program);
        command
            .args(arguments)
            .args([
                "supervisor::process::supervisor_process",
                "--exact",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(ROOT, self.path())
            .env(ADDRESS, self.address.to_string())
            .env(PROGRAMS, &self.programs)
            .env(MEMBER, &self.member)
            .envs(self.gated.then_some((GATED, "1")))
            .env(STOP_TIMEOUT_MS, self.stop_timeout.as_millis().to_string())
            .env("POSTGRES_PASSWORD", PASSWORD)
            .current_dir("/")
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        run_as_server_user(&mut command);
        command
    }

    /// The process that was started: the supervisor, or what put it into a namespace.
    pub(super) fn pid(&self) -> Pid {
        Pid::from_child(self.process.as_ref().unwrap())
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Stops every thread of the supervisor; until the last one stands, one may still take a request.
    pub(super) fn freeze(&self) {
        self.signal(Signal::STOP);
        let stopped = waitid(WaitId::Pid(self.pid()), WaitIdOptions::STOPPED).unwrap();
        assert!(stopped.unwrap().stopped());
    }

    /// Waits for the end of the supervisor.
    pub(super) async fn ended(&mut self) -> ExitStatus {
        gone(self.pid()).await;
        self.process.take().unwrap().wait().unwrap()
    }

    pub(super) async fn try_ask(
        &self,
        request: SupervisorRequest,
    ) -> Result<SupervisorStatus, SupervisorClientError> {
        match self.client.request(request, LIMIT).await? {
            SupervisorReply::Status(status) => Ok(*status),
            SupervisorReply::Refused { message } => panic!("a refusal is no reply: {message}"),
        }
    }

    pub(super) async fn ask(&self, request: SupervisorRequest) -> SupervisorStatus {
        let asked = format!("{request:?}");
        match self.try_ask(request).await {
            Ok(status) => status,
            Err(error) => panic!("{asked}: {error:?}\n{}", self.log()),
        }
    }

    /// What the supervisor says to a request that it must refuse.
    pub(super) async fn refused(&self, request: SupervisorRequest) -> String {
        match self.try_ask(request).await {
            Err(SupervisorClientError::Refused { message }) => message,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Long polls until `wanted` holds.
    pub(super) async fn until(&self, wanted: impl Fn(&SupervisorStatus) -> bool) -> SupervisorStatus {
        let begun = Instant::now();
        let mut status = self.ask(SupervisorRequest::Status).await;
        while !wanted(&status) {
            assert!(
                begun.elapsed() < LIMIT,
                "waited in vain: {status:?}\n{}",
                self.log()
            );
            let (version, timeout_ms) = (status.version, 5000);
            status = self.ask(SupervisorRequest::Wait { version, timeout_ms }).await;
        }
        status
    }

    /// Starts PostgreSQL and waits until it is ready; gives the postmaster.
    pub(super) async fn start(&self, server: ServerRole) -> Pid {
        self.ask(SupervisorRequest::Start {
            server,
            promised: None,
        })
        .await;
        let ready = |status: &SupervisorStatus| match &status.postmaster {
            Postmaster::Running { ready, .. } => *ready,
            Postmaster::Stopped { .. } => panic!("PostgreSQL ended: {status:?}\n{}", self.log()),
            Postmaster::Stopping { .. } => false,
        };
        postmaster(&self.until(ready).await)
    }

    pub(super) async fn start_primary(&self) -> Pid {
        self.ask(SupervisorRequest::GrantLicence { until_ms: None }).await;
        self.start(ServerRole::alone()).await
    }

    /// "Database cluster state" of `pg_controldata`.
    pub(super) fn control_state(&self) -> String {
        let mut command = Command::new(self.programs.join("pg_controldata"));
        let output = command.arg(self.data()).env("LC_ALL", "C").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("Database cluster state:"));
        line.unwrap_or_else(|| panic!("no state in {text}"))
            .trim()
            .to_owned()
    }

    /// Runs one statement as superuser.
    pub(super) fn sql(&self, statement: &str) -> String {
        let output = self.sql_command(statement).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{statement}: {error}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(super) fn sql_command(&self, statement: &str) -> Command {
        let mut command = Command::new(self.programs.join("psql"));
        command
            .args([
                "-XAtq",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                "postgres",
                "-d",
                "postgres",
                "-c",
                statement,
            ])
            .arg("-h")
            .arg(self.address.to_string())
            .env("PGPASSWORD", PASSWORD)
            .stderr(std::process::Stdio::piped());
        command
    }

    /// What the supervisor and PostgreSQL have written.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // PostgreSQL is told by the kernel. Process 1 of a namespace is not: it has changed its user.
            if self.in_namespace {
                for (pid, _) in children_of(Pid::from_child(&process)) {
                    kill_process(pid, Signal::KILL).ok();
                }
            }
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}
