//! Every order in which answers, events and failures can come.

use serde_json::{Value, json};

use super::*;
use crate::core::lease::LeasePurpose;
use crate::kube::error::Failure;

fn lease() -> LeaseName {
    LeaseName {
        namespace: "prod".to_owned(),
        name: "pg".to_owned(),
    }
}

fn me() -> Identity {
    Identity::parse("pg-0/a")
}

fn record(holder: &str, renewals: u64) -> LeaseRecord {
    LeaseRecord {
        holder: Some(Identity::parse(holder)),
        term: 1,
        lease_duration_ms: 1_000,
        renewals,
        ..LeaseRecord::default()
    }
}

fn object(version: &str, record: &LeaseRecord) -> Value {
    let mut object = with_record(&lease(), None, record).expect("an object");
    object["metadata"]["resourceVersion"] = json!(version);
    object
}

fn mine(version: &str, renewals: u64) -> Value {
    object(version, &record("pg-0/a", renewals))
}

/// Holds version "a", read at 10.
fn knowledge() -> Knowledge {
    let mut knowledge = Knowledge::new(lease(), me());
    assert!(knowledge.read(Some(mine("a", 0)), 10, 0, 11));
    knowledge
}

fn begin(knowledge: &mut Knowledge, over: Option<&str>, record: LeaseRecord, now_ms: u64) -> Attempt {
    let write = LeaseWrite {
        purpose: LeasePurpose::Renew,
        over: over.map(str::to_owned),
        record: Box::new(record),
    };
    knowledge
        .begin(write, now_ms)
        .expect("no other write")
        .expect("a write")
}

fn lost() -> LeaseError {
    LeaseError::NoAnswer {
        verb: "update",
        lease: lease(),
        failure: Failure::Lost("x".to_owned()),
    }
}

fn refused(status: u16) -> LeaseError {
    LeaseError::Refused {
        verb: "update",
        lease: lease(),
        status,
        reason: "x".to_owned(),
        retry_after: None,
    }
}

fn version(knowledge: &Knowledge) -> &str {
    &knowledge.view.stored.as_ref().expect("a lease").resource_version
}

#[test]
fn an_event_older_than_our_write_is_passed_over() {
    let mut knowledge = knowledge();
    let attempt = begin(&mut knowledge, Some("a"), record("pg-0/a", 1), 20);
    knowledge.stored(&attempt, mine("b", 1), 20, 25);
    assert_eq!(knowledge.view.renewal.map(|renewal| renewal.sent_at_ms), Some(20));
    // The watch began before "a" and is slow.
    for event in [mine("y", 0), mine("z", 0), mine("a", 0)] {
        knowledge.event(event, false, 30);
        assert_eq!((version(&knowledge), knowledge.view.changed_at_ms), ("b", 25));
    }
    knowledge.event(mine("a", 0), true, 31);
    assert!(!knowledge.view.missing);
    assert_eq!(knowledge.echo_since_ms(), Some(25));
    knowledge.event(mine("b", 1), false, 32);
    assert_eq!(knowledge.echo_since_ms(), None);
    knowledge.event(object("c", &record("pg-1/b", 1)), false, 33);
    assert_eq!((version(&knowledge), knowledge.view.changed_at_ms), ("c", 33));
}

#[test]
fn a_watch_that_was_faster_than_the_answer_stands() {
    let mut knowledge = knowledge();
    let attempt = begin(&mut knowledge, Some("a"), record("pg-0/a", 1), 20);
    knowledge.event(mine("b", 1), false, 21);
    knowledge.event(object("c", &record("pg-1/b", 1)), false, 22);
    knowledge.stored(&attempt, mine("b", 1), 20, 25);
    assert_eq!((version(&knowledge), knowledge.echo_since_ms()), ("c", None));
    assert_eq!(knowledge.view.renewal.map(|renewal| renewal.sent_at_ms), Some(20));
}

#[test]
fn a_read_from_before_a_write_says_nothing() {
    let mut knowledge = knowledge();
    let attempt = begin(&mut knowledge, Some("a"), record("pg-0/a", 1), 20);
    let before = knowledge.stored_writes;
    knowledge.stored(&attempt, mine("b", 1), 20, 25);
    assert!(!knowledge.read(Some(mine("a", 0)), 19, before, 26));
    assert!(!knowledge.read(None, 19, before, 26));
    assert_eq!(version(&knowledge), "b");
    assert!(knowledge.read(Some(mine("b", 1)), 27, knowledge.stored_writes, 28));
    assert_eq!(
        (knowledge.view.answered_at_ms, knowledge.view.changed_at_ms),
        (Some(27), 25)
    );
}

#[test]
fn a_lost_write_is_settled_by_the_next_version_alone() {
    let found = [
        (mine("b", 1), Some(20)),
        // Landed, and changed by an operator since.
        (
            object(
                "c",
                &LeaseRecord {
                    paused: true,
                    ..record("pg-0/a", 1)
                },
            ),
            Some(20),
        ),
        (object("b", &record("pg-1/b", 1)), None),
        // An operator was faster: the office is the one that was replaced.
        (
            object(
                "b",
                &LeaseRecord {
                    paused: true,
                    ..record("pg-0/a", 0)
                },
            ),
            None,
        ),
    ];
    for (object, renewed_at_ms) in found {
        let mut knowledge = knowledge();
        let attempt = begin(&mut knowledge, Some("a"), record("pg-0/a", 1), 20);
        assert!(knowledge.not_stored(attempt, &lost(), 30));
        assert!(knowledge.read(Some(mine("a", 0)), 31, 0, 32));
        assert_eq!(knowledge.view.uncertain, Some(record("pg-0/a", 1)));
        assert_eq!(
            (knowledge.view.renewal, knowledge.view.write_failed_at_ms),
            (None, Some(30))
        );
        assert!(knowledge.read(Some(object), 40, 0, 41));
        assert_eq!(knowledge.view.uncertain, None);
        assert_eq!(
            knowledge.view.renewal.map(|renewal| renewal.sent_at_ms),
            renewed_at_ms
        );
    }
}

#[test]
fn the_office_alone_does_not_tell_a_write_that_kept_it() {
    let mut knowledge = knowledge();
    let asked = LeaseRecord {
        paused: true,
        ..record("pg-0/a", 0)
    };
    let attempt = begin(&mut knowledge, Some("a"), asked, 20);
    knowledge.not_stored(attempt, &lost(), 30);
    knowledge.event(
        object(
            "b",
            &LeaseRecord {
                members: vec![crate::core::member::Ordinal(1)],
                ..record("pg-0/a", 0)
            },
        ),
        false,
        31,
    );
    assert_eq!(
        (knowledge.view.uncertain.clone(), knowledge.view.renewal),
        (None, None)
    );
}

#[test]
fn a_lost_creation_stays_open_while_there_is_none() {
    let mut knowledge = Knowledge::new(lease(), me());
    assert!(knowledge.read(None, 10, 0, 11));
    let attempt = begin(&mut knowledge, None, record("pg-0/a", 1), 20);
    knowledge.not_stored(attempt, &lost(), 30);
    assert!(knowledge.read(None, 31, 0, 32));
    assert!(knowledge.view.uncertain.is_some() && knowledge.view.missing);
    knowledge.event(mine("b", 1), false, 33);
    assert!(knowledge.view.uncertain.is_none() && !knowledge.view.missing);
    assert_eq!(knowledge.view.renewal.map(|renewal| renewal.sent_at_ms), Some(20));
}

#[test]
fn a_write_that_failed_was_taken_for_an_earlier_one_that_had_landed() {
    let mut knowledge = knowledge();
    // Each of the two renews the record of version "a", which counts 0 renewals.
    let first = begin(&mut knowledge, Some("a"), record("pg-0/a", 1), 20);
    knowledge.not_stored(first.clone(), &lost(), 30);
    let second = begin(&mut knowledge, Some("a"), record("pg-0/a", 1), 400);
    knowledge.event(object("b", &first.record), false, 410);
    assert_eq!(knowledge.view.renewal.map(|renewal| renewal.sent_at_ms), Some(20));
    for error in [lost(), refused(409)] {
        knowledge.not_stored(second.clone(), &error, 420);
        assert_eq!(knowledge.view.renewal.map(|renewal| renewal.sent_at_ms), Some(20));
    }
}

#[test]
fn an_office_that_was_given_was_taken_for_an_earlier_claim_of_it() {
    let given = |renewals| LeaseRecord {
        term: 2,
        ..record("pg-0/a", renewals)
    };
    // pg-0 claims the office that pg-1 holds, whose watch it has not heard for a while: pg-1 has handed over to it already.
    let mut knowledge = knowledge();
    knowledge.event(object("b", &record("pg-1/b", 4)), false, 15);
    let claim = begin(&mut knowledge, Some("b"), given(5), 400);
    knowledge.not_stored(claim, &refused(409), 410);
    knowledge.event(object("d", &given(0)), false, 420);
    assert_eq!(knowledge.view.renewal, None, "it has to be renewed first");
    // The giver's own lost writes do not make it count.
    let mut giver = Knowledge::new(lease(), me());
    assert!(giver.read(Some(mine("a", 4)), 10, 0, 11));
    let renewal = begin(&mut giver, Some("a"), record("pg-0/a", 5), 20);
    giver.not_stored(renewal, &lost(), 25);
    let given = begin(&mut giver, Some("a"), record("pg-1/b", 0), 30);
    assert_eq!(given.record.renewals, 0);
}

#[test]
fn the_answer_to_a_second_try_counts_and_not_the_first() {
    let mut knowledge = knowledge();
    let first = begin(&mut knowledge, Some("a"), record("pg-0/a", 1), 20);
    knowledge.not_stored(first, &lost(), 30);
    let second = begin(&mut knowledge, Some("a"), record("pg-0/a", 1), 40);
    knowledge.stored(&second, mine("b", 1), 40, 45);
    assert_eq!(knowledge.view.renewal.map(|renewal| renewal.sent_at_ms), Some(40));
    assert_eq!(
        (
            knowledge.view.uncertain.clone(),
            knowledge.view.write_failed_at_ms
        ),
        (None, None)
    );
    // Both lost and one landed: the earlier send is the safe one.
    for (at_ms, renewals) in [(50, 2), (60, 2)] {
        let attempt = begin(&mut knowledge, Some("b"), record("pg-0/a", renewals), at_ms);
        knowledge.not_stored(attempt, &lost(), at_ms + 5);
    }
    knowledge.read(Some(mine("c", 2)), 70, knowledge.stored_writes, 71);
    assert_eq!(knowledge.view.renewal.map(|renewal| renewal.sent_at_ms), Some(50));
}

#[test]
fn a_conflict_is_certain_unless_it_is_with_ourselves() {
    let mut knowledge = knowledge();
    let attempt = begin(&mut knowledge, Some("a"), record("pg-0/a", 1), 20);
    assert!(
        knowledge.not_stored(attempt, &refused(409), 21),
        "to be read at once"
    );
    assert_eq!(knowledge.view.uncertain, None);
    knowledge.read(Some(mine("b", 1)), 22, 0, 23);
    assert_eq!(knowledge.view.renewal.map(|renewal| renewal.sent_at_ms), Some(20));
    for status in [403, 429, 422] {
        let attempt = begin(&mut knowledge, Some("b"), record("pg-0/a", 2), 30);
        assert!(!knowledge.not_stored(attempt, &refused(status), 31));
        assert_eq!(
            (
                knowledge.view.uncertain.clone(),
                knowledge.view.write_failed_at_ms
            ),
            (None, Some(31))
        );
    }
}

#[test]
fn open_writes_are_bounded() {
    let mut knowledge = knowledge();
    for renewals in 1..=100 {
        let attempt = begin(&mut knowledge, Some("a"), record("pg-0/a", renewals), renewals);
        knowledge.not_stored(attempt, &lost(), renewals);
    }
    assert_eq!(knowledge.open.len(), MOST_OPEN);
    assert_eq!(knowledge.view.uncertain, Some(record("pg-0/a", 100)));
}

/// It was forgotten after 32 later renewals had failed, and then the holder acknowledged commits beside the one it had named.
#[test]
fn an_unanswered_hand_over_outlasts_any_number_of_failed_renewals() {
    let mut knowledge = knowledge();
    let away = record("pg-1/b", 0);
    let lost_one = |knowledge: &mut Knowledge, record: LeaseRecord, at_ms: u64| {
        let attempt = begin(knowledge, Some("a"), record, at_ms);
        knowledge.not_stored(attempt, &lost(), at_ms);
    };
    lost_one(&mut knowledge, away.clone(), 1);
    for at_ms in 2..=100 {
        lost_one(&mut knowledge, record("pg-0/a", at_ms), at_ms);
        assert_eq!(knowledge.view.uncertain, Some(away.clone()), "at {at_ms}");
    }
    assert_eq!(knowledge.open.len(), MOST_OPEN);
}

/// What it would change was told to PostgreSQL as if it could not land any more.
#[test]
fn an_unanswered_change_of_the_synchronous_set_outlasts_any_number_of_failed_renewals() {
    let mut knowledge = knowledge();
    let mut changed = record("pg-0/a", 1);
    changed.synchronous.quorum += 1;
    let attempt = begin(&mut knowledge, Some("a"), changed.clone(), 1);
    knowledge.not_stored(attempt, &lost(), 1);
    for at_ms in 2..=100 {
        let attempt = begin(&mut knowledge, Some("a"), record("pg-0/a", at_ms), at_ms);
        knowledge.not_stored(attempt, &lost(), at_ms);
        let shown = knowledge
            .view
            .uncertain
            .as_ref()
            .map(|record| &record.synchronous);
        assert_eq!(shown, Some(&changed.synchronous), "at {at_ms}");
    }
}

#[test]
fn a_lease_that_goes_and_comes_is_another_version() {
    let mut knowledge = knowledge();
    knowledge.event(mine("b", 0), true, 20);
    assert!(knowledge.view.missing && knowledge.view.stored.is_none());
    assert_eq!(knowledge.view.changed_at_ms, 20);
    knowledge.event(mine("c", 0), false, 30);
    assert!(!knowledge.view.missing && version(&knowledge) == "c");
    let gone = begin(&mut knowledge, Some("c"), record("pg-0/a", 1), 40);
    assert!(
        knowledge.not_stored(gone, &refused(404), 41),
        "to be read at once"
    );
}

#[test]
fn what_is_unusable_says_so_after_every_answer() {
    let mut knowledge = knowledge();
    let mut garbled = mine("b", 0);
    garbled["metadata"]["annotations"]["podgres.dev/synchronous"] = json!("x");
    knowledge.event(garbled.clone(), false, 20);
    for at_ms in [30, 31] {
        knowledge.answered(at_ms);
        assert!(
            knowledge
                .view
                .error
                .as_ref()
                .is_some_and(|error| error.contains("synchronous"))
        );
        assert!(knowledge.view.stored.is_none() && !knowledge.view.missing);
    }
    knowledge.read(Some(garbled), 32, 0, 33);
    assert_eq!(knowledge.view.changed_at_ms, 20);
    assert!(knowledge.is_newest(Some(&mine("b", 0))) && !knowledge.is_newest(None));
    knowledge.event(mine("c", 0), false, 40);
    assert_eq!(knowledge.view.error, None);
}

#[test]
fn a_set_that_was_being_written_was_reckoned_with_only_once_the_write_had_failed() {
    let mut narrower = record("pg-0/a", 1);
    narrower.synchronous.quorum = 1;
    let given = record("pg-1/b", 1);
    for asked in [&narrower, &given] {
        let mut knowledge = knowledge();
        let refused_one = begin(&mut knowledge, Some("a"), asked.clone(), 20);
        assert_eq!(knowledge.view.uncertain.as_ref(), Some(asked));
        assert!(!knowledge.not_stored(refused_one, &refused(403), 21));
        assert_eq!(knowledge.view.uncertain, None);
        let attempt = begin(&mut knowledge, Some("a"), asked.clone(), 30);
        knowledge.stored(&attempt, object("b", asked), 30, 35);
        assert_eq!(knowledge.view.uncertain, None);
    }
    // Another has written meanwhile: this one will not be stored, or was before that.
    let mut knowledge = knowledge();
    let attempt = begin(&mut knowledge, Some("a"), narrower.clone(), 20);
    knowledge.event(mine("b", 0), false, 25);
    assert_eq!(knowledge.view.uncertain, None);
    knowledge.stored(&attempt, object("aa", &narrower), 20, 30);
    assert_eq!(knowledge.view.uncertain, None);
    begin(&mut knowledge, Some("b"), record("pg-0/a", 2), 40);
    assert_eq!(knowledge.view.uncertain, None, "a renewal changes nothing");
}

#[test]
fn of_lost_writes_the_one_with_another_synchronous_set_is_shown() {
    let mut knowledge = knowledge();
    let mut other = record("pg-0/a", 1);
    other.synchronous.quorum = 1;
    for (record, at_ms) in [(other.clone(), 20), (record("pg-0/a", 1), 30)] {
        let attempt = begin(&mut knowledge, Some("a"), record, at_ms);
        knowledge.not_stored(attempt, &lost(), at_ms + 5);
        assert_eq!(knowledge.view.uncertain.as_ref(), Some(&other));
    }
    let refused_one = begin(&mut knowledge, Some("a"), record("pg-0/a", 9), 40);
    knowledge.not_stored(refused_one, &refused(409), 41);
    assert_eq!(knowledge.view.uncertain.as_ref(), Some(&other));
    // The watch was faster than the failure: settled at once.
    let late = begin(&mut knowledge, Some("a"), record("pg-0/a", 2), 50);
    knowledge.event(object("b", &late.record), false, 51);
    assert_eq!(
        (knowledge.view.uncertain.clone(), knowledge.view.renewal),
        (None, None)
    );
    knowledge.not_stored(late, &lost(), 52);
    assert_eq!(knowledge.view.uncertain, None);
    assert_eq!(knowledge.view.renewal.map(|renewal| renewal.sent_at_ms), Some(50));
}
