//! The API's verbs on one Lease. Each is one request, and its errors name the verb that it needs.

use serde_json::Value;

use super::client::{Answer, ApiClient, Lines};
use super::error::{Failure, LeaseError, LeaseName};

const GROUP: &str = "/apis/coordination.k8s.io/v1/namespaces";

/// One Lease at one API server.
pub(super) struct LeaseApi {
    pub(super) client: ApiClient,
    pub(super) lease: LeaseName,
}

/// What a read gave.
pub(super) struct Read {
    pub(super) object: Option<Value>,
    /// Of the list: a watch from here misses nothing.
    pub(super) position: Option<String>,
    pub(super) sent_at_ms: u64,
}

impl LeaseApi {
    fn path(&self) -> String {
        format!("{GROUP}/{}/leases", self.lease.namespace)
    }

    fn selected(&self) -> String {
        format!(
            "{}?fieldSelector=metadata.name%3D{}",
            self.path(),
            self.lease.name
        )
    }

    /// Reads it, missing or not, and where a watch has to begin.
    pub(super) async fn list(&self) -> Result<Read, LeaseError> {
        let answer = self.ask("list", "GET", &self.selected(), None).await?;
        let position = answer.body["metadata"]["resourceVersion"]
            .as_str()
            .map(str::to_owned);
        let items = answer.body["items"].as_array();
        if position.is_none() {
            return Err(self.refused("list", &answer, "the answer is not a list".to_owned()));
        }
        let object = items
            .into_iter()
            .flatten()
            .find(|item| self.is_ours(item))
            .cloned();
        Ok(Read {
            object,
            position,
            sent_at_ms: answer.sent_at_ms,
        })
    }

    /// Reads it.
    pub(super) async fn get(&self) -> Result<Read, LeaseError> {
        let path = format!("{}/{}", self.path(), self.lease.name);
        let answer = self.answer("get", "GET", &path, None).await?;
        // A server that does not know the path says 404 too, but not in these words.
        let missing = answer.status == 404 && answer.body["reason"] == "NotFound";
        let sent_at_ms = answer.sent_at_ms;
        let object = if missing {
            None
        } else {
            Some(self.accepted("get", answer)?.body)
        };
        Ok(Read {
            object,
            position: None,
            sent_at_ms,
        })
    }

    /// Creates or replaces it: `object` names the version that it replaces.
    pub(super) async fn put(&self, create: bool, object: &Value) -> Result<Answer, LeaseError> {
        if create {
            return self.ask("create", "POST", &self.path(), Some(object)).await;
        }
        let path = format!("{}/{}", self.path(), self.lease.name);
        self.ask("update", "PUT", &path, Some(object)).await
    }

    /// Follows it from a position, for at most `seconds`.
    pub(super) async fn watch(&self, position: &str, seconds: u64) -> Result<Lines, LeaseError> {
        let path = format!(
            "{}&watch=1&allowWatchBookmarks=true&resourceVersion={position}&timeoutSeconds={seconds}",
            self.selected()
        );
        let opened = self.client.lines(&path).await;
        match opened.map_err(|failure| self.no_answer("watch", failure))? {
            Ok(lines) => Ok(lines),
            Err(answer) => Err(self.refused("watch", &answer, reason(&answer))),
        }
    }

    /// An object of our name, as far as the server's selection is not trusted.
    pub(super) fn is_ours(&self, object: &Value) -> bool {
        object["metadata"]["name"].as_str() == Some(self.lease.name.as_str())
    }

    async fn ask(
        &self,
        verb: &'static str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, LeaseError> {
        let answer = self.answer(verb, method, path, body).await?;
        self.accepted(verb, answer)
    }

    async fn answer(
        &self,
        verb: &'static str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, LeaseError> {
        self.client
            .request(method, path, "application/json", body)
            .await
            .map_err(|failure| self.no_answer(verb, failure))
    }

    fn accepted(&self, verb: &'static str, answer: Answer) -> Result<Answer, LeaseError> {
        match answer.status {
            200..=299 if answer.body.is_object() => Ok(answer),
            200..=299 => Err(self.no_answer(verb, Failure::Lost("the answer is not an object".to_owned()))),
            _ => Err(self.refused(verb, &answer, reason(&answer))),
        }
    }

    pub(super) fn no_answer(&self, verb: &'static str, failure: Failure) -> LeaseError {
        LeaseError::NoAnswer {
            verb,
            lease: self.lease.clone(),
            failure,
        }
    }

    pub(super) fn refused(&self, verb: &'static str, answer: &Answer, reason: String) -> LeaseError {
        LeaseError::Refused {
            verb,
            lease: self.lease.clone(),
            status: answer.status,
            reason,
            retry_after: answer.retry_after,
        }
    }
}

/// The server's own words, behind ours for what is usual.
fn reason(answer: &Answer) -> String {
    let usual = match answer.status {
        401 => "the API server does not know who asks",
        403 => "permission denied",
        404 => "not found",
        409 => "conflict",
        410 => "the version is too old",
        429 => "the API server has too many requests",
        500.. => "the API server failed",
        _ => "the API server refused",
    };
    match answer.body["message"].as_str() {
        Some(message) => format!("{usual} ({}): {message}", answer.status),
        None => format!("{usual} ({})", answer.status),
    }
}
