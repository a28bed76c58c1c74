//! A pod as the controller sees it: what it is made of, what it is like now, and how it is told to end.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use super::container::{Children, Container, Running};
use super::events::Events;
use super::probe;
use super::tree::{self};
use crate::core::member::Ordinal;
use crate::postgres::user::ServerUser;

/// What does not change while a pod exists.
pub(super) struct PodSpec {
    pub name: String,
    pub ordinal: Ordinal,
    pub uid: String,
    pub address: IpAddr,
    pub http_port: u16,
    pub program: PathBuf,
    pub environment: BTreeMap<String, String>,
    pub user: Option<ServerUser>,
    /// Where its processes work and its logs are; of this pod alone.
    pub directory: PathBuf,
    pub volume: PathBuf,
    pub grace: Duration,
}

/// What all pods share.
#[derive(Clone)]
pub(super) struct Surroundings {
    pub children: Children,
    pub events: Events,
    /// Told of every change that the controller might act on.
    pub changed: Arc<Notify>,
    /// The demo's own pid, if every orphan of the pods is inherited by it.
    pub ancestor: Option<u32>,
    pub verbose: bool,
}

/// How a pod is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Termination {
    /// TERM, and KILL after the grace period.
    Graceful,
    /// KILL to all its processes.
    Forced,
}

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Initializing,
    Running,
    Terminating,
    Gone,
}

/// A pod, alive or on its way out; clones are the same pod.
#[derive(Clone)]
pub(super) struct Pod {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub spec: PodSpec,
    pub around: Surroundings,
    pub phase: Mutex<Phase>,
    pub ready: AtomicBool,
    pub frozen: AtomicBool,
    pub running: Mutex<BTreeMap<Container, Running>>,
    pub restarts: Mutex<BTreeMap<Container, u32>>,
    pub termination: watch::Sender<Option<Termination>>,
}

impl Pod {
    /// Begins the life of a pod whose directories are made.
    pub(super) fn start(spec: PodSpec, around: Surroundings) -> Self {
        let (termination, asked) = watch::channel(None);
        let inner = Arc::new(Inner {
            spec,
            around,
            phase: Mutex::new(Phase::Initializing),
            ready: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
            running: Mutex::default(),
            restarts: Mutex::default(),
            termination,
        });
        tokio::spawn(Arc::clone(&inner).life(asked));
        Self { inner }
    }

    pub(super) fn spec(&self) -> &PodSpec {
        &self.inner.spec
    }

    pub(super) fn phase(&self) -> Phase {
        *lock(&self.inner.phase)
    }

    pub(super) fn ready(&self) -> bool {
        self.inner.ready.load(Ordering::Acquire)
    }

    pub(super) fn frozen(&self) -> bool {
        self.inner.frozen.load(Ordering::Acquire)
    }

    pub(super) fn restarts(&self) -> BTreeMap<Container, u32> {
        lock(&self.inner.restarts).clone()
    }

    /// The first processes of the containers that run now.
    pub(super) fn pids(&self) -> BTreeMap<Container, u32> {
        let running = lock(&self.inner.running);
        running
            .iter()
            .filter(|(_, one)| one.alive())
            .map(|(container, one)| (*container, one.pid))
            .collect()
    }

    /// Begins the end; a forced one overtakes a graceful one, never the other way round.
    pub(super) fn terminate(&self, how: Termination) {
        self.inner.termination.send_if_modified(|asked| {
            let stronger = asked.is_none_or(|earlier| earlier < how);
            if stronger {
                *asked = Some(how);
            }
            stronger
        });
    }

    /// Stops every process of the pod where it stands; returns how many.
    pub(super) async fn freeze(&self) -> usize {
        self.inner.frozen.store(true, Ordering::Release);
        tree::freeze(&self.inner.whole()).await
    }

    /// Lets them go on; returns how many.
    pub(super) fn thaw(&self) -> usize {
        self.inner.frozen.store(false, Ordering::Release);
        tree::thaw(&self.inner.whole())
    }

    /// Whether the pod says of itself that it is the primary.
    pub(super) async fn primary(&self, limit: Duration) -> bool {
        probe::succeeds(self.inner.http(), "/primary", limit).await
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
