//! One StatefulSet in a namespace of its own: applied, looked at, asked, and removed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Namespace, PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::kubectl;
use crate::overlay::Overlay;
use crate::wait::{self, until};
use crate::world::World;

pub(crate) const PASSWORD: &str = "p'a\"s\\s: wörd";
/// What a file in a Secret may end with.
const END_OF_LINE: &str = "\n";
pub(crate) const SELECTOR: &str = "app.kubernetes.io/name=podgres";

pub(crate) struct Cluster<'a> {
    pub(crate) world: &'a World,
    pub(crate) namespace: String,
    replicas: AtomicU32,
    folder: TempDir,
}

/// Of a pod: what tells it from the one before it under the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodFacts {
    pub(crate) uid: String,
    pub(crate) started: String,
    pub(crate) node: String,
    pub(crate) address: String,
    pub(crate) ready: bool,
    /// It has been deleted, and is not gone yet.
    pub(crate) leaving: bool,
    pub(crate) restarts: i32,
}

impl<'a> Cluster<'a> {
    /// Applies the overlay and waits until all stream.
    pub(crate) fn start(&self) {
        self.apply();
        self.settle();
    }

    /// A new namespace with a password, in which nothing runs.
    pub(crate) fn prepare(world: &'a World, name: &str, overlay: &Overlay) -> Self {
        let namespace = format!("podgres-test-{name}-{:04x}", fastrand::u16(..));
        let object: Namespace = serde_json::from_value(json!({
            "metadata": {"name": namespace, "labels": {
                "podgres.dev/test": "kubernetes",
                // Where the cluster knows it, whatever breaks it is refused.
                "pod-security.kubernetes.io/enforce": "restricted",
            }}
        }))
        .expect("a namespace");
        let made = world.now(world.namespaces().create(&PostParams::default(), &object));
        made.expect("a namespace");
        let folder = overlay.write(world, &namespace);
        let cluster = Self {
            world,
            namespace,
            replicas: AtomicU32::new(3),
            folder,
        };
        cluster.kubectl(&[
            "create",
            "secret",
            "generic",
            "pg",
            &format!("--from-literal=password={PASSWORD}{END_OF_LINE}"),
        ]);
        cluster
    }

    pub(crate) fn apply(&self) {
        let folder = self.folder.path().display().to_string();
        self.kubectl(&["apply", "-k", &folder]);
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        kubectl::text(kubectl::kubectl().args(["-n", &self.namespace]).args(arguments))
    }

    /// `Err` with what it complained about.
    pub(crate) fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let output = kubectl::kubectl()
            .args(["-n", &self.namespace])
            .args(arguments)
            .output();
        let output = output.expect("kubectl runs");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(kubectl::complaint(&output))
        }
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.world.client.clone(), &self.namespace)
    }

    pub(crate) fn get<K>(&self, name: &str) -> Option<K>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + DeserializeOwned,
        K::DynamicType: Default,
    {
        self.world.now(self.api::<K>().get_opt(name)).ok().flatten()
    }

    /// The members' pods by name.
    pub(crate) fn pods(&self) -> BTreeMap<String, PodFacts> {
        let ours = ListParams::default().labels(SELECTOR);
        let listed = self.world.now(self.api::<Pod>().list(&ours));
        let facts = |pod: Pod| (pod.metadata.name.clone().unwrap_or_default(), pod_facts(&pod));
        listed
            .map(|list| list.items.into_iter().map(facts).collect())
            .unwrap_or_default()
    }

    pub(crate) fn pod(&self, name: &str) -> PodFacts {
        self.get::<Pod>(name)
            .map_or_else(|| panic!("no pod {name}"), |pod| pod_facts(&pod))
    }

    pub(crate) fn replicas(&self) -> u32 {
        self.replicas.load(Ordering::Relaxed)
    }

    pub(crate) fn claims(&self) -> Vec<String> {
        let listed = self
            .world
            .now(self.api::<PersistentVolumeClaim>().list(&ListParams::default()));
        listed
            .expect("claims")
            .items
            .into_iter()
            .filter_map(|claim| claim.metadata.name)
            .collect()
    }

    /// The cluster as one of its members sees it; the first one that answers.
    pub(crate) fn status(&self) -> Value {
        let pods = (0..self.replicas()).map(|ordinal| format!("pg-{ordinal}"));
        let mut answers = pods.filter_map(|pod| self.http("GET", &pod, 8008, "/cluster"));
        let answer = answers.find_map(|text| serde_json::from_str(&text).ok());
        answer.unwrap_or(Value::Null)
    }

    /// The one member that takes writes, as its own status says.
    pub(crate) fn primary(&self) -> String {
        let (_, primary) = until("a primary", || primary_of(&self.status()), Option::is_some);
        primary.expect("a primary")
    }

    /// Another primary than this one, as the others see it.
    pub(crate) fn primary_besides(&self, lost: &str) -> String {
        let others = (0..self.replicas())
            .map(|ordinal| format!("pg-{ordinal}"))
            .filter(|name| name != lost);
        let seen = |pod: &String| {
            self.http("GET", pod, 8008, "/cluster")
                .and_then(|text| serde_json::from_str(&text).ok())
        };
        let others: Vec<String> = others.collect();
        let look = || others.iter().find_map(seen).as_ref().and_then(primary_of);
        until("another primary", look, |primary| {
            primary.as_ref().is_some_and(|name| name != lost)
        })
        .1
        .expect("a primary")
    }

    /// A member that is not the primary.
    pub(crate) fn standby(&self) -> String {
        let primary = self.primary();
        let names = (0..self.replicas()).rev().map(|ordinal| format!("pg-{ordinal}"));
        names
            .into_iter()
            .find(|name| *name != primary)
            .expect("a standby")
    }

    /// Waits until every member is ready, and all but one stream; then exactly one takes writes, as each one's own SQL says.
    pub(crate) fn settle(&self) {
        let wanted = self.replicas();
        wait::within(
            2 * wait::LIMIT,
            "all members ready and streaming",
            || (self.pods(), states(&self.status())),
            |(pods, states)| {
                let ready = pods.values().filter(|pod| pod.ready).count();
                let streaming = states
                    .iter()
                    .filter(|state| state.ends_with(" streaming"))
                    .count();
                pods.len() == wanted as usize
                    && ready == pods.len()
                    && streaming + 1 == pods.len()
                    && states.iter().any(|state| state.ends_with("primary running"))
            },
        );
        until(
            "every member says whether it takes writes",
            || self.recovering(),
            |answers| {
                let writable = answers.iter().filter(|answer| *answer == "f").count();
                assert!(writable <= 1, "{answers:?}");
                writable == 1 && answers.iter().all(|answer| answer == "f" || answer == "t")
            },
        );
    }

    /// `kubectl scale`, and waits until it is so.
    pub(crate) fn scale(&self, replicas: u32) {
        self.kubectl(&["scale", "statefulset/pg", &format!("--replicas={replicas}")]);
        self.replicas.store(replicas, Ordering::Relaxed);
        if replicas == 0 {
            until("no pod", || self.pods(), BTreeMap::is_empty);
        } else {
            self.settle();
        }
    }

    pub(crate) fn logs(&self, pod: &str, container: &str, more: &[&str]) -> String {
        self.kubectl(&[&["logs", pod, "-c", container], more].concat())
    }

    /// `podgres switchover` to a pod, asked in it; what it said.
    pub(crate) fn switch_over(&self, to: &str) -> String {
        self.kubectl(&switchover(to))
    }

    /// As [`Self::switch_over`]; `Err` with what it complained about.
    pub(crate) fn try_switch_over(&self, to: &str) -> Result<String, String> {
        self.try_kubectl(&switchover(to))
    }

    pub(crate) fn delete_pod(&self, pod: &str, force: bool) {
        let parameters = if force {
            DeleteParams::default().grace_period(0)
        } else {
            DeleteParams::default()
        };
        self.world
            .now(self.api::<Pod>().delete(pod, &parameters))
            .expect("deleted")
            .map_left(drop);
    }

    /// Deletes a standby by force and waits until all is well with another pod in its place; `before` is what was there.
    pub(crate) fn replace_standby(&self, before: &BTreeMap<String, PodFacts>) {
        let standby = self.standby();
        self.delete_pod(&standby, true);
        until(
            "another pod",
            || self.pods(),
            |pods| {
                pods.get(&standby)
                    .is_some_and(|pod| pod.uid != before[&standby].uid)
            },
        );
        self.settle();
    }

    /// A pod goes, and its claim with it; the others run on. The set is away meanwhile: it would make the pod again before the claim is gone.
    pub(crate) fn lose_volume(&self, pod: &str) {
        self.without_controller(|| {
            self.delete_pod(pod, true);
            self.kubectl(&["delete", &format!("pvc/data-{pod}"), "--timeout=60s"]);
        });
    }

    /// While nobody makes pods anew. The set comes back with the template that it had: any other one would replace all its pods.
    pub(crate) fn without_controller(&self, meanwhile: impl FnOnce()) {
        let mut set: StatefulSet = self.get("pg").expect("the set");
        self.kubectl(&["delete", "statefulset/pg", "--cascade=orphan"]);
        meanwhile();
        set.status = None;
        set.metadata = ObjectMeta {
            name: set.metadata.name.take(),
            labels: set.metadata.labels.take(),
            annotations: set.metadata.annotations.take(),
            ..ObjectMeta::default()
        };
        let made = self.world.now(self.api().create(&PostParams::default(), &set));
        made.expect("the set is made again");
    }

    /// The volume of what went wrong: pods, logs, events.
    pub(crate) fn show(&self) {
        println!("{:#}", self.status());
        println!(
            "{}",
            self.try_kubectl(&["get", "pods,pvc", "-o", "wide"])
                .unwrap_or_else(|error| error)
        );
        let containers = ["bootstrap", "sidecar", "postgres"];
        for pod in self.pods().keys() {
            for container in containers {
                let log = self.try_kubectl(&["logs", pod, "-c", container, "--tail", "12"]);
                println!("--- {pod} {container}\n{}", log.unwrap_or_else(|error| error));
            }
        }
        if let Ok(events) = self.world.now(self.api::<Event>().list(&ListParams::default())) {
            for event in events.items.iter().rev().take(15) {
                let object = event.involved_object.name.as_deref().unwrap_or_default();
                let text = event.message.as_deref().unwrap_or_default();
                println!("event {object}: {text}");
            }
        }
    }

    pub(crate) fn remove(&self) {
        // At once, so that the next group has the machine for itself.
        drop(self.try_kubectl(&[
            "delete",
            "statefulset/pg",
            "--ignore-not-found",
            "--cascade=foreground",
        ]));
        let removed = self.world.now(
            self.world
                .namespaces()
                .delete(&self.namespace, &DeleteParams::default()),
        );
        removed.expect("the namespace goes").map_left(drop);
    }
}

/// `pg-1 standby streaming` for each member.
pub(crate) fn states(status: &Value) -> Vec<String> {
    let members = status["members"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let text = |member: &Value, key: &str| member[key].as_str().unwrap_or("?").to_owned();
    let line = |member: &Value| {
        format!(
            "{} {} {}",
            text(member, "name"),
            text(member, "role"),
            text(member, "state")
        )
    };
    members.iter().map(line).collect()
}

fn primary_of(status: &Value) -> Option<String> {
    let states = states(status);
    let mut primaries = states
        .iter()
        .filter_map(|state| state.strip_suffix(" primary running"));
    let first = primaries.next()?.to_owned();
    primaries.next().is_none().then_some(first)
}

fn pod_facts(pod: &Pod) -> PodFacts {
    let status = pod.status.as_ref();
    let conditions = status
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let restarts = |containers: Option<&[ContainerStatus]>| -> i32 {
        let containers = containers.unwrap_or_default().iter();
        containers.map(|container| container.restart_count).sum()
    };
    let time = status.and_then(|status| status.start_time.as_ref());
    PodFacts {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        started: time.map(|time| time.0.to_string()).unwrap_or_default(),
        node: pod
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.clone())
            .unwrap_or_default(),
        address: status
            .and_then(|status| status.pod_ip.clone())
            .unwrap_or_default(),
        ready: pod.metadata.deletion_timestamp.is_none()
            && conditions
                .iter()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        leaving: pod.metadata.deletion_timestamp.is_some(),
        // A native sidecar is an init container.
        restarts: restarts(status.and_then(|status| status.container_statuses.as_deref()))
            + restarts(status.and_then(|status| status.init_container_statuses.as_deref())),
    }
}

fn switchover(to: &str) -> [&str; 9] {
    [
        "exec",
        to,
        "-c",
        "sidecar",
        "--",
        "podgres",
        "switchover",
        "--to",
        to,
    ]
}
