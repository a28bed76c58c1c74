//! A [`LeaseRecord`] as a Lease object, and back. The object stays JSON, so that what podgres does not know (labels,
//! owners, fields of later Kubernetes versions) comes back with each write as it was.
//!
//! Source: `coordination.k8s.io/v1`, `LeaseSpec`.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::annotations;
use super::error::LeaseName;
use super::{API_DECIMALS, timestamp};
use crate::core::lease::{Identity, LeaseRecord, StoredLease};

/// Why an object is not a record, or a record no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("annotation \"{annotation}\" is missing")]
    Lacks { annotation: String },
    #[error("annotation \"{annotation}\" is \"{found}\": expected {expected}")]
    Annotation {
        annotation: String,
        found: String,
        expected: String,
    },
    #[error("field \"{field}\" is {found}: expected {expected}")]
    Field {
        field: &'static str,
        found: String,
        expected: &'static str,
    },
    #[error("term {term} does not fit leaseTransitions")]
    TermTooLarge { term: u64 },
}

/// Reads an object of the API.
///
/// # Errors
/// An annotation or a field that podgres cannot have written.
pub fn record_of(object: &Value) -> Result<StoredLease, RecordError> {
    let metadata = object.get("metadata").unwrap_or(&Value::Null);
    let resource_version = metadata
        .get("resourceVersion")
        .and_then(Value::as_str)
        .filter(|version| !version.is_empty())
        .ok_or_else(|| {
            field(
                "metadata.resourceVersion",
                metadata.get("resourceVersion"),
                "a text",
            )
        })?;
    let mut record = read_spec(object.get("spec").unwrap_or(&Value::Null))?;
    let none = Map::new();
    let annotations = match metadata.get("annotations") {
        None | Some(Value::Null) => &none,
        Some(Value::Object(annotations)) => annotations,
        other => return Err(field("metadata.annotations", other, "an object")),
    };
    // Made by hand, so that nobody needs the right to create one: nothing is in it yet.
    let untouched = record.holder.is_none() && record.term == 0;
    if !(untouched && annotations::bare(annotations)) {
        annotations::read(annotations, &mut record)?;
    }
    Ok(StoredLease {
        record: Arc::new(record),
        resource_version: resource_version.to_owned(),
    })
}

fn read_spec(spec: &Value) -> Result<LeaseRecord, RecordError> {
    let holder = match spec.get("holderIdentity") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => (!text.is_empty()).then(|| Identity::parse(text)),
        other => return Err(field("spec.holderIdentity", other, "a text")),
    };
    let seconds = number(spec, "leaseDurationSeconds", "spec.leaseDurationSeconds")?;
    Ok(LeaseRecord {
        holder,
        term: number(spec, "leaseTransitions", "spec.leaseTransitions")?,
        lease_duration_ms: seconds * 1_000,
        ..LeaseRecord::default()
    })
}

fn number(spec: &Value, key: &str, name: &'static str) -> Result<u64, RecordError> {
    match spec.get(key) {
        None | Some(Value::Null) => Ok(0),
        Some(value) => value
            .as_u64()
            .filter(|number| i32::try_from(*number).is_ok())
            .ok_or_else(|| field(name, Some(value), "a number from 0 to 2147483647")),
    }
}

fn field(field: &'static str, found: Option<&Value>, expected: &'static str) -> RecordError {
    let found = found.unwrap_or(&Value::Null).to_string();
    RecordError::Field {
        field,
        found: found.chars().take(80).collect(),
        expected,
    }
}

/// The object that stores `record`: over `base` as the API gave it, or a new one.
///
/// # Errors
/// The term is too large for the API.
pub fn with_record(
    lease: &LeaseName,
    base: Option<&Value>,
    record: &LeaseRecord,
) -> Result<Value, RecordError> {
    let term = i32::try_from(record.term).map_err(|_| RecordError::TermTooLarge { term: record.term })?;
    let mut object = base.and_then(Value::as_object).cloned().unwrap_or_default();
    let mut metadata = take(&mut object, "metadata");
    let mut annotations = take(&mut metadata, "annotations");
    let mut spec = take(&mut object, "spec");
    annotations::write(record, &mut annotations);
    write_spec(&mut spec, record, term);
    metadata.insert("annotations".to_owned(), Value::Object(annotations));
    metadata.insert("name".to_owned(), json!(lease.name));
    metadata.insert("namespace".to_owned(), json!(lease.namespace));
    object.insert("metadata".to_owned(), Value::Object(metadata));
    object.insert("spec".to_owned(), Value::Object(spec));
    // An item of a list does not say what it is.
    object.insert("apiVersion".to_owned(), json!("coordination.k8s.io/v1"));
    object.insert("kind".to_owned(), json!("Lease"));
    Ok(Value::Object(object))
}

fn write_spec(spec: &mut Map<String, Value>, record: &LeaseRecord, term: i32) {
    let now = json!(timestamp(API_DECIMALS));
    let holder = record.holder.as_ref().map(|holder| json!(holder.to_string()));
    let earlier = (spec.remove("holderIdentity"), spec.get("leaseTransitions"));
    let claimed = holder.is_some() && (earlier.0 != holder || earlier.1 != Some(&json!(term)));
    if claimed {
        spec.insert("acquireTime".to_owned(), now.clone());
    }
    // Released is absent: an empty text means the same, but not to every version of the API.
    if let Some(holder) = holder {
        spec.insert("holderIdentity".to_owned(), holder);
    }
    spec.insert("leaseTransitions".to_owned(), json!(term));
    spec.insert(
        "leaseDurationSeconds".to_owned(),
        json!(duration_seconds(record.lease_duration_ms)),
    );
    // For people and other tools: podgres ages a record by its own clock.
    spec.insert("renewTime".to_owned(), now);
}

/// As the API takes it: whole seconds, at least one.
fn duration_seconds(milliseconds: u64) -> u64 {
    milliseconds
        .div_ceil(1_000)
        .clamp(1, i32::MAX.unsigned_abs().into())
}

/// What comes back when `record` has been stored.
pub(super) fn normalised(record: &LeaseRecord) -> LeaseRecord {
    LeaseRecord {
        lease_duration_ms: duration_seconds(record.lease_duration_ms) * 1_000,
        ..record.clone()
    }
}

/// Takes an object out of an object; what is none is an empty one.
fn take(object: &mut Map<String, Value>, key: &str) -> Map<String, Value> {
    match object.remove(key) {
        Some(Value::Object(inner)) => inner,
        _ => Map::new(),
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
