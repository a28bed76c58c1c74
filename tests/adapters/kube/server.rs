//! The demo's API server by itself, and who one is to it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use podgres::demo::api::{ApiServer, write_kubeconfig};
use podgres::kube::{LeaseClient, LeaseStore, Reach};
use serde_json::json;

use super::harness::{Place, claim, demo, loopback, renew, seen};

#[tokio::test]
async fn leases_outlive_the_server_in_its_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("api.json");
    let mut versions = Vec::new();
    for run in 0..3 {
        let server = ApiServer::start(loopback(), Some(path.clone()))
            .await
            .expect("a server");
        let place = place_of(server, None);
        let store = place.store(0);
        if run == 0 {
            claim(&store, 0).await;
        }
        seen(store.view(), "the lease", |view| view.stored.is_some()).await;
        let renewed = renew(&store).await.stored.expect("a lease");
        assert_eq!(renewed.record.renewals, run + 1);
        versions.push(renewed.resource_version.parse::<u64>().expect("a number"));
        place.server.expect("a server").shutdown().await;
    }
    assert!(versions.is_sorted() && versions[0] < versions[2], "{versions:?}");
    std::fs::write(&path, "{").expect("written");
    assert!(
        ApiServer::start(loopback(), Some(path)).await.is_err(),
        "garbage was taken for no leases"
    );
}

fn place_of(server: ApiServer, token_file: Option<PathBuf>) -> Place {
    Place {
        reach: Reach::Url {
            url: server.url(),
            token_file,
        },
        server: Some(server),
        namespace: "prod".to_owned(),
        name: "pg".to_owned(),
        _removal: None,
    }
}

#[tokio::test]
async fn a_replaced_token_is_read_again_and_a_wrong_one_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let token_file = directory.path().join("token");
    std::fs::write(&token_file, "first").expect("written");
    let server = ApiServer::start(loopback(), None).await.expect("a server");
    server.require_token(Some("first"));
    let place = place_of(server, Some(token_file.clone()));
    let store = place.store(0);
    claim(&store, 0).await;
    let server = place.server.as_ref().expect("a server");
    server.require_token(Some("second"));
    std::fs::write(&token_file, "garb\nled").expect("written");
    store.nudge();
    seen(store.view(), "the bad token", |view| {
        view.error
            .as_ref()
            .is_some_and(|error| error.contains("invalid bearer token"))
    })
    .await;
    std::fs::write(&token_file, "second").expect("written");
    seen(store.view(), "the new token", |view| view.error.is_none()).await;
    std::fs::write(&token_file, "third").expect("written");
    server.require_token(Some("third"));
    let replaced_at = Instant::now();
    // At once and with no read between: the old token is refused, the file read, and the same write sent again.
    assert_eq!(renew(&store).await.stored.expect("a lease").record.renewals, 1);
    assert!(replaced_at.elapsed() < Duration::from_secs(5));
    server.require_token(Some("fourth"));
    store.nudge();
    let view = seen(store.view(), "the refusal", |view| view.error.is_some()).await;
    let error = view.error.expect("an error");
    assert!(
        error.contains("401") && !error.contains("third") && !error.contains("fourth"),
        "{error}"
    );
}

#[tokio::test]
async fn a_kubeconfig_leads_to_it_and_a_bad_one_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("kubeconfig");
    let place = demo().await;
    let server = place.server.as_ref().expect("a server");
    server.require_token(Some("secret"));
    let reach = Reach::Kubeconfig {
        path: path.clone(),
        context: None,
    };
    let store = LeaseStore::start(podgres::kube::LeaseSettings {
        reach: reach.clone(),
        ..place.settings(0)
    });
    let view = seen(store.view(), "the missing file", |view| view.error.is_some()).await;
    let error = view.error.expect("an error");
    assert!(error.contains(&path.display().to_string()), "{error}");
    write_kubeconfig(&path, &server.url(), "prod", Some("secret")).expect("written");
    // The file is looked for again: no restart.
    claim(&store, 0).await;
    let client = LeaseClient::new(reach, "prod", "pg");
    let stored = client.get().await.expect("an answer").expect("a lease");
    assert_eq!(Some(stored), store.view().borrow().stored);
}

#[tokio::test]
async fn refusals_are_those_of_the_real_server() {
    let place = demo().await;
    let lease = |name: &str| json!({"metadata": {"name": name}, "spec": {}});
    let refused = [
        (place.ask("GET", "/none", None).await, 404, "NotFound"),
        (place.ask("DELETE", "/none", None).await, 404, "NotFound"),
        (
            place.ask("GET", "?fieldSelector=spec.x%3D1", None).await,
            400,
            "BadRequest",
        ),
        (
            place.ask("POST", "", Some(&json!({"spec": {}}))).await,
            400,
            "BadRequest",
        ),
        (place.ask("PUT", "/a", Some(&lease("b"))).await, 400, "BadRequest"),
        (
            place
                .ask(
                    "POST",
                    "",
                    Some(&json!({"metadata": {"name": "a"}, "spec": {"leaseDurationSeconds": 0}})),
                )
                .await,
            422,
            "Invalid",
        ),
    ];
    for ((status, body), expected, reason) in refused {
        assert_eq!(
            (status, body["reason"].as_str()),
            (expected, Some(reason)),
            "{body}"
        );
        assert_eq!(
            (&body["kind"], &body["code"]),
            (&json!("Status"), &json!(expected))
        );
    }
    // As the real one does for Leases, PUT creates what is not there, unless it names the UID of what was.
    let mut gone = lease("a");
    gone["metadata"]["uid"] = json!("x");
    gone["metadata"]["resourceVersion"] = json!("1");
    assert_eq!(place.ask("PUT", "/a", Some(&gone)).await.0, 409);
    assert_eq!(place.ask("PUT", "/a", Some(&lease("a"))).await.0, 201);
    assert_eq!(place.ask("POST", "", Some(&lease("a"))).await.0, 409);
    assert_eq!(place.ask("PUT", "/a", Some(&lease("a"))).await.0, 422);
    let (_, list) = place.ask("GET", "?fieldSelector=metadata.name%3Da", None).await;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
    assert!(list["metadata"]["resourceVersion"].is_string());
}
