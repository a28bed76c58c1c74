//! A demo inside the test, with a script in the place of podgres, and ways to look at what it does.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use podgres::core::member::Ordinal;
use podgres::core::policy::Leadership;
use podgres::demo::container::Container;
use podgres::demo::control::{DemoStatus, PodStatus, Reply, Request, request};
use podgres::demo::events::Events;
use podgres::demo::pod::Phase;
use podgres::demo::tree::{self, Scope};
use podgres::demo::{DemoError, DemoState, Options, PodManagement, run};
use tokio::task::JoinHandle;

/// Far beyond what anything here takes.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// A container that says what it does in `life` on its volume, and ends when told.
pub(super) const ORDERLY: &str = r#"#!/bin/sh
volume=${PGDATA%/pgdata}
say() { echo "$*" >> "$volume/life"; }
case $1 in
init) say init; env > "$volume/environment"; id -u > "$volume/user"; echo "output of init" ;;
sidecar)
    trap 'say sidecar ended; exit 0' TERM
    while :; do sleep 0.1; done ;;
postgres)
    trap 'say postgres ending; sleep 0.3; say postgres ended; exit 0' TERM
    echo "output of postgres"
    while :; do sleep 0.1; done ;;
esac
"#;

/// A container of which only KILL rids, with a child in a session of its own and one that left its parent.
pub(super) const STUBBORN: &str = r#"#!/bin/sh
volume=${PGDATA%/pgdata}
case $1 in
init) [ -e "$volume/third" ] && exit 0
      [ -e "$volume/second" ] && touch "$volume/third"
      touch "$volume/second"; exit 3 ;;
sidecar) trap '' TERM; while :; do sleep 0.1; done ;;
postgres)
    trap '' TERM
    cd "$volume"
    setsid sh -c 'trap "" TERM; setsid sleep 1000 & sleep 1000' &
    env -i setsid sh -c 'sleep 1000 & exit' &
    while :; do sleep 0.1; done ;;
esac
"#;

/// Real PostgreSQL below a shell that does not forward signals, so that only the tree leads to it.
pub(super) const REAL: &str = r#"#!/bin/sh
case $1 in
init) [ -e "$PGDATA/PG_VERSION" ] || "$PG_BINDIR/initdb" --no-sync --auth=trust -U postgres "$PGDATA" ;;
sidecar) while :; do sleep 0.1; done ;;
postgres)
    "$PG_BINDIR/postgres" -D "$PGDATA" -h "$PODGRES_LISTEN_ADDRESS" -p "$PODGRES_POSTGRES_PORT" \
        -k "$PODGRES_SOCKET_DIRECTORIES" -c max_connections=10 -c shared_buffers=1MB & wait ;;
esac
"#;

pub(super) struct Demo {
    pub(super) directory: PathBuf,
    task: JoinHandle<Result<(), DemoError>>,
    output: Arc<Mutex<Vec<u8>>>,
    // Last, so that it is removed when the demo has ended.
    _root: Option<tempfile::TempDir>,
}

impl Drop for Demo {
    /// A test that failed leaves no process behind.
    fn drop(&mut self) {
        self.task.abort();
        let directory = self.directory.display().to_string();
        for _ in 0..50 {
            let left = tree::processes().into_keys().filter(|pid| {
                let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
                let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                cwd.starts_with(&self.directory) || String::from_utf8_lossy(&command).contains(&directory)
            });
            if left
                .filter(|pid| tree::signal(*pid, rustix::process::Signal::KILL))
                .count()
                == 0
            {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[derive(Clone)]
pub(super) struct Output(pub(super) Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("lock").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(super) fn options(root: &Path, script: &str) -> Options {
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).expect("open to all");
    let binary = root.join("script");
    fs::write(&binary, script).expect("a script");
    let mut options = Options::new(binary, PathBuf::from("/usr/bin"));
    options.leadership = Some(Leadership::Fixed);
    options.directory = Some(root.join("demo"));
    options.own_process = false;
    options
}

impl Demo {
    pub(super) async fn start(options: Options, root: Option<tempfile::TempDir>) -> Self {
        let output = Arc::new(Mutex::new(Vec::new()));
        let events = Events::to(Box::new(Output(Arc::clone(&output))));
        let directory = options.directory.clone().expect("a directory");
        let task = tokio::spawn(run(options, events));
        let demo = Self {
            directory,
            task,
            output,
            _root: root,
        };
        let begun = async {
            while request(&demo.directory, &Request::Status).await.is_err() {
                assert!(!demo.task.is_finished(), "the demo ended: {}", demo.output());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LIMIT, begun).await.expect("the demo begins");
        demo
    }

    pub(super) async fn of(script: &str, change: impl FnOnce(&mut Options)) -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let mut options = options(root.path(), script);
        options.pod_management = Some(PodManagement::Parallel);
        change(&mut options);
        Self::start(options, Some(root)).await
    }

    pub(super) fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().expect("lock")).into_owned()
    }

    pub(super) fn volume(&self, pod: &str) -> PathBuf {
        self.directory.join("volumes").join(format!("data-{pod}"))
    }

    pub(super) fn life(&self, pod: &str) -> String {
        fs::read_to_string(self.volume(pod).join("life")).unwrap_or_default()
    }

    pub(super) fn state(&self) -> DemoState {
        DemoState::load(&self.directory)
            .expect("readable")
            .expect("there")
    }

    pub(super) async fn ask(&self, asked: Request) -> Reply {
        request(&self.directory, &asked).await.expect("a reply")
    }

    pub(super) async fn done(&self, asked: Request) {
        let reply = self.ask(asked).await;
        assert!(matches!(reply, Reply::Done { .. }), "{reply:?}");
    }

    pub(super) async fn status(&self) -> DemoStatus {
        match self.ask(Request::Status).await {
            Reply::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn pod(&self, ordinal: u32) -> Option<PodStatus> {
        self.status()
            .await
            .pods
            .into_iter()
            .find(|pod| pod.ordinal == Ordinal(ordinal))
    }

    /// Waits until the status is as wanted.
    pub(super) async fn until(&self, what: &str, wanted: impl Fn(&DemoStatus) -> bool) -> DemoStatus {
        let began = Instant::now();
        loop {
            let status = self.status().await;
            if wanted(&status) {
                return status;
            }
            assert!(
                began.elapsed() < LIMIT,
                "never {what}: {status:#?}\n{}",
                self.output()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(super) async fn until_running(&self, pods: usize) -> DemoStatus {
        self.until("running", |status| {
            status.pods.len() == pods
                && status
                    .pods
                    .iter()
                    .all(|pod| pod.phase == Phase::Running && pod.pids.len() == 2)
        })
        .await
    }

    /// All processes that work in the pod's folders, or below its containers.
    pub(super) fn processes(&self, pod: &PodStatus) -> BTreeSet<u32> {
        let scope = Scope {
            roots: pod.pids.iter().map(|(_, pid)| *pid).collect(),
            directories: vec![
                self.directory.join("pods").join(&pod.name),
                self.volume(&pod.name),
            ],
            ancestor: None,
        };
        scope.members(&tree::processes())
    }

    pub(super) async fn stop(mut self) {
        self.done(Request::Stop).await;
        tokio::time::timeout(LIMIT, &mut self.task)
            .await
            .expect("ends")
            .expect("no panic")
            .expect("no error");
    }
}

pub(super) fn delete(ordinal: u32) -> Request {
    Request::DeletePod {
        ordinal: Ordinal(ordinal),
        force: false,
        wipe_volume: false,
        move_address: false,
    }
}

/// Stopped; or in the kernel with the stop before it, as after vfork while the child is stopped.
pub(super) fn stands_still(pid: u32) -> bool {
    matches!(state_of(pid), Some('T' | 'D'))
}

pub(super) fn state_of(pid: u32) -> Option<char> {
    tree::processes().get(&pid).map(|process| process.state)
}

pub(super) async fn status_when_running(directory: &Path) -> DemoStatus {
    let began = Instant::now();
    loop {
        if let Ok(Reply::Status(status)) = request(directory, &Request::Status).await
            && status.pods.iter().any(|pod| pod.pids.len() == 2)
        {
            return status;
        }
        assert!(began.elapsed() < LIMIT, "never running");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(super) fn pid_of(status: &DemoStatus, wanted: Container) -> u32 {
    let pids = &status.pods[0].pids;
    pids.iter()
        .find(|(container, _)| *container == wanted)
        .map(|(_, pid)| *pid)
        .expect("it runs")
}
