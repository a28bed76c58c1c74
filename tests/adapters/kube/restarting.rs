//! What the next process of a pod knows of the Lease before the API server has told it anything.

use std::path::Path;
use std::time::Duration;

use podgres::core::lease::{LeasePurpose, LeaseWrite};
use podgres::kube::{LeaseSettings, LeaseStore};

use super::harness::{Place, claim, demo, identity, record, renew, seen, version, write};
use super::relay::{Fault, Relay};

fn start(place: &Place, relay: &Relay, file: &Path, pod: u32) -> LeaseStore {
    LeaseStore::start(LeaseSettings {
        reach: relay.reach(),
        memory_file: Some(file.to_owned()),
        ..place.settings(pod)
    })
}

async fn relay(place: &Place) -> Relay {
    Relay::start(place.server.as_ref().expect("a server").address()).await
}

#[tokio::test]
async fn a_process_that_begins_while_the_server_is_silent_knows_what_the_one_before_knew() {
    let (place, folder) = (demo().await, tempfile::tempdir().expect("a folder"));
    let file = folder.path().join("lease.json");
    let before = relay(&place).await;
    let store = start(&place, &before, &file, 0);
    let claimed = claim(&store, 0).await;
    drop(store);
    let silent = relay(&place).await;
    silent.freeze();
    let stranger = start(&place, &silent, &file, 1);
    assert_eq!(
        stranger.view().borrow().stored,
        None,
        "another pod has read the file"
    );
    let store = start(&place, &silent, &file, 0);
    let view = store.view().borrow().clone();
    let held = |view: &podgres::core::lease::LeaseView| view.stored.clone().expect("a lease").record;
    assert_eq!(held(&view), held(&claimed));
    assert_eq!(view.renewal, claimed.renewal);
    assert_eq!((view.answered_at_ms, view.uncertain), (None, None));
    assert!(
        !store.write(LeaseWrite {
            purpose: LeasePurpose::Renew,
            over: view.stored.map(|stored| stored.resource_version),
            record: record(Some(0), 1).into(),
        }),
        "written over a version that was not read"
    );
    silent.heal();
    seen(store.view(), "an answer", |view| view.answered_at_ms.is_some()).await;
    renew(&store).await;
}

#[tokio::test]
async fn a_change_that_was_under_way_when_a_process_ended_is_uncertain_to_the_next() {
    let (place, folder) = (demo().await, tempfile::tempdir().expect("a folder"));
    let file = folder.path().join("lease.json");
    let before = relay(&place).await;
    let store = start(&place, &before, &file, 0);
    let claimed = claim(&store, 0).await;
    before.fault(Some("PUT"), Fault::Swallow, 1);
    assert!(store.write(LeaseWrite {
        purpose: LeasePurpose::HandOver,
        over: Some(version(&claimed)),
        record: record(Some(1), 2).into(),
    }));
    drop(store);
    let after = relay(&place).await;
    let store = start(&place, &after, &file, 0);
    let given = |view: &podgres::core::lease::LeaseView| {
        view.uncertain
            .as_ref()
            .is_some_and(|record| record.held_by(&identity(1)))
    };
    assert!(given(&store.view().borrow()), "the hand-over was forgotten");
    let view = seen(store.view(), "a read", |view| view.answered_at_ms.is_some()).await;
    assert!(
        given(&view),
        "the same version proves nothing: the write may still be on its way"
    );
    tokio::time::timeout(Duration::from_secs(10), async {
        let other = place.store(2);
        let view = seen(other.view(), "the lease", |view| view.stored.is_some()).await;
        write(&other, Some(version(&view)), record(Some(0), 1)).await;
    })
    .await
    .expect("a write");
    seen(store.view(), "another version", |view| view.uncertain.is_none()).await;
}
