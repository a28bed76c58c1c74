//! Orders to a member over HTTP: with the operator's token, over the pod's unix socket, or signed as another member.
//!
//! Asks once, within a limit, and repeats nothing: an order may have been carried out though no answer came.

use std::time::Duration;

use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use serde_json::Value;
use tokio::time::timeout;

use crate::core::operate::Order;
use crate::core::signature::{MemberKey, SignedRequest, unhex};

use super::client::{Connection, RequestError, connect_url};
use super::way::Reach;

/// Sends an order to the server at `url` (`http://HOST[:PORT]` or `unix:PATH`); its status and body, within `limit`.
///
/// # Errors
/// There was no answer that can be read.
pub async fn send_order(
    url: &str,
    order: &Order,
    token: Option<&str>,
    limit: Duration,
) -> Result<(StatusCode, Value), RequestError> {
    let sent = async {
        let (mut connection, host) = connect_url(url).await?;
        let authorization = token.map(|token| format!("Bearer {token}"));
        post(&mut connection, &host, order, authorization).await
    };
    timeout(limit, sent).await.map_err(|_| late(url, limit))?
}

/// Sends an order to another member, signed with the cluster's key.
///
/// # Errors
/// There was no answer that can be read.
pub async fn send_signed_order(
    member: impl Into<Reach>,
    order: &Order,
    key: &MemberKey,
    limit: Duration,
) -> Result<(StatusCode, Value), RequestError> {
    let member = member.into();
    let target = member.target();
    let sent = async {
        let mut connection = member.connect().await?;
        let response = connection.get("/challenge", &target).await?;
        let (_, answer) = connection.json(response).await?;
        let challenge = answer["challenge"]
            .as_str()
            .and_then(|text| unhex(text.as_bytes()));
        let challenge = challenge.ok_or_else(|| RequestError::Invalid {
            target: target.clone(),
            detail: "no challenge".to_owned(),
        })?;
        let authorization = key.sign(&SignedRequest {
            challenge: &challenge,
            method: "POST",
            path: order.path(),
            body: &body(order),
        });
        post(&mut connection, &target, order, Some(authorization)).await
    };
    timeout(limit, sent).await.map_err(|_| late(&target, limit))?
}

fn body(order: &Order) -> Vec<u8> {
    serde_json::to_vec(&order.body()).unwrap_or_default()
}

async fn post(
    connection: &mut Connection,
    host: &str,
    order: &Order,
    authorization: Option<String>,
) -> Result<(StatusCode, Value), RequestError> {
    let mut request = Request::post(order.path())
        .header(HOST, host)
        .header(CONTENT_TYPE, "application/json");
    if let Some(authorization) = authorization {
        request = request.header(AUTHORIZATION, authorization);
    }
    let request = request.body(Full::from(body(order)));
    let request = request.map_err(|_| RequestError::Url { url: host.to_owned() })?;
    let response = connection.send(request).await?;
    connection.json(response).await
}

fn late(target: &str, limit: Duration) -> RequestError {
    RequestError::TimedOut {
        target: target.to_owned(),
        limit,
    }
}
