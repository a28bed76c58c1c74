//! What a destination did not do.

use std::path::PathBuf;

/// Why an object could not be read, written or deleted.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("could not {action} \"{path}\"")]
    Object {
        action: &'static str,
        path: String,
        source: Box<object_store::Error>,
    },
    /// What is set to reach it by is no good; nothing was asked of it.
    #[error("cannot use destination \"{destination}\"")]
    Settings {
        destination: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("could not use folder \"{}\"", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
}

impl StoreError {
    pub(super) fn new(action: &'static str, path: &str, source: object_store::Error) -> Self {
        Self::Object {
            action,
            path: path.to_owned(),
            source: Box::new(source),
        }
    }

    /// For a write through [`super::Store::writer`].
    #[must_use]
    pub fn written(path: &str, source: object_store::Error) -> Self {
        Self::new("write", path, source)
    }

    /// The store knows us, and says no.
    #[must_use]
    pub fn denied(&self) -> bool {
        match self {
            Self::Object { source, .. } => {
                matches!(
                    **source,
                    object_store::Error::PermissionDenied { .. }
                        | object_store::Error::Unauthenticated { .. }
                ) || says_no(source)
            }
            Self::Settings { .. } => false,
            Self::Folder { source, .. } => source.kind() == std::io::ErrorKind::PermissionDenied,
        }
    }

    /// There is no such object, or it has changed meanwhile.
    #[must_use]
    pub fn missing(&self) -> bool {
        match self {
            Self::Object { source, .. } => matches!(**source, object_store::Error::NotFound { .. }),
            Self::Settings { .. } | Self::Folder { .. } => false,
        }
    }
}

/// Of a list the crate gives the answer's status in words only.
fn says_no(error: &object_store::Error) -> bool {
    let text = error.to_string();
    ["status code: 401 ", "status code: 403 "]
        .iter()
        .any(|status| text.contains(status))
}
