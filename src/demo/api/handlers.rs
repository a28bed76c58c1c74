//! The paths and verbs of each kind of object.
//!
//! `…/namespaces/{namespace}/leases`: list, watch, create. `…/leases/{name}`: get, update, merge patch, delete.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};

use super::Shared;
use super::objects::{Key, Objects};
use super::resource::Resource;
use super::status::Refusal;
use super::watch::{Selection, body};

type Answer = Result<Response, Refusal>;

pub(super) fn router(shared: Shared) -> Router {
    [&shared.leases, &shared.slices, &shared.events]
        .into_iter()
        .fold(Router::new(), |router, objects| router.merge(routes(objects)))
        .fallback(|| async { Refusal::no_such_path() })
        .layer(middleware::from_fn_with_state(shared, authenticate))
}

fn routes(objects: &Arc<Objects>) -> Router {
    let all = objects.resource.path();
    let one = format!("{all}/{{name}}");
    Router::new()
        .route(&all, get(list).post(create))
        .route(&one, get(read).put(replace).patch(patch).delete(delete))
        .with_state(Arc::clone(objects))
}

async fn authenticate(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let wanted = shared
        .token
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .as_ref()
        .map(|token| format!("Bearer {token}"));
    let given = request.headers().get(header::AUTHORIZATION);
    if wanted.is_some_and(|wanted| given.is_none_or(|given| given != wanted.as_str())) {
        return Refusal::unauthorized().into_response();
    }
    next.run(request).await
}

async fn read(State(objects): State<Arc<Objects>>, Path(key): Path<Key>) -> Answer {
    Ok(object(StatusCode::OK, &objects.get(&key)?))
}

async fn list(
    State(objects): State<Arc<Objects>>,
    Path(namespace): Path<String>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Answer {
    let name = selected_name(&query)?;
    if matches!(query.get("watch").map(String::as_str), Some("1" | "true")) {
        return watch(objects, namespace, name, &query);
    }
    let (revision, items) = objects.list(&namespace, name.as_deref());
    let list = json!({
        "kind": format!("{}List", objects.resource.kind),
        "apiVersion": objects.resource.api_version(),
        "metadata": {"resourceVersion": revision.to_string()},
        "items": items,
    });
    Ok(object(StatusCode::OK, &list))
}

fn watch(
    objects: Arc<Objects>,
    namespace: String,
    name: Option<String>,
    query: &BTreeMap<String, String>,
) -> Answer {
    let number = |key: &str| {
        query
            .get(key)
            .filter(|text| !text.is_empty())
            .map(|text| {
                text.parse::<u64>()
                    .map_err(|_| Refusal::bad_request(&format!("invalid {key}: \"{text}\"")))
            })
            .transpose()
    };
    let selection = Selection {
        namespace,
        name,
        after: number("resourceVersion")?.filter(|version| *version > 0),
        limit: number("timeoutSeconds")?.map(Duration::from_secs),
        bookmarks: query
            .get("allowWatchBookmarks")
            .is_some_and(|value| value == "true" || value == "1"),
    };
    let headers = [(header::CONTENT_TYPE, "application/json")];
    Ok((headers, body(objects, selection)).into_response())
}

fn selected_name(query: &BTreeMap<String, String>) -> Result<Option<String>, Refusal> {
    match query.get("fieldSelector").map(String::as_str) {
        None | Some("") => Ok(None),
        Some(selector) => selector
            .strip_prefix("metadata.name=")
            .map(|name| Some(name.trim_start_matches('=').to_owned()))
            .ok_or_else(|| Refusal::bad_request(&format!("field label not supported: \"{selector}\""))),
    }
}

async fn create(State(objects): State<Arc<Objects>>, Path(namespace): Path<String>, bytes: Bytes) -> Answer {
    let sent = read_object(&bytes)?;
    let name = sent["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let key = (namespace, name);
    let sent = checked(objects.resource, &key, sent)?;
    let created = change(objects, move |objects| objects.create(key, sent)).await?;
    Ok(object(StatusCode::CREATED, &created))
}

async fn replace(State(objects): State<Arc<Objects>>, Path(key): Path<Key>, bytes: Bytes) -> Answer {
    let sent = checked(objects.resource, &key, read_object(&bytes)?)?;
    let (created, stored) = change(objects, move |objects| objects.replace(key, sent)).await?;
    let code = if created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok(object(code, &stored))
}

/// JSON Merge Patch, RFC 7396. A version in the patch must be the stored one.
async fn patch(
    State(objects): State<Arc<Objects>>,
    Path(key): Path<Key>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Answer {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if content_type != "application/merge-patch+json" {
        return Err(Refusal::unsupported(content_type));
    }
    let patch = read_object(&bytes)?;
    let patched = change(objects, move |objects| {
        loop {
            let mut stored = objects.get(&key)?;
            merge(&mut stored, &patch);
            let stored = checked(objects.resource, &key, stored)?;
            let names_version = patch["metadata"]["resourceVersion"].is_string();
            match objects.replace(key.clone(), stored) {
                // Somebody was faster; the patch asked for no version in particular.
                Err(refusal) if refusal.is_conflict() && !names_version => {}
                other => return other.map(|(_, stored)| stored),
            }
        }
    });
    Ok(object(StatusCode::OK, &patched.await?))
}

async fn delete(State(objects): State<Arc<Objects>>, Path(key): Path<Key>) -> Answer {
    let (name, resource) = (key.1.clone(), objects.resource);
    let deleted = change(objects, move |objects| objects.delete(key)).await?;
    let status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {
            "name": name,
            "group": resource.group,
            "kind": resource.plural,
            "uid": deleted["metadata"]["uid"],
        },
    });
    Ok(object(StatusCode::OK, &status))
}

/// On a thread that may wait for the disk.
async fn change<T, F>(objects: Arc<Objects>, change: F) -> Result<T, Refusal>
where
    T: Send + 'static,
    F: FnOnce(&Objects) -> Result<T, Refusal> + Send + 'static,
{
    tokio::task::spawn_blocking(move || change(&objects))
        .await
        .map_err(|error| Refusal::internal(&error.to_string()))?
}

fn read_object(bytes: &[u8]) -> Result<Value, Refusal> {
    let object: Value =
        serde_json::from_slice(bytes).map_err(|error| Refusal::bad_request(&error.to_string()))?;
    if !object.is_object() || !(object["metadata"].is_object() || object["metadata"].is_null()) {
        return Err(Refusal::bad_request("the object provided is unrecognized"));
    }
    Ok(object)
}

/// With the name and the namespace that the path says, or the reason why the API would refuse it.
fn checked(resource: &'static Resource, key: &Key, mut object: Value) -> Result<Value, Refusal> {
    let (namespace, name) = key;
    let metadata = &object["metadata"];
    if metadata["name"] != *name.as_str() || name.is_empty() {
        let why = "the name of the object does not match the name on the URL";
        return Err(Refusal::bad_request(why));
    }
    if metadata["namespace"]
        .as_str()
        .is_some_and(|given| given != namespace)
    {
        let why = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Refusal::bad_request(why));
    }
    let texts = |map: &Value| {
        map.as_object()
            .is_some_and(|map| map.values().all(Value::is_string))
    };
    for field in ["annotations", "labels"] {
        if !metadata[field].is_null() && !texts(&metadata[field]) {
            return Err(Refusal::bad_request(&format!("{field} are not texts")));
        }
    }
    if let Some(why) = (resource.invalid)(&object) {
        return Err(Refusal::invalid(resource, name, why));
    }
    object["metadata"]["namespace"] = json!(namespace);
    object["kind"] = json!(resource.kind);
    object["apiVersion"] = json!(resource.api_version());
    Ok(object)
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, change) in changes {
        if change.is_null() {
            target.as_object_mut().and_then(|target| target.remove(name));
        } else {
            merge(&mut target[name], change);
        }
    }
}

fn object(code: StatusCode, object: &Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (code, headers, object.to_string()).into_response()
}
