//! Faults at random under load: pods deleted, and, where the machines can be switched, networks cut both ways and one way, nodes frozen, API
//! and DNS servers away. Whatever was acknowledged is there afterwards, on every member.
//!
//! PODGRES_CHAOS_SECONDS is how long, PODGRES_CHAOS_SEED repeats the order of the faults, not the moments at which they hit.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use serde_json::Value;

use crate::cluster::{Cluster, PodFacts};
use crate::faults;
use crate::wait;
use crate::writer::Writer;

/// What is done to a pod, its node or the servers of the cluster, and what undoes it.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Deleted,
    DeletedByForce,
    NodeCut,
    NodeFrozen,
    PodCut,
    /// Nobody hears it.
    PodMute,
    /// It hears nobody.
    PodDeaf,
    ApiDown,
    DnsDown,
}

const OF_MACHINES: [Fault; 9] = [
    Fault::Deleted,
    Fault::DeletedByForce,
    Fault::NodeCut,
    Fault::NodeFrozen,
    Fault::PodCut,
    Fault::PodMute,
    Fault::PodDeaf,
    Fault::ApiDown,
    Fault::DnsDown,
];

struct Storm<'a> {
    cluster: &'a Cluster<'a>,
    random: fastrand::Rng,
    seed: u64,
    end: Instant,
    done: Vec<String>,
    system_identifier: Value,
}

impl<'a> Storm<'a> {
    fn begin(cluster: &'a Cluster<'a>, seconds: u64) -> Self {
        let number = |name: &str| -> Option<u64> { std::env::var(name).ok()?.parse().ok() };
        let seed = number("PODGRES_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..));
        let seconds = number("PODGRES_CHAOS_SECONDS").unwrap_or(seconds);
        Self {
            cluster,
            random: fastrand::Rng::with_seed(seed),
            seed,
            end: Instant::now() + Duration::from_secs(seconds),
            done: Vec::new(),
            system_identifier: cluster.status()["system_identifier"].clone(),
        }
    }

    fn rest(&mut self, ms: std::ops::Range<u64>) {
        std::thread::sleep(Duration::from_millis(self.random.u64(ms)));
    }

    /// The pod, if it is there and not on its way out.
    fn target(&mut self) -> Option<(String, PodFacts)> {
        let name = format!("pg-{}", self.random.u8(0..3));
        let api: Api<Pod> = self.cluster.api();
        let pod = self.cluster.world.now(api.get_opt(&name)).ok().flatten()?;
        let stays = pod.metadata.deletion_timestamp.is_none();
        stays
            .then(|| self.cluster.pods().remove(&name))?
            .map(|facts| (name, facts))
    }

    fn inflict(&mut self, fault: Fault) {
        let Some((name, pod)) = self.target() else { return };
        self.done.push(format!("{fault:?} {name}"));
        let (node, address) = (pod.node.as_str(), pod.address.as_str());
        let cut: &[&str] = match fault {
            Fault::Deleted | Fault::DeletedByForce => {
                let force = matches!(fault, Fault::DeletedByForce);
                return self.cluster.delete_pod(&name, force);
            }
            Fault::NodeCut => &["node-cut", node],
            Fault::NodeFrozen => &["node-freeze", node],
            Fault::PodCut => &["pod-cut", node, address],
            Fault::PodMute => &["pod-mute", node, address],
            Fault::PodDeaf => &["pod-deaf", node, address],
            Fault::ApiDown => &["api-down"],
            Fault::DnsDown => &["dns-down"],
        };
        faults::machines(cut);
        self.rest(1_000..25_000);
        match fault {
            Fault::NodeFrozen => faults::machines(&["node-thaw", node]),
            Fault::ApiDown | Fault::DnsDown => faults::machines(&["up"]),
            _ => faults::machines(&["node-heal", node]),
        }
    }

    /// All is well again, and nothing that was acknowledged is missing anywhere.
    fn judge(self, writer: &Writer<'_>) {
        println!("    PODGRES_CHAOS_SEED={}: {:?}", self.seed, self.done);
        self.cluster.settle();
        writer.progress(100);
        writer.verify();
        let identifier = self.cluster.status()["system_identifier"].clone();
        assert_eq!(identifier, self.system_identifier, "another database");
        let rows = "SELECT count(*), md5(string_agg(writer || ':' || number, ',' ORDER BY writer, number)) FROM steady";
        let count = |pod: &str| self.cluster.sql(pod, rows);
        writer.remove();
        let primary = self.cluster.primary();
        wait::within(
            Duration::from_mins(1),
            "all have the same rows",
            || ["pg-0", "pg-1", "pg-2"].map(count),
            |counts| counts.iter().all(|found| *found == count(&primary)),
        );
    }
}

pub(crate) fn pods(cluster: &Cluster) {
    let writer = Writer::start(cluster);
    let mut storm = Storm::begin(cluster, 30);
    while Instant::now() < storm.end {
        let force = storm.random.bool();
        storm.inflict(if force {
            Fault::DeletedByForce
        } else {
            Fault::Deleted
        });
        storm.rest(500..6_000);
    }
    storm.judge(&writer);
}

pub(crate) fn machines(cluster: &Cluster) {
    let writer = Writer::start(cluster);
    let mut storm = Storm::begin(cluster, 90);
    while Instant::now() < storm.end {
        let fault = OF_MACHINES[storm.random.usize(0..OF_MACHINES.len())];
        storm.inflict(fault);
        storm.rest(500..6_000);
    }
    storm.judge(&writer);
}
