//! The annotations that hold what a Lease's own fields have no room for.
//!
//! A missing one is read as nothing only where nothing is what podgres would have written; a garbled one is an error
//! that names it, never nothing.

use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::PREFIX;
use super::record::RecordError;
use crate::core::data_directory::SystemIdentifier;
use crate::core::lease::{Durability, LeaseRecord};
use crate::core::member::Ordinal;
use crate::core::wal::TimelineId;

const SYSTEM_IDENTIFIER: &str = "system-identifier";
const DURABILITY: &str = "durability";
const MEMBERS: &str = "members";
const SYNCHRONOUS: &str = "synchronous";
const RENEWALS: &str = "renewals";
const RELEASED_BY: &str = "released-by";
const PAUSED: &str = "paused";
const READ_ONLY: &str = "read-only";
const READ_ONLY_TURNS: &str = "read-only-turns";
const REQUEST: &str = "request";
const ORDER: &str = "order";
const HISTORY: &str = "history";
const TIMELINE: &str = "timeline";

/// Those that podgres always writes: without one of them, the others were not written by podgres alone.
const ALWAYS: [&str; 4] = [DURABILITY, MEMBERS, SYNCHRONOUS, RENEWALS];
const ALL: [&str; 13] = [
    SYSTEM_IDENTIFIER,
    DURABILITY,
    MEMBERS,
    SYNCHRONOUS,
    RENEWALS,
    RELEASED_BY,
    PAUSED,
    READ_ONLY,
    READ_ONLY_TURNS,
    REQUEST,
    ORDER,
    HISTORY,
    TIMELINE,
];

type Annotations = Map<String, Value>;

fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// None of ours is there: a Lease that somebody made for podgres to fill.
pub(super) fn bare(annotations: &Annotations) -> bool {
    ALL.iter().all(|name| !annotations.contains_key(&key(name)))
}

/// Reads ours into `record`.
pub(super) fn read(annotations: &Annotations, record: &mut LeaseRecord) -> Result<(), RecordError> {
    for name in ALWAYS {
        if !annotations.contains_key(&key(name)) {
            return Err(RecordError::Lacks {
                annotation: key(name),
            });
        }
    }
    record.system_identifier =
        plain::<u64>(annotations, SYSTEM_IDENTIFIER, "a number")?.map(SystemIdentifier);
    record.durability = text(annotations, DURABILITY)?
        .map(|text| durability(text).ok_or_else(|| garbled(DURABILITY, text, "async, preferred or majority")))
        .transpose()?
        .unwrap_or_default();
    record.members = json(annotations, MEMBERS)?.unwrap_or_default();
    record.synchronous = json(annotations, SYNCHRONOUS)?.unwrap_or_default();
    record.renewals = plain(annotations, RENEWALS, "a number")?.unwrap_or_default();
    record.released_by = plain(annotations, RELEASED_BY, "an ordinal")?.map(Ordinal);
    record.paused = plain(annotations, PAUSED, "true or false")?.unwrap_or_default();
    record.read_only = json(annotations, READ_ONLY)?;
    record.read_only_turns = plain(annotations, READ_ONLY_TURNS, "a number")?.unwrap_or_default();
    record.request = json(annotations, REQUEST)?;
    record.order = json(annotations, ORDER)?;
    record.history = json(annotations, HISTORY)?.unwrap_or_default();
    record.timeline = TimelineId(plain(annotations, TIMELINE, "a number")?.unwrap_or_default());
    Ok(())
}

/// Puts `record`'s in place of ours; others stay.
pub(super) fn write(record: &LeaseRecord, annotations: &mut Annotations) {
    let mut set = |name: &str, value: Option<String>| match value {
        Some(value) => drop(annotations.insert(key(name), Value::String(value))),
        None => drop(annotations.remove(&key(name))),
    };
    set(
        SYSTEM_IDENTIFIER,
        record.system_identifier.map(|identifier| identifier.to_string()),
    );
    set(DURABILITY, Some(record.durability.as_str().to_owned()));
    set(MEMBERS, to_json(&record.members));
    set(SYNCHRONOUS, to_json(&record.synchronous));
    set(RENEWALS, Some(record.renewals.to_string()));
    set(RELEASED_BY, record.released_by.map(|ordinal| ordinal.to_string()));
    set(PAUSED, record.paused.then(|| "true".to_owned()));
    set(READ_ONLY, record.read_only.as_ref().and_then(to_json));
    let turns = (record.read_only_turns > 0).then(|| record.read_only_turns.to_string());
    set(READ_ONLY_TURNS, turns);
    set(REQUEST, record.request.as_ref().and_then(to_json));
    set(ORDER, record.order.as_ref().and_then(to_json));
    let history = (!record.history.is_empty()).then_some(&record.history);
    set(HISTORY, history.and_then(to_json));
    let timeline = (record.timeline > TimelineId(0)).then(|| record.timeline.to_string());
    set(TIMELINE, timeline);
}

/// None of these types can fail: no map of theirs has keys that are not numbers or texts.
fn to_json<T: Serialize>(value: &T) -> Option<String> {
    serde_json::to_string(value).ok()
}

fn text<'a>(annotations: &'a Annotations, name: &str) -> Result<Option<&'a str>, RecordError> {
    match annotations.get(&key(name)) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(garbled(name, &other.to_string(), "a text")),
    }
}

fn plain<T: FromStr>(
    annotations: &Annotations,
    name: &str,
    expected: &'static str,
) -> Result<Option<T>, RecordError> {
    text(annotations, name)?
        .map(|text| text.parse().map_err(|_| garbled(name, text, expected)))
        .transpose()
}

fn json<T: DeserializeOwned>(annotations: &Annotations, name: &str) -> Result<Option<T>, RecordError> {
    text(annotations, name)?
        .map(|text| serde_json::from_str(text).map_err(|error| garbled(name, text, &error.to_string())))
        .transpose()
}

fn durability(text: &str) -> Option<Durability> {
    [Durability::Async, Durability::Preferred, Durability::Majority]
        .into_iter()
        .find(|durability| durability.as_str() == text)
}

fn garbled(name: &str, found: &str, expected: &str) -> RecordError {
    RecordError::Annotation {
        annotation: key(name),
        found: found.chars().take(80).collect(),
        expected: expected.to_owned(),
    }
}
