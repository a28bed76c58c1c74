//! The Lease as the rest of podgres sees it: a view to watch, and one write at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

use super::LeaseSettings;
use super::client::ApiClient;
use super::error::{LeaseError, LeaseName};
use super::follow::follow;
use super::knowledge::{Attempt, Knowledge, error_text};
use super::lease_api::LeaseApi;
use super::remembered::Keeper;
use super::update::update;
use crate::clock::boottime_ms;
use crate::core::lease::{LeaseRecord, LeaseView, LeaseWrite, StoredLease};
use crate::watched;

/// Follows one Lease; ends with its owner. A write that was begun goes on to its end.
pub struct LeaseStore {
    shared: Arc<Shared>,
    _follower: AbortOnDropHandle<()>,
}

/// What the follower and a write have in common.
pub(super) struct Shared {
    pub(super) api: LeaseApi,
    pub(super) settings: LeaseSettings,
    knowledge: Mutex<Knowledge>,
    /// Taken after `knowledge`, never before.
    keeper: Option<Mutex<Keeper>>,
    view: watch::Sender<LeaseView>,
    /// The Lease is to be read now.
    pub(super) nudge: Notify,
}

impl LeaseStore {
    /// Follows the Lease from now on, on the running tokio runtime. What fails is in the view, and tried again.
    #[must_use]
    pub fn start(settings: LeaseSettings) -> Self {
        let lease = LeaseName {
            namespace: settings.namespace.clone(),
            name: settings.name.clone(),
        };
        let client = ApiClient::new(settings.reach.clone(), settings.request_limit());
        let mut knowledge = Knowledge::new(lease.clone(), settings.identity.clone());
        let file = settings.memory_file.as_deref();
        let keeper = file.map(|path| Keeper::open(path, &settings.identity));
        if let Some(remembered) = keeper.as_ref().and_then(Keeper::kept) {
            knowledge.recall(remembered.clone(), boottime_ms());
        }
        let view = watch::Sender::new(knowledge.view.clone());
        let shared = Arc::new(Shared {
            api: LeaseApi {
                client,
                lease: lease.clone(),
            },
            knowledge: Mutex::new(knowledge),
            keeper: keeper.map(Mutex::new),
            settings,
            view,
            nudge: Notify::new(),
        });
        let follower = tokio::spawn(follow(Arc::clone(&shared)));
        Self {
            shared,
            _follower: AbortOnDropHandle::new(follower),
        }
    }

    /// What is known, and every change of it.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<LeaseView> {
        self.shared.view.subscribe()
    }

    /// Begins a write; the view tells how it ends: `writing` until then, and after that `renewal`, `write_failed_at_ms`
    /// or `uncertain`. False if one is under way: nothing was done. Never repeated by itself.
    #[must_use]
    pub fn write(&self, write: LeaseWrite) -> bool {
        let purpose = write.purpose.as_str();
        let create = write.over.is_none();
        let begun = self
            .shared
            .change(|knowledge| knowledge.begin(write, boottime_ms()));
        match begun {
            None => return false,
            // What is known was older than what the caller knew, or the other way round.
            Some(Err(_)) => self.shared.nudge.notify_one(),
            Some(Ok(attempt)) => match self.shared.keep(&self.shared.lock()) {
                Ok(()) => {
                    let shared = Arc::clone(&self.shared);
                    tokio::spawn(async move { shared.carry_out(attempt, create, purpose).await });
                }
                Err(error) => self.shared.not_kept(attempt, &error),
            },
        }
        true
    }

    /// Reads the Lease now, e.g. before something is decided that needs the newest.
    pub fn nudge(&self) {
        self.shared.nudge.notify_one();
    }

    /// Changes what the operator asks for (`paused`, `read_only`, `request`): reads, changes and writes, again if somebody
    /// else was faster. Apart from [`Self::write`]; the view follows.
    ///
    /// # Errors
    /// The Lease is missing, unusable, or could not be written.
    pub async fn update(&self, change: impl Fn(&mut LeaseRecord)) -> Result<StoredLease, LeaseError> {
        let updated = update(&self.shared.api, change).await;
        self.shared.nudge.notify_one();
        updated
    }
}

impl Shared {
    /// Changes what is known, and tells everybody.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Knowledge) -> T) -> T {
        let mut knowledge = self.lock();
        let result = change(&mut knowledge);
        // A write asks for itself whether this went well.
        drop(self.keep(&knowledge));
        let view = knowledge.view.clone();
        // Under the lock, so that views leave in their order.
        log_change(self.view.borrow().error.as_deref(), view.error.as_deref());
        watched::set(&self.view, view);
        result
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Knowledge> {
        self.knowledge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before anything is done that the next process of this pod must know of.
    fn keep(&self, knowledge: &Knowledge) -> std::io::Result<()> {
        let Some(keeper) = &self.keeper else { return Ok(()) };
        let mut keeper = keeper.lock().unwrap_or_else(PoisonError::into_inner);
        keeper.keep(knowledge.remembered())
    }

    /// The write was not sent.
    fn not_kept(&self, attempt: Attempt, error: &std::io::Error) {
        let lease = self.api.lease.clone();
        let error = LeaseError::NotKept {
            lease,
            reason: error.to_string(),
        };
        self.change(|knowledge| knowledge.not_stored(attempt, &error, boottime_ms()));
    }

    async fn carry_out(&self, attempt: Attempt, create: bool, purpose: &'static str) {
        let answer = self.api.put(create, &attempt.object).await;
        let now_ms = boottime_ms();
        match answer {
            Ok(answer) => {
                self.change(|knowledge| {
                    knowledge.stored(&attempt, answer.body, answer.sent_at_ms, now_ms);
                });
            }
            Err(error) => {
                tracing::debug!(lease.purpose = purpose, "{}", error_text(&error));
                if self.change(|knowledge| knowledge.not_stored(attempt, &error, now_ms)) {
                    self.nudge.notify_one();
                }
            }
        }
    }
}

fn log_change(before: Option<&str>, now: Option<&str>) {
    match (before, now) {
        (None, Some(error)) => tracing::warn!("{error}"),
        (Some(_), None) => tracing::info!("the Kubernetes API answers again"),
        (Some(before), Some(now)) if before != now => tracing::debug!("{now}"),
        _ => {}
    }
}
