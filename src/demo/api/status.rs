//! `Status`: the body of every refusal. Source: Kubernetes API conventions, "Response Status Kind".

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::resource::Resource;

/// A refusal; what it prints is the body.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    code: StatusCode,
    reason: &'static str,
    message: String,
    name: String,
    /// `None`: it is about no kind of object.
    resource: Option<&'static Resource>,
}

impl Refusal {
    fn new(code: StatusCode, reason: &'static str, name: &str, message: String) -> Self {
        Self {
            code,
            reason,
            message,
            name: name.to_owned(),
            resource: None,
        }
    }

    fn of(mut self, resource: &'static Resource) -> Self {
        self.resource = Some(resource);
        self
    }

    pub(super) fn not_found(resource: &'static Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", resource.full_name());
        Self::new(StatusCode::NOT_FOUND, "NotFound", name, message).of(resource)
    }

    pub(super) fn no_such_path() -> Self {
        let message = "the server could not find the requested resource".to_owned();
        Self::new(StatusCode::NOT_FOUND, "", "", message)
    }

    pub(super) fn already_exists(resource: &'static Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", resource.full_name());
        Self::new(StatusCode::CONFLICT, "AlreadyExists", name, message).of(resource)
    }

    pub(super) fn conflict(resource: &'static Resource, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            resource.full_name()
        );
        Self::new(StatusCode::CONFLICT, "Conflict", name, message).of(resource)
    }

    pub(super) fn invalid(resource: &'static Resource, name: &str, why: &str) -> Self {
        let message = format!(
            "{}.{} \"{name}\" is invalid: {why}",
            resource.kind, resource.group
        );
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", name, message).of(resource)
    }

    pub(super) fn bad_request(why: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", "", why.to_owned())
    }

    pub(super) fn unauthorized() -> Self {
        let message = "Unauthorized".to_owned();
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "", message)
    }

    pub(super) fn unsupported(content_type: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: \
             application/merge-patch+json, not \"{content_type}\""
        );
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            "",
            message,
        )
    }

    pub(super) fn expired(asked: u64, oldest: u64) -> Self {
        let message = format!("too old resource version: {asked} ({oldest})");
        Self::new(StatusCode::GONE, "Expired", "", message)
    }

    pub(super) fn too_large(asked: u64, newest: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {newest}");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", "", message)
    }

    pub(super) fn internal(why: &str) -> Self {
        let message = format!("Internal error occurred: {why}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "", message)
    }

    pub(super) fn is_conflict(&self) -> bool {
        self.code == StatusCode::CONFLICT
    }

    pub(super) fn body(&self) -> Value {
        let details = self
            .resource
            .map(|resource| json!({"name": self.name, "group": resource.group, "kind": resource.plural}));
        json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "details": details,
            "code": self.code.as_u16(),
        })
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let headers = [(header::CONTENT_TYPE, "application/json")];
        (self.code, headers, self.body().to_string()).into_response()
    }
}
