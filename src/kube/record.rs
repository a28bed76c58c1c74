//! A [`LeaseRecord`] as a Lease object, and back. The object stays JSON, so that what podgres does not know (labels,
//! owners, fields of later Kubernetes versions) comes back with each write as it was.
//!
//! Source: `coordination.k8s.io/v1`, `LeaseSpec`.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::annotations;
use super::error::LeaseName;
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
        record,
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
    let now = json!(timestamp());
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

/// The wall clock as the API writes it; for people only.
#[must_use]
pub fn timestamp() -> String {
    format!("{:.6}", Timestamp::now())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::core::data_directory::SystemIdentifier;
    use crate::core::lease::{
        Durability, HistoryEntry, Incarnation, MoveRequest, ReadOnlySwitch, SynchronousSet,
    };
    use crate::core::member::Ordinal;
    use crate::core::wal::{Lsn, TimelineId};

    fn lease() -> LeaseName {
        LeaseName {
            namespace: "prod".to_owned(),
            name: "pg".to_owned(),
        }
    }

    fn stored(mut object: Value) -> Value {
        object["metadata"]["resourceVersion"] = json!("7");
        object
    }

    fn full() -> LeaseRecord {
        LeaseRecord {
            holder: Some(Identity::parse("pg-0/uid")),
            term: 5,
            lease_duration_ms: 15_000,
            renewals: u64::MAX,
            system_identifier: Some(SystemIdentifier(u64::MAX)),
            durability: Durability::Majority,
            members: vec![Ordinal(2), Ordinal(0)],
            synchronous: SynchronousSet {
                members: BTreeMap::from([(Ordinal(1), Incarnation("x \"y\" é".to_owned()))]),
                quorum: 1,
            },
            released_by: Some(Ordinal(3)),
            paused: true,
            read_only: Some(ReadOnlySwitch {
                by: "me".to_owned(),
                at: "now".to_owned(),
                reason: "\u{0}\n".to_owned(),
            }),
            request: Some(MoveRequest::Failover {
                to: Ordinal(1),
                id: "i".to_owned(),
            }),
            history: vec![HistoryEntry {
                term: 4,
                timeline: Some(TimelineId(2)),
                lsn: Some(Lsn(0x0300_0060)),
                reason: "r".to_owned(),
                at: "t".to_owned(),
                new_leader: "pg-0".to_owned(),
            }],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for record in [
            full(),
            LeaseRecord {
                lease_duration_ms: 1_000,
                ..LeaseRecord::default()
            },
        ] {
            let object = stored(with_record(&lease(), None, &record).expect("an object"));
            let read = record_of(&object).expect("a record");
            assert_eq!(read.record, record);
            assert_eq!(read.resource_version, "7");
            // What is not there any more goes away again.
            let emptied = LeaseRecord {
                lease_duration_ms: 1_000,
                ..LeaseRecord::default()
            };
            let object = with_record(&lease(), Some(&object), &emptied).expect("an object");
            assert_eq!(record_of(&object).expect("a record").record, emptied);
        }
    }

    #[test]
    fn durations_are_whole_seconds_and_never_none() {
        for (given_ms, seconds) in [
            (0, 1),
            (1, 1),
            (1_000, 1),
            (1_001, 2),
            (u64::MAX, i32::MAX.unsigned_abs()),
        ] {
            let record = LeaseRecord {
                lease_duration_ms: given_ms,
                ..LeaseRecord::default()
            };
            let object = with_record(&lease(), None, &record).expect("an object");
            assert_eq!(object["spec"]["leaseDurationSeconds"], json!(seconds));
            assert_eq!(
                record_of(&stored(object)).expect("a record").record,
                normalised(&record)
            );
        }
    }

    #[test]
    fn a_time_of_acquisition_belongs_to_an_office() {
        let claimed = stored(with_record(&lease(), None, &full()).expect("an object"));
        let acquired = claimed["spec"]["acquireTime"].clone();
        let micros = acquired
            .as_str()
            .and_then(|text| text.split('.').nth(1))
            .map(str::len);
        assert_eq!(micros, Some("123456Z".len()), "{acquired}");
        let renewed = with_record(&lease(), Some(&claimed), &full()).expect("an object");
        assert_eq!(renewed["spec"]["acquireTime"], acquired);
        assert_ne!(renewed["spec"]["renewTime"], claimed["spec"]["renewTime"]);
        let again = LeaseRecord { term: 6, ..full() };
        let again = with_record(&lease(), Some(&claimed), &again).expect("an object");
        assert_ne!(again["spec"]["acquireTime"], acquired);
        let released = LeaseRecord {
            holder: None,
            ..full()
        };
        let released = with_record(&lease(), Some(&claimed), &released).expect("an object");
        assert!(released["spec"].get("holderIdentity").is_none());
        assert_eq!(released["spec"]["acquireTime"], acquired);
    }

    #[test]
    fn what_podgres_does_not_know_stays() {
        let mut base = stored(with_record(&lease(), None, &full()).expect("an object"));
        base["metadata"]["labels"] = json!({"a": "b"});
        base["metadata"]["ownerReferences"] = json!([{"uid": "1"}]);
        base["metadata"]["annotations"]["other"] = json!("kept");
        base["spec"]["strategy"] = json!("OldestEmulationVersion");
        base["spec"]["preferredHolder"] = json!("x");
        base["later"] = json!({"deep": [1]});
        let next = LeaseRecord {
            renewals: 1,
            ..full()
        };
        let mut object = with_record(&lease(), Some(&base), &next).expect("an object");
        assert_eq!(object["metadata"]["annotations"]["podgres.dev/renewals"], "1");
        object["metadata"]["annotations"]["podgres.dev/renewals"] = json!(u64::MAX.to_string());
        object["spec"]["renewTime"] = base["spec"]["renewTime"].clone();
        assert_eq!(object, base);
    }

    #[test]
    fn one_annotation_less_is_an_error_and_none_is_a_fresh_lease() {
        let object = stored(with_record(&lease(), None, &full()).expect("an object"));
        for name in ["durability", "members", "synchronous", "renewals"] {
            let mut lacking = object.clone();
            let annotations = lacking["metadata"]["annotations"]
                .as_object_mut()
                .expect("annotations");
            annotations.remove(&format!("podgres.dev/{name}"));
            let error = record_of(&lacking).expect_err("an error").to_string();
            assert_eq!(error, format!("annotation \"podgres.dev/{name}\" is missing"));
        }
        let mut stripped = object;
        stripped["metadata"]["annotations"] = json!({"other": "x"});
        assert!(record_of(&stripped).is_err(), "a held lease without annotations");
        stripped["spec"] = json!({"holderIdentity": ""});
        assert_eq!(
            record_of(&stripped).expect("a record").record,
            LeaseRecord::default()
        );
        stripped["metadata"] = json!({"resourceVersion": "1"});
        stripped["spec"] = Value::Null;
        assert_eq!(
            record_of(&stripped).expect("a record").record,
            LeaseRecord::default()
        );
        assert!(
            record_of(&json!({"metadata": {"name": "pg"}})).is_err(),
            "no version"
        );
    }

    /// What each annotation of ours may not be.
    const GARBLED: &[(&str, &str)] = &[
        ("system-identifier", "-1"),
        ("durability", "Majority"),
        ("members", "0,1"),
        ("members", "[-1]"),
        ("synchronous", "{\"members\":{\"a\":\"b\"},\"quorum\":1}"),
        ("synchronous", "{\"members\":{}}"),
        ("synchronous", "{\"members\":{},\"quorum\":1} x"),
        ("renewals", "1e3"),
        ("released-by", "pg-1"),
        ("paused", "yes"),
        ("read-only", "true"),
        ("request", "{\"move\":\"elsewhere\"}"),
        ("history", "{}"),
    ];

    #[test]
    fn a_garbled_annotation_is_named() {
        let object = stored(with_record(&lease(), None, &full()).expect("an object"));
        for (name, value) in GARBLED {
            let mut garbled = object.clone();
            garbled["metadata"]["annotations"][format!("podgres.dev/{name}")] = json!(value);
            let error = record_of(&garbled).expect_err(value).to_string();
            assert!(
                error.starts_with(&format!("annotation \"podgres.dev/{name}\" is ")),
                "{error}"
            );
        }
        for (field, value) in [
            ("leaseTransitions", json!(-1)),
            ("leaseDurationSeconds", json!("15")),
            ("holderIdentity", json!(1)),
        ] {
            let mut garbled = object.clone();
            garbled["spec"][field] = value;
            let error = record_of(&garbled).expect_err(field).to_string();
            assert!(
                error.starts_with(&format!("field \"spec.{field}\" is ")),
                "{error}"
            );
        }
        let term = LeaseRecord {
            term: 1 << 31,
            ..full()
        };
        assert!(with_record(&lease(), None, &term).is_err());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(".{0,8}", inner, 0..4)
                    .prop_map(|map| map.into_iter().collect::<Map<_, _>>().into()),
            ]
        })
    }

    proptest! {
        #[test]
        fn garbage_is_refused_or_survives_a_write(name in 0..10_usize, value in any_json(), text in ".*") {
            let names = ["synchronous", "members", "renewals", "durability", "history", "request", "read-only", "paused", "released-by", "system-identifier"];
            let object = stored(with_record(&lease(), None, &full()).expect("an object"));
            let annotation = format!("podgres.dev/{}", names[name]);
            for garbage in [value.clone(), json!(value.to_string()), json!(text)] {
                let mut garbled = object.clone();
                garbled["metadata"]["annotations"][&annotation] = garbage;
                if let Ok(read) = record_of(&garbled) {
                    let again = with_record(&lease(), Some(&garbled), &read.record).expect("an object");
                    prop_assert_eq!(record_of(&again).expect("a record").record, read.record);
                }
            }
            for part in ["spec", "metadata"] {
                let mut garbled = object.clone();
                garbled[part] = value.clone();
                // No panic, and nothing taken for ours where the annotations have gone.
                let read = record_of(&garbled);
                prop_assert!(part == "spec" || read.is_err());
            }
        }
    }
}
