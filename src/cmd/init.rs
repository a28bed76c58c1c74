//! `podgres init`: a supervisor and the agent's loop in one process, until the data directory is ready.

use std::time::Duration;

use clap::Args;

use crate::agent::{self, Agent, Outcome, Until};
use crate::config::pod::PodArguments;
use crate::config::server::ServerArguments;
use crate::config::units;
use crate::core::decision::Decision;
use crate::core::situation::Situation;
use crate::core::supervision::FailureKind;
use crate::supervisor::{self, SupervisorOptions};

use super::serve::{http_listeners, serve_http, server_tls};
use super::sidecar::agent_failure;
use super::{ExitStatus, Failure, wiring};

const SOCKET_NAME: &str = "init.sock";

#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pub pod: PodArguments,
    #[command(flatten)]
    pub server: ServerArguments,
    /// Give up after this long, with exit code 69
    #[arg(long, env = "PODGRES_INIT_TIMEOUT", value_parser = units::duration, default_value = "1h")]
    pub init_timeout: Duration,
}

/// Ends when PostgreSQL could be started, or with the reason why it must not be.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let pod = arguments.pod.resolve()?;
    wiring::refuse_root()?;
    wiring::prepare_run_directory(&pod)?;
    let server = wiring::server_settings(&pod, &arguments.server).await?;
    let tls = server.tls.clone();
    let shown = server_tls(tls.as_deref())?;
    // Its own: a sidecar that already runs must not command what this process does.
    let socket = pod.arguments.run_dir.join(SOCKET_NAME);
    let (agent, published) = Agent::start(agent::Settings {
        supervisor_socket: socket.clone(),
        ..wiring::agent_settings(&pod, tls)
    })
    .map_err(|error| agent_failure(&error))?;
    // Peers that come up ask whether there is data here. A sidecar that already listens answers for this pod.
    let http = http_listeners(&pod, &pod.arguments.run_dir, shown.as_ref()).await;
    tokio::spawn({
        let (pod, published, server) = (pod.clone(), published.clone(), arguments.server.clone());
        async move {
            match http {
                Ok(listeners) => serve_http(listeners, &pod, &server, &published, Vec::new()).await,
                Err(error) => tracing::debug!(%error, "somebody else answers for this pod"),
            }
        }
    });
    supervisor::stop_on_panic();
    let options = SupervisorOptions {
        socket: Some(socket),
        ..wiring::supervisor_options()
    };
    tokio::select! {
        ended = supervisor::run(server, options) => match ended {
            Ok(_) => Err(Failure::new(ExitStatus::Overdue, "ended by a signal before the data directory was ready")),
            Err(error) => Err(wiring::supervisor_failure(&error)),
        },
        outcome = agent.run(Until::DirectoryReady) => judge(outcome),
        () = tokio::time::sleep(arguments.init_timeout) => {
            let view = published.view.borrow().clone();
            Err(Failure::new(ExitStatus::Overdue, format!("the data directory was not ready in time: {}", view.me.message)))
        }
    }
}

fn judge(outcome: Outcome) -> Result<(), Failure> {
    match outcome {
        Outcome::Ready(decision) => {
            tracing::info!(
                situation = decision.situation.name(),
                detail = decision.detail,
                "init is done"
            );
            Ok(())
        }
        Outcome::Refused(decision, FailureKind::Settings) => Err(failure(ExitStatus::Settings, &decision)),
        Outcome::Refused(decision, FailureKind::Permission) => {
            Err(failure(ExitStatus::Permission, &decision))
        }
        Outcome::Refused(decision, FailureKind::Data | FailureKind::Passing) => {
            Err(failure(ExitStatus::Refused, &decision))
        }
        Outcome::Overdue(decision) => Err(failure(ExitStatus::Overdue, &decision)),
    }
}

fn failure(status: ExitStatus, decision: &Decision) -> Failure {
    let failure = Failure::new(status, decision.situation.sentence()).detail(decision.detail.clone());
    match hint(decision.situation) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// What the operator can do about a refusal.
fn hint(situation: Situation) -> Option<&'static str> {
    Some(match situation {
        Situation::PeerHoldsData => {
            "Bring this ordinal's volume back. Only if the peers' data are of no use: set PODGRES_NEW_CLUSTER=true once."
        }
        Situation::PeersUnreachable => {
            "Is the peer's node cut off? This pod goes on as soon as every peer that DNS names answers."
        }
        Situation::ForeignDataDirectory => {
            "Another cluster's volume is mounted here. Remove it, or give this pod an empty one."
        }
        Situation::Restored => {
            "Are the volumes of all other members lost? Then delete the Lease, and this is the cluster. Else give this pod an empty volume."
        }
        Situation::UnusableDataDirectory => {
            "Look at PGDATA by hand; podgres does not remove what it did not make."
        }
        Situation::WasWritable => {
            "Keep its volume if it may hold rows that the primary lacks; with an empty volume this pod clones the primary."
        }
        Situation::AheadOfPrimary => {
            "Was the first ordinal's volume set back? Keep this copy; it may be the only one with the newest rows."
        }
        Situation::FirstHoldsStandby => {
            "Is the first ordinal's volume mounted here? If this copy is to be the primary, remove standby.signal by hand."
        }
        Situation::FirstBehindPeer | Situation::AnotherPrimary => {
            "Another member was promoted. Decide by hand which one is right before anything is started."
        }
        Situation::WrongMajorVersion => {
            "Use the image of the version that made the directory, or pg_upgrade."
        }
        _ => return None,
    })
}
