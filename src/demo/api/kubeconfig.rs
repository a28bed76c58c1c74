//! A kubeconfig file for the demo's API server, as kubectl reads it. It is JSON, which is YAML too.

use std::path::Path;

use serde_json::json;

use super::super::DemoError;
use crate::files::write_private;

/// Writes the file, readable by its owner alone: it holds the token. What is there is replaced whole.
///
/// # Errors
/// The folder is missing or cannot be written.
pub fn write_kubeconfig(
    path: &Path,
    url: &str,
    namespace: &str,
    token: Option<&str>,
) -> Result<(), DemoError> {
    let user = token.map_or_else(|| json!({}), |token| json!({"token": token}));
    let file = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "demo", "cluster": {"server": url}}],
        "users": [{"name": "demo", "user": user}],
        "contexts": [{"name": "demo", "context": {"cluster": "demo", "user": "demo", "namespace": namespace}}],
        "current-context": "demo",
    });
    write_private(path, format!("{file:#}\n").as_bytes())
        .map_err(|error| DemoError::file("write", path)(error.source))
}
