//! The duties of process 1, what its own end means, and what children may know.

use std::fs;
use std::process::Command;
use std::time::Duration;

use podgres::core::supervision::SupervisorRequest;
use rustix::process::{Pid, Signal, kill_process};

use super::machine::{children_of, gone};
use super::pod::{LIMIT, PASSWORD, Pod};

#[tokio::test]
async fn an_orphan_is_adopted_and_collected() {
    let mut pod = Pod::with_data();
    pod.supervise().await;
    pod.start_primary().await;
    let folder = pod.path().display();
    pod.sql(&format!(
        "COPY (SELECT) TO PROGRAM 'sleep 1000 >/dev/null 2>&1 & echo $! > {folder}/orphan'"
    ));
    let text = fs::read_to_string(pod.path().join("orphan")).unwrap();
    let orphan = Pid::from_raw(text.trim().parse().unwrap()).unwrap();
    let adopted = |pid| children_of(pod.pid()).iter().any(|(child, _)| *child == pid);
    assert!(adopted(orphan), "nobody took it in: {:?}", children_of(pod.pid()));
    kill_process(orphan, Signal::KILL).unwrap();
    gone(orphan).await;
    let begun = std::time::Instant::now();
    while adopted(orphan) {
        assert!(begun.elapsed() < LIMIT, "a dead orphan is not collected");
        pod.ask(SupervisorRequest::Status).await;
    }
}

#[tokio::test]
async fn it_works_as_process_1_of_a_container() {
    let mut pod = Pod::with_data();
    pod.supervise_as_process_1().await;
    let status = pod.ask(SupervisorRequest::Status).await;
    assert_eq!(status.pid, 1);
    pod.start_primary().await;
    // What `kubectl exec` leaves behind: an orphan of a process that came from outside.
    let (supervisor, _) = children_of(pod.pid())[0];
    let script = "sleep 0.1 & sleep 0.1 & sleep 0.1 &";
    let entered = Command::new("nsenter")
        .args([
            "--pid",
            "--mount",
            "--target",
            &supervisor.to_string(),
            "sh",
            "-c",
            script,
        ])
        .status()
        .unwrap();
    assert!(entered.success());
    let of_sleep = |(pid, _): &(Pid, String)| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep")
    };
    let begun = std::time::Instant::now();
    while children_of(supervisor).iter().any(of_sleep) {
        assert!(
            begun.elapsed() < LIMIT,
            "orphans are not collected: {:?}",
            children_of(supervisor)
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    kill_process(supervisor, Signal::TERM).unwrap();
    assert!(pod.ended().await.success(), "{}", pod.log());
    assert_eq!(pod.control_state(), "shut down");
}

#[tokio::test]
async fn no_secret_reaches_the_postmaster() {
    let mut pod = Pod::with_data();
    pod.supervise().await;
    let postmaster = pod.start_primary().await;
    for file in ["environ", "cmdline"] {
        let bytes = fs::read(format!("/proc/{postmaster}/{file}")).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(
            !text.contains(PASSWORD) && !text.contains("POSTGRES_PASSWORD"),
            "{file}: {text}"
        );
    }
    assert!(!pod.log().contains(PASSWORD), "{}", pod.log());
}

#[tokio::test]
async fn a_killed_supervisor_takes_postgresql_along() {
    let mut pod = Pod::with_data();
    pod.supervise().await;
    let postmaster = pod.start_primary().await;
    let backends = children_of(postmaster);
    pod.signal(Signal::KILL);
    gone(postmaster).await;
    for (backend, _) in backends {
        gone(backend).await;
    }
    pod.ended().await;
    // The next one finds the socket file of the first and data that need recovery.
    pod.supervise().await;
    pod.start_primary().await;
}

#[tokio::test]
async fn a_panic_stops_postgresql_cleanly() {
    let mut pod = Pod::with_data();
    pod.supervise_with_a_bug().await;
    let postmaster = pod.start_primary().await;
    fs::write(pod.path().join("panic"), "").unwrap();
    gone(postmaster).await;
    assert!(!pod.ended().await.success());
    assert_eq!(pod.control_state(), "shut down");
}

#[tokio::test]
async fn an_idle_supervisor_sleeps() {
    let mut pod = Pod::with_data();
    pod.supervise().await;
    pod.start_primary().await;
    // Threads that wrote files go away when they have had nothing to do for a while.
    let threads = || fs::read_dir(format!("/proc/{}/task", pod.pid())).unwrap().count();
    let begun = std::time::Instant::now();
    while threads() > 2 {
        assert!(begun.elapsed() < LIMIT, "{} threads", threads());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let before = wakeups(pod.pid());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(wakeups(pod.pid()), before);
}

/// How often the process' threads went to sleep by themselves.
fn wakeups(pid: Pid) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_thread = |thread: std::io::Result<fs::DirEntry>| -> u64 {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse().unwrap()
    };
    threads.map(of_thread).sum()
}
