//! What members show, by way of the Kubernetes API: for an operator who reaches that and no pod's network.

use std::time::Duration;

use serde_json::Value;

use crate::core::member::MemberName;
use crate::kube::{ApiClient, Reach};

use super::place::best;
use super::{ExitStatus, Failure};

const ASK_LIMIT: Duration = Duration::from_secs(5);
/// As the manifests name it.
const HTTP_PORT: u16 = 8008;

/// The pods of one cluster.
pub(super) struct PodPages {
    client: ApiClient,
    namespace: String,
    cluster: String,
}

impl PodPages {
    pub(super) fn new(reach: Reach, namespace: &str, cluster: &str) -> Self {
        Self {
            client: ApiClient::new(reach, ASK_LIMIT),
            namespace: namespace.to_owned(),
            cluster: cluster.to_owned(),
        }
    }

    /// What the named member, or the first one that answers, has at `path`.
    pub(super) async fn page(&self, member: Option<&str>, path: &str) -> Result<Value, Failure> {
        let pods = match member {
            Some(name) => vec![name.to_owned()],
            None => self.pods().await?,
        };
        if pods.is_empty() {
            let (cluster, namespace) = (&self.cluster, &self.namespace);
            let problem = format!("there is no pod of \"{cluster}\" in namespace \"{namespace}\"");
            return Err(Failure::new(ExitStatus::Settings, problem).hint("Give --namespace or --context."));
        }
        let asked = pods.into_iter().map(|pod| {
            let path = format!("{}/{pod}:{HTTP_PORT}/proxy{path}", self.folder());
            (pod, async move { self.get(&path).await })
        });
        best(asked).await.map(|(_, page)| page)
    }

    fn folder(&self) -> String {
        format!("/api/v1/namespaces/{}/pods", self.namespace)
    }

    async fn pods(&self) -> Result<Vec<String>, Failure> {
        let list = self.get(&self.folder()).await?;
        let ours = |pod: &Value| {
            let name = pod["metadata"]["name"].as_str()?;
            let member = MemberName::parse(name).ok()?;
            let serves = pod["status"]["phase"] == "Running" && member.cluster == self.cluster;
            serves.then(|| name.to_owned())
        };
        Ok(list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(ours)
            .collect())
    }

    async fn get(&self, path: &str) -> Result<Value, Failure> {
        let answer = self.client.request("GET", path, "application/json", None).await;
        let answer = answer.map_err(|error| Failure::from_error(ExitStatus::Overdue, &error))?;
        match answer.status {
            200 => Ok(answer.body),
            status => {
                let said = answer.body["message"]
                    .as_str()
                    .unwrap_or("no reason given")
                    .to_owned();
                let exit = if matches!(status, 401 | 403) {
                    ExitStatus::Permission
                } else {
                    ExitStatus::Overdue
                };
                Err(
                    Failure::new(exit, format!("the Kubernetes API answered with status {status}"))
                        .detail(said),
                )
            }
        }
    }
}
