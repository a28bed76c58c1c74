//! What the controller does about each request that comes over the control socket.

use tokio::sync::oneshot;

use super::control::{DemoStatus, PodStatus, Reply, Request, done, refused};
use super::controller::{Controller, causes};
use super::pod::{Pod, Termination};
use super::{DemoError, setup};
use crate::core::member::Ordinal;

impl Controller {
    /// Does it, and answers, now or when the pod that it is about has gone.
    pub(super) async fn handle(&mut self, request: Request, reply: oneshot::Sender<Reply>) {
        let answer = match request {
            Request::Scale { replicas } => self.scale(replicas),
            Request::DeletePod {
                ordinal,
                force,
                wipe_volume,
                move_address,
            } => {
                let Some(pod) = self.pods.get(&ordinal) else {
                    return drop(reply.send(self.no_pod(ordinal)));
                };
                pod.terminate(if force {
                    Termination::Forced
                } else {
                    Termination::Graceful
                });
                let leaving = self.leaving.entry(ordinal).or_default();
                leaving.wipe_volume |= wipe_volume;
                leaving.move_address |= move_address;
                leaving.replies.push(reply);
                return;
            }
            Request::Freeze { ordinal } => match self.pods.get(&ordinal) {
                Some(pod) => done(&format!("{} processes stopped", pod.freeze().await)),
                None => self.no_pod(ordinal),
            },
            Request::Thaw { ordinal } => match self.pods.get(&ordinal) {
                Some(pod) => done(&format!("{} processes continued", pod.thaw())),
                None => self.no_pod(ordinal),
            },
            Request::Api { up } => self.api(up).await,
            Request::Status => Reply::Status(self.status()),
            Request::Stop => refused("the demo is stopping".to_owned()),
        };
        // Who no longer waits has no use for the answer.
        drop(reply.send(answer));
    }

    async fn api(&mut self, up: bool) -> Reply {
        let Some(server) = &mut self.prepared.api else {
            return refused("this demo has no API server: its primary is fixed".to_owned());
        };
        if !up {
            server.down().await;
            return done("the API server is down");
        }
        match server.up().await {
            Ok(()) => done("the API server is up"),
            Err(error) => refused(format!("could not listen on {}: {error}", server.address())),
        }
    }

    fn scale(&mut self, replicas: u32) -> Reply {
        let state = &mut self.prepared.state;
        if let Err(error) = setup::check_replicas(&state.topology(), replicas) {
            return refused(error.to_string());
        }
        let earlier = std::mem::replace(&mut state.replicas, replicas);
        let end = Ordinal(state.first_ordinal.0 + replicas);
        state
            .pods
            .retain(|pod| pod.ordinal < end || self.pods.contains_key(&pod.ordinal));
        match self.publish() {
            Ok(()) => done(&format!("scaled from {earlier} to {replicas} replicas")),
            Err(error) => refused(format!("{error}: {}", causes(&error))),
        }
    }

    fn no_pod(&self, ordinal: Ordinal) -> Reply {
        refused(DemoError::no_pod(&self.prepared.state, ordinal).to_string())
    }

    fn status(&self) -> DemoStatus {
        DemoStatus {
            cluster: self.prepared.state.cluster.clone(),
            replicas: self.prepared.state.replicas,
            settled: self.all_ready(),
            pods: self.pods.values().map(pod_status).collect(),
        }
    }
}

fn pod_status(pod: &Pod) -> PodStatus {
    let spec = pod.spec();
    PodStatus {
        name: spec.name.clone(),
        ordinal: spec.ordinal,
        uid: spec.uid.clone(),
        address: spec.address,
        phase: pod.phase(),
        ready: pod.ready(),
        frozen: pod.frozen(),
        pids: pod.pids().into_iter().collect(),
        restarts: pod.restarts().into_iter().collect(),
    }
}
