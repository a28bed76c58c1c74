//! What is written is read, what is not ours stays, and what is garbled is named.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::core::data_directory::SystemIdentifier;
use crate::core::lease::{
    Durability, HistoryEntry, Incarnation, MemberOrder, MoveRequest, ReadOnlySwitch, SynchronousSet,
};
use crate::core::member::Ordinal;
use crate::core::observation::MemberRequest;
use crate::core::operate::{Answer, Outcome};
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
            members: BTreeMap::from([(Ordinal(1), Incarnation("x \"y\" é".into()))]),
            quorum: 1,
        },
        released_by: Some(Ordinal(3)),
        paused: true,
        read_only: Some(ReadOnlySwitch {
            by: "me".to_owned(),
            at: "now".to_owned(),
            reason: "\u{0}\n".to_owned(),
        }),
        read_only_turns: u64::MAX,
        request: Some(MoveRequest::Failover {
            to: Ordinal(1),
            id: "i".to_owned(),
        }),
        order: Some(MemberOrder {
            member: "pg-2".to_owned(),
            what: MemberRequest::Reinit,
            id: "o".to_owned(),
            taken_up: true,
            answer: Some(Answer::new(Outcome::Done, "it \"is\" done").hint("look")),
        }),
        history: Arc::new(vec![HistoryEntry {
            term: 4,
            timeline: Some(TimelineId(2)),
            lsn: Some(Lsn(0x0300_0060)),
            reason: "r".to_owned(),
            at: "t".to_owned(),
            new_leader: "pg-0".to_owned(),
        }]),
        timeline: TimelineId(3),
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
        assert_eq!(*read.record, record);
        assert_eq!(read.resource_version, "7");
        // What is not there any more goes away again.
        let emptied = LeaseRecord {
            lease_duration_ms: 1_000,
            ..LeaseRecord::default()
        };
        let object = with_record(&lease(), Some(&object), &emptied).expect("an object");
        assert_eq!(*record_of(&object).expect("a record").record, emptied);
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
            *record_of(&stored(object)).expect("a record").record,
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
        *record_of(&stripped).expect("a record").record,
        LeaseRecord::default()
    );
    stripped["metadata"] = json!({"resourceVersion": "1"});
    stripped["spec"] = Value::Null;
    assert_eq!(
        *record_of(&stripped).expect("a record").record,
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
    ("read-only-turns", "twice"),
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
