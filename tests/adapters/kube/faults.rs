//! Replies that are lost, refusals, and servers that are slow or say nothing at all.

use std::time::{Duration, Instant};

use podgres::clock::boottime_ms;
use podgres::core::lease::{LeasePurpose, LeaseWrite};
use podgres::kube::{LeaseSettings, LeaseStore};
use serde_json::json;

use super::harness::{Place, claim, demo, identity, record, renew, seen, version, write};
use super::relay::{Fault, Relay};

struct World {
    place: Place,
    relay: Relay,
    /// Pod 0, behind the relay.
    store: LeaseStore,
}

/// A Lease held by pod 0.
async fn world() -> World {
    let world = empty_world().await;
    claim(&world.store, 0).await;
    world
}

async fn empty_world() -> World {
    let place = demo().await;
    let relay = Relay::start(place.server.as_ref().expect("a server").address()).await;
    let store = LeaseStore::start(LeaseSettings {
        reach: relay.reach(),
        ..place.settings(0)
    });
    World { place, relay, store }
}

fn begin_renewal(store: &LeaseStore) -> u64 {
    let stored = store.view().borrow().stored.clone().expect("a lease");
    let mut record = (*stored.record).clone();
    record.renewals += 1;
    let begun_at_ms = boottime_ms();
    assert!(store.write(LeaseWrite {
        purpose: LeasePurpose::Renew,
        over: Some(stored.resource_version),
        record: record.into(),
    }));
    begun_at_ms
}

#[tokio::test]
async fn a_lost_reply_is_uncertain_until_the_record_is_seen_and_then_counts_from_its_send() {
    let world = world().await;
    for renewals in 1..=3 {
        world.relay.fault(Some("PUT"), Fault::LoseReply, 1);
        let before_ms = begin_renewal(&world.store);
        let view = seen(world.store.view(), "the renewal", |view| {
            let stored = view.stored.as_ref();
            !view.writing && stored.is_some_and(|stored| stored.record.renewals == renewals)
        });
        let view = view.await;
        let sent_at_ms = view.renewal.expect("a renewal").sent_at_ms;
        assert!(
            sent_at_ms >= before_ms && sent_at_ms <= before_ms + 100,
            "{view:?}"
        );
        assert_eq!(view.uncertain, None);
    }
}

#[tokio::test]
async fn a_lost_creation_is_found_to_be_ours() {
    let world = empty_world().await;
    seen(world.store.view(), "that there is none", |view| view.missing).await;
    world.relay.fault(Some("POST"), Fault::LoseReply, 1);
    let before_ms = boottime_ms();
    write(&world.store, None, record(Some(0), 1)).await;
    let view = seen(world.store.view(), "our claim", |view| view.renewal.is_some()).await;
    assert!(view.renewal.expect("a renewal").sent_at_ms <= before_ms + 100);
    assert!(view.uncertain.is_none() && view.stored.is_some());
}

#[tokio::test]
async fn a_write_into_silence_stays_uncertain_until_the_version_has_passed() {
    let world = world().await;
    let claimed = world.store.view().borrow().clone();
    world.relay.fault(Some("PUT"), Fault::Swallow, 1);
    let begun = Instant::now();
    begin_renewal(&world.store);
    assert!(!world.store.write(LeaseWrite {
        purpose: LeasePurpose::Renew,
        over: Some(version(&claimed)),
        record: record(Some(0), 1).into(),
    }));
    let view = seen(world.store.view(), "the end", |view| !view.writing).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(
        view.uncertain.is_some() && view.write_failed_at_ms.is_some(),
        "{view:?}"
    );
    // A read that shows the old version proves nothing: the write may still be on its way.
    let answered_ms = view.answered_at_ms;
    world.store.nudge();
    let view = seen(world.store.view(), "a read", |view| {
        view.answered_at_ms > answered_ms
    })
    .await;
    assert!(view.uncertain.is_some() && view.renewal == claimed.renewal);
    // Another version does.
    let other = world.place.store(1);
    seen(other.view(), "the lease", |view| view.stored.is_some()).await;
    write(&other, Some(version(&claimed)), record(Some(1), 2)).await;
    let view = seen(world.store.view(), "the other", |view| view.uncertain.is_none()).await;
    assert!(view.stored.expect("a lease").record.held_by(&identity(1)));
    assert_eq!(view.renewal, claimed.renewal, "the lost write was counted");
}

#[tokio::test]
async fn refusals_say_what_was_refused() {
    let world = world().await;
    let status = |message: &str| json!({"kind": "Status", "message": message}).to_string();
    let forbidden = status("leases.coordination.k8s.io \"pg\" is forbidden: User \"x\" cannot update");
    let cases = [
        (
            "403 Forbidden",
            forbidden,
            ["update lease \"pg\"", "permission denied (403)"],
            false,
        ),
        (
            "500 Internal Server Error",
            status("etcd"),
            ["update lease \"pg\"", "failed (500): etcd"],
            true,
        ),
        (
            "429 Too Many Requests\r\nRetry-After: 1",
            String::new(),
            ["update lease", "too many requests (429)"],
            false,
        ),
    ];
    for (answer, body, expected, uncertain) in cases {
        world.relay.fault(Some("PUT"), Fault::Answer(answer, body), 1);
        begin_renewal(&world.store);
        let view = seen(world.store.view(), "the refusal", |view| !view.writing).await;
        let error = view.error.clone().expect("an error");
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
        assert_eq!(view.uncertain.is_some(), uncertain, "{answer}");
        assert!(view.write_failed_at_ms.is_some());
        // The next one may go at once, and settles what was open.
        assert_eq!(renew(&world.store).await.uncertain, None);
    }
}

#[tokio::test]
async fn a_refusing_server_is_not_stormed() {
    let world = empty_world().await;
    let busy = || Fault::Answer("429 Too Many Requests\r\nRetry-After: 3", String::new());
    world.relay.fault(None, busy(), 10_000);
    let view = seen(world.store.view(), "the refusal", |view| view.error.is_some()).await;
    assert!(
        view.error
            .is_some_and(|error| error.contains("could not list lease \"pg\""))
    );
    world.relay.counted();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.relay.counted(), (0, 0, 0), "Retry-After was not waited for");
    world
        .relay
        .fault(None, Fault::Answer("403 Forbidden", String::new()), 10_000);
    tokio::time::sleep(Duration::from_secs(6)).await;
    let (_, reads, _) = world.relay.counted();
    assert!((2..=12).contains(&reads), "{reads} reads");
    assert_eq!(world.store.view().borrow().answered_at_ms, None);
    world.relay.heal();
    seen(world.store.view(), "the answer", |view| {
        view.error.is_none() && view.missing
    })
    .await;
}

#[tokio::test]
async fn a_silent_network_is_noticed_in_bounded_time() {
    let world = world().await;
    let other = world.place.store(1);
    seen(other.view(), "the claim", |view| view.stored.is_some()).await;
    // All connections stay, and nothing flows: also the watch that looks healthy.
    world.relay.freeze();
    let frozen = Instant::now();
    let view = seen(world.store.view(), "the silence", |view| view.error.is_some()).await;
    // Two periods of silence, one request's limit, and some.
    assert!(
        frozen.elapsed() < Duration::from_millis(4_500),
        "{:?}",
        frozen.elapsed()
    );
    let answered_ms = view.answered_at_ms;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.store.view().borrow().answered_at_ms, answered_ms);
    let version = version(&other.view().borrow());
    write(&other, Some(version), record(Some(1), 2)).await;
    world.relay.heal();
    let view = seen(world.store.view(), "the other", |view| {
        let stored = view.stored.as_ref();
        stored.is_some_and(|stored| stored.record.held_by(&identity(1)))
    });
    assert!(view.await.answered_at_ms > answered_ms);
}

#[tokio::test]
async fn a_server_that_only_accepts_is_noticed_in_bounded_time() {
    let world = empty_world().await;
    world.relay.fault(None, Fault::Swallow, 10_000);
    let view = seen(world.store.view(), "the silence", |view| view.error.is_some()).await;
    assert!(
        view.error
            .is_some_and(|error| error.contains("none came within 1000 ms"))
    );
    assert_eq!(world.store.view().borrow().answered_at_ms, None);
}

#[tokio::test]
async fn a_slow_server_is_late_and_not_wrong() {
    let world = world().await;
    world
        .relay
        .fault(None, Fault::Delay(Duration::from_millis(400)), 10_000);
    for _ in 0..3 {
        let before_ms = boottime_ms();
        let view = renew(&world.store).await;
        // From the send, not from the answer.
        let sent_at_ms = view.renewal.expect("a renewal").sent_at_ms;
        assert!(sent_at_ms < before_ms + 300, "{} ms", sent_at_ms - before_ms);
        assert!(boottime_ms() >= before_ms + 400);
    }
}
