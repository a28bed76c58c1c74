//! The objects of one kind: what is stored, at which version, and what has changed since.
//!
//! One counter versions everything, as etcd's revision does. A change is on disk before it is answered or seen.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::super::DemoError;
use super::resource::Resource;
use super::status::Refusal;
use crate::files::{sync_directory, write_private};

/// Changes that a watch may begin behind.
const LOG_LIMIT: usize = 1_000;

/// Namespace and name.
pub(super) type Key = (String, String);

/// A change, as a watch tells it.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) revision: u64,
    pub(super) kind: &'static str,
    pub(super) key: Key,
    pub(super) object: Value,
}

#[derive(Default, Serialize, Deserialize)]
struct Contents {
    revision: u64,
    /// As files of earlier versions name them.
    #[serde(rename = "leases")]
    objects: Vec<Value>,
}

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<Key, Value>,
    log: VecDeque<Change>,
    /// Changes up to here are forgotten.
    compacted: u64,
}

pub(super) struct Objects {
    pub(super) resource: &'static Resource,
    state: Mutex<State>,
    path: Option<PathBuf>,
    /// The newest revision, to wake those who watch.
    revision: watch::Sender<u64>,
}

impl Objects {
    pub(super) fn open(resource: &'static Resource, path: Option<PathBuf>) -> Result<Self, DemoError> {
        let contents = path.as_deref().map(load).transpose()?.unwrap_or_default();
        let objects = contents
            .objects
            .into_iter()
            .map(|object| (key_of(&object), object));
        let state = State {
            revision: contents.revision,
            objects: objects.collect(),
            compacted: contents.revision,
            ..State::default()
        };
        Ok(Self {
            resource,
            revision: watch::Sender::new(state.revision),
            state: Mutex::new(state),
            path,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: &Key) -> Result<Value, Refusal> {
        let found = self.lock().objects.get(key).cloned();
        found.ok_or_else(|| Refusal::not_found(self.resource, &key.1))
    }

    /// All of a namespace, or the one of that name, with the list's version.
    pub(super) fn list(&self, namespace: &str, name: Option<&str>) -> (u64, Vec<Value>) {
        let state = self.lock();
        let chosen = state
            .objects
            .iter()
            .filter(|(key, _)| key.0 == namespace && name.is_none_or(|name| key.1 == name));
        (state.revision, chosen.map(|(_, object)| object.clone()).collect())
    }

    /// What has changed after `revision`; an error if that is no longer, or not yet, known.
    pub(super) fn changes_after(&self, revision: u64) -> Result<(u64, Vec<Change>), Refusal> {
        let state = self.lock();
        if revision < state.compacted {
            return Err(Refusal::expired(revision, state.compacted));
        }
        if revision > state.revision {
            return Err(Refusal::too_large(revision, state.revision));
        }
        let after = state.log.iter().filter(|change| change.revision > revision);
        Ok((state.revision, after.cloned().collect()))
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    pub(super) fn compact(&self) {
        let mut state = self.lock();
        state.log.clear();
        state.compacted = state.revision;
    }

    pub(super) fn create(&self, key: Key, mut object: Value) -> Result<Value, Refusal> {
        let mut state = self.lock();
        if state.objects.contains_key(&key) {
            return Err(Refusal::already_exists(self.resource, &key.1));
        }
        if version_of(&object).is_some() {
            return Err(Refusal::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        object["metadata"]["uid"] = json!(uid());
        object["metadata"]["creationTimestamp"] = json!(format!("{:.0}", Timestamp::now()));
        self.store(&mut state, key, "ADDED", object)
    }

    /// Replaces by compare-and-swap; true: as the real server does for Leases, it has created one that was not there.
    /// The real one then looks at the UID alone, and not at the version.
    pub(super) fn replace(&self, key: Key, mut object: Value) -> Result<(bool, Value), Refusal> {
        let mut state = self.lock();
        let Some(stored) = state.objects.get(&key) else {
            drop(state);
            if object["metadata"]["uid"].is_string() {
                return Err(Refusal::conflict(
                    self.resource,
                    &key.1,
                    "Precondition failed: UID",
                ));
            }
            object["metadata"]["resourceVersion"].take();
            return self.create(key, object).map(|created| (true, created));
        };
        let Some(version) = version_of(&object) else {
            let why = "metadata.resourceVersion: Invalid value: 0: must be specified for an update";
            return Err(Refusal::invalid(self.resource, &key.1, why));
        };
        if Some(version) != version_of(stored) {
            let why =
                "the object has been modified; please apply your changes to the latest version and try again";
            return Err(Refusal::conflict(self.resource, &key.1, why));
        }
        let metadata = &stored["metadata"];
        if object["metadata"]["uid"].is_string() && object["metadata"]["uid"] != metadata["uid"] {
            return Err(Refusal::conflict(
                self.resource,
                &key.1,
                "Precondition failed: UID",
            ));
        }
        object["metadata"]["uid"] = metadata["uid"].clone();
        object["metadata"]["creationTimestamp"] = metadata["creationTimestamp"].clone();
        if object == *stored {
            return Ok((false, object));
        }
        let stored = self.store(&mut state, key, "MODIFIED", object)?;
        Ok((false, stored))
    }

    pub(super) fn delete(&self, key: Key) -> Result<Value, Refusal> {
        let mut state = self.lock();
        let object = state.objects.get(&key).cloned();
        let object = object.ok_or_else(|| Refusal::not_found(self.resource, &key.1))?;
        self.store(&mut state, key, "DELETED", object)
    }

    /// On disk first, then in memory, then to those who watch.
    fn store(
        &self,
        state: &mut State,
        key: Key,
        kind: &'static str,
        mut object: Value,
    ) -> Result<Value, Refusal> {
        let revision = state.revision + 1;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        let mut objects = state.objects.clone();
        match kind {
            "DELETED" => objects.remove(&key),
            _ => objects.insert(key.clone(), object.clone()),
        };
        self.save(revision, &objects)
            .map_err(|error| Refusal::internal(&error.to_string()))?;
        state.objects = objects;
        state.revision = revision;
        state.log.push_back(Change {
            revision,
            kind,
            key,
            object: object.clone(),
        });
        while state.log.len() > LOG_LIMIT {
            state.compacted = state.log.pop_front().map_or(revision, |change| change.revision);
        }
        self.revision.send_replace(revision);
        Ok(object)
    }

    fn save(&self, revision: u64, objects: &BTreeMap<Key, Value>) -> std::io::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let contents = Contents {
            revision,
            objects: objects.values().cloned().collect(),
        };
        let text = serde_json::to_vec(&contents)?;
        write_private(path, &text)
            .and_then(|()| path.parent().map_or(Ok(()), sync_directory))
            .map_err(|error| error.source)
    }
}

fn load(path: &Path) -> Result<Contents, DemoError> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| DemoError::file("read", path)(std::io::Error::other(error))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Contents::default()),
        Err(error) => Err(DemoError::file("read", path)(error)),
    }
}

fn key_of(object: &Value) -> Key {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

fn version_of(object: &Value) -> Option<&str> {
    object["metadata"]["resourceVersion"]
        .as_str()
        .filter(|version| !version.is_empty())
}

fn uid() -> String {
    let (high, low) = (fastrand::u64(..), fastrand::u64(..));
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        low >> 52,
        low & 0xffff_ffff_ffff
    )
}
