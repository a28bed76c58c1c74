//! What must hold against every API server.

use std::collections::BTreeMap;

use podgres::clock::boottime_ms;
use podgres::core::lease::{Incarnation, MoveRequest, SynchronousSet};
use podgres::core::member::Ordinal;
use podgres::kube::LeaseError;
use serde_json::{Value, json};

use super::harness::{claim, identity, places, record, renew, seen, version, write};

#[tokio::test]
async fn a_claim_and_renewals_are_seen_by_all() {
    for place in places().await {
        let (holder, other) = (place.store(0), place.store(1));
        let others_view = other.view();
        let before_ms = boottime_ms();
        let claimed = claim(&holder, 0).await;
        let renewal = claimed.renewal.expect("a renewal");
        assert!(renewal.sent_at_ms >= before_ms && renewal.sent_at_ms <= boottime_ms());
        let known = seen(others_view.clone(), "the claim", |view| view.stored.is_some()).await;
        assert_eq!(known.stored, claimed.stored);
        assert!(!known.missing && known.renewal.is_none() && known.error.is_none());
        for renewals in 1..=5 {
            let renewed = renew(&holder).await;
            assert!(renewed.renewal.expect("a renewal").sent_at_ms >= renewal.sent_at_ms);
            let known = seen(others_view.clone(), "the renewal", |view| {
                view.stored
                    .as_ref()
                    .is_some_and(|stored| stored.record.renewals == renewals)
            });
            assert!(known.await.changed_at_ms >= before_ms);
        }
        place.delete().await;
        seen(others_view.clone(), "that it is gone", |view| view.missing).await;
        let gone = |view: &podgres::core::lease::LeaseView| view.missing && view.stored.is_none();
        seen(holder.view(), "that it is gone", gone).await;
    }
}

/// As `kubectl patch` with a version in it: whoever is late changes nothing.
#[tokio::test]
async fn a_patch_over_an_old_version_is_a_conflict() {
    for place in places().await {
        let old = version(&claim(&place.store(0), 0).await);
        place
            .patch(&json!({"metadata": {"labels": {"first": "yes"}}}))
            .await;
        let late = json!({"metadata": {"resourceVersion": old, "labels": {"second": "yes"}}});
        let (status, answer) = place.ask("PATCH", &format!("/{}", place.name), Some(&late)).await;
        assert_eq!((status, &answer["reason"]), (409, &json!("Conflict")), "{answer}");
        let labels = place.object().await["metadata"]["labels"].clone();
        assert_eq!(
            (&labels["first"], &labels["second"]),
            (&json!("yes"), &Value::Null)
        );
    }
}

#[tokio::test]
async fn of_two_writes_over_one_version_one_succeeds() {
    for place in places().await {
        let (first, second) = (place.store(0), place.store(1));
        let created = version(&claim(&first, 0).await);
        seen(second.view(), "the claim", |view| view.stored.is_some()).await;
        let (one, other) = tokio::join!(
            write(&first, Some(created.clone()), record(Some(0), 2)),
            write(&second, Some(created.clone()), record(Some(1), 2)),
        );
        let won = [&one, &other].map(|view| view.renewal.is_some_and(|renewal| renewal.term == 2));
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "{one:?} {other:?}");
        let winner = u32::from(won[1]);
        let loser = if won[1] { &one } else { &other };
        assert!(
            loser.write_failed_at_ms.is_some() && loser.uncertain.is_none(),
            "{loser:?}"
        );
        for store in [&first, &second] {
            let view = seen(store.view(), "the winner", |view| {
                let stored = view.stored.as_ref();
                stored.is_some_and(|stored| stored.record.held_by(&identity(winner)))
            });
            assert!(view.await.uncertain.is_none());
        }
        place.delete().await;
    }
}

#[tokio::test]
async fn of_many_who_create_it_one_succeeds() {
    for place in places().await {
        let stores: Vec<_> = (0..12).map(|pod| place.store(pod)).collect();
        for store in &stores {
            seen(store.view(), "that there is none", |view| view.missing).await;
        }
        let claims = (0..)
            .zip(&stores)
            .map(|(pod, store)| write(store, None, record(Some(pod), 1)));
        let views = futures_util::future::join_all(claims).await;
        let winners: Vec<_> = (0..)
            .zip(&views)
            .filter(|(_, view)| view.renewal.is_some())
            .map(|(pod, _)| pod)
            .collect();
        let [winner] = winners[..] else {
            panic!("winners: {winners:?}")
        };
        for store in &stores {
            seen(store.view(), "the winner", |view| {
                let stored = view.stored.as_ref();
                stored.is_some_and(|stored| stored.record.held_by(&identity(winner)))
            })
            .await;
        }
        place.delete().await;
    }
}

#[tokio::test]
async fn what_is_not_ours_survives_our_writes() {
    for place in places().await {
        let store = place.store(0);
        claim(&store, 0).await;
        let foreign = json!({"metadata": {
            "labels": {"team": "db"},
            "annotations": {"other.example/note": "mine", "podgres.dev/of-a-later-version": "kept"},
        }});
        let patched = place.patch(&foreign).await["metadata"]["resourceVersion"].clone();
        seen(store.view(), "the patch", |view| {
            let stored = view.stored.as_ref();
            stored.is_some_and(|stored| patched == *stored.resource_version)
        })
        .await;
        renew(&store).await;
        let object = place.object().await;
        let metadata = &object["metadata"];
        assert_eq!(metadata["labels"]["team"], "db");
        assert_eq!(metadata["annotations"]["other.example/note"], "mine");
        assert_eq!(metadata["annotations"]["podgres.dev/of-a-later-version"], "kept");
        assert_eq!(metadata["annotations"]["podgres.dev/renewals"], "1");
        assert_eq!(object["spec"]["holderIdentity"], "pg-0/uid-0");
        assert_eq!(object["spec"]["leaseDurationSeconds"], 15);
        place.delete().await;
    }
}

#[tokio::test]
async fn a_garbled_annotation_makes_the_lease_unusable_until_it_is_mended() {
    for place in places().await {
        let store = place.store(0);
        claim(&store, 0).await;
        let annotation =
            |value: Value| json!({"metadata": {"annotations": {"podgres.dev/synchronous": value}}});
        for garbled in [json!("{\"members\":{\"0\":"), json!(""), json!("[]"), Value::Null] {
            place.patch(&annotation(garbled)).await;
            let view = seen(store.view(), "the garbled annotation", |view| {
                view.error.is_some()
            });
            let view = view.await;
            assert!(view.stored.is_none() && !view.missing, "{view:?}");
            let error = view.error.expect("an error");
            assert!(error.contains("\"podgres.dev/synchronous\""), "{error}");
            assert!(matches!(
                store.update(|record| record.paused = true).await,
                Err(LeaseError::Unusable { .. })
            ));
            place
                .patch(&annotation(json!("{\"members\":{\"0\":\"a\"},\"quorum\":1}")))
                .await;
            let view = seen(store.view(), "the mended annotation", |view| view.error.is_none());
            let stored = view.await.stored.expect("a lease");
            let expected = SynchronousSet {
                members: BTreeMap::from([(Ordinal(0), Incarnation("a".into()))]),
                quorum: 1,
            };
            assert_eq!(stored.record.synchronous, expected);
        }
        place.delete().await;
    }
}

#[tokio::test]
async fn an_operators_wish_goes_beside_the_holders_renewals() {
    for place in places().await {
        let (holder, other) = (place.store(0), place.store(1));
        claim(&holder, 0).await;
        let wish = MoveRequest::Switchover {
            to: Some(Ordinal(1)),
            id: "w".to_owned(),
        };
        let wishes = async {
            other.update(|record| record.paused = true).await.expect("paused");
            let wished = other.update(|record| record.request = Some(wish.clone())).await;
            wished.expect("a wish")
        };
        let renewals = async {
            let mut landed = 0;
            while landed < 10 {
                let stored = holder.view().borrow().stored.clone().expect("a lease");
                let mut record = (*stored.record).clone();
                record.renewals += 1;
                let view = write(&holder, Some(stored.resource_version), record.clone()).await;
                landed += usize::from(view.stored.is_some_and(|stored| *stored.record == record));
                tokio::task::yield_now().await;
            }
        };
        let (wished, ()) = tokio::join!(wishes, renewals);
        assert_eq!(wished.record.request, Some(wish.clone()));
        let view = seen(holder.view(), "the wish", |view| {
            let stored = view.stored.as_ref();
            stored.is_some_and(|stored| stored.record.request == Some(wish.clone()) && stored.record.paused)
        });
        assert!(view.await.stored.expect("a lease").record.held_by(&identity(0)));
        place.delete().await;
        assert!(matches!(
            other.update(|record| record.paused = true).await,
            Err(LeaseError::Missing { .. })
        ));
    }
}

#[tokio::test]
async fn released_and_made_by_hand_have_no_holder() {
    for place in places().await {
        let bare = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": place.name, "namespace": place.namespace},
        });
        assert_eq!(place.ask("POST", "", Some(&bare)).await.0, 201);
        let store = place.store(0);
        let view = seen(store.view(), "the bare lease", |view| view.stored.is_some()).await;
        assert_eq!(view.stored.clone().expect("a lease").record.holder, None);
        let claimed = write(&store, Some(version(&view)), record(Some(0), 1)).await;
        assert_eq!(
            claimed.renewal.map(|renewal| renewal.term),
            Some(1),
            "{claimed:?}"
        );
        let acquired = place.object().await["spec"]["acquireTime"].clone();
        assert!(acquired.is_string());
        let mut released = record(None, 1);
        released.released_by = Some(Ordinal(0));
        let view = write(&store, Some(version(&claimed)), released.clone()).await;
        assert_eq!(*view.stored.expect("a lease").record, released);
        place.delete().await;
    }
}

#[tokio::test]
async fn a_write_over_an_older_version_is_not_even_sent() {
    for place in places().await {
        let store = place.store(0);
        let created = version(&claim(&store, 0).await);
        renew(&store).await;
        let view = write(&store, Some(created), record(Some(0), 3)).await;
        assert!(view.write_failed_at_ms.is_some() && view.uncertain.is_none());
        let view = write(&store, None, record(Some(0), 3)).await;
        assert!(
            view.error
                .is_some_and(|error| error.contains("has changed since it was read"))
        );
        assert_eq!(view.renewal.map(|renewal| renewal.term), Some(1));
        let too_large = record(Some(0), 1 << 31);
        let view = write(
            &store,
            view.stored.map(|stored| stored.resource_version),
            too_large,
        )
        .await;
        assert!(
            view.error
                .is_some_and(|error| error.contains("does not fit leaseTransitions"))
        );
        assert_eq!(place.object().await["spec"]["leaseTransitions"], 1);
        place.delete().await;
    }
}
