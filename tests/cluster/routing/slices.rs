//! EndpointSlices for clients that want no route in their path, kept by the holder of the Lease.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{leased, ordinal_of, primary};
use crate::api::Api;
use crate::harness::{Demo, wait_for};

const SLICES: &str = "discovery.k8s.io/v1/endpointslices";

/// What the demo's slices say.
struct Slices<'a> {
    api: Api,
    demo: &'a Demo,
}

impl Slices<'_> {
    /// Pods that the slice names, by name; each with its own address.
    fn named(&self, slice: &str) -> BTreeSet<String> {
        let slice = self.api.ask("GET", &format!("{SLICES}/{slice}"), None);
        let state = self.demo.deployed();
        let endpoints = slice["endpoints"].as_array().cloned().unwrap_or_default();
        let name = |endpoint: &Value| {
            let name = endpoint["targetRef"]["name"].as_str().expect("a pod").to_owned();
            let pod = state.pods.iter().find(|pod| pod.name == name).expect("a pod");
            assert_eq!(endpoint["addresses"], json!([pod.address]));
            name
        };
        endpoints.iter().map(name).collect()
    }

    fn wait(&self, slice: &str, what: &str, expected: &[&str]) {
        let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
        let limit = std::time::Duration::from_secs(20);
        let there = wait_for(limit, || self.named(slice) == expected);
        assert!(
            there,
            "{what}: {slice} names {:?}, not {expected:?}",
            self.named(slice)
        );
    }
}

const WRITE: &str = "demo-direct-read-write";
const READ: &str = "demo-direct-read-only";

#[test]
fn slices_follow_the_primary_the_standbys_and_the_switch() {
    let demo = leased(&["--set", "PODGRES_ENDPOINT_SLICES=true"]);
    let slices = Slices {
        api: Api::of(&demo),
        demo: &demo,
    };
    for name in [WRITE, READ] {
        let manifest = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name},
            "addressType": "IPv4",
            "ports": [{"name": "postgresql", "port": 5432}],
        });
        slices.api.ask("POST", SLICES, Some(&manifest));
    }
    let first = primary(&demo.wait_streaming(2));
    let others = |primary: &str| {
        let all = ["demo-0", "demo-1", "demo-2"].into_iter();
        all.filter(|name| *name != primary).collect::<Vec<_>>()
    };
    slices.wait(WRITE, "at first", &[&first]);
    slices.wait(READ, "at first", &others(&first));

    demo.ask(&["delete-pod", &ordinal_of(&first), "--force"]);
    let second = primary(&demo.wait("another primary", |status| {
        super::found_primary(status).is_some_and(|name| name != first)
    }));
    slices.wait(WRITE, "after a failover", &[&second]);
    demo.wait_streaming(2);
    slices.wait(READ, "once the lost one is back", &others(&second));

    demo.done(&["read-only", "on"]);
    slices.wait(WRITE, "switched to read-only", &others(&second));
    demo.done(&["read-only", "off"]);
    slices.wait(WRITE, "switched back", &[&second]);
}
