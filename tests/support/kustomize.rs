//! What `kubectl kustomize` makes of our folders, as far as they use it: resources, components, JSON patches with a target (by kind alone: whatever there is of it), and the deletion of an object.
//!
//! So that the manifests can be judged where there is neither kubectl nor a cluster. Anything else in a kustomization.yaml is refused.
//! `tests/adapters/kubectl.rs` holds it against kubectl itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use clap::CommandFactory as _;
use podgres::cmd::CommandLine;
use serde_json::Value;

/// All components, in an order that fits all, and what each needs: another one, or the Lease.
pub(crate) const COMPONENTS: [(&str, &str); 14] = [
    ("parallel", ""),
    ("tls", ""),
    ("role-label", LEASE),
    ("endpoint-slices", LEASE),
    ("events", LEASE),
    ("monitoring", ""),
    ("backup", ""),
    ("backup-s3", "backup"),
    ("alpine", ""),
    ("one-writer-volumes", ""),
    ("one-image", ""),
    ("classic-sidecar", ""),
    ("older-jobs", ""),
    ("older-apis", "classic-sidecar"),
];
pub(crate) const LEASE: &str = "overlays/lease";

/// Whose patches expect the sidecar at different places.
pub(crate) const EITHER: [&str; 2] = ["one-image", "classic-sidecar"];

/// Each overlay with each pair of components that fit, and with what these need.
pub(crate) fn combinations() -> BTreeSet<(&'static str, Vec<&'static str>)> {
    let mut combinations = BTreeSet::new();
    for overlay in [LEASE, "overlays/fixed"] {
        let fits = |(_, needs): &&(&str, &str)| *needs != LEASE || overlay == LEASE;
        for one in COMPONENTS.iter().filter(fits) {
            for other in COMPONENTS.iter().filter(fits) {
                let wanted = [one.0, one.1, other.0, other.1];
                let names = COMPONENTS.iter().map(|(name, _)| *name);
                let both = EITHER.iter().all(|name| wanted.contains(name));
                if !both {
                    combinations.insert((overlay, names.filter(|name| wanted.contains(name)).collect()));
                }
            }
        }
        combinations.insert((overlay, Vec::new()));
    }
    combinations
}

/// The objects of `k8s/FOLDER` with components, in the order that a user lists them.
pub(crate) fn build(folder: &str, components: &[&str]) -> Vec<Value> {
    let mut objects = Vec::new();
    apply(&top().join(folder), &mut objects);
    for component in components {
        apply(&top().join("components").join(component), &mut objects);
    }
    objects
}

/// The documents of a file below `k8s/`, which is read once.
pub(crate) fn documents(path: &Path) -> Vec<Value> {
    static READ: Mutex<BTreeMap<PathBuf, Vec<Value>>> = Mutex::new(BTreeMap::new());
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    let parsed = || {
        let text =
            std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    read.entry(path.to_owned()).or_insert_with(parsed).clone()
}

/// Every variable that a flag of any verb has.
pub(crate) fn settings() -> Vec<String> {
    let command = CommandLine::command();
    let arguments = command.get_subcommands().flat_map(clap::Command::get_arguments);
    arguments
        .filter_map(|argument| argument.get_env())
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

pub(crate) fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s")
}

fn apply(folder: &Path, objects: &mut Vec<Value>) {
    let file = folder.join("kustomization.yaml");
    let kustomization = documents(&file).remove(0);
    let known = ["apiVersion", "kind", "resources", "patches"];
    for key in kustomization.as_object().expect("an object").keys() {
        assert!(
            known.contains(&key.as_str()),
            "{}: \"{key}\" is not known here",
            file.display()
        );
    }
    for resource in list(&kustomization["resources"]) {
        let path = folder.join(resource.as_str().expect("a path"));
        if path.is_dir() {
            apply(&path, objects);
        } else {
            objects.extend(documents(&path));
        }
    }
    for patch in list(&kustomization["patches"]) {
        let (kind, name) = (&patch["target"]["kind"], &patch["target"]["name"]);
        let meant = |object: &Value| {
            object["kind"] == *kind && (name.is_null() || object["metadata"]["name"] == *name)
        };
        assert!(
            name.is_null() || objects.iter().any(meant),
            "{}: no {kind} {name}",
            file.display()
        );
        let operations: Value =
            serde_saphyr::from_str(patch["patch"].as_str().expect("a patch")).expect("YAML");
        if operations["$patch"] == "delete" {
            objects.retain(|object| !meant(object));
        }
        for target in objects.iter_mut().filter(|object| meant(object)) {
            for operation in list(&operations) {
                operate(target, operation)
                    .unwrap_or_else(|why| panic!("{}: {operation}: {why}", file.display()));
            }
        }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// One operation of RFC 6902.
fn operate(object: &mut Value, operation: &Value) -> Result<(), String> {
    let text = |key: &str| operation[key].as_str().ok_or_else(|| format!("no {key}"));
    let path = text("path")?;
    match text("op")? {
        "add" => add(object, path, operation["value"].clone()),
        "remove" => remove(object, path).map(drop),
        "replace" => {
            let place = object.pointer_mut(path).ok_or("nothing is there")?;
            *place = operation["value"].clone();
            Ok(())
        }
        "move" => {
            let moved = remove(object, text("from")?)?;
            add(object, path, moved)
        }
        "test" if object.pointer(path) == Some(&operation["value"]) => Ok(()),
        "test" => Err(format!("found {:?}", object.pointer(path))),
        other => Err(format!("\"{other}\" is no operation")),
    }
}

fn add(object: &mut Value, path: &str, value: Value) -> Result<(), String> {
    let (parent, key) = path.rsplit_once('/').ok_or("no path")?;
    match object.pointer_mut(parent).ok_or("its parent is not there")? {
        Value::Array(list) if key == "-" => list.push(value),
        Value::Array(list) => list.insert(key.parse().map_err(|_| "no index")?, value),
        Value::Object(map) => drop(map.insert(key.replace("~1", "/"), value)),
        _ => return Err("its parent holds nothing".to_owned()),
    }
    Ok(())
}

fn remove(object: &mut Value, path: &str) -> Result<Value, String> {
    let (parent, key) = path.rsplit_once('/').ok_or("no path")?;
    let removed = match object.pointer_mut(parent).ok_or("its parent is not there")? {
        Value::Array(list) => {
            let index: usize = key.parse().map_err(|_| "no index")?;
            (index < list.len()).then(|| list.remove(index))
        }
        Value::Object(map) => map.remove(&key.replace("~1", "/")),
        _ => None,
    };
    removed.ok_or_else(|| "nothing is there".to_owned())
}
