//! The demo's controller with a shell script in the place of podgres: what it does with processes,
//! addresses and its own socket. What the pods do is the business of the cluster tests.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use podgres::core::member::{Ordinal, Topology};
use podgres::demo::addresses::claim;
use podgres::demo::container::Container;
use podgres::demo::control::{DemoStatus, PodStatus, Reply, Request, request};
use podgres::demo::dns::Zone;
use podgres::demo::events::Events;
use podgres::demo::pod::Phase;
use podgres::demo::state::{Network, PodState, Ports};
use podgres::demo::tree::{self, Scope};
use podgres::demo::{DemoError, DemoState, Options, PodManagement, Target, dsn, run};
use podgres::dns::Resolver;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::task::JoinHandle;

/// Far beyond what anything here takes.
const LIMIT: Duration = Duration::from_secs(20);

/// A container that says what it does in `life` on its volume, and ends when told.
const ORDERLY: &str = r#"#!/bin/sh
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
const STUBBORN: &str = r#"#!/bin/sh
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
const REAL: &str = r#"#!/bin/sh
case $1 in
init) [ -e "$PGDATA/PG_VERSION" ] || "$PG_BINDIR/initdb" --no-sync --auth=trust -U postgres "$PGDATA" ;;
sidecar) while :; do sleep 0.1; done ;;
postgres)
    "$PG_BINDIR/postgres" -D "$PGDATA" -h "$PODGRES_LISTEN_ADDRESS" -p "$PODGRES_POSTGRES_PORT" \
        -k "$PODGRES_SOCKET_DIRECTORIES" -c max_connections=10 -c shared_buffers=1MB & wait ;;
esac
"#;

struct Demo {
    directory: PathBuf,
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
struct Output(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("lock").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn options(root: &Path, script: &str) -> Options {
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).expect("open to all");
    let binary = root.join("script");
    fs::write(&binary, script).expect("a script");
    let mut options = Options::new(binary, PathBuf::from("/usr/bin"));
    options.directory = Some(root.join("demo"));
    options.own_process = false;
    options
}

impl Demo {
    async fn start(options: Options, root: Option<tempfile::TempDir>) -> Self {
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

    async fn of(script: &str, change: impl FnOnce(&mut Options)) -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let mut options = options(root.path(), script);
        options.pod_management = PodManagement::Parallel;
        change(&mut options);
        Self::start(options, Some(root)).await
    }

    fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().expect("lock")).into_owned()
    }

    fn volume(&self, pod: &str) -> PathBuf {
        self.directory.join("volumes").join(format!("data-{pod}"))
    }

    fn life(&self, pod: &str) -> String {
        fs::read_to_string(self.volume(pod).join("life")).unwrap_or_default()
    }

    fn state(&self) -> DemoState {
        DemoState::load(&self.directory)
            .expect("readable")
            .expect("there")
    }

    async fn ask(&self, asked: Request) -> Reply {
        request(&self.directory, &asked).await.expect("a reply")
    }

    async fn done(&self, asked: Request) {
        let reply = self.ask(asked).await;
        assert!(matches!(reply, Reply::Done { .. }), "{reply:?}");
    }

    async fn status(&self) -> DemoStatus {
        match self.ask(Request::Status).await {
            Reply::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    async fn pod(&self, ordinal: u32) -> Option<PodStatus> {
        self.status()
            .await
            .pods
            .into_iter()
            .find(|pod| pod.ordinal == Ordinal(ordinal))
    }

    /// Waits until the status is as wanted.
    async fn until(&self, what: &str, wanted: impl Fn(&DemoStatus) -> bool) -> DemoStatus {
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

    async fn until_running(&self, pods: usize) -> DemoStatus {
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
    fn processes(&self, pod: &PodStatus) -> BTreeSet<u32> {
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

    async fn stop(mut self) {
        self.done(Request::Stop).await;
        tokio::time::timeout(LIMIT, &mut self.task)
            .await
            .expect("ends")
            .expect("no panic")
            .expect("no error");
    }
}

fn delete(ordinal: u32) -> Request {
    Request::DeletePod {
        ordinal: Ordinal(ordinal),
        force: false,
        wipe_volume: false,
        move_address: false,
    }
}

/// Stopped; or in the kernel with the stop before it, as after vfork while the child is stopped.
fn stands_still(pid: u32) -> bool {
    matches!(state_of(pid), Some('T' | 'D'))
}

fn state_of(pid: u32) -> Option<char> {
    tree::processes().get(&pid).map(|process| process.state)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_gets_its_environment_runs_unprivileged_and_ends_in_order() {
    let demo = Demo::of(ORDERLY, |options| {
        options.replicas = Some(1);
        options.namespace = Some("prod".to_owned());
        options.environment = BTreeMap::from([("PODGRES_MAX_LAG".to_owned(), "1MB".to_owned())]);
    })
    .await;
    demo.until_running(1).await;
    let volume = demo.volume("demo-0");
    let environment = fs::read_to_string(volume.join("environment")).expect("environment");
    let state = demo.state();
    let address = state.pods[0].address;
    for line in [
        "POD_NAME=demo-0".to_owned(),
        "POD_NAMESPACE=prod".to_owned(),
        format!("PODGRES_LISTEN_ADDRESS={address}"),
        format!("PODGRES_DNS_SERVER={}", state.dns_server()),
        format!("PGDATA={}", volume.join("pgdata").display()),
        "PODGRES_END_WITH_PARENT=1".to_owned(),
        "PODGRES_MAX_LAG=1MB".to_owned(),
    ] {
        assert!(
            environment.lines().any(|found| found == line),
            "{line:?} is missing in\n{environment}"
        );
    }
    let password = fs::read_to_string(&state.password_file).expect("password");
    assert_eq!(password.len(), 24);
    assert!(!environment.contains(&password) && !demo.output().contains(&password));
    let secret = fs::metadata(&state.password_file).expect("password file");
    assert_eq!(secret.mode() & 0o777, 0o400);
    let user: u32 = fs::read_to_string(volume.join("user"))
        .expect("user")
        .trim()
        .parse()
        .expect("a uid");
    assert_ne!(user, 0);
    assert_eq!(secret.uid(), user);
    let log = |container: &str| {
        fs::read_to_string(demo.directory.join(format!("pods/demo-0/{container}.log"))).expect("a log")
    };
    // Said when its trap is set: an earlier TERM would end it without a word.
    until(|| !log("postgres").is_empty()).await;
    assert_eq!(
        (log("init").as_str(), log("postgres").as_str()),
        ("output of init\n", "output of postgres\n")
    );
    let resolver = Resolver::new(Some(state.dns_server())).expect("a client");
    let members = resolver
        .members(&state.topology(), Ordinal(0))
        .await
        .expect("members");
    assert_eq!(members[0].addresses, [address]);
    demo.done(delete(0)).await;
    assert_eq!(
        demo.life("demo-0").lines().take(4).collect::<Vec<_>>(),
        ["init", "postgres ending", "postgres ended", "sidecar ended",]
    );
    demo.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_that_end_are_started_again_alone() {
    let demo = Demo::of(STUBBORN, |options| {
        options.replicas = Some(1);
        options.grace = Duration::from_millis(300);
    })
    .await;
    // The script's init fails twice first.
    let status = demo.until_running(1).await;
    let before = &status.pods[0];
    assert_eq!(before.restarts, [(Container::Init, 2)]);
    let tree = |status: &PodStatus| demo.processes(status);
    let began = Instant::now();
    // The shells with their sleeps, and the two that have made themselves independent.
    while tree(before).len() < 7 {
        assert!(began.elapsed() < LIMIT, "{:?}", tree(before));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let pid = |status: &PodStatus, wanted: Container| {
        status
            .pids
            .iter()
            .find(|(container, _)| *container == wanted)
            .map(|(_, pid)| *pid)
    };
    let postgres = pid(before, Container::Postgres).expect("postgres runs");
    let all = tree(before);
    let sidecar = Scope {
        roots: pid(before, Container::Sidecar).into_iter().collect(),
        ..Scope::default()
    };
    assert!(tree::signal(postgres, rustix::process::Signal::KILL));
    demo.until("restarted", |status| {
        pid(&status.pods[0], Container::Postgres).is_some_and(|new| new != postgres)
    })
    .await;
    let after = demo.pod(0).await.expect("the pod");
    assert_eq!(pid(&after, Container::Sidecar), pid(before, Container::Sidecar));
    assert_eq!(after.uid, before.uid);
    assert_eq!(after.restarts, [(Container::Init, 2), (Container::Postgres, 1)]);
    // Nothing of the first postgres container is left: neither its children nor its orphans.
    let alive = tree::processes();
    let sidecars = sidecar.members(&alive);
    let left: Vec<_> = all
        .iter()
        .filter(|pid| !sidecars.contains(pid))
        .filter(|pid| alive.get(pid).is_some_and(|process| process.state != 'Z'))
        .filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd != Path::new("/")))
        .collect();
    assert!(left.is_empty(), "{left:?} of {all:?}");
    demo.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ignores_term_is_killed_after_the_grace_period() {
    let demo = Demo::of(STUBBORN, |options| {
        options.replicas = Some(1);
        options.grace = Duration::from_millis(700);
    })
    .await;
    let before = demo.until_running(1).await.pods.remove(0);
    let kept = demo.volume("demo-0").join("kept");
    fs::write(&kept, "data").expect("a file on the volume");
    let all = demo.processes(&before);
    let asked_at = Instant::now();
    demo.done(delete(0)).await;
    assert!(
        asked_at.elapsed() >= Duration::from_millis(700),
        "not even the grace period"
    );
    assert!(
        asked_at.elapsed() < Duration::from_secs(10),
        "{:?}",
        asked_at.elapsed()
    );
    let gone = |pid: &u32| state_of(*pid).is_none_or(|state| state == 'Z');
    assert!(all.iter().all(gone), "{all:?}");
    let after = demo.until_running(1).await.pods.remove(0);
    assert_eq!((&after.name, after.address), (&before.name, before.address));
    assert_ne!(after.uid, before.uid);
    assert!(kept.exists());
    demo.done(Request::DeletePod {
        ordinal: Ordinal(0),
        force: true,
        wipe_volume: true,
        move_address: true,
    })
    .await;
    assert!(!kept.exists());
    let moved = demo.until_running(1).await.pods.remove(0);
    assert_ne!(moved.address, before.address);
    assert_eq!(demo.state().pods[0].address, moved.address);
    let state = demo.state();
    let resolver = Resolver::new(Some(state.dns_server())).expect("a client");
    let host = state.topology().pod_host(Ordinal(0));
    assert_eq!(
        resolver.addresses(&host).await.expect("an address"),
        [moved.address]
    );
    demo.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn freeze_stops_and_thaw_continues_every_process_and_force_kills_them() {
    let demo = Demo::of(STUBBORN, |options| {
        options.replicas = Some(2);
        options.grace = Duration::from_millis(300);
    })
    .await;
    let pods = demo.until_running(2).await.pods;
    demo.done(Request::Freeze { ordinal: Ordinal(1) }).await;
    let frozen = demo.processes(&pods[1]);
    assert!(frozen.len() >= 5, "{frozen:?}");
    assert!(frozen.iter().all(|pid| stands_still(*pid)), "{frozen:?}");
    assert!(
        demo.processes(&pods[0])
            .iter()
            .all(|pid| state_of(*pid) != Some('T')),
        "the other pod"
    );
    assert!(demo.pod(1).await.is_some_and(|pod| pod.frozen));
    demo.done(Request::Thaw { ordinal: Ordinal(1) }).await;
    assert!(
        demo.processes(&pods[1])
            .iter()
            .all(|pid| state_of(*pid) != Some('T'))
    );
    demo.done(Request::Freeze { ordinal: Ordinal(1) }).await;
    let asked_at = Instant::now();
    demo.done(Request::DeletePod {
        ordinal: Ordinal(1),
        force: true,
        wipe_volume: false,
        move_address: false,
    })
    .await;
    assert!(
        asked_at.elapsed() < Duration::from_secs(3),
        "{:?}",
        asked_at.elapsed()
    );
    assert!(
        frozen
            .iter()
            .all(|pid| state_of(*pid).is_none_or(|state| state == 'Z'))
    );
    let after = demo.until_running(2).await.pods;
    assert_eq!(after[0].pids, pods[0].pids, "the other pod was touched");
    for absent in [
        Request::Freeze { ordinal: Ordinal(7) },
        Request::Thaw { ordinal: Ordinal(7) },
        delete(7),
    ] {
        let reply = demo.ask(absent).await;
        assert_eq!(
            reply,
            Reply::Refused {
                message: "pod \"demo-7\" does not exist".to_owned()
            }
        );
    }
    demo.stop().await;
}

/// Debian's folder of PostgreSQL programs, the newest.
fn program_directory() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("an installation of PostgreSQL");
    let mut found: Vec<PathBuf> = versions.flatten().map(|entry| entry.path().join("bin")).collect();
    found.sort();
    found.pop().expect("a version of PostgreSQL")
}

/// A session of the pod's own server.
async fn session(state: &DemoState) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let text = dsn(state, Target::Member(Ordinal(0))).expect("a connection string");
    let (client, connection) = tokio_postgres::connect(&text, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn session_when_up(state: &DemoState) -> tokio_postgres::Client {
    let began = Instant::now();
    loop {
        match session(state).await {
            Ok(client) => return client,
            Err(error) => assert!(began.elapsed() < LIMIT, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_postmaster_and_its_children_are_frozen_thawed_and_killed() {
    let demo = Demo::of(REAL, |options| {
        options.replicas = Some(1);
        options.grace = Duration::from_millis(300);
        options.program_directory = program_directory();
    })
    .await;
    let status = demo.until_running(1).await;
    let client = session_when_up(&demo.state()).await;
    client
        .batch_execute("create table t as select 1 as i")
        .await
        .expect("a table");
    let members = demo.processes(&status.pods[0]);
    // Two shells, the postmaster, its five or more, and this session.
    assert!(members.len() >= 9, "{members:?}");
    demo.done(Request::Freeze { ordinal: Ordinal(0) }).await;
    assert!(
        members
            .iter()
            .all(|pid| state_of(*pid).is_none_or(|state| matches!(state, 'T' | 'D' | 'Z'))),
        "{members:?}"
    );
    let asked = client.query_one("select i from t", &[]);
    tokio::pin!(asked);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut asked).await;
    assert!(early.is_err(), "a frozen server answered");
    demo.done(Request::Thaw { ordinal: Ordinal(0) }).await;
    let row = tokio::time::timeout(LIMIT, asked)
        .await
        .expect("an answer")
        .expect("a row");
    assert_eq!(row.get::<_, i32>(0), 1);
    demo.done(Request::DeletePod {
        ordinal: Ordinal(0),
        force: true,
        wipe_volume: false,
        move_address: true,
    })
    .await;
    assert!(
        members
            .iter()
            .all(|pid| state_of(*pid).is_none_or(|state| state == 'Z')),
        "{members:?}"
    );
    // The volume is as the kill left it, and the next server recovers from that.
    demo.until_running(1).await;
    let client = session_when_up(&demo.state()).await;
    let row = client.query_one("select i from t", &[]).await.expect("a row");
    assert_eq!(row.get::<_, i32>(0), 1);
    demo.stop().await;
}

/// Answers every HTTP request on the pods' addresses as one that is in `ready` deserves.
async fn answer_probes(address: (std::net::IpAddr, u16), ready: Arc<Mutex<bool>>) {
    let listener = TcpListener::bind(address).await.expect("the pod's address");
    while let Ok((mut stream, _)) = listener.accept().await {
        let status = if *ready.lock().expect("lock") {
            "200 OK"
        } else {
            "503 Service Unavailable"
        };
        let mut request = [0; 512];
        drop(stream.read(&mut request).await);
        drop(
            stream
                .write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes())
                .await,
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_03_and_05_pods_come_in_order_and_go_from_the_highest() {
    let root = tempfile::tempdir().expect("a directory");
    let mut options = options(root.path(), ORDERLY);
    options.first_ordinal = Some(4);
    let demo = Demo::start(options, Some(root)).await;
    let mut ready = Vec::new();
    for place in 0..3 {
        let status = demo.until_running(place + 1).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(
            demo.status().await.pods.len(),
            place + 1,
            "the next came before this one was ready"
        );
        assert!(!status.settled);
        let one = Arc::new(Mutex::new(true));
        tokio::spawn(answer_probes(
            (status.pods[place].address, demo.state().ports.http),
            Arc::clone(&one),
        ));
        ready.push(one);
    }
    let status = demo.until("settled", |status| status.settled).await;
    let names: Vec<&str> = status.pods.iter().map(|pod| pod.name.as_str()).collect();
    assert_eq!(names, ["demo-4", "demo-5", "demo-6"]);
    assert!(
        demo.output().contains("read-write: postgresql://postgres@127."),
        "{}",
        demo.output()
    );
    demo.done(Request::Scale { replicas: 1 }).await;
    demo.until("scaled down", |status| status.pods.len() == 1).await;
    let output = demo.output();
    let place = |text: &str| {
        output
            .find(text)
            .unwrap_or_else(|| panic!("{text:?} is not in {output}"))
    };
    assert!(
        place("demo-6  deleted") < place("demo-5  postgres exited"),
        "{output}"
    );
    assert!(demo.volume("demo-5").join("life").exists() && demo.volume("demo-6").join("life").exists());
    // The volume is found again, with what was on it.
    demo.done(Request::Scale { replicas: 2 }).await;
    demo.until("scaled up", |status| status.settled).await;
    assert_eq!(
        demo.life("demo-5").lines().filter(|line| *line == "init").count(),
        2
    );
    *ready[0].lock().expect("lock") = false;
    demo.until("not ready", |status| !status.pods[0].ready).await;
    let reply = demo.ask(Request::Scale { replicas: 5000 }).await;
    assert!(matches!(reply, Reply::Refused { .. }), "{reply:?}");
    demo.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_run_continues_and_a_second_demo_is_refused() {
    let root = tempfile::tempdir().expect("a directory");
    let mut options = options(root.path(), ORDERLY);
    options.replicas = Some(2);
    options.pod_management = PodManagement::Parallel;
    options.cluster = Some("pg".to_owned());
    let demo = Demo::start(options.clone(), None).await;
    let first = demo.until_running(2).await;
    let state = demo.state();
    let password = fs::read(&state.password_file).expect("a password");
    let refused = run(options.clone(), Events::to(Box::new(std::io::sink()))).await;
    assert!(matches!(refused, Err(DemoError::InUse { .. })), "{refused:?}");
    demo.stop().await;
    assert!(!state.control_socket.exists());
    assert!(
        request(&root.path().join("demo"), &Request::Status)
            .await
            .is_err()
    );
    options.cluster = Some("other".to_owned());
    let refused = run(options.clone(), Events::to(Box::new(std::io::sink()))).await;
    assert!(
        matches!(refused, Err(DemoError::OtherCluster { .. })),
        "{refused:?}"
    );
    options.cluster = None;
    options.replicas = None;
    let demo = Demo::start(options, None).await;
    let second = demo.until_running(2).await;
    assert_eq!(demo.state(), state);
    assert_eq!(fs::read(&state.password_file).expect("a password"), password);
    for (first, second) in first.pods.iter().zip(&second.pods) {
        assert_eq!(first.address, second.address);
        assert_ne!(first.uid, second.uid);
        assert_eq!(
            demo.life(&first.name)
                .lines()
                .filter(|line| *line == "init")
                .count(),
            2
        );
    }
    demo.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_have_short_names_in_a_directory_with_a_long_one() {
    let root = tempfile::tempdir().expect("a directory");
    let mut options = options(root.path(), ORDERLY);
    options.directory = Some(root.path().join("a".repeat(60)).join("b".repeat(60)));
    options.cluster = Some("c".repeat(61));
    options.replicas = Some(1);
    let demo = Demo::start(options, Some(root)).await;
    demo.until_running(1).await;
    let pod = demo.state().pods[0].name.clone();
    assert_eq!(pod.len(), 63);
    let environment = fs::read_to_string(demo.volume(&pod).join("environment")).expect("environment");
    let run = environment
        .lines()
        .find_map(|line| line.strip_prefix("PODGRES_RUN_DIR="))
        .expect("a directory");
    assert!(run.len() + "/supervisor.sock".len() <= 107, "{run}");
    let (run, socket) = (PathBuf::from(run), demo.state().control_socket);
    assert_eq!(fs::metadata(&run).expect("a directory").mode() & 0o777, 0o700);
    let reply = demo.ask(Request::Scale { replicas: 11 }).await;
    assert!(
        matches!(reply, Reply::Refused { .. }),
        "a pod name of 64 letters: {reply:?}"
    );
    demo.stop().await;
    assert!(!run.exists() && !socket.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_socket_survives_hostile_bytes() {
    let demo = Demo::of(ORDERLY, |options| options.replicas = Some(1)).await;
    let socket = demo.state().control_socket;
    assert_eq!(fs::metadata(&socket).expect("a socket").mode() & 0o777, 0o600);
    let endless = vec![b'['; 100_000];
    let hostile: [&[u8]; 8] = [
        b"\n",
        b"{}\n",
        b"\xff\xfe\x00\n",
        b"{\"request\":\"scale\",\"replicas\":-1}\n",
        b"{\"request\":\"scale\",\"replicas\":99999999999}\n",
        b"{\"request\":\"delete-pod\",\"ordinal\":\"../..\"}\n",
        b"{\"request\":\"explode\"}\n",
        &endless,
    ];
    for bytes in hostile {
        let mut stream = UnixStream::connect(&socket).await.expect("connected");
        // The demo may close before it has read all.
        drop(stream.write_all(bytes).await);
        drop(stream.shutdown().await);
        let mut answer = Vec::new();
        drop(
            tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer))
                .await
                .expect("an answer or an end"),
        );
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.is_empty() || answer.contains("\"refused\""), "{answer}");
    }
    let mut idle = Vec::new();
    for _ in 0..10 {
        idle.push(UnixStream::connect(&socket).await.expect("connected"));
    }
    // One connection, several requests.
    let mut stream = UnixStream::connect(&socket).await.expect("connected");
    stream
        .write_all(b"{\"request\":\"status\"}\n{\"request\":\"status\"}\n")
        .await
        .expect("sent");
    stream.shutdown().await.expect("shut down");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answers");
    assert_eq!(answer.lines().count(), 2, "{answer}");
    demo.stop().await;
}

#[allow(clippy::unnecessary_wraps, reason = "the shape that claim asks for")]
fn zone(port: u16) -> Result<Zone, DemoError> {
    let topology = Topology {
        cluster: "pg".to_owned(),
        service: "pg".to_owned(),
        namespace: "default".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        first_ordinal: Ordinal(0),
    };
    Ok(Zone::new(topology, port).expect("a zone"))
}

#[tokio::test]
async fn demos_with_one_seed_get_networks_of_their_own_and_keep_them() {
    let seed = fastrand::u64(..);
    let hosts = [10, 11, 12];
    let first = claim(None, seed, &hosts, zone).await.expect("a network");
    let second = claim(None, seed, &hosts, zone).await.expect("a network");
    assert_ne!(first.network, second.network);
    let kept = (first.network, first.ports);
    first.server.close().await;
    let again = claim(Some(kept), fastrand::u64(..), &hosts, zone)
        .await
        .expect("a network");
    assert_eq!((again.network, again.ports), kept);
    // Somebody else listens where a pod would.
    again.server.close().await;
    let guest = TcpListener::bind((kept.0.host(11), kept.1.read_only))
        .await
        .expect("a port");
    let elsewhere = claim(Some(kept), seed, &hosts, zone).await.expect("a network");
    assert_ne!(elsewhere.network, kept.0);
    drop(guest);
}

#[test]
fn killing_a_tree_takes_what_has_left_its_session_and_nothing_else() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let spawn = || {
        let script = "setsid sh -c 'sleep 1000 & sleep 1000' & sh -c 'sleep 1000 & wait' & wait";
        let mut command = Command::new("sh");
        command.args(["-c", script]).process_group(0).stdin(Stdio::null());
        command.spawn().expect("a shell")
    };
    let (mut ours, mut other) = (spawn(), spawn());
    let scope = |pid| Scope {
        roots: [pid].into(),
        ..Scope::default()
    };
    let members = |pid| scope(pid).members(&tree::processes());
    let began = Instant::now();
    while members(ours.id()).len() < 6 || members(other.id()).len() < 6 {
        assert!(began.elapsed() < LIMIT);
        std::thread::sleep(Duration::from_millis(10));
    }
    let (doomed, spared) = (members(ours.id()), members(other.id()));
    assert!(runtime.block_on(tree::kill(&scope(ours.id()))));
    assert!(
        doomed
            .iter()
            .all(|pid| state_of(*pid).is_none_or(|state| state == 'Z')),
        "{doomed:?}"
    );
    assert!(
        spared
            .iter()
            .all(|pid| state_of(*pid).is_some_and(|state| state != 'Z')),
        "{spared:?}"
    );
    assert!(runtime.block_on(tree::kill(&scope(other.id()))));
    ours.wait().expect("reaped");
    other.wait().expect("reaped");
}

#[test]
fn row_71_connection_strings_carry_any_password_and_any_number_of_hosts() {
    let root = tempfile::tempdir().expect("a directory");
    let file = root.path().join("password");
    let network = Network { a: 3, b: 7 };
    let pod = |ordinal: u32| PodState {
        name: format!("pg-{ordinal}"),
        ordinal: Ordinal(ordinal),
        address: network.host(10 + u8::try_from(ordinal).expect("small")),
    };
    let state = DemoState {
        cluster: "pg".to_owned(),
        service: "pg".to_owned(),
        namespace: "default".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        first_ordinal: Ordinal(0),
        replicas: 3,
        network,
        ports: Ports::default(),
        superuser: "post gres".to_owned(),
        database: "data/base".to_owned(),
        password_file: file.clone(),
        program_directory: PathBuf::from("/usr/bin"),
        user: None,
        control_socket: root.path().join("demo.sock"),
        grace_ms: 30_000,
        pods: (0..3).map(pod).collect(),
    };
    for password in [
        "plain",
        "it's \\ : / ? # @ , & = % +",
        " ",
        "\"",
        "päss wörd",
        "a\nb",
        "$(id)`",
    ] {
        fs::write(&file, format!("{password}\n")).expect("a password");
        for (target, port, hosts) in [
            (Target::ReadWrite, 6432, 3),
            (Target::ReadOnly, 6433, 3),
            (Target::Member(Ordinal(1)), 5432, 1),
        ] {
            let text = dsn(&state, target).expect("a connection string");
            assert!(
                text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\''),
                "{text}"
            );
            let config: tokio_postgres::Config = text.parse().expect("a connection string");
            assert_eq!(config.get_password(), Some(password.as_bytes()));
            assert_eq!(
                (config.get_user(), config.get_dbname()),
                (Some("post gres"), Some("data/base"))
            );
            assert_eq!(config.get_hosts().len(), hosts);
            assert!(
                config.get_ports().iter().all(|found| *found == port),
                "{:?}",
                config.get_ports()
            );
        }
    }
    let absent = dsn(&state, Target::Member(Ordinal(3))).expect_err("no such pod");
    assert_eq!(absent.to_string(), "pod \"pg-3\" does not exist");
    state.save(root.path()).expect("saved");
    assert_eq!(DemoState::load(root.path()).expect("loaded"), Some(state));
    assert_eq!(
        DemoState::load(&root.path().join("none")).expect("no error"),
        None
    );
    fs::write(root.path().join("demo.json"), "{torn").expect("written");
    assert!(DemoState::load(root.path()).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demo_without_a_directory_leaves_nothing() {
    let root = tempfile::tempdir().expect("a directory");
    let mut options = options(root.path(), ORDERLY);
    options.directory = None;
    options.replicas = Some(0);
    options.verbose = true;
    let output = Arc::new(Mutex::new(Vec::new()));
    let task = tokio::spawn(run(options, Events::to(Box::new(Output(Arc::clone(&output))))));
    let text = || String::from_utf8_lossy(&output.lock().expect("lock")).into_owned();
    until(|| text().contains("podgres status --dir ")).await;
    let named = text().lines().find_map(|line| {
        line.trim()
            .strip_prefix("podgres status --dir ")
            .map(PathBuf::from)
    });
    let directory = named.expect("a directory");
    let scaled = request(&directory, &Request::Scale { replicas: 1 })
        .await
        .expect("a reply");
    assert!(matches!(scaled, Reply::Done { .. }), "{scaled:?}");
    until(|| text().contains("[demo-0 postgres] output of postgres")).await;
    request(&directory, &Request::Stop).await.expect("a reply");
    assert!(!directory.exists(), "answered before it was cleaned up");
    tokio::time::timeout(LIMIT, task)
        .await
        .expect("ends")
        .expect("no panic")
        .expect("no error");
}

/// Set for the process that leads a demo of its own, to the directory with the script.
const OWN_PROCESS: &str = "PODGRES_TEST_DEMO_ROOT";

/// The demo as a process of its own, killed and started again. This test runs itself as that process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demo_of_its_own_reaps_orphans_ends_on_term_and_cleans_up_after_a_killed_one() {
    if let Some(root) = std::env::var_os(OWN_PROCESS) {
        let mut options = options(Path::new(&root), STUBBORN);
        options.replicas = Some(1);
        options.grace = Duration::from_millis(300);
        options.own_process = true;
        return run(options, Events::to_stdout()).await.expect("a clean end");
    }
    let root = tempfile::tempdir().expect("a directory");
    let directory = root.path().join("demo");
    let start = || {
        let name = "demo::a_demo_of_its_own_reaps_orphans_ends_on_term_and_cleans_up_after_a_killed_one";
        let mut command = tokio::process::Command::new(std::env::current_exe().expect("this program"));
        command
            .args(["--exact", name, "--nocapture"])
            .env(OWN_PROCESS, root.path());
        command
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("a process")
    };
    let mut killed = start();
    let before = status_when_running(&directory).await;
    let postgres = pid_of(&before, Container::Postgres);
    let folders = vec![
        directory.join("pods/demo-0"),
        directory.join("volumes/data-demo-0"),
    ];
    let scope = Scope {
        directories: folders,
        ..Scope::default()
    };
    let members = || scope.members(&tree::processes());
    until(|| members().len() >= 6).await;
    let first = members();
    // The orphans of a killed container are inherited, killed and reaped.
    assert!(tree::signal(postgres, rustix::process::Signal::KILL));
    until(|| first.iter().all(|pid| state_of(*pid).is_none())).await;
    until(|| members().len() >= 6).await;
    let second = members();
    let sidecar = pid_of(&status_when_running(&directory).await, Container::Sidecar);
    killed.kill().await.expect("killed");
    assert!(
        second.iter().any(|pid| state_of(*pid).is_some()),
        "nothing to clean up"
    );
    let mut demo = start();
    let after = status_when_running(&directory).await;
    assert_ne!(after.pods[0].uid, before.pods[0].uid);
    assert!(
        second
            .iter()
            .all(|pid| state_of(*pid).is_none_or(|state| state == 'Z')),
        "{second:?}"
    );
    let pid = demo.id().expect("it runs");
    assert!(tree::signal(pid, rustix::process::Signal::TERM));
    let end = tokio::time::timeout(LIMIT, demo.wait())
        .await
        .expect("it ends")
        .expect("its status");
    assert!(end.success(), "{end}");
    assert_eq!(members(), BTreeSet::new());
    // A sidecar asks the kernel to end with its parent; the script cannot.
    tree::signal(sidecar, rustix::process::Signal::KILL);
}

async fn until(wanted: impl Fn() -> bool) {
    let began = Instant::now();
    while !wanted() {
        assert!(began.elapsed() < LIMIT, "never came");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn status_when_running(directory: &Path) -> DemoStatus {
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

fn pid_of(status: &DemoStatus, wanted: Container) -> u32 {
    let pids = &status.pods[0].pids;
    pids.iter()
        .find(|(container, _)| *container == wanted)
        .map(|(_, pid)| *pid)
        .expect("it runs")
}
