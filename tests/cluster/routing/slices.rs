//! EndpointSlices for clients that want no route in their path, kept by the holder of the Lease.

use std::collections::BTreeSet;

use podgres::kube::{ApiClient, Reach};
use serde_json::{Value, json};

use super::{leased, ordinal_of, primary, verb};
use crate::harness::{Demo, wait_for};

/// The demo's API server, as `kubectl` would use it.
struct Api {
    runtime: tokio::runtime::Runtime,
    client: ApiClient,
    path: String,
}

impl Api {
    fn of(demo: &Demo) -> Self {
        let reach = Reach::Kubeconfig {
            path: demo.directory.join("kubeconfig"),
            context: None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let namespace = demo.deployed().namespace;
        Self {
            runtime: runtime.expect("runtime"),
            client: ApiClient::new(reach, std::time::Duration::from_secs(5)),
            path: format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"),
        }
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let asked = self.client.request(method, path, "application/json", body);
        let answer = self.runtime.block_on(asked).expect("an answer");
        assert!(answer.status < 300, "{}", answer.body);
        answer.body
    }

    /// Pods that the slice names, by name; each with its own address.
    fn named(&self, demo: &Demo, slice: &str) -> BTreeSet<String> {
        let slice = self.ask("GET", &format!("{}/{slice}", self.path), None);
        let state = demo.deployed();
        let endpoints = slice["endpoints"].as_array().cloned().unwrap_or_default();
        let name = |endpoint: &Value| {
            let name = endpoint["targetRef"]["name"].as_str().expect("a pod").to_owned();
            let pod = state.pods.iter().find(|pod| pod.name == name).expect("a pod");
            assert_eq!(endpoint["addresses"], json!([pod.address]));
            name
        };
        endpoints.iter().map(name).collect()
    }

    fn wait(&self, demo: &Demo, slice: &str, what: &str, expected: &[&str]) {
        let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
        let limit = std::time::Duration::from_secs(20);
        let there = wait_for(limit, || self.named(demo, slice) == expected);
        assert!(
            there,
            "{what}: {slice} names {:?}, not {expected:?}",
            self.named(demo, slice)
        );
    }
}

const WRITE: &str = "demo-direct-read-write";
const READ: &str = "demo-direct-read-only";

#[test]
fn slices_follow_the_primary_the_standbys_and_the_switch() {
    let demo = leased(&["--set", "PODGRES_ENDPOINT_SLICES=true"]);
    let api = Api::of(&demo);
    for name in [WRITE, READ] {
        let manifest = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name},
            "addressType": "IPv4",
            "ports": [{"name": "postgresql", "port": 5432}],
        });
        api.ask("POST", &api.path, Some(&manifest));
    }
    let first = primary(&demo.wait_streaming(2));
    let others = |primary: &str| {
        let all = ["demo-0", "demo-1", "demo-2"].into_iter();
        all.filter(|name| *name != primary).collect::<Vec<_>>()
    };
    api.wait(&demo, WRITE, "at first", &[&first]);
    api.wait(&demo, READ, "at first", &others(&first));

    demo.ask(&["delete-pod", &ordinal_of(&first), "--force"]);
    let second = primary(&demo.wait("another primary", |status| {
        super::found_primary(status).is_some_and(|name| name != first)
    }));
    api.wait(&demo, WRITE, "after a failover", &[&second]);
    demo.wait_streaming(2);
    api.wait(&demo, READ, "once the lost one is back", &others(&second));

    verb(&demo, &["read-only", "on"]);
    api.wait(&demo, WRITE, "switched to read-only", &others(&second));
    verb(&demo, &["read-only", "off"]);
    api.wait(&demo, WRITE, "switched back", &[&second]);
}
