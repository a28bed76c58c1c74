//! A kubeconfig file for the demo's API server, as kubectl reads it. It is JSON, which is YAML too.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::json;

use super::super::DemoError;

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
    let staged = path.with_extension("new");
    let mut opened = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&staged)
        .map_err(DemoError::file("write", &staged))?;
    opened
        .write_all(format!("{file:#}\n").as_bytes())
        .and_then(|()| opened.sync_all())
        .and_then(|()| std::fs::rename(&staged, path))
        .map_err(DemoError::file("write", path))
}
