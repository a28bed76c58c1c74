//! Orders to this member that come by the Lease, from an operator who reaches the Kubernetes API and no member.
//!
//! Each is taken up once, and answered where it was written. Decides nothing.

use std::sync::Arc;

use crate::core::lease::{LeaseView, MemberOrder};
use crate::core::observation::MemberRequest;
use crate::core::operate::{Answer, Order};
use crate::kube::LeaseStore;

use super::operator::Operator;

/// Until the Lease is not followed any more.
pub(super) async fn follow(operator: Arc<Operator>, store: Arc<LeaseStore>) {
    let own = operator.member.to_string();
    let mut view = store.view();
    let mut last = String::new();
    loop {
        let found = match view.wait_for(|view| open(view, &own, &last).is_some()).await {
            Ok(seen) => open(&seen, &own, &last).cloned(),
            Err(_) => return,
        };
        let Some(order) = found else { continue };
        last.clone_from(&order.id);
        if !take_up(&store, &order).await {
            continue;
        }
        let asked = match order.what {
            MemberRequest::Restart => Order::Restart { member: None },
            MemberRequest::Reinit => Order::Reinitialise { member: None },
        };
        let answer = operator.carry_out(asked).await;
        if let Err(error) = write_answer(&store, &order, &answer).await {
            tracing::warn!(%error, "could not write the answer to the operator's order");
        }
    }
}

/// An order to this member that nobody has taken up.
fn open<'a>(view: &'a LeaseView, own: &str, last: &str) -> Option<&'a MemberOrder> {
    let order = view.stored.as_ref()?.record.order.as_ref()?;
    (order.member == own && !order.taken_up && order.answer.is_none() && order.id != last).then_some(order)
}

async fn take_up(store: &LeaseStore, order: &MemberOrder) -> bool {
    let written = store.update(|record| {
        if let Some(known) = record.order.as_mut().filter(|known| known.id == order.id) {
            known.taken_up = true;
        }
    });
    match written.await {
        Ok(stored) => stored
            .record
            .order
            .as_ref()
            .is_some_and(|known| known.id == order.id),
        Err(error) => {
            tracing::warn!(%error, "could not take up the operator's order");
            false
        }
    }
}

async fn write_answer(
    store: &LeaseStore,
    order: &MemberOrder,
    answer: &Answer,
) -> Result<(), crate::kube::LeaseError> {
    let written = store.update(|record| {
        if let Some(known) = record.order.as_mut().filter(|known| known.id == order.id) {
            known.answer = Some(answer.clone());
        }
    });
    written.await.map(drop)
}
