//! Places for the sessions of all listeners of one process together, beside those that each has of its own.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::refusal::Refusal;

/// Shared by the listeners of one process. By default there is no limit.
#[derive(Debug, Default)]
pub struct TotalConnections {
    /// The places that are free, and how many there are.
    places: Option<(Arc<Semaphore>, usize)>,
}

impl TotalConnections {
    /// So many sessions at a time, held ones included; cancel requests do not count.
    #[must_use]
    pub fn at_most(max_connections: usize) -> Self {
        let free = Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS));
        Self {
            places: Some((Arc::new(free), max_connections)),
        }
    }

    /// A place until it is dropped; none is needed where there is no limit.
    pub(super) fn enter(&self) -> Result<Option<OwnedSemaphorePermit>, Refusal> {
        let Some((free, max_connections)) = &self.places else {
            return Ok(None);
        };
        let place = Arc::clone(free).try_acquire_owned();
        place.map(Some).map_err(|_| Refusal::TooManyInTotal {
            max_connections: *max_connections,
        })
    }
}
