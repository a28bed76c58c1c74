//! What an agent under a Lease has besides: the Lease's store, the commit gate, and what is kept between turns.
//!
//! Only carries and remembers: whether to write, and until when the gate may confirm, is in the decision.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::core::data_directory::SystemIdentifier;
use crate::core::lease::{LeaseView, LeaseWrite};
use crate::core::observation::{Barrier, MemberRequest};
use crate::core::supervision::{Postmaster, ServerRole, SupervisorStatus};
use crate::kube::{API_DECIMALS, LeaseSettings, LeaseStore, timestamp};
use crate::postgres::Login;
use crate::postgres::gate::{Attachment, Gate, GateSettings, GateTarget};
use crate::postgres::query::LocalServer;

const CHECKPOINT_LIMIT: Duration = Duration::from_mins(1);

/// What the operator asked of this member and nobody has taken up yet.
#[derive(Clone, Default)]
pub struct Requests(Arc<Mutex<Option<MemberRequest>>>, Arc<tokio::sync::Notify>);

impl Requests {
    /// Leaves a request for the agent's next turn; false if another one is waiting.
    #[must_use]
    pub fn ask(&self, request: MemberRequest) -> bool {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let free = waiting.is_none();
        if free {
            *waiting = Some(request);
            self.1.notify_one();
        }
        free
    }

    pub(super) fn waiting(&self) -> Option<MemberRequest> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn taken_up(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) async fn asked(&self) {
        self.1.notified().await;
    }
}

/// The adapters of a member under a Lease.
pub(super) struct Office {
    store: Arc<LeaseStore>,
    view: watch::Receiver<LeaseView>,
    gate: Option<(Gate, watch::Receiver<Attachment>)>,
    attached_to: Option<GateTarget>,
    checkpointed: watch::Sender<Option<u64>>,
    checkpointing: bool,
    pub(super) barrier: Option<Barrier>,
}

impl Office {
    pub(super) fn start(settings: LeaseSettings, gate: bool) -> std::io::Result<Self> {
        let store = Arc::new(LeaseStore::start(settings));
        let gate = gate.then(|| Gate::start(GateSettings::default())).transpose()?;
        Ok(Self {
            view: store.view(),
            store,
            gate: gate.map(|gate| {
                let watch = gate.watch();
                (gate, watch)
            }),
            attached_to: None,
            checkpointed: watch::Sender::new(None),
            checkpointing: false,
            barrier: None,
        })
    }

    pub(super) fn store(&self) -> Arc<LeaseStore> {
        Arc::clone(&self.store)
    }

    pub(super) fn view(&mut self) -> LeaseView {
        self.view.borrow_and_update().clone()
    }

    /// Whether the gate streams; `None` where there is none.
    pub(super) fn gate_attached(&self) -> Option<bool> {
        let (_, watch) = self.gate.as_ref()?;
        Some(watch.borrow().timeline.is_some())
    }

    pub(super) fn checkpointed_at_ms(&mut self) -> Option<u64> {
        let done = *self.checkpointed.borrow();
        self.checkpointing &= done.is_none();
        done
    }

    /// Something has changed that an observation shows.
    pub(super) async fn changed(&mut self) {
        let mut checkpointed = self.checkpointed.subscribe();
        let attachment = async {
            match &mut self.gate {
                Some((_, watch)) => watch.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.view.changed() => {}
            _ = checkpointed.changed() => {}
            _ = attachment => {}
        }
    }

    /// Begins a write; its end shows in the view.
    pub(super) fn write(&self, mut write: LeaseWrite) {
        let stamp = |entry: &mut crate::core::lease::HistoryEntry| {
            if entry.at.is_empty() {
                entry.at = timestamp(API_DECIMALS);
            }
        };
        Arc::make_mut(&mut write.record.history)
            .iter_mut()
            .for_each(stamp);
        let (purpose, term) = (write.purpose, write.record.term);
        if !self.store.write(write) {
            tracing::debug!("a write to the Lease is still under way, or the Lease was not read yet");
        } else if purpose != crate::core::lease::LeasePurpose::Renew {
            tracing::info!(purpose = purpose.as_str(), term, "writing the Lease");
        }
    }

    /// Reads the Lease; what is found shows in the view.
    pub(super) fn read(&self) {
        self.store.nudge();
    }

    /// Lets the gate confirm until then, and has it attached to a server that runs as the primary.
    pub(super) fn open_gate(&mut self, until_ms: u64, target: Option<GateTarget>) {
        let Some((gate, _)) = &self.gate else { return };
        gate.allow_until(until_ms);
        if self.attached_to != target {
            gate.want(target.clone());
            self.attached_to = target;
        }
    }

    /// On a connection of its own, since it may take long.
    pub(super) fn checkpoint(&mut self, mut server: LocalServer, at_ms: u64) {
        if std::mem::replace(&mut self.checkpointing, true) {
            return;
        }
        self.checkpointed.send_replace(None);
        let done = self.checkpointed.clone();
        tokio::spawn(async move {
            if let Err(error) = server.checkpoint(CHECKPOINT_LIMIT).await {
                tracing::warn!(detail = %error, "could not write a checkpoint before a planned stop");
            }
            done.send_replace(Some(at_ms.max(crate::clock::boottime_ms())));
        });
    }
}

/// The gate belongs to a postmaster that was started, or promoted, as the primary.
pub(super) fn gate_target(
    supervisor: Option<&SupervisorStatus>,
    address: SocketAddr,
    login: &Login,
    system_identifier: Option<SystemIdentifier>,
) -> Option<GateTarget> {
    let primary = matches!(
        supervisor?.postmaster,
        Postmaster::Running {
            role: ServerRole::Primary { .. },
            ..
        }
    );
    primary.then_some(GateTarget {
        address,
        login: login.clone(),
        system_identifier: system_identifier?,
    })
}
