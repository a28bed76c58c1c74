//! The demo's API server, as `kubectl` would use it.

use podgres::kube::{ApiClient, Reach};
use serde_json::Value;

use crate::harness::Demo;

pub(crate) struct Api {
    runtime: tokio::runtime::Runtime,
    client: ApiClient,
    namespace: String,
}

impl Api {
    pub(crate) fn of(demo: &Demo) -> Self {
        let reach = Reach::Kubeconfig {
            path: demo.directory.join("kubeconfig"),
            context: None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Self {
            runtime: runtime.expect("runtime"),
            client: ApiClient::new(reach, std::time::Duration::from_secs(5)),
            namespace: demo.deployed().namespace,
        }
    }

    /// `resource` is a group's, e.g. `coordination.k8s.io/v1/leases/demo`; expects to be obeyed.
    pub(crate) fn ask(&self, method: &str, resource: &str, body: Option<&Value>) -> Value {
        let mut parts = resource.splitn(3, '/');
        let (group, version) = (parts.next().expect("a group"), parts.next().expect("a version"));
        let path = format!(
            "/apis/{group}/{version}/namespaces/{}/{}",
            self.namespace,
            parts.next().expect("a resource")
        );
        let asked = self.client.request(method, &path, "application/json", body);
        let answer = self.runtime.block_on(asked).expect("an answer");
        assert!(answer.status < 300, "{}", answer.body);
        answer.body
    }
}
