//! Faults that no API can make: a node without power, a node cut off, an API server that does not answer.
//!
//! They need a hand on the machines: PODGRES_TEST_MACHINES names a program that is called with `node-off NODE`, `node-cut NODE`, `node-heal
//! NODE` (its network), `node-freeze NODE`, `node-thaw NODE`, `pod-cut NODE ADDRESS`, `pod-mute` and `pod-deaf` (one way), `kubelet-off NODE`, `api-down`,
//! `dns-down`, or `up` (puts everything right but what is cut or frozen); tests/kubernetes/machines is one for the lab of continuous integration.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::chaos;
use crate::cluster::Cluster;
use crate::kubectl;
use crate::node::Cordoned;
use crate::overlay::Overlay;
use crate::runner::Group;
use crate::wait::{self, until};
use crate::writer::Writer;

pub(crate) const GROUP: Group = Group {
    name: "faults",
    alone: true,
    overlay: || Overlay::new("lease"),
    begin: |cluster| cluster.start(),
    tests: &[
        (
            "the_api_server_is_down_for_twice_the_leases_duration_and_writing_goes_on",
            api_down,
        ),
        ("row_08_a_node_is_cut_off_and_there_is_one_primary", node_cut),
        (
            "a_primarys_node_is_frozen_and_another_member_takes_over",
            node_frozen,
        ),
        (
            "a_pod_that_was_forced_away_and_runs_on_acknowledges_nothing",
            kubelet_off,
        ),
        ("the_dns_server_is_down_and_writing_goes_on", dns_down),
        ("row_46_a_drained_node_gives_its_primary_away_first", drained),
        (
            "row_61_partitions_frozen_nodes_and_servers_that_are_away_lose_nothing",
            chaos::machines,
        ),
        (
            "row_08_a_node_without_power_keeps_its_pod_until_it_is_forced_away",
            node_off,
        ),
    ],
};

/// Twice the Lease's duration.
const OUTAGE: Duration = Duration::from_secs(30);

/// Of the API server; PODGRES_API_OUTAGE_SECONDS makes it longer.
fn api_outage() -> Duration {
    let seconds = std::env::var("PODGRES_API_OUTAGE_SECONDS");
    seconds.map_or(OUTAGE, |text| {
        Duration::from_secs(text.parse().expect("PODGRES_API_OUTAGE_SECONDS"))
    })
}

pub(crate) fn machines(arguments: &[&str]) {
    let program = std::env::var("PODGRES_TEST_MACHINES")
        .expect("PODGRES_TEST_MACHINES must name a program that switches nodes and the API server off (tests/kubernetes/faults.rs)");
    let output = Command::new("timeout")
        .arg("120")
        .arg(program)
        .args(arguments)
        .output()
        .expect("it runs");
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        kubectl::complaint(&output)
    );
}

fn api_down(cluster: &Cluster) {
    let writer = Writer::start(cluster);
    let primary = cluster.primary();
    let begun = Instant::now();
    let outage = writer.outage(|| {
        machines(&["api-down"]);
        std::thread::sleep(api_outage());
        machines(&["up"]);
    });
    println!(
        "    API server down for {:.0?}: no acknowledgement for {outage:?} at most",
        begun.elapsed()
    );
    assert!(outage < Duration::from_secs(2), "{outage:?}");
    assert_eq!(cluster.primary(), primary, "it stayed");
    writer.verify();
    writer.remove();
}

/// The writer must not be on the node that is lost; several tries find it elsewhere.
fn writer_elsewhere<'a>(cluster: &'a Cluster<'a>, node: &str) -> Writer<'a> {
    let _closed = Cordoned::new(node);
    Writer::start(cluster)
}

fn node_cut(cluster: &Cluster) {
    let primary = cluster.primary();
    let node = cluster.pod(&primary).node;
    let writer = writer_elsewhere(cluster, &node);
    let outage = writer.outage(|| machines(&["node-cut", &node]));
    println!("    outage by pg-rw, the primary's node cut off: {outage:?}");
    writer.verify();
    let next = cluster.primary_besides(&primary);
    assert_ne!(next, primary);
    machines(&["node-heal", &node]);
    cluster.settle();
    assert_eq!(cluster.primary(), next);
    writer.verify();
    writer.remove();
    assert!(outage < Duration::from_secs(15), "{outage:?}");
}

fn node_frozen(cluster: &Cluster) {
    let mut outages = Vec::new();
    for _ in 0..3 {
        let primary = cluster.primary();
        let node = cluster.pod(&primary).node;
        let writer = writer_elsewhere(cluster, &node);
        outages.push(writer.outage(|| machines(&["node-freeze", &node])));
        assert_ne!(cluster.primary_besides(&primary), primary);
        machines(&["node-thaw", &node]);
        cluster.settle();
        writer.verify();
        writer.remove();
    }
    println!("    outage by pg-rw, the primary's node frozen with all its processes: {outages:?}");
    assert!(
        outages.iter().all(|outage| *outage < Duration::from_secs(15)),
        "{outages:?}"
    );
}

/// Nobody ends a pod that was deleted by force while its kubelet is dead: its servers run on beside the next primary, and acknowledge nothing.
fn kubelet_off(cluster: &Cluster) {
    let primary = cluster.primary();
    let before = cluster.pod(&primary);
    let writer = writer_elsewhere(cluster, &before.node);
    machines(&["kubelet-off", &before.node]);
    cluster.delete_pod(&primary, false);
    let now = cluster.pod(&primary);
    assert!(
        now.leaving && now.uid == before.uid,
        "nobody has ended it: {now:?}"
    );
    let asker = cluster.standby();
    let recovering = || cluster.ask_past_the_routes(&asker, &before.address, "SELECT pg_is_in_recovery()");
    assert_eq!(recovering().as_deref().map(str::trim), Ok("f"), "it runs on");
    let outage = writer.outage(|| {
        cluster.delete_pod(&primary, true);
        recovering().expect("it still runs on");
        // It goes on for some time, until it hears that it is gone.
        cluster.primary_besides(&primary);
    });
    println!("    outage by pg-rw, the primary forced away without its kubelet: {outage:?}");
    assert!(outage > Duration::ZERO, "the pod was away before it was measured");
    let next = cluster.primary_besides(&primary);
    let answered = cluster.ask_past_the_routes(&next, &before.address, "INSERT INTO steady VALUES (-1, 1)");
    println!("    the earlier primary, asked to write: {answered:?}");
    answered.expect_err("no commit is acknowledged after another member's claim");
    assert_ne!(
        recovering().as_deref().map(str::trim),
        Ok("f"),
        "it takes writes beside {next}"
    );
    assert_eq!(
        cluster.sql(&next, "SELECT count(*) FROM steady WHERE writer = -1"),
        "0"
    );
    machines(&["up"]);
    cluster.settle();
    assert_eq!(cluster.primary(), next);
    writer.verify();
    writer.remove();
    // The API server knows its token for some 10 s after its pod is gone; then its Lease has to run out.
    assert!(outage < Duration::from_secs(30), "{outage:?}");
}

/// Members know each other's addresses; a name is only needed for a pod that has moved. The writer itself finds `pg-rw` by DNS.
fn dns_down(cluster: &Cluster) {
    let writer = Writer::start(cluster);
    let (primary, to) = (cluster.primary(), cluster.standby());
    let outage = writer.outage(|| {
        machines(&["dns-down"]);
        std::thread::sleep(OUTAGE);
    });
    println!("    DNS server down for {OUTAGE:?}: no acknowledgement for {outage:?} at most");
    assert!(outage < Duration::from_secs(2), "{outage:?}");
    assert_eq!(cluster.primary(), primary, "it stayed");
    cluster.switch_over(&to);
    let streams = "SELECT count(*) = 2 FROM pg_stat_replication WHERE application_name LIKE 'pg-%'";
    let (took, _) = until(
        "both stream from the new primary",
        || cluster.sql(&to, streams),
        |both| both == "t",
    );
    println!("    and both streamed {took:.1?} after a switchover without DNS");
    cluster.sql(&to, "CREATE TABLE IF NOT EXISTS nameless ()");
    machines(&["up"]);
    cluster.settle();
    writer.progress(100);
    writer.verify();
    writer.remove();
}

fn drained(cluster: &Cluster) {
    let primary = cluster.primary();
    let node = cluster.pod(&primary).node;
    let writer = writer_elsewhere(cluster, &node);
    let closed = Cordoned::new(&node);
    let drain = [
        "drain",
        &node,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--timeout=90s",
    ];
    let outage = writer.outage(|| drop(kubectl::text(kubectl::kubectl().args(drain))));
    println!("    outage by pg-rw, the primary's node drained: {outage:?}");
    assert_ne!(cluster.primary_besides(&primary), primary);
    drop(closed);
    cluster.settle();
    writer.verify();
    writer.remove();
    assert!(outage < Duration::from_secs(10), "{outage:?}");
}

fn node_off(cluster: &Cluster) {
    let primary = cluster.primary();
    let (node, uid) = (cluster.pod(&primary).node, cluster.pod(&primary).uid);
    let writer = writer_elsewhere(cluster, &node);
    let outage = writer.outage(|| machines(&["node-off", &node]));
    println!("    outage by pg-rw, the primary's node without power: {outage:?}");
    writer.verify();
    cluster.delete_pod(&primary, false);
    // No second pod of its name, as long as nobody says that the first is gone.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(cluster.pod(&primary).uid, uid, "still Terminating");
    cluster.delete_pod(&primary, true);
    until(
        "another pod under that name",
        || cluster.pods(),
        |pods| pods.get(&primary).is_some_and(|pod| pod.uid != uid),
    );
    machines(&["up"]);
    wait::within(
        2 * wait::LIMIT,
        "all stream again",
        || crate::cluster::states(&cluster.status()),
        |states| {
            states
                .iter()
                .filter(|state| state.ends_with(" streaming"))
                .count()
                == 2
        },
    );
    cluster.settle();
    assert_ne!(cluster.primary(), primary);
    writer.verify();
    writer.remove();
    assert!(outage < Duration::from_secs(15), "{outage:?}");
}
