//! What a review found on running clusters, each named after what it was.

use std::time::Duration;

use podgres::demo::control::{Reply, Request, request};
use rustix::process::Signal;

use crate::harness::{Demo, Start, member, wait_for};
use crate::kit::{pid_in, signal};

#[test]
fn a_peer_without_sidecar_was_taken_for_empty_and_a_second_cluster_was_made() {
    let demo = Start::new(15)
        .with(&["--replicas", "2", "--set", "PODGRES_DISCOVERY_TIMEOUT=2s"])
        .run();
    let status = demo.wait_streaming(1);
    let identifier = status["system_identifier"].clone();
    let server = pid_in(&status, "demo-1", "postgres");
    // The sidecar is killed as soon as it is back, so that nobody answers on its port for long.
    demo.ask(&["delete-pod", "0", "--force", "--wipe-volume"]);
    let refused = wait_for(Duration::from_mins(1), || {
        if let Some(pid) = sidecar(&demo, "demo-1") {
            signal(pid, Signal::KILL);
        }
        demo.log("demo-0", "init").contains("peer_holds_data")
    });
    assert!(refused, "{}", demo.log("demo-0", "init"));
    assert!(
        !demo.data_directory("demo-0").join("PG_VERSION").exists(),
        "no second cluster"
    );
    let status = demo.wait("the standby answers again", |status| {
        member(status, "demo-1")["pids"]["postgres"].is_u64()
    });
    assert_eq!(
        pid_in(&status, "demo-1", "postgres"),
        server,
        "its server ran through all of it"
    );
    assert_eq!(status["system_identifier"], identifier);
}

/// The process of a pod's sidecar, from the controller: the sidecar itself need not answer.
pub(crate) fn sidecar(demo: &Demo, pod: &str) -> Option<u32> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let reply = runtime
        .block_on(request(&demo.directory, &Request::Status))
        .ok()?;
    let Reply::Status(status) = reply else { return None };
    let pod = status.pods.into_iter().find(|candidate| candidate.name == pod)?;
    pod.pids
        .into_iter()
        .find(|(container, _)| container.as_str() == "sidecar")
        .map(|(_, pid)| pid)
}

#[test]
fn one_slow_answer_cut_every_routed_session() {
    let demo = Start::new(15).with(&["--replicas", "1"]).run();
    let before = demo.wait_streaming(0);
    // A query of the agent's needs this table; the lock is held by a session through the route itself.
    let sql =
        "BEGIN; LOCK TABLE pg_authid IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(3); COMMIT; SELECT 'survived'";
    let answer = demo.sql(&["--read-write"], sql);
    assert!(answer.ends_with("survived"), "{answer}");
    let after = demo.wait_streaming(0);
    assert_eq!(
        pid_in(&before, "demo-0", "postgres"),
        pid_in(&after, "demo-0", "postgres")
    );
}
