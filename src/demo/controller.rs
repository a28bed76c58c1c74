//! The StatefulSet controller: which pods should be there, in which order they come and go.
//!
//! Everything that happens (a pod ready or gone, a request, a signal) only wakes the loop, which then looks
//! at all pods and does the next thing, as in Kubernetes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};

use super::container::Children;
use super::control::{self, Call, Reply, Request, done, refused};
use super::events::Events;
use super::pod::{Phase, Pod, PodSpec, Surroundings, Termination};
use super::process::{self, Signals};
use super::setup::{self, Prepared};
use super::state::PodState;
use super::{DemoError, Options, PodManagement, addresses, banner};
use crate::core::causes;
use crate::core::member::Ordinal;
use crate::core::policy::Leadership;

/// A pod that could not be made is tried again after this.
const RETRY_PERIOD: Duration = Duration::from_secs(1);
/// How long a pod may think about whether it is the primary, when all are stopped.
const ROLE_TIMEOUT: Duration = Duration::from_millis(500);

/// Runs a demo until SIGINT, SIGTERM or a request ends it; then all pods have ended.
///
/// # Errors
/// What kept it from beginning, or from cleaning up.
pub async fn run(options: Options, events: Events) -> Result<(), DemoError> {
    let around = Surroundings {
        children: Children::default(),
        events,
        changed: Arc::new(Notify::new()),
        ancestor: options.own_process.then(std::process::id),
        verbose: options.verbose,
    };
    let signals = process::own(&options, &around.children)?;
    let prepared = setup::prepare(&options).await?;
    let listener = control::listen(&prepared.state.control_socket)?;
    prepared.state.save(prepared.layout.directory())?;
    let (calls, called) = mpsc::channel(16);
    let (finish, finished) = oneshot::channel();
    let server = tokio::spawn(control::serve(listener, calls, finished));
    let mut controller = Controller {
        prepared,
        options,
        around,
        pods: BTreeMap::new(),
        leaving: BTreeMap::new(),
        settled: false,
        introduced: false,
    };
    let asked = controller.lead(called, signals).await;
    controller.around.events.change("demo", "stopped");
    let cleaned = controller.clean_up().await;
    // Only now, so that whoever asked may start the next demo in this directory at once.
    drop(asked.map(|reply| reply.send(done("stopped"))));
    drop(finish);
    // A panic in it has been reported.
    drop(server.await);
    cleaned
}

/// What is still to be done about a pod that is to go.
#[derive(Default)]
pub(super) struct Leaving {
    pub wipe_volume: bool,
    pub move_address: bool,
    pub replies: Vec<oneshot::Sender<Reply>>,
}

pub(super) struct Controller {
    pub prepared: Prepared,
    options: Options,
    around: Surroundings,
    pub pods: BTreeMap<Ordinal, Pod>,
    pub leaving: BTreeMap<Ordinal, Leaving>,
    /// Whether all was well when it was last looked at.
    settled: bool,
    /// The user has been told once how to go on.
    introduced: bool,
}

impl Controller {
    /// Leads until told to stop; returns who asked for it, if it was over the socket.
    async fn lead(
        &mut self,
        mut calls: mpsc::Receiver<Call>,
        mut signals: Signals,
    ) -> Option<oneshot::Sender<Reply>> {
        let changed = Arc::clone(&self.around.changed);
        let asked = loop {
            self.reconcile();
            tokio::select! {
                call = calls.recv() => match call {
                    Some(Call { request: Request::Stop, reply }) => break Some(reply),
                    Some(Call { request, reply }) => self.handle(request, reply).await,
                    None => break None,
                },
                () = changed.notified() => {}
                () = tokio::time::sleep(RETRY_PERIOD) => {}
                () = signals.end() => break None,
            }
        };
        self.around.events.change("demo", "stopping (again to kill)");
        tokio::select! {
            () = self.end_all() => {}
            () = signals.end() => self.kill_all().await,
        }
        asked
    }

    /// One look at everything, and what follows from it.
    fn reconcile(&mut self) {
        self.bury_the_gone();
        self.remove_the_surplus();
        if let Err(error) = self.make_the_missing() {
            let hint = error.hint().unwrap_or_default();
            self.around
                .events
                .change("demo", &format!("{error}: {} {hint}", causes(&error)));
        }
        let settled = self.all_ready();
        if settled && !self.settled {
            banner::show(&self.around.events, &self.prepared, self.introduced);
            self.introduced = true;
        }
        self.settled = settled;
    }

    fn bury_the_gone(&mut self) {
        let gone = |pod: &Pod| pod.phase() == Phase::Gone;
        let ordinals: Vec<Ordinal> = self
            .pods
            .iter()
            .filter(|(_, pod)| gone(pod))
            .map(|(ordinal, _)| *ordinal)
            .collect();
        for ordinal in ordinals {
            let Some(pod) = self.pods.remove(&ordinal) else {
                continue;
            };
            self.around.events.change(&pod.spec().name, "deleted");
            let leaving = self.leaving.remove(&ordinal).unwrap_or_default();
            let outcome = self.settle_estate(ordinal, &leaving);
            for reply in leaving.replies {
                let answer = match &outcome {
                    Ok(()) => done(&format!("pod \"{}\" deleted", pod.spec().name)),
                    Err(error) => refused(format!("{error}: {}", causes(error))),
                };
                // Who no longer waits has no use for the answer.
                drop(reply.send(answer));
            }
        }
    }

    /// The volume and address of a pod that has gone.
    fn settle_estate(&mut self, ordinal: Ordinal, leaving: &Leaving) -> Result<(), DemoError> {
        let state = &mut self.prepared.state;
        let name = state.topology().pod_name(ordinal);
        if leaving.move_address {
            let taken: Vec<u8> = state.pods.iter().filter_map(last_byte).collect();
            let free = addresses::host_to_move_to(state.network, state.ports, &taken);
            let address = free.map(|host| state.network.host(host));
            if let (Some(address), Some(pod)) =
                (address, state.pods.iter_mut().find(|pod| pod.ordinal == ordinal))
            {
                pod.address = address;
            }
        }
        let end = Ordinal(state.first_ordinal.0 + state.replicas);
        state.pods.retain(|pod| pod.ordinal != ordinal || ordinal < end);
        self.publish()?;
        if leaving.wipe_volume {
            let layout = self.prepared.layout.clone();
            layout.wipe_volume(&name)?;
            // What cannot be removed now is tried again with the next volume.
            tokio::task::spawn_blocking(move || drop(layout.empty_trash()));
        }
        Ok(())
    }

    /// Scale-down: the highest ordinal first, the next when that is gone.
    fn remove_the_surplus(&mut self) {
        let end = Ordinal(self.prepared.state.first_ordinal.0 + self.prepared.state.replicas);
        if let Some((_, pod)) = self.pods.range(end..).next_back() {
            pod.terminate(Termination::Graceful);
        }
    }

    fn make_the_missing(&mut self) -> Result<(), DemoError> {
        let first = self.prepared.state.first_ordinal.0;
        for ordinal in (first..first + self.prepared.state.replicas).map(Ordinal) {
            if !self.pods.contains_key(&ordinal) {
                self.make(ordinal)?;
            }
            let ordered = self.ordered();
            if ordered && !self.pods.get(&ordinal).is_some_and(Pod::ready) {
                break;
            }
        }
        Ok(())
    }

    fn make(&mut self, ordinal: Ordinal) -> Result<(), DemoError> {
        let prepared = &mut self.prepared;
        if prepared.state.pod(ordinal).is_none() {
            let pod = setup::new_pod(&prepared.state, ordinal);
            prepared.state.pods.push(pod);
            prepared.state.pods.sort_by_key(|pod| pod.ordinal);
        }
        let Some(pod) = prepared.state.pod(ordinal).cloned() else {
            return Ok(());
        };
        prepared.layout.make_pod(&pod.name)?;
        let uid = new_uid();
        let spec = PodSpec {
            environment: setup::environment(
                &prepared.state,
                &pod,
                &uid,
                &prepared.layout,
                &self.options.environment,
            ),
            directory: prepared.layout.pod(&pod.name),
            volume: prepared.layout.volume(&pod.name),
            address: pod.address,
            http_port: prepared.state.ports.http,
            program: prepared.program.clone(),
            user: prepared.state.user.clone(),
            grace: self.options.grace,
            name: pod.name,
            ordinal,
            uid,
        };
        self.around
            .events
            .change(&spec.name, &format!("created with address {}", spec.address));
        self.pods.insert(ordinal, Pod::start(spec, self.around.clone()));
        self.publish()
    }

    /// DNS and `demo.json` say what is.
    pub(super) fn publish(&self) -> Result<(), DemoError> {
        let addresses = self
            .pods
            .values()
            .map(|pod| (pod.spec().ordinal, pod.spec().address))
            .collect();
        self.prepared
            .zone
            .set_pods(&addresses)
            .map_err(|error| DemoError::Process {
                action: "put the pods into DNS",
                source: std::io::Error::other(error),
            })?;
        self.prepared.state.save(self.prepared.layout.directory())
    }

    pub(super) fn all_ready(&self) -> bool {
        self.pods.len() == self.prepared.state.replicas as usize
            && self
                .pods
                .values()
                .all(|pod| pod.phase() == Phase::Running && pod.ready())
    }

    /// Standbys first, so that the primary has nobody left to wait for; no pod may be frozen for this.
    /// With a Lease any pod may be the primary that the others need to become ready.
    fn ordered(&self) -> bool {
        let default = match self.prepared.state.leadership {
            Leadership::Fixed => PodManagement::OrderedReady,
            Leadership::Lease => PodManagement::Parallel,
        };
        self.options.pod_management.unwrap_or(default) == PodManagement::OrderedReady
    }

    async fn end_all(&mut self) {
        let mut primaries = Vec::new();
        for (ordinal, pod) in &self.pods {
            if pod.frozen() {
                pod.thaw();
            }
            if pod.primary(ROLE_TIMEOUT).await {
                primaries.push(*ordinal);
            }
        }
        let standbys = |ordinal: &Ordinal| !primaries.contains(ordinal);
        self.end_those(|ordinal| standbys(ordinal)).await;
        self.end_those(|_| true).await;
    }

    async fn end_those(&mut self, which: impl Fn(&Ordinal) -> bool) {
        let leaving = || {
            self.pods
                .iter()
                .filter(|(ordinal, _)| which(ordinal))
                .map(|(_, pod)| pod)
        };
        leaving()
            .rev()
            .for_each(|pod| pod.terminate(Termination::Graceful));
        while leaving().any(|pod| pod.phase() != Phase::Gone) {
            self.around.changed.notified().await;
        }
    }

    async fn kill_all(&mut self) {
        self.pods
            .values()
            .for_each(|pod| pod.terminate(Termination::Forced));
        while self.pods.values().any(|pod| pod.phase() != Phase::Gone) {
            self.around.changed.notified().await;
        }
    }

    async fn clean_up(self) -> Result<(), DemoError> {
        self.prepared.server.close().await;
        if let Some(api) = self.prepared.api {
            api.shutdown().await;
        }
        let layout = self.prepared.layout;
        if self.prepared.temporary {
            layout.remove_all()
        } else {
            layout.remove_sockets()
        }
    }
}

fn last_byte(pod: &PodState) -> Option<u8> {
    match pod.address {
        std::net::IpAddr::V4(address) => Some(address.octets()[3]),
        std::net::IpAddr::V6(_) => None,
    }
}

/// In the shape of a UUID, as a pod's UID is.
fn new_uid() -> String {
    let (high, low) = (fastrand::u64(..), fastrand::u64(..));
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        0x8000 | ((low >> 48) & 0x3fff),
        low & 0xffff_ffff_ffff,
    )
}

/// What lies behind an error, one after the other.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let text: Vec<String> = causes::causes(error).map(ToString::to_string).collect();
    text.join(": ")
}
