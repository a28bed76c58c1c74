//! Threads that carry sessions: one runtime each, so that a session never changes its thread and needs no
//! lock, and so that a loaded route does not hold up the agent of the same process.

use std::future::{Future, pending};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Handle};

/// More threads than this would only wait for PostgreSQL.
pub(super) const MAX_THREADS: usize = 4;

/// Where connections are served.
#[derive(Debug)]
pub struct Workers {
    runtimes: Vec<Handle>,
    next: AtomicUsize,
}

impl Workers {
    /// One thread for each core that the process may use, within a bound. They end with the process.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start() -> io::Result<Self> {
        let cores = std::thread::available_parallelism()?.get();
        let runtimes = (0..cores.min(MAX_THREADS)).map(|_| start_thread());
        Ok(Self {
            runtimes: runtimes.collect::<io::Result<_>>()?,
            next: AtomicUsize::new(0),
        })
    }

    /// The runtime of the caller alone.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn here() -> Self {
        Self {
            runtimes: vec![Handle::current()],
            next: AtomicUsize::new(0),
        }
    }

    /// Starts work on the next thread in turn.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(runtime) = self.runtimes.get(turn % self.runtimes.len().max(1)) {
            runtime.spawn(work);
        }
    }
}

fn start_thread() -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name("podgres-route".to_owned())
        .spawn(move || runtime.block_on(pending::<()>()))?;
    Ok(handle)
}
