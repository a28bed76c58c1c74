//! A pod's label and Events, as they leave: the demo's server has no pods, and that must not matter either.

use std::time::{Duration, Instant};

use podgres::core::lease::Identity;
use podgres::kube::ApiClient;
use podgres::kube::pod::{EventKind, PodReporter};
use serde_json::{Value, json};

use super::harness::{demo, identity, places};
use super::relay::{Fault, Relay};

#[tokio::test]
async fn a_label_and_an_event_name_the_pod_and_no_failure_holds_anything_up() {
    let place = demo().await;
    let relay = Relay::start(place.server.as_ref().expect("a server").address()).await;
    let reporter = PodReporter::new(relay.reach(), "prod", identity(2));
    // The demo's server has no pods.
    assert!(!reporter.label_pod(Some("primary")).await);
    assert!(!reporter.label_pod(None).await);
    reporter
        .emit_event(EventKind::Warning, "Promoted", &"é".repeat(1_000))
        .await;
    let requests = relay.requests();
    let body = |at: usize| serde_json::from_str::<Value>(&requests[at].2).expect("JSON");
    for (at, role) in [(0, json!("primary")), (1, Value::Null)] {
        assert_eq!(
            (requests[at].0.as_str(), requests[at].1.as_str()),
            ("PATCH", "/api/v1/namespaces/prod/pods/pg-2")
        );
        assert_eq!(
            body(at),
            json!({"metadata": {"uid": "uid-2", "labels": {"podgres.dev/role": role}}})
        );
    }
    assert_eq!(requests[2].1, "/apis/events.k8s.io/v1/namespaces/prod/events");
    let event = body(2);
    assert_eq!(event["regarding"]["uid"], "uid-2");
    assert_eq!(
        (&event["type"], &event["reason"]),
        (&json!("Warning"), &json!("Promoted"))
    );
    assert_eq!(event["note"].as_str().map(str::len), Some(1_024));
    relay.fault(None, Fault::Swallow, 1);
    let begun = Instant::now();
    assert!(!reporter.label_pod(Some("standby")).await);
    assert!(
        (2..4).contains(&begun.elapsed().as_secs()),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_real_server_takes_both() {
    // The demo's server has no pods: nothing to try there beyond what leaves, above.
    for place in places().await.into_iter().filter(|place| place.server.is_none()) {
        let client = ApiClient::new(place.reach.clone(), Duration::from_secs(10));
        let pods = format!("/api/v1/namespaces/{}/pods", place.namespace);
        let pod = json!({
            "metadata": {"name": place.name},
            "spec": {
                "nodeSelector": {"podgres.dev/none": "none"},
                "containers": [{"name": "none", "image": "none"}],
            },
        });
        let made = client
            .request("POST", &pods, "application/json", Some(&pod))
            .await
            .expect("an answer");
        assert_eq!(made.status, 201, "{}", made.body);
        let uid = made.body["metadata"]["uid"].as_str().expect("a UID");
        let reporter = |uid: &str| {
            let pod = Identity {
                pod: place.name.clone(),
                uid: uid.to_owned(),
            };
            PodReporter::new(place.reach.clone(), &place.namespace, pod)
        };
        reporter(uid).label_pod(Some("standby")).await;
        reporter("of-another").label_pod(Some("primary")).await;
        reporter(uid)
            .emit_event(EventKind::Normal, "Tried", "It was tried.")
            .await;
        let path = format!("{pods}/{}", place.name);
        let labelled = client
            .request("GET", &path, "application/json", None)
            .await
            .expect("an answer");
        assert_eq!(labelled.body["metadata"]["labels"]["podgres.dev/role"], "standby");
        let events = format!(
            "/api/v1/namespaces/{}/events?fieldSelector=involvedObject.uid%3D{uid}",
            place.namespace
        );
        let events = client
            .request("GET", &events, "application/json", None)
            .await
            .expect("an answer");
        let tried = |event: &Value| event["reason"] == "Tried" && event["message"] == "It was tried.";
        assert!(
            events.body["items"].as_array().expect("events").iter().any(tried),
            "{}",
            events.body
        );
        let deleted = client
            .request("DELETE", &path, "application/json", None)
            .await
            .expect("an answer");
        assert_eq!(deleted.status, 200);
    }
}
