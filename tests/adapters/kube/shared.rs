//! What must hold against every API server.

use podgres::clock::boottime_ms;

use super::harness::{claim, places, renew, seen};

#[tokio::test]
async fn a_claim_and_renewals_are_seen_by_all() {
    for place in places().await {
        let (holder, other) = (place.store(0), place.store(1));
        let mut others_view = other.view();
        let before_ms = boottime_ms();
        let claimed = claim(&holder, 0).await;
        let renewal = claimed.renewal.expect("a renewal");
        assert!(renewal.sent_at_ms >= before_ms && renewal.sent_at_ms <= boottime_ms());
        let known = seen(&mut others_view, "the claim", |view| view.stored.is_some()).await;
        assert_eq!(known.stored, claimed.stored);
        assert!(!known.missing && known.renewal.is_none() && known.error.is_none());
        for renewals in 1..=5 {
            let renewed = renew(&holder).await;
            assert!(renewed.renewal.expect("a renewal").sent_at_ms >= renewal.sent_at_ms);
            let known = seen(&mut others_view, "the renewal", |view| {
                view.stored
                    .as_ref()
                    .is_some_and(|stored| stored.record.renewals == renewals)
            });
            assert!(known.await.changed_at_ms >= before_ms);
        }
        place.delete().await;
        seen(&mut others_view, "that it is gone", |view| view.missing).await;
        seen(&mut holder.view(), "that it is gone", |view| {
            view.missing && view.stored.is_none()
        })
        .await;
    }
}
