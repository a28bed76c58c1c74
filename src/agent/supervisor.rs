//! Follows the supervisor: one long poll after another, the newest status in a watch.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::core::supervision::{SupervisorReply, SupervisorRequest, SupervisorStatus};
use crate::core::units::milliseconds;
use crate::supervisor_client::{SupervisorClient, SupervisorClientError};
use crate::watched;

const POLL_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// While nobody answers: short at first, since the supervisor is usually about to listen.
const FIRST_RETRY_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_RETRY_PAUSE: Duration = Duration::from_millis(200);

const SAME_USER: &str =
    "give all containers of the pod the same securityContext.runAsUser, or the pod an fsGroup";

/// The supervisor's newest status, and the way to ask it for something.
pub(super) struct Supervisor {
    client: Arc<SupervisorClient>,
    status: watch::Sender<Option<SupervisorStatus>>,
    /// Why it could not be asked; `None` since it answered.
    error: watch::Sender<Option<String>>,
}

impl Supervisor {
    /// Starts to follow; the task ends with the process.
    pub(super) fn follow(socket: PathBuf) -> Self {
        let client = Arc::new(SupervisorClient::new(socket));
        let (status, _) = watch::channel(None);
        let (error, _) = watch::channel(None);
        tokio::spawn(poll(Arc::clone(&client), status.clone(), error.clone()));
        Self {
            client,
            status,
            error,
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<SupervisorStatus>> {
        self.status.subscribe()
    }

    /// Why it cannot be asked now, with its causes; `None` while it answers.
    pub(super) fn last_error(&self) -> Option<String> {
        self.error.borrow().clone()
    }

    /// Asks for something; the reply's status counts at once, so that nothing is asked for twice.
    pub(super) async fn request(&self, request: SupervisorRequest) -> Result<(), SupervisorClientError> {
        if let SupervisorReply::Status(status) = self.client.request(request, REQUEST_TIMEOUT).await? {
            note(&self.status, *status);
        }
        Ok(())
    }
}

async fn poll(
    client: Arc<SupervisorClient>,
    sender: watch::Sender<Option<SupervisorStatus>>,
    last_error: watch::Sender<Option<String>>,
) {
    let mut pause = FIRST_RETRY_PAUSE;
    loop {
        let known = sender.borrow().as_ref().map(|status| status.version);
        let timeout_ms = milliseconds(POLL_TIMEOUT);
        let request = known.map_or(SupervisorRequest::Status, |version| SupervisorRequest::Wait {
            version,
            timeout_ms,
        });
        match client.request(request, POLL_TIMEOUT + REQUEST_TIMEOUT).await {
            Ok(SupervisorReply::Status(status)) => {
                pause = FIRST_RETRY_PAUSE;
                last_error.send_if_modified(|known| known.take().is_some());
                note(&sender, *status);
            }
            reply => {
                if let Err(error) = reply {
                    note_error(&last_error, &error);
                }
                sender.send_if_modified(|status| status.take().is_some());
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_RETRY_PAUSE);
            }
        }
    }
}

/// Warns of each new error but that nobody listens yet, which is how every pod begins.
fn note_error(last_error: &watch::Sender<Option<String>>, error: &SupervisorClientError) {
    let text = match error {
        SupervisorClientError::NotReachable { source, .. } => format!("{error}: {source}"),
        other => other.to_string(),
    };
    if !watched::set(last_error, Some(text.clone())) {
        return;
    }
    match error {
        SupervisorClientError::NotReachable { source, .. }
            if source.kind() == ErrorKind::PermissionDenied =>
        {
            tracing::warn!(hint = SAME_USER, "{text}");
        }
        SupervisorClientError::NotReachable { .. } => tracing::debug!("{text}"),
        _ => tracing::warn!("{text}"),
    }
}

/// Replies cross on two connections: an older version of the same supervisor never replaces a newer one.
fn note(sender: &watch::Sender<Option<SupervisorStatus>>, status: SupervisorStatus) {
    sender.send_if_modified(|known| {
        let older = known
            .as_ref()
            .is_some_and(|known| known.pid == status.pid && known.version > status.version);
        if older || known.as_ref() == Some(&status) {
            return false;
        }
        *known = Some(status);
        true
    });
}
