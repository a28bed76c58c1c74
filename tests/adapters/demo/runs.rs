//! Whole runs of a demo: in which order pods come and go, what a second run finds, how a killed one is cleaned up.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use podgres::demo::container::Container;
use podgres::demo::control::{Reply, Request, request};
use podgres::demo::events::Events;
use podgres::demo::tree::{self, Scope};
use podgres::demo::{DemoError, PodManagement, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::lab::{Demo, LIMIT, ORDERLY, Output, STUBBORN, options, pid_of, state_of, status_when_running};
use crate::wait::eventually;

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
    options.pod_management = Some(PodManagement::Parallel);
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
async fn a_demo_without_a_directory_leaves_nothing() {
    let root = tempfile::tempdir().expect("a directory");
    let mut options = options(root.path(), ORDERLY);
    options.directory = None;
    options.replicas = Some(0);
    options.verbose = true;
    let output = Arc::new(Mutex::new(Vec::new()));
    let task = tokio::spawn(run(options, Events::to(Box::new(Output(Arc::clone(&output))))));
    let text = || String::from_utf8_lossy(&output.lock().expect("lock")).into_owned();
    eventually("the banner", async || text().contains("podgres status --dir ")).await;
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
    eventually("the output of postgres", async || {
        text().contains("[demo-0 postgres] output of postgres")
    })
    .await;
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
        let name =
            "demo::runs::a_demo_of_its_own_reaps_orphans_ends_on_term_and_cleans_up_after_a_killed_one";
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
    eventually("six processes", async || members().len() >= 6).await;
    let first = members();
    // The orphans of a killed container are inherited, killed and reaped.
    assert!(tree::signal(postgres, rustix::process::Signal::KILL));
    eventually("the end of the first processes", async || {
        first.iter().all(|pid| state_of(*pid).is_none())
    })
    .await;
    eventually("six processes", async || members().len() >= 6).await;
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
