//! The life of one pod, as a kubelet leads it: init until it succeeds, then sidecar and postgres for ever;
//! at the end postgres first, the native sidecar after it, and what is left is killed.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::backoff::Backoff;
use super::container::{Container, Exit, Launch, Running};
use super::pod::{Inner, Phase, Termination, lock};
use super::probe;
use super::tree::{self, Scope};

/// How often a pod that is not ready is asked whether it is.
const NOT_READY_PERIOD: Duration = Duration::from_millis(50);
/// How often a ready one is.
const READY_PERIOD: Duration = Duration::from_secs(1);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// What the last lines of a followed log take to be repeated.
const LAST_LINES: Duration = Duration::from_millis(250);
/// What a sidecar gets at least, however long postgres took (as a kubelet grants it).
const SIDECAR_GRACE: Duration = Duration::from_secs(2);

impl Inner {
    pub(super) async fn life(self: Arc<Self>, mut asked: watch::Receiver<Option<Termination>>) {
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

    pub(super) fn http(&self) -> SocketAddr {
        SocketAddr::new(self.spec.address, self.spec.http_port)
    }

    fn log(&self, container: Container) -> PathBuf {
        self.spec.directory.join(format!("{container}.log"))
    }

    /// Every process of the pod.
    pub(super) fn whole(&self) -> Scope {
        let roots: BTreeSet<u32> = lock(&self.running).values().map(|running| running.pid).collect();
        Scope {
            roots,
            directories: vec![self.spec.directory.clone(), self.spec.volume.clone()],
            ancestor: self.around.ancestor,
        }
    }

    /// Repeats the logs on the demo's own output, if asked for; ends when dropped.
    fn follow_logs(&self) -> JoinSet<()> {
        let mut followers = JoinSet::new();
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
