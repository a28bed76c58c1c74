//! The watch: what it costs, what it survives.

use std::time::Duration;

use podgres::kube::LeaseSettings;
use podgres::kube::LeaseStore;
use serde_json::json;

use super::harness::{Place, claim, demo, renew, seen, write};
use super::relay::{Fault, Relay};

/// A store behind a relay of its own.
async fn relayed(place: &Place, pod: u32) -> (LeaseStore, Relay) {
    let relay = Relay::start(place.server.as_ref().expect("a server").address()).await;
    let store = LeaseStore::start(LeaseSettings {
        reach: relay.reach(),
        ..place.settings(pod)
    });
    (store, relay)
}

#[tokio::test]
async fn in_peace_a_holder_writes_once_a_period_and_the_others_ask_nothing() {
    let place = demo().await;
    let (holder, holders_relay) = relayed(&place, 0).await;
    let (other, others_relay) = relayed(&place, 1).await;
    claim(&holder, 0).await;
    seen(other.view(), "the claim", |view| view.stored.is_some()).await;
    // List and watch; no more while renewals come.
    let (watches, reads, _) = holders_relay.counted();
    assert!(watches <= 1 && reads == 1, "{watches} watches, {reads} reads");
    tokio::time::sleep(Duration::from_millis(200)).await;
    holders_relay.counted();
    others_relay.counted();
    for renewals in 1..=6 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        renew(&holder).await;
        seen(other.view(), "the renewal", |view| {
            view.stored
                .as_ref()
                .is_some_and(|stored| stored.record.renewals == renewals)
        })
        .await;
    }
    assert_eq!(holders_relay.counted(), (0, 0, 6));
    assert_eq!(others_relay.counted(), (0, 0, 0));
    // The holder falls silent: now it is asked whether the API is still there, once per two periods.
    let silent_ms = other.view().borrow().answered_at_ms;
    seen(other.view(), "an answer", |view| view.answered_at_ms > silent_ms).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (watches, reads, writes) = others_relay.counted();
    assert!(
        watches == 0 && (2..=4).contains(&reads) && writes == 0,
        "{watches} {reads} {writes}"
    );
}

#[tokio::test]
async fn a_forgotten_version_is_listed_again() {
    let place = demo().await;
    let (holder, other) = (place.store(0), relayed(&place, 1).await);
    claim(&holder, 0).await;
    seen(other.0.view(), "the claim", |view| view.stored.is_some()).await;
    for renewals in 1..=5 {
        // The watch cannot be opened while the version that it would begin at is forgotten.
        other.1.freeze();
        renew(&holder).await;
        place.server.as_ref().expect("a server").compact();
        other.1.heal();
        let view = seen(other.0.view(), "the renewal", |view| {
            view.stored
                .as_ref()
                .is_some_and(|stored| stored.record.renewals >= renewals)
        });
        view.await;
    }
    let gone = json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}});
    other
        .1
        .fault(Some("GET"), Fault::Answer("200 OK", format!("{gone}\n")), 1);
    other.0.nudge();
    renew(&holder).await;
    let view = seen(other.0.view(), "the renewal", |view| {
        view.stored
            .as_ref()
            .is_some_and(|stored| stored.record.renewals == 6)
    });
    view.await;
}

#[tokio::test]
async fn thousands_of_changes_arrive_in_order() {
    let place = demo().await;
    let (holder, other) = (place.store(0), place.store(1));
    claim(&holder, 0).await;
    let mut view = other.view();
    seen(view.clone(), "the claim", |view| view.stored.is_some()).await;
    let follow = tokio::spawn(async move {
        let mut last = 0;
        while last < 3_000 {
            view.changed().await.expect("a store");
            let now = view
                .borrow_and_update()
                .stored
                .as_ref()
                .expect("a lease")
                .record
                .renewals;
            assert!(now >= last, "{last} was followed by {now}");
            last = now;
        }
    });
    for _ in 0..3_000 {
        let stored = holder.view().borrow().stored.clone().expect("a lease");
        let mut record = (*stored.record).clone();
        record.renewals += 1;
        let renewals = record.renewals;
        let view = write(&holder, Some(stored.resource_version), record).await;
        // The holder's own view never goes back to what the watch still has to bring.
        assert!(
            view.stored
                .is_some_and(|stored| stored.record.renewals == renewals)
        );
    }
    tokio::time::timeout(Duration::from_secs(20), follow)
        .await
        .expect("the last one")
        .expect("in order");
}

#[tokio::test]
async fn a_server_that_goes_and_comes_back_is_followed_again() {
    let mut place = demo().await;
    let (holder, other) = (place.store(0), place.store(1));
    claim(&holder, 0).await;
    seen(other.view(), "the claim", |view| view.stored.is_some()).await;
    for renewals in 1..=2 {
        place.server.as_mut().expect("a server").down().await;
        let lost = seen(other.view(), "the outage", |view| view.error.is_some()).await;
        assert!(lost.stored.is_some(), "the last record is kept");
        let stored = holder.view().borrow().stored.clone().expect("a lease");
        let failed = write(&holder, Some(stored.resource_version), (*stored.record).clone()).await;
        // Nothing was sent: nothing can have been stored.
        assert!(
            failed.write_failed_at_ms.is_some() && failed.uncertain.is_none(),
            "{failed:?}"
        );
        let answered = seen(other.view(), "the outage", |view| view.error.is_some())
            .await
            .answered_at_ms;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(other.view().borrow().answered_at_ms, answered);
        place
            .server
            .as_mut()
            .expect("a server")
            .up()
            .await
            .expect("up again");
        seen(holder.view(), "the return", |view| view.error.is_none()).await;
        renew(&holder).await;
        let known = seen(other.view(), "the renewal", |view| {
            view.stored
                .as_ref()
                .is_some_and(|stored| stored.record.renewals == renewals)
        });
        assert!(known.await.error.is_none());
    }
}
