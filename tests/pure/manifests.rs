//! The manifests in `k8s/` against the code and against Kubernetes' schema: ports, paths, keys, verbs, and no field that the API does not know.

mod backup;
mod constants;
mod patches;
mod pods;
mod rights;
mod route;

use std::collections::{BTreeMap, BTreeSet};

use clap::CommandFactory as _;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use podgres::cmd::CommandLine;
use podgres::core::cluster::check::CHECK_PATHS;
use podgres::core::manifests::{
    DEFAULT_STOP_TIMEOUT_SECONDS, EVENT_GROUP, LEASE_GROUP, LEASE_VERBS, SLICE_GROUP, SLICE_VERBS, check,
};
use podgres::core::routing::slice::slice_name;
use podgres::kube::PREFIX;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::kustomize::{COMPONENTS, EITHER, LEASE, build, combinations, documents, settings, top};
use crate::source::files_below;

#[test]
fn every_component_is_among_the_combinations() {
    let folders = std::fs::read_dir(top().join("components")).expect("the components");
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("a folder").file_name();
    let there: BTreeSet<String> = folders
        .map(|entry| name(entry).to_string_lossy().into_owned())
        .collect();
    assert_eq!(there, COMPONENTS.map(|(name, _)| name.to_owned()).into());
}

#[test]
fn no_object_has_a_field_that_the_api_does_not_know() {
    for (overlay, components) in combinations() {
        // The schema is that of today.
        if !components.contains(&"older-apis") {
            build(overlay, &components).iter().for_each(round_trip);
        }
    }
    for object in examples() {
        round_trip(&object);
    }
    for file in ["backup.yaml", "verify.yaml", "volume.yaml", "restore.yaml"] {
        for object in documents(&top().join("components/backup").join(file)) {
            round_trip(&object);
        }
    }
}

fn round_trip(object: &Value) {
    fn typed<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
        let read: T =
            serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{object:#}: {error}"));
        serde_json::to_value(read).expect("JSON")
    }
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    let read = match (text("apiVersion"), text("kind")) {
        ("v1", "Service") => typed::<Service>(object),
        ("discovery.k8s.io/v1", "EndpointSlice") => typed::<EndpointSlice>(object),
        ("v1", "PersistentVolumeClaim") => typed::<PersistentVolumeClaim>(object),
        ("batch/v1", "CronJob") => typed::<CronJob>(object),
        ("batch/v1", "Job") => typed::<Job>(object),
        ("v1", "ConfigMap") => typed::<ConfigMap>(object),
        ("v1", "ServiceAccount") => typed::<ServiceAccount>(object),
        ("apps/v1", "StatefulSet") => typed::<StatefulSet>(object),
        ("apps/v1", "Deployment") => typed::<Deployment>(object),
        ("policy/v1", "PodDisruptionBudget") => typed::<PodDisruptionBudget>(object),
        ("networking.k8s.io/v1", "NetworkPolicy") => typed::<NetworkPolicy>(object),
        ("rbac.authorization.k8s.io/v1", "Role") => typed::<Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => typed::<RoleBinding>(object),
        // No Secret: no password is committed. Nothing beyond a namespace: nobody needs to be an administrator.
        other => panic!("{other:?} is not expected in k8s/"),
    };
    assert_kept(object, &read, text("kind"));
}

/// Whatever was written is still there after reading.
fn assert_kept(written: &Value, read: &Value, place: &str) {
    match (written, read) {
        (Value::Object(map), _) => {
            for (key, value) in map {
                assert_kept(value, &read[key.as_str()], &format!("{place}.{key}"));
            }
        }
        (Value::Array(list), _) => {
            for (index, value) in list.iter().enumerate() {
                assert_kept(value, &read[index], &format!("{place}[{index}]"));
            }
        }
        _ => assert_eq!(written, read, "the API does not know {place}"),
    }
}

#[test]
fn podgres_check_finds_nothing() {
    let settings = settings();
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    for (overlay, components) in combinations() {
        let found = check(&build(overlay, &components), &settings);
        assert_eq!(found, [], "{overlay} {components:?}");
    }
}

/// The default of a flag of `podgres sidecar`.
fn default_of(flag: &str) -> String {
    let command = CommandLine::command();
    let sidecar = command.find_subcommand("sidecar").expect("the verb");
    let argument = sidecar
        .get_arguments()
        .find(|a| a.get_long() == Some(flag))
        .expect(flag);
    argument.get_default_values()[0].to_string_lossy().into_owned()
}

fn one<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} \"{name}\""))
}

/// Init containers and containers of the StatefulSet.
fn containers(objects: &[Value]) -> Vec<&Value> {
    let spec = &one(objects, "StatefulSet", "pg")["spec"]["template"]["spec"];
    ["initContainers", "containers"]
        .into_iter()
        .flat_map(|key| spec[key].as_array().expect("a list"))
        .collect()
}

fn container<'a>(objects: &'a [Value], name: &str) -> &'a Value {
    containers(objects)
        .into_iter()
        .find(|container| container["name"] == name)
        .expect(name)
}

/// The kustomization.yaml that k8s/README.md shows names what is there; tests/kubernetes applies it.
#[test]
fn the_readmes_kustomization_names_what_there_is() {
    let text = std::fs::read_to_string(top().join("README.md")).expect("the page");
    let block = text
        .split("```yaml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let shown: Value = serde_saphyr::from_str(block.expect("a block")).expect("YAML");
    let folder = shown["resources"][0]
        .as_str()
        .and_then(|path| path.strip_prefix("../podgres/k8s/"));
    let objects = build(folder.expect("a folder of ours"), &[]);
    let used: BTreeSet<&str> = containers(&objects)
        .into_iter()
        .filter_map(|container| container["image"].as_str())
        .collect();
    let images = shown["images"].as_array().expect("images");
    let named: BTreeSet<&str> = images.iter().filter_map(|image| image["name"].as_str()).collect();
    assert_eq!(used, named);
    for path in text.split("../podgres/").skip(1) {
        let path = path.split([' ', ']', '`']).next().expect("a path");
        assert!(top().join("..").join(path).is_dir(), "{path}");
    }
}

/// The objects of the examples.
fn examples() -> Vec<Value> {
    let folders = std::fs::read_dir(top().join("examples")).expect("the examples");
    let mut objects = Vec::new();
    for folder in folders
        .map(|entry| entry.expect("a folder").path())
        .filter(|path| path.is_dir() && !path.ends_with("apps"))
    {
        let files = std::fs::read_dir(folder).expect("a folder");
        let files = files.map(|entry| entry.expect("a file").path());
        for file in files.filter(|path| {
            path.extension().is_some_and(|end| end == "yaml")
                && !path.ends_with("kustomization.yaml")
                && !path.ends_with("before.yaml")
        }) {
            objects.extend(documents(&file));
        }
    }
    assert!(objects.len() >= 6, "three examples with two objects each");
    objects
}
