//! What the gate's thread and those who hold its handle have in common.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use super::{Attachment, GateStatus, GateTarget};
use crate::clock::boottime_ms;
use crate::core::wal::{Lsn, TimelineId};

#[derive(Default)]
pub(super) struct Shared {
    orders: Mutex<Orders>,
    /// The deadline was set anew.
    pub(super) allowed: Notify,
    /// Another target is wanted, or none, or the handle is gone.
    pub(super) redirected: Notify,
    pub(super) attachment: watch::Sender<Attachment>,
    /// Both 0 while not known, which is no position in the log.
    received: AtomicU64,
    confirmed: AtomicU64,
}

/// What the holder of the handle wants.
#[derive(Default)]
struct Orders {
    until_ms: u64,
    target: Option<Arc<GateTarget>>,
    dismissed: bool,
}

/// What the thread is to do.
#[derive(Clone)]
pub(super) enum Order {
    Attach(Arc<GateTarget>),
    Detach,
    End,
}

impl Shared {
    pub(super) fn allow_until(&self, deadline_ms: u64) {
        self.orders().until_ms = deadline_ms;
        self.allowed.notify_one();
    }

    pub(super) fn want(&self, target: Option<GateTarget>) {
        let server = |target: &GateTarget| (target.address, target.system_identifier);
        let mut orders = self.orders();
        let redirected = orders.target.as_deref().map(server) != target.as_ref().map(server);
        // Another login of the same server is for the next time.
        orders.target = target.map(Arc::new);
        if redirected {
            self.redirected.notify_one();
        }
    }

    pub(super) fn dismiss(&self) {
        *self.orders() = Orders {
            dismissed: true,
            ..Orders::default()
        };
        self.redirected.notify_one();
    }

    pub(super) fn order(&self) -> Order {
        let orders = self.orders();
        match &orders.target {
            _ if orders.dismissed => Order::End,
            Some(target) => Order::Attach(Arc::clone(target)),
            None => Order::Detach,
        }
    }

    /// Runs `confirm` with whether there is a right, which cannot be taken back before it has returned.
    pub(super) fn with_right<T>(&self, confirm: impl FnOnce(bool) -> T) -> T {
        let orders = self.orders();
        confirm(boottime_ms() < orders.until_ms)
    }

    pub(super) fn set_received(&self, position: Lsn) {
        self.received.store(position.0, Ordering::Relaxed);
    }

    pub(super) fn set_confirmed(&self, position: Lsn) {
        self.confirmed.store(position.0, Ordering::Relaxed);
    }

    pub(super) fn attached(&self, timeline: TimelineId) {
        self.attachment.send_modify(|attachment| {
            attachment.timeline = Some(timeline);
            attachment.since_ms = boottime_ms();
            attachment.count += 1;
        });
    }

    /// The gate streams no more, or still not, for this reason.
    pub(super) fn detached(&self, error: Option<String>) {
        self.attachment.send_if_modified(|attachment| {
            let was_attached = attachment.timeline.take().is_some();
            if was_attached {
                attachment.since_ms = boottime_ms();
            }
            let news = error.is_some() && attachment.last_error != error;
            if news {
                attachment.last_error = error;
            }
            was_attached || news
        });
    }

    pub(super) fn status(&self) -> GateStatus {
        let position = |value: &AtomicU64| Some(Lsn(value.load(Ordering::Relaxed))).filter(|lsn| lsn.0 > 0);
        GateStatus {
            attachment: self.attachment.borrow().clone(),
            received_lsn: position(&self.received),
            confirmed_lsn: position(&self.confirmed),
        }
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
