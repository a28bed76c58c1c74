//! EndpointSlices as the shipped adapter reads and changes them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use podgres::core::routing::slice::Slice;
use podgres::kube::slice::{SliceApi, SliceError};
use podgres::kube::{ApiClient, Reach};
use serde_json::{Value, json};

use super::harness::demo;
use super::relay::{Fault, Relay};

const PATH: &str = "/apis/discovery.k8s.io/v1/namespaces/prod/endpointslices";

/// As `kubectl apply` makes it from the component's manifest, which names no endpoints.
async fn applied(client: &ApiClient, name: &str) -> Value {
    let manifest = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": [{"name": "postgresql", "protocol": "TCP", "port": 5432}],
    });
    let made = client
        .request("POST", PATH, "application/json", Some(&manifest))
        .await;
    let made = made.expect("an answer");
    assert_eq!(made.status, 201, "{}", made.body);
    made.body
}

fn slice(term: u64, pods: &[(&str, u8)]) -> Slice {
    Slice {
        term,
        endpoints: pods
            .iter()
            .map(|(pod, last)| ((*pod).to_owned(), IpAddr::from([10, 0, 0, *last])))
            .collect::<BTreeMap<_, _>>(),
    }
}

#[tokio::test]
async fn a_slice_is_changed_by_compare_and_swap_and_nothing_else_in_it_is() {
    let place = demo().await;
    let client = ApiClient::new(place.reach.clone(), Duration::from_secs(10));
    let made = applied(&client, "pg-direct-read-only").await;
    let api = SliceApi::new(place.reach.clone(), "prod");
    let first = api.get("pg-direct-read-only").await.expect("it is there");
    assert_eq!((&first.slice, first.ipv6), (&Slice::default(), false));

    let wanted = slice(3, &[("pg-1", 11), ("pg-2", 12)]);
    let second = api
        .patch("pg-direct-read-only", &first.version, &wanted)
        .await
        .expect("written");
    assert_eq!(second.slice, wanted);
    assert_ne!(second.version, first.version);
    let late = api
        .patch("pg-direct-read-only", &first.version, &slice(2, &[("pg-0", 10)]))
        .await;
    assert!(late.as_ref().is_err_and(SliceError::is_conflict), "{late:?}");
    assert_eq!(api.get("pg-direct-read-only").await.expect("it is there"), second);

    let path = format!("{PATH}/pg-direct-read-only");
    let object = client
        .request("GET", &path, "application/json", None)
        .await
        .expect("an answer")
        .body;
    let endpoint = json!({
        "addresses": ["10.0.0.11"],
        "conditions": {"ready": true},
        "targetRef": {"kind": "Pod", "name": "pg-1", "namespace": "prod"},
    });
    assert_eq!(object["endpoints"][0], endpoint);
    for kept in ["ports", "addressType"] {
        assert_eq!(object[kept], made[kept], "{kept}");
    }
    assert_eq!(object["metadata"]["labels"], made["metadata"]["labels"]);
    let empty = api
        .patch("pg-direct-read-only", &second.version, &slice(4, &[]))
        .await;
    assert_eq!(empty.expect("written").slice, slice(4, &[]));
}

#[tokio::test]
async fn a_missing_right_is_named_with_its_verb_and_what_to_grant() {
    let place = demo().await;
    let relay = Relay::start(place.server.as_ref().expect("a server").address()).await;
    let api = SliceApi::new(relay.reach(), "prod");
    let forbidden = Fault::Answer("403 Forbidden", String::new());
    relay.fault(None, forbidden, 2);
    let slice = slice(1, &[]);
    for (verb, refused) in [
        ("get", api.get("pg-direct-read-only").await),
        ("patch", api.patch("pg-direct-read-only", "1", &slice).await),
    ] {
        let refused = refused.expect_err("forbidden");
        let told = refused.to_string();
        let wanted = format!("could not {verb} endpointslice \"pg-direct-read-only\" (403)");
        assert!(told.contains(&wanted), "{told}");
        let hint = refused.hint().expect("a hint");
        assert!(
            hint.contains(&format!("\"{verb}\"")) && hint.contains("endpointslices"),
            "{hint}"
        );
    }
}

#[tokio::test]
async fn what_is_missing_is_named_with_what_helps() {
    let place = demo().await;
    let api = SliceApi::new(place.reach.clone(), "prod");
    let missing = api
        .get("pg-direct-read-write")
        .await
        .expect_err("nobody has applied it");
    assert_eq!(
        missing.to_string(),
        "endpointslice \"pg-direct-read-write\" does not exist"
    );
    assert!(
        missing
            .hint()
            .is_some_and(|hint| hint.contains("components/endpoint-slices"))
    );
    let address = place.server.as_ref().expect("a server").url();
    let elsewhere = Reach::Url {
        url: format!("{address}/of-1.20"),
        token_file: None,
    };
    let unknown = SliceApi::new(elsewhere, "prod").get("pg-direct-read-write").await;
    assert!(matches!(unknown, Err(SliceError::Unknown)), "{unknown:?}");
    place
        .server
        .as_ref()
        .expect("a server")
        .require_token(Some("secret"));
    let refused = api.get("pg-direct-read-write").await.expect_err("no token");
    assert!(
        matches!(refused, SliceError::Refused { status: 401, .. }),
        "{refused:?}"
    );
}
