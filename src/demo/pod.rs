//! One pod's life, as a kubelet leads it: init until it succeeds, then sidecar and postgres for ever;
//! at the end postgres first, the native sidecar after it, and what is left is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use super::container::{Children, Container, Exit, Launch, Running};
use super::events::Events;
use super::state::PodUser;
use super::tree::{self, Scope};
use super::{backoff::Backoff, probe};
use crate::core::member::Ordinal;

/// How often a pod that is not ready is asked whether it is.
const NOT_READY_PERIOD: Duration = Duration::from_millis(50);
/// How often a ready one is.
const READY_PERIOD: Duration = Duration::from_secs(1);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// What the last lines of a followed log take to be repeated.
const LAST_LINES: Duration = Duration::from_millis(250);
/// What a sidecar gets at least, however long postgres took (as a kubelet grants it).
const SIDECAR_GRACE: Duration = Duration::from_secs(2);

/// What does not change while a pod exists.
pub(super) struct PodSpec {
    pub name: String,
    pub ordinal: Ordinal,
    pub uid: String,
    pub address: IpAddr,
    pub http_port: u16,
    pub program: PathBuf,
    pub environment: BTreeMap<String, String>,
    pub user: Option<PodUser>,
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

struct Inner {
    spec: PodSpec,
    around: Surroundings,
    phase: Mutex<Phase>,
    ready: AtomicBool,
    frozen: AtomicBool,
    running: Mutex<BTreeMap<Container, Running>>,
    restarts: Mutex<BTreeMap<Container, u32>>,
    termination: watch::Sender<Option<Termination>>,
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

impl Inner {
    async fn life(self: Arc<Self>, mut asked: watch::Receiver<Option<Termination>>) {
        let followers = self.follow_logs();
        tokio::select! {
            () = self.live() => {}
            // The sender is in `self`, so the channel cannot close.
            _ = asked.wait_for(Option::is_some) => {}
        }
        self.set_ready(false);
        self.set_phase(Phase::Terminating);
        tokio::select! {
            biased;
            _ = asked.wait_for(|how| *how == Some(Termination::Forced)) => {}
            () = self.end() => {}
        }
        if !tree::kill(&self.whole()).await {
            self.tell("some processes could not be killed");
        }
        if self.around.verbose {
            tokio::time::sleep(LAST_LINES).await;
        }
        drop(followers);
        self.set_phase(Phase::Gone);
    }

    /// Runs the containers until dropped.
    async fn live(&self) {
        self.keep(Container::Init).await;
        self.set_phase(Phase::Running);
        tokio::join!(
            self.keep(Container::Sidecar),
            self.keep(Container::Postgres),
            self.watch_readiness(),
        );
    }

    /// Starts a container, and again whenever it ends; an init container only until it succeeds.
    async fn keep(&self, container: Container) {
        let mut backoff = Backoff::default();
        loop {
            let started = Instant::now();
            let exit = match self.launch(container) {
                Ok(running) => running.ended().await,
                Err(error) => Exit {
                    success: false,
                    description: format!("could not be started: {error}"),
                },
            };
            self.sweep_after(container).await;
            if container == Container::Init && exit.success {
                self.tell("init done");
                return;
            }
            let pause = backoff.next(started.elapsed());
            *lock(&self.restarts).entry(container).or_default() += 1;
            let seconds = pause.as_secs_f64();
            self.tell(&format!(
                "{container} {}, restarts in {seconds} s",
                exit.description
            ));
            tokio::time::sleep(pause).await;
        }
    }

    fn launch(&self, container: Container) -> std::io::Result<Running> {
        let spec = &self.spec;
        let running = self.around.children.launch(&Launch {
            program: spec.program.clone(),
            container,
            environment: spec.environment.clone(),
            // The folder marks what belongs to postgres; the sidecar, which lives on without it, stays outside.
            working_directory: match container {
                Container::Init | Container::Postgres => spec.directory.clone(),
                Container::Sidecar => PathBuf::from("/"),
            },
            log: self.log(container),
            user: spec.user.clone(),
        })?;
        lock(&self.running).insert(container, running.clone());
        self.tell(&format!("{container} started"));
        Ok(running)
    }

    /// With the first process of a container ends everything in it, as with a PID namespace.
    async fn sweep_after(&self, container: Container) {
        let Some(ended) = lock(&self.running).get(&container).cloned() else {
            return;
        };
        let mut scope = self.whole();
        scope.roots = [ended.pid].into();
        if container == Container::Sidecar {
            scope.directories.clear();
        }
        if !tree::kill(&scope).await {
            self.tell(&format!("some processes of {container} could not be killed"));
        }
        // Its pid may soon be another process'.
        lock(&self.running).remove(&container);
    }

    /// Asks the containers to end, in a kubelet's order, and kills those that do not in time.
    async fn end(&self) {
        let deadline = Instant::now() + self.spec.grace;
        let running = lock(&self.running).clone();
        for container in [Container::Init, Container::Postgres] {
            if let Some(running) = running.get(&container) {
                self.end_one(container, running, deadline).await;
            }
        }
        if let Some(sidecar) = running.get(&Container::Sidecar) {
            let deadline = deadline.max(Instant::now() + SIDECAR_GRACE);
            self.end_one(Container::Sidecar, sidecar, deadline).await;
        }
    }

    async fn end_one(&self, container: Container, running: &Running, deadline: Instant) {
        if running.alive() {
            tree::signal(running.pid, Signal::TERM);
            if running
                .ended_within(deadline.saturating_duration_since(Instant::now()))
                .await
            {
                self.tell(&format!("{container} {}", running.ended().await.description));
            } else {
                self.tell(&format!("{container} did not end in time, killed"));
            }
        }
        self.sweep_after(container).await;
    }

    async fn watch_readiness(&self) {
        loop {
            let ready = probe::succeeds(self.http(), "/readiness", PROBE_TIMEOUT).await;
            self.set_ready(ready);
            tokio::time::sleep(if ready { READY_PERIOD } else { NOT_READY_PERIOD }).await;
        }
    }

    fn http(&self) -> SocketAddr {
        SocketAddr::new(self.spec.address, self.spec.http_port)
    }

    fn log(&self, container: Container) -> PathBuf {
        self.spec.directory.join(format!("{container}.log"))
    }

    /// Every process of the pod.
    fn whole(&self) -> Scope {
        let roots: BTreeSet<u32> = lock(&self.running).values().map(|running| running.pid).collect();
        Scope {
            roots,
            directories: vec![self.spec.directory.clone(), self.spec.volume.clone()],
            ancestor: self.around.ancestor,
        }
    }

    /// Repeats the logs on the demo's own output, if asked for; ends when dropped.
    fn follow_logs(&self) -> tokio::task::JoinSet<()> {
        let mut followers = tokio::task::JoinSet::new();
        if self.around.verbose {
            for container in [Container::Init, Container::Sidecar, Container::Postgres] {
                let who = format!("{} {container}", self.spec.name);
                followers.spawn(self.around.events.clone().follow(who, self.log(container)));
            }
        }
        followers
    }

    fn set_ready(&self, ready: bool) {
        if self.ready.swap(ready, Ordering::AcqRel) != ready {
            self.tell(if ready { "ready" } else { "not ready" });
            self.around.changed.notify_one();
        }
    }

    fn set_phase(&self, phase: Phase) {
        *lock(&self.phase) = phase;
        self.around.changed.notify_one();
    }

    fn tell(&self, what: &str) {
        self.around.events.change(&self.spec.name, what);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
