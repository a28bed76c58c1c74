//! The lock of a bucket: `lock.json`, changed by conditional writes only, with a heartbeat in it.
//!
//! No clock is compared with another one's: a lock is dead if its heartbeat has not changed for [`DEAD_AFTER`] of the
//! watcher's own time, and is taken over by a write that fails if it has changed after all.

use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutPayload, UpdateVersion};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::lock::LockError;
use super::{Store, StoreError};

const FILE_NAME: &str = "lock.json";
const BEAT: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_secs(1);
const DEAD_AFTER: Duration = Duration::from_secs(15);
/// Before others may think us dead.
const LOST_AFTER: Duration = Duration::from_secs(12);
const WRITE_LIMIT: Duration = Duration::from_secs(9);

#[derive(Serialize, Deserialize)]
struct Content {
    who: String,
    /// Tells two holders of one name apart.
    token: u64,
    beat: u64,
}

#[derive(Clone, Debug)]
struct Place {
    objects: Arc<dyn ObjectStore>,
    path: Path,
    destination: String,
}

/// A lock that is held as long as its heartbeat goes on.
#[derive(Debug)]
pub(super) struct Heartbeat {
    place: Place,
    token: u64,
    task: AbortOnDropHandle<()>,
    lost: watch::Receiver<bool>,
    stop: watch::Sender<bool>,
}

impl Heartbeat {
    pub(super) async fn take(store: &Store, who: &str) -> Result<Self, LockError> {
        let place = Place {
            objects: Arc::clone(&store.objects),
            path: store.place(FILE_NAME),
            destination: store.to_string(),
        };
        let mut content = Content {
            who: who.to_owned(),
            token: fastrand::u64(..),
            beat: 0,
        };
        let version = place.acquire(&content).await?;
        let (kept, token) = (place.clone(), content.token);
        let (lost_sender, lost) = watch::channel(false);
        let (stop, stop_receiver) = watch::channel(false);
        let task = tokio::spawn(async move {
            place.keep(&mut content, version, stop_receiver).await;
            lost_sender.send_replace(true);
        });
        Ok(Self {
            place: kept,
            token,
            task: AbortOnDropHandle::new(task),
            lost,
            stop,
        })
    }

    pub(super) async fn held(&self) -> Result<bool, LockError> {
        let found = self.place.look().await?;
        Ok(found.is_some_and(|(found, _)| found.token == self.token))
    }

    pub(super) async fn lost(&self) {
        let mut lost = self.lost.clone();
        // An error means that the task has ended: lost too.
        lost.wait_for(|lost| *lost).await.ok();
    }

    pub(super) async fn release(mut self) {
        self.stop.send_replace(true);
        // Whoever comes next then waits for the heartbeat instead.
        timeout(LOST_AFTER, &mut self.task).await.ok();
    }
}

impl Place {
    fn error(&self, action: &'static str, source: object_store::Error) -> LockError {
        let source = StoreError::new(action, FILE_NAME, source);
        LockError::Store {
            destination: self.destination.clone(),
            source,
        }
    }

    async fn acquire(&self, content: &Content) -> Result<UpdateVersion, LockError> {
        let mut seen: Option<(Content, Instant)> = None;
        loop {
            match self.write(content, PutMode::Create).await {
                Ok(version) => return self.refuses_a_second(content).await.map(|()| version),
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                }
                Err(error) => return Err(self.error("write", error)),
            }
            let Some((found, version)) = self.look().await? else {
                continue;
            };
            match &seen {
                Some((earlier, since)) if earlier.token == found.token && earlier.beat == found.beat => {
                    if since.elapsed() > DEAD_AFTER {
                        if let Ok(version) = self.write(content, PutMode::Update(version)).await {
                            return Ok(version);
                        }
                        seen = None;
                    }
                }
                Some(_) => {
                    return Err(LockError::Held {
                        destination: self.destination.clone(),
                        holder: found.who,
                    });
                }
                None => seen = Some((found, Instant::now())),
            }
            sleep(LOOK).await;
        }
    }

    /// A store that writes over an object that must not be there keeps nobody out, and archived WAL would be overwritten.
    async fn refuses_a_second(&self, content: &Content) -> Result<(), LockError> {
        match self.write(content, PutMode::Create).await {
            Ok(_) => Err(LockError::Unconditional {
                destination: self.destination.clone(),
            }),
            Err(_) => Ok(()),
        }
    }

    async fn look(&self) -> Result<Option<(Content, UpdateVersion)>, LockError> {
        let found = match self.objects.get(&self.path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(self.error("read", error)),
        };
        let version = UpdateVersion {
            e_tag: found.meta.e_tag.clone(),
            version: found.meta.version.clone(),
        };
        let bytes = found.bytes().await.map_err(|error| self.error("read", error))?;
        let unreadable = || Content {
            who: "somebody unknown".to_owned(),
            token: 0,
            beat: 0,
        };
        Ok(Some((
            serde_json::from_slice(&bytes).unwrap_or_else(|_| unreadable()),
            version,
        )))
    }

    /// Beats until it may be lost or is to stop; then the object is deleted if it is still ours.
    async fn keep(&self, content: &mut Content, mut version: UpdateVersion, mut stop: watch::Receiver<bool>) {
        let mut last = Instant::now();
        while last.elapsed() < LOST_AFTER {
            if timeout(BEAT, stop.wait_for(|stop| *stop)).await.is_ok() {
                // It may be another one's by now, who took us for dead.
                if matches!(self.look().await, Ok(Some((found, _))) if found.token == content.token) {
                    self.objects.delete(&self.path).await.ok();
                }
                return;
            }
            content.beat += 1;
            let sent = Instant::now();
            match timeout(WRITE_LIMIT, self.write(content, PutMode::Update(version.clone()))).await {
                Ok(Ok(next)) => (version, last) = (next, sent),
                // Another one has it, or a write of ours has come through whose answer was lost.
                Ok(Err(object_store::Error::Precondition { .. })) => match self.look().await {
                    Ok(Some((found, next))) if found.token == content.token => version = next,
                    _ => return,
                },
                _ => {}
            }
        }
    }

    async fn write(&self, content: &Content, mode: PutMode) -> Result<UpdateVersion, object_store::Error> {
        // Plain data: this cannot fail.
        let text = serde_json::to_vec(content).unwrap_or_default();
        let written = self
            .objects
            .put_opts(&self.path, PutPayload::from(text), mode.into())
            .await?;
        Ok(UpdateVersion {
            e_tag: written.e_tag,
            version: written.version,
        })
    }
}
