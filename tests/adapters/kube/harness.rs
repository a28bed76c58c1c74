//! API servers to try the shipped client on: the demo's, and a real one where `PODGRES_TEST_KUBECONFIG` names it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use podgres::core::lease::{Durability, Identity, LeasePurpose, LeaseRecord, LeaseView, LeaseWrite};
use podgres::core::member::Ordinal;
use podgres::demo::api::ApiServer;
use podgres::kube::{ApiClient, LeaseSettings, LeaseStore, Reach};
use serde_json::Value;
use tokio::sync::watch;

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a test's Lease lives.
pub(crate) struct Place {
    /// Keeps the demo's server running.
    pub(crate) server: Option<ApiServer>,
    pub(crate) reach: Reach,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) _removal: Option<Removal>,
}

pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::from(([127, fastrand::u8(1..255), fastrand::u8(..), 1], 0))
}

/// A demo's server of the test's own.
pub(crate) async fn demo() -> Place {
    let server = ApiServer::start(loopback(), None).await.expect("a server");
    Place {
        reach: Reach::Url {
            url: server.url(),
            token_file: None,
        },
        server: Some(server),
        namespace: "prod".to_owned(),
        name: "pg".to_owned(),
        _removal: None,
    }
}

/// Every server there is to try.
pub(crate) async fn places() -> Vec<Place> {
    let mut places = vec![demo().await];
    if let Some(path) = std::env::var_os("PODGRES_TEST_KUBECONFIG") {
        let reach = Reach::Kubeconfig {
            path: PathBuf::from(path),
            context: None,
        };
        let namespace = std::env::var("PODGRES_TEST_NAMESPACE").unwrap_or("default".to_owned());
        let name = format!("podgres-test-{:08x}", fastrand::u32(..));
        places.push(Place {
            server: None,
            reach: reach.clone(),
            namespace: namespace.clone(),
            name: name.clone(),
            _removal: Some(Removal {
                reach,
                namespace,
                name,
            }),
        });
    }
    places
}

impl Place {
    pub(crate) fn settings(&self, pod: u32) -> LeaseSettings {
        LeaseSettings {
            reach: self.reach.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            identity: identity(pod),
            retry_period: Duration::from_secs(1),
            memory_file: None,
        }
    }

    pub(crate) fn store(&self, pod: u32) -> LeaseStore {
        LeaseStore::start(self.settings(pod))
    }

    /// Asks the server as some other tool would.
    pub(crate) async fn ask(&self, method: &str, name: &str, body: Option<&Value>) -> (u16, Value) {
        let client = ApiClient::new(self.reach.clone(), PATIENCE);
        let path = format!(
            "/apis/coordination.k8s.io/v1/namespaces/{}/leases{name}",
            self.namespace
        );
        let content_type = match method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        let answer = client
            .request(method, &path, content_type, body)
            .await
            .expect("an answer");
        (answer.status, answer.body)
    }

    pub(crate) async fn object(&self) -> Value {
        let (status, object) = self.ask("GET", &format!("/{}", self.name), None).await;
        assert_eq!(status, 200, "{object}");
        object
    }

    /// Changes the object behind podgres' back.
    pub(crate) async fn patch(&self, patch: &Value) -> Value {
        let (status, object) = self.ask("PATCH", &format!("/{}", self.name), Some(patch)).await;
        assert_eq!(status, 200, "{object}");
        object
    }

    pub(crate) async fn delete(&self) {
        let (status, answer) = self.ask("DELETE", &format!("/{}", self.name), None).await;
        assert_eq!(status, 200, "{answer}");
    }
}

/// Deletes a test's Lease on a server that is not its own.
pub(crate) struct Removal {
    reach: Reach,
    namespace: String,
    name: String,
}

impl Drop for Removal {
    fn drop(&mut self) {
        let (reach, namespace, name) = (self.reach.clone(), self.namespace.clone(), self.name.clone());
        let deleting = std::thread::spawn(move || {
            let path = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}");
            let client = ApiClient::new(reach, PATIENCE);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let asked = async move { client.request("DELETE", &path, "application/json", None).await };
            runtime.map(|runtime| runtime.block_on(asked))
        });
        let deleted = matches!(deleting.join(), Ok(Ok(Ok(_))));
        assert!(
            deleted || std::thread::panicking(),
            "could not delete Lease \"{}\" of \"{}\"",
            self.name,
            self.namespace
        );
    }
}

pub(crate) fn identity(pod: u32) -> Identity {
    Identity {
        pod: format!("pg-{pod}"),
        uid: format!("uid-{pod}"),
    }
}

pub(crate) fn record(holder: Option<u32>, term: u64) -> LeaseRecord {
    LeaseRecord {
        holder: holder.map(identity),
        term,
        lease_duration_ms: 15_000,
        durability: Durability::Majority,
        members: vec![Ordinal(0), Ordinal(1), Ordinal(2)],
        ..LeaseRecord::default()
    }
}

pub(crate) async fn seen(
    mut view: watch::Receiver<LeaseView>,
    what: &str,
    is: impl FnMut(&LeaseView) -> bool,
) -> LeaseView {
    let last = view.clone();
    let found = tokio::time::timeout(PATIENCE, view.wait_for(is)).await;
    let Ok(found) = found else {
        panic!("{what} was not seen: {:?}", *last.borrow())
    };
    found.expect("a store").clone()
}

/// Writes and waits for the end, whatever it is.
pub(crate) async fn write(store: &LeaseStore, over: Option<String>, record: LeaseRecord) -> LeaseView {
    let begun = store.write(LeaseWrite {
        purpose: LeasePurpose::Claim,
        over,
        record: record.into(),
    });
    assert!(begun, "a write was under way");
    seen(store.view(), "the write's end", |view| !view.writing).await
}

/// Creates the Lease for a pod, which must succeed.
pub(crate) async fn claim(store: &LeaseStore, pod: u32) -> LeaseView {
    seen(store.view(), "that there is no lease", |view| view.missing).await;
    let view = write(store, None, record(Some(pod), 1)).await;
    assert_eq!(view.renewal.map(|renewal| renewal.term), Some(1), "{view:?}");
    view
}

/// Renews by the holder, which must succeed. The count of renewals is later than that of any write which may still land.
pub(crate) async fn renew(store: &LeaseStore) -> LeaseView {
    let stored = store.view().borrow().stored.clone().expect("a lease");
    let mut record = (*stored.record).clone();
    record.renewals += 1;
    let view = write(store, Some(stored.resource_version), record.clone()).await;
    assert_eq!(view.error, None);
    let found = &view.stored.as_ref().expect("a lease").record;
    assert!(found.renewals >= record.renewals, "{found:?}");
    record.renewals = found.renewals;
    assert_eq!(**found, record);
    view
}

pub(crate) fn version(view: &LeaseView) -> String {
    view.stored.as_ref().expect("a lease").resource_version.clone()
}
