//! What others may see of a pod: its role as a label, and Events. Both are opt-ins (rights on pods: patch, on events:
//! create), and neither has a say in what podgres does: a failure is logged and that is all.
//!
//! Sources: `v1` Pod; `events.k8s.io/v1` Event, since Kubernetes 1.19.

use std::time::Duration;

use serde_json::{Value, json};

use super::client::ApiClient;
use super::{API_DECIMALS, PREFIX, Reach, timestamp};
use crate::core::lease::Identity;

/// Nobody waits for these.
const LIMIT: Duration = Duration::from_secs(2);
/// Of an Event's note, by the API.
const NOTE_LIMIT_BYTES: usize = 1_024;

/// Whether an Event needs somebody's attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Normal,
    Warning,
}

/// Reports on one pod, usually one's own.
pub struct PodReporter {
    client: ApiClient,
    namespace: String,
    pod: Identity,
}

/// What is done, in words, and as rights have it.
struct Asked {
    action: &'static str,
    verb: &'static str,
    objects: &'static str,
}

impl Asked {
    fn hint(&self) -> String {
        format!(
            "Grant the verb \"{}\" on {} to this pod's service account.",
            self.verb, self.objects
        )
    }
}

impl PodReporter {
    /// Makes no connection yet.
    #[must_use]
    pub fn new(reach: Reach, namespace: &str, pod: Identity) -> Self {
        Self {
            client: ApiClient::new(reach, LIMIT),
            namespace: namespace.to_owned(),
            pod,
        }
    }

    /// Sets the label `podgres.dev/role`; `None` removes it. Only on the pod of this UID, not on one that came after it. False if
    /// that could not be done.
    pub async fn label_pod(&self, role: Option<&str>) -> bool {
        let path = format!("/api/v1/namespaces/{}/pods/{}", self.namespace, self.pod.pod);
        let key = format!("{PREFIX}role");
        let patch = json!({"metadata": {"uid": self.pod.uid, "labels": {key: role}}});
        let asked = Asked {
            action: "label",
            verb: "patch",
            objects: "\"pods\"",
        };
        self.send(&asked, "PATCH", &path, "application/merge-patch+json", &patch)
            .await
    }

    /// Emits an Event about the pod. `reason` is one word for programs, `note` a sentence for people. False if that could not be done.
    pub async fn emit_event(&self, kind: EventKind, reason: &str, note: &str) -> bool {
        let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", self.namespace);
        let event = json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            // As client-go names them.
            "metadata": {"name": format!("{}.{:016x}", self.pod.pod, fastrand::u64(..)), "namespace": self.namespace},
            "eventTime": timestamp(API_DECIMALS),
            "type": match kind {
                EventKind::Normal => "Normal",
                EventKind::Warning => "Warning",
            },
            "reason": reason,
            "action": reason,
            "note": &note[..note.floor_char_boundary(NOTE_LIMIT_BYTES)],
            "reportingController": format!("{PREFIX}podgres"),
            "reportingInstance": self.pod.pod,
            "regarding": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": self.pod.pod,
                "namespace": self.namespace,
                "uid": self.pod.uid,
            },
        });
        let asked = Asked {
            action: "emit an event about",
            verb: "create",
            objects: "\"events\" in the API group \"events.k8s.io\"",
        };
        self.send(&asked, "POST", &path, "application/json", &event).await
    }

    async fn send(&self, asked: &Asked, method: &str, path: &str, content_type: &str, body: &Value) -> bool {
        let (pod, action) = (&self.pod.pod, asked.action);
        match self.client.request(method, path, content_type, Some(body)).await {
            Ok(answer) if answer.status < 300 => return true,
            Ok(answer) => {
                let message = answer.body["message"].as_str().unwrap_or("no reason given");
                let hint = (answer.status == 403).then(|| asked.hint());
                tracing::warn!(
                    hint,
                    "could not {action} pod \"{pod}\" ({}): {message}",
                    answer.status
                );
            }
            Err(failure) => tracing::warn!("could not {action} pod \"{pod}\": {failure}"),
        }
        false
    }
}
