//! The cluster that KUBECONFIG names: its client, its version, the images that are to be used.

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client};
use tokio::runtime::Runtime;

/// Whatever these tests make lies in a namespace with this label.
const OURS: &str = "podgres.dev/test=kubernetes";
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

pub(crate) struct World {
    pub(crate) runtime: Runtime,
    pub(crate) client: Client,
    /// Asks once: the other one tries a 503 again, which may be the answer that is waited for, of a pod behind the API server.
    pub(crate) asks_once: Client,
    /// Of Kubernetes 1.x.
    pub(crate) minor: u32,
}

/// The image under test, PostgreSQL's, and the examples'.
pub(crate) fn image(variable: &str, default: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| default.to_owned())
}

impl World {
    /// Panics where no cluster answers. What an earlier run has left is removed.
    pub(crate) fn open() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (client, asks_once, version) = runtime.block_on(async {
            let hint = "no Kubernetes cluster answers: KUBECONFIG must name one";
            let client = Client::try_default().await.expect(hint);
            let asked = tokio::time::timeout(ANSWER_LIMIT, client.apiserver_version());
            let mut once = kube::Config::infer().await.expect(hint);
            once.default_retry = false;
            let once = Client::try_from(once).expect("a client");
            (client.clone(), once, asked.await.expect(hint).expect(hint))
        });
        println!("Kubernetes {}", version.git_version);
        let digits: String = version.minor.chars().take_while(char::is_ascii_digit).collect();
        let world = Self {
            runtime,
            client,
            asks_once,
            minor: digits.parse().expect("a version"),
        };
        world.remove_leftovers();
        world
    }

    pub(crate) fn namespaces(&self) -> Api<Namespace> {
        Api::all(self.client.clone())
    }

    /// Runs one request to its end.
    pub(crate) fn now<T>(&self, request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
        self.runtime.block_on(async {
            let answer = tokio::time::timeout(ANSWER_LIMIT, request);
            answer
                .await
                .unwrap_or_else(|_| Err(kube::Error::Service("no answer in time".into())))
        })
    }

    /// Their names are never used again: nobody waits for their end. Young ones may be another run's.
    fn remove_leftovers(&self) {
        let ours = ListParams::default().labels(OURS);
        let found = self.now(self.namespaces().list(&ours)).expect("namespaces").items;
        let hour_ago = Timestamp::now() - SignedDuration::from_hours(1);
        let old = |namespace: &Namespace| {
            let made = namespace.metadata.creation_timestamp.as_ref();
            made.is_some_and(|made| made.0 < hour_ago)
        };
        for name in found
            .into_iter()
            .filter(old)
            .filter_map(|namespace| namespace.metadata.name)
        {
            // One that is going already is refused.
            drop(self.now(self.namespaces().delete(&name, &DeleteParams::default())));
        }
    }
}
