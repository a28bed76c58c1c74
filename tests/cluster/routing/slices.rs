//! EndpointSlices for clients that want no route in their path, kept by the holder of the Lease.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::fresh::Frozen;
use super::{leased, ordinal_of, primary};
use crate::api::Api;
use crate::harness::{Demo, wait_for};

const SLICES: &str = "discovery.k8s.io/v1/endpointslices";

/// What the demo's slices say.
struct Slices<'a> {
    api: Api,
    demo: &'a Demo,
}

impl<'a> Slices<'a> {
    /// Empty ones, as an operator makes them.
    fn of(demo: &'a Demo, names: &[&str]) -> Self {
        let api = Api::of(demo);
        for name in names {
            let manifest = json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": name},
                "addressType": "IPv4",
                "ports": [{"name": "postgresql", "port": 5432}],
            });
            api.ask("POST", SLICES, Some(&manifest));
        }
        Self { api, demo }
    }

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
    let slices = Slices::of(&demo, &[WRITE, READ]);
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

/// One who is too old for it, and not for the others, leaves it alone.
#[test]
fn a_slice_of_a_further_policy_keeps_that_policy() {
    const STRICT: &str = "demo-direct-ro-1s";
    let policy = "PODGRES_LISTEN=7434,name=ro-1s,mode=read-only,max_staleness=1s,fallback=none";
    let demo = leased(&[
        "--set",
        "PODGRES_ENDPOINT_SLICES=true",
        "--set",
        "PODGRES_MAX_STALENESS=1h",
        "--set",
        policy,
    ]);
    let slices = Slices::of(&demo, &[WRITE, READ, STRICT]);
    let first = primary(&demo.wait_streaming(2));
    let others: Vec<&str> = ["demo-0", "demo-1", "demo-2"]
        .into_iter()
        .filter(|name| *name != first)
        .collect();
    slices.wait(STRICT, "at first", &others);
    demo.sql(&[], "CREATE TABLE work (n int)");
    let frozen = Frozen::receiver(&demo, &ordinal_of(others[0]));
    demo.sql(&[], "INSERT INTO work VALUES (1)");
    slices.wait(STRICT, "one is silent", &others[1..]);
    slices.wait(READ, "whose bound is an hour", &others);
    drop(frozen);
    slices.wait(STRICT, "it has caught up", &others);
    slices.wait(WRITE, "all the time", &[&first]);
}
