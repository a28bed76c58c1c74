//! EndpointSlices of `discovery.k8s.io/v1` (Kubernetes 1.21 and later): read, and changed by compare-and-swap.
//!
//! Never made and never deleted: they come with the manifests, so that no right is needed beyond two verbs on their names.
//! Nothing is touched but the endpoints and one annotation, which says whose term they are of.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Answer, ApiClient};
use super::error::Failure;
use super::{PREFIX, Reach};
use crate::core::routing::slice::Slice;

const GROUP: &str = "/apis/discovery.k8s.io/v1/namespaces";
/// Nobody waits for these.
const LIMIT: Duration = Duration::from_secs(2);

/// Why a slice is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum SliceError {
    #[error("could not {verb} endpointslice \"{name}\": {failure}")]
    NoAnswer {
        verb: &'static str,
        name: String,
        failure: Failure,
    },
    #[error("could not {verb} endpointslice \"{name}\" ({status}): {message}")]
    Refused {
        verb: &'static str,
        name: String,
        /// HTTP's.
        status: u16,
        message: String,
    },
    #[error("endpointslice \"{name}\" does not exist")]
    Missing { name: String },
    #[error("the Kubernetes API has no discovery.k8s.io/v1")]
    Unknown,
}

impl SliceError {
    /// Somebody else has changed it meanwhile: it is to be read again.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { status: 409, .. })
    }

    /// What the operator can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused {
                verb, status: 403, ..
            } => Some(format!(
                "Grant the verb \"{verb}\" on \"endpointslices\" in the API group \"discovery.k8s.io\" with that name to this pod's service account."
            )),
            Self::Missing { .. } => {
                Some("Apply it with its Service: k8s/components/endpoint-slices has both.".to_owned())
            }
            Self::Unknown => Some("It is there from Kubernetes 1.21 on.".to_owned()),
            Self::NoAnswer { .. } | Self::Refused { .. } => None,
        }
    }
}

/// A slice, as it was read or written last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSlice {
    pub version: String,
    pub slice: Slice,
    /// Of its addresses, which cannot be changed.
    pub ipv6: bool,
}

/// The slices of one namespace.
pub struct SliceApi {
    client: ApiClient,
    namespace: String,
}

impl SliceApi {
    /// Makes no connection yet.
    #[must_use]
    pub fn new(reach: Reach, namespace: &str) -> Self {
        Self {
            client: ApiClient::new(reach, LIMIT),
            namespace: namespace.to_owned(),
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    pub async fn get(&self, name: &str) -> Result<StoredSlice, SliceError> {
        self.ask("get", "GET", name, None).await
    }

    /// Changes the one of that `version`; gives what is stored then.
    ///
    /// # Errors
    /// It has changed meanwhile, is not there any more, or cannot be written.
    pub async fn patch(&self, name: &str, version: &str, slice: &Slice) -> Result<StoredSlice, SliceError> {
        let endpoints = slice.endpoints.iter().map(|(pod, address)| {
            json!({
                "addresses": [address],
                "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "name": pod, "namespace": self.namespace},
            })
        });
        let endpoints: Vec<Value> = endpoints.collect();
        let patch = json!({
            "metadata": {"resourceVersion": version, "annotations": {term_key(): slice.term.to_string()}},
            "endpoints": endpoints,
        });
        self.ask("patch", "PATCH", name, Some(&patch)).await
    }

    async fn ask(
        &self,
        verb: &'static str,
        method: &str,
        name: &str,
        body: Option<&Value>,
    ) -> Result<StoredSlice, SliceError> {
        let path = format!("{GROUP}/{}/endpointslices/{name}", self.namespace);
        let asked = self
            .client
            .request(method, &path, "application/merge-patch+json", body);
        let name = name.to_owned();
        match asked.await {
            Err(failure) => Err(SliceError::NoAnswer { verb, name, failure }),
            Ok(answer) if answer.status < 300 => Ok(read(&answer.body)),
            Ok(answer) if answer.status == 404 && answer.body["reason"] == "NotFound" => {
                Err(SliceError::Missing { name })
            }
            // A server that does not know the path says 404 too, but not in these words.
            Ok(answer) if answer.status == 404 => Err(SliceError::Unknown),
            Ok(Answer { status, body, .. }) => Err(SliceError::Refused {
                verb,
                name,
                status,
                message: body["message"].as_str().unwrap_or("no reason given").to_owned(),
            }),
        }
    }
}

fn term_key() -> String {
    format!("{PREFIX}term")
}

fn read(object: &Value) -> StoredSlice {
    let metadata = &object["metadata"];
    let term = metadata["annotations"][term_key()].as_str();
    let endpoints = object["endpoints"].as_array().into_iter().flatten();
    let named = endpoints.filter_map(|endpoint| {
        let address: IpAddr = endpoint["addresses"][0].as_str()?.parse().ok()?;
        Some((endpoint["targetRef"]["name"].as_str()?.to_owned(), address))
    });
    StoredSlice {
        version: metadata["resourceVersion"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        slice: Slice {
            term: term.and_then(|term| term.parse().ok()).unwrap_or_default(),
            endpoints: named.collect::<BTreeMap<_, _>>(),
        },
        ipv6: object["addressType"] == "IPv6",
    }
}
