//! With a Lease: a primary that is stopped on purpose has little left to write, and the time that it needs.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::api::Api;
use crate::api_way::ApiWay;
use crate::harness::{Demo, LIMIT, Start, member, members, wait_for};
use crate::hazards_wal::configured;
use crate::kit::{family, open_folder, words};

fn primary(status: &Value) -> String {
    let found = members(status).iter().find(|member| member["role"] == "primary");
    let name = found.and_then(|member| member["name"].as_str());
    name.expect("a primary").to_owned()
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a pid");
    kill_process(pid, signal).expect("a signal");
}

fn checkpointer(demo: &Demo, pod: &str) -> u32 {
    let postmaster = demo.pid(pod, "postgres");
    let is_it = |pid: u32| {
        words(pid, "cmdline")
            .iter()
            .any(|word| word.contains("checkpointer"))
    };
    let found = family(postmaster).into_iter().find(|process| is_it(process.pid));
    found.expect("a checkpointer").pid
}

fn renewals(api: &Api) -> u64 {
    let lease = api.ask("GET", "coordination.k8s.io/v1/leases/demo", None);
    let found = lease["metadata"]["annotations"]["podgres.dev/renewals"].as_str();
    found
        .and_then(|text| text.parse().ok())
        .expect("a number of renewals")
}

/// Under `async` what had not been shipped yet was lost by it, in a graceful deletion.
#[test]
fn a_stop_that_took_longer_than_the_right_was_fenced_into_a_crash() {
    let demo = Start::lease(16)
        .with(&["--set", "PODGRES_DURABILITY=async"])
        .with(&["--set", "PODGRES_LEASE_DURATION=6s"])
        .with(&["--set", "PODGRES_RENEW_DEADLINE=2500ms"])
        .with(&["--set", "PODGRES_RETRY_PERIOD=500ms"])
        .run();
    let before = demo.wait_streaming(2);
    let (name, api) = (primary(&before), Api::of(&demo));
    let checkpointer = checkpointer(&demo, &name);
    signal(checkpointer, Signal::STOP);
    std::thread::scope(|scope| {
        scope.spawn(|| demo.done(&["restart", &name]));
        let begun = wait_for(LIMIT, || {
            demo.log(&name, "postgres")
                .contains("received fast shutdown request")
        });
        assert!(begun, "it was not stopped");
        // Each stands for a retry period: together they take twice as long as the right lasts.
        let from = renewals(&api);
        assert!(
            wait_for(LIMIT, || renewals(&api) >= from + 10),
            "the Lease was not renewed"
        );
        signal(checkpointer, Signal::CONT);
    });
    let after = demo.wait_streaming(2);
    let log = demo.log(&name, "postgres");
    assert!(!log.contains("received immediate shutdown request"), "{log}");
    assert_eq!((primary(&after), &after["term"]), (name.clone(), &before["term"]));
    assert_eq!(member(&after, &name)["timeline"], 1);
}

#[test]
fn a_primary_whose_pod_was_told_to_end_stopped_without_a_checkpoint() {
    let demo = Start::lease(18).run();
    let name = primary(&demo.wait_streaming(2));
    demo.sql(
        &[],
        "CREATE TABLE numbers AS SELECT generate_series(1, 10000) AS number",
    );
    let ordinal = name.rsplit('-').next().expect("an ordinal").to_owned();
    demo.ask(&["delete-pod", &ordinal]);
    let after = demo.wait_streaming(2);
    assert_ne!(primary(&after), name);
    let log = demo.log(&name, "postgres");
    let lines: Vec<&str> = log.lines().collect();
    let stop = lines
        .iter()
        .position(|line| line.contains("received fast shutdown request"));
    let checkpoint = lines.iter().position(|line| {
        line.contains("checkpoint starting: immediate force wait")
            || line.contains("checkpoint starting: fast force wait")
    });
    assert!(
        checkpoint.is_some() && checkpoint < stop,
        "{checkpoint:?} and {stop:?} in\n{log}"
    );
    let history = demo.done(&["history", "-o", "json"]);
    assert!(history.contains("the primary's pod ended"), "{history}");
}

/// The others waited for as long as its sidecar did.
#[test]
fn a_primary_that_left_unseen_by_the_api_server_kept_its_office() {
    let way = ApiWay::open();
    let long = Start::lease(16).with(&["--set", "PODGRES_LEASE_DURATION=90s"]);
    let demo = way.run(long.with(&["--set", "PODGRES_RENEW_DEADLINE=60s"]));
    let proven = |status: &Value| status["synchronous"]["quorum"].as_u64() > Some(0);
    let name = primary(&demo.wait("commits that wait for a standby", proven));
    let _silent = way.close_for(&demo, &name);
    let ordinal = name.rsplit('-').next().expect("an ordinal").to_owned();
    std::thread::scope(|scope| {
        scope.spawn(|| demo.ask(&["delete-pod", &ordinal]));
        let taken = wait_for(Duration::from_secs(25), || {
            let status = demo.status();
            let others = status.iter().flat_map(members);
            others
                .into_iter()
                .any(|member| member["role"] == "primary" && member["name"] != name.as_str())
        });
        let log = demo.log(&name, "sidecar");
        assert!(taken, "nobody took over: {log}");
        // It told of each that it had in mind, twenty a second.
        let cut_off = log.find("none came within").expect("no answer");
        let writes = log[cut_off..].matches("writing the Lease").count();
        assert!(writes < 10, "{writes} writes: {log}");
    });
    demo.wait_streaming(2);
}

#[test]
fn a_planned_move_waited_for_an_archive_that_hung() {
    let folder = open_folder();
    let reachable = folder.path().join("reachable");
    let archive = format!(
        "archive_mode = on\narchive_command = 'until [ -e {} ]; do sleep 0.05; done'\n",
        reachable.display()
    );
    let (_configuration, setting) = configured(&archive);
    let demo = Start::lease(16).with(&["--set", &setting]).run();
    let name = primary(&demo.wait_streaming(2));
    let postmaster = demo.pid(&name, "postgres");
    demo.done(&["switchover"]);
    let moved = || {
        demo.status().is_some_and(|status| {
            let primaries = members(&status)
                .iter()
                .filter(|member| member["role"] == "primary");
            primaries
                .filter(|member| member["name"] != *name.as_str())
                .count()
                == 1
        })
    };
    assert!(wait_for(LIMIT, moved), "{:#?}", demo.status());
    demo.sql(&[], "CREATE TABLE taken AS SELECT 1 AS number");
    assert!(
        !words(postmaster, "cmdline").is_empty(),
        "the earlier primary has ended: nothing hung"
    );
    std::fs::write(&reachable, "").expect("the archive");
    let after = demo.wait_streaming(2);
    assert_eq!(member(&after, &name)["role"], "standby");
    let log = demo.log(&name, "sidecar");
    assert!(!log.contains("pg_rewind"), "it had WAL of its own: {log}");
}
