//! How a destination is written and reached: `/backups`, `file:///backups`, `s3://bucket/prefix`,
//! `azure://container/prefix`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A folder, a bucket or a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Destination {
    Folder(PathBuf),
    S3 { bucket: String, prefix: String },
    Azure { container: String, prefix: String },
}

/// A text that names neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{text}\" is no destination: write a folder's full path, s3://bucket/prefix or azure://container/prefix"
)]
pub struct InvalidDestination {
    text: String,
}

impl FromStr for Destination {
    type Err = InvalidDestination;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidDestination {
            text: text.to_owned(),
        };
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let letters =
                |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.' || b == b'_';
            if bucket.len() < 3 || !bucket.bytes().all(letters) {
                return Err(invalid());
            }
            return Ok(Self::S3 {
                bucket: bucket.to_owned(),
                prefix: prefix.trim_matches('/').to_owned(),
            });
        }
        if let Some(rest) = text.strip_prefix("azure://") {
            let (container, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let letters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if container.len() < 3 || !container.bytes().all(letters) {
                return Err(invalid());
            }
            return Ok(Self::Azure {
                container: container.to_owned(),
                prefix: prefix.trim_matches('/').to_owned(),
            });
        }
        let path = text.strip_prefix("file://").unwrap_or(text);
        if path.is_empty() || path.contains("://") {
            return Err(invalid());
        }
        std::path::absolute(path).map(Self::Folder).map_err(|_| invalid())
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Azure { container, prefix } if prefix.is_empty() => write!(f, "azure://{container}"),
            Self::Azure { container, prefix } => write!(f, "azure://{container}/{prefix}"),
        }
    }
}

impl TryFrom<String> for Destination {
    type Error = InvalidDestination;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.to_string()
    }
}

/// A destination and how to reach it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreSettings {
    pub destination: Destination,
    /// The AWS command line's own variables in lower case, e.g. `aws_region`; some are secrets.
    #[serde(default)]
    pub aws: BTreeMap<String, String>,
    /// The same of Azure's command line and libraries, e.g. `azure_storage_account`.
    #[serde(default)]
    pub azure: BTreeMap<String, String>,
    /// A file as `~/.aws/credentials`; read anew by every command.
    #[serde(default)]
    pub credentials_file: Option<PathBuf>,
    /// Certificate authorities for an endpoint of one's own, PEM.
    #[serde(default)]
    pub authority_file: Option<PathBuf>,
}

impl StoreSettings {
    /// A destination that needs nothing more.
    #[must_use]
    pub fn new(destination: Destination) -> Self {
        Self {
            destination,
            aws: BTreeMap::new(),
            azure: BTreeMap::new(),
            credentials_file: None,
            authority_file: None,
        }
    }
}

impl fmt::Debug for StoreSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreSettings")
            .field("destination", &self.destination)
            .field("aws", &self.aws.keys())
            .field("azure", &self.azure.keys())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        for (text, shown) in [
            ("/backups", "/backups"),
            ("file:///backups", "/backups"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/a/b/", "s3://bucket/a/b"),
            ("azure://container", "azure://container"),
            ("azure://container/a/", "azure://container/a"),
        ] {
            assert_eq!(
                text.parse()
                    .map(|found: Destination| found.to_string())
                    .as_deref(),
                Ok(shown)
            );
        }
        for text in ["", "s3://", "s3://B", "azure://A_b", "gs://bucket", "https://x/y"] {
            assert!(text.parse::<Destination>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let mut settings = StoreSettings::new("s3://bucket".parse().expect("valid"));
        settings
            .aws
            .insert("aws_secret_access_key".to_owned(), "geheim".to_owned());
        assert!(!format!("{settings:?}").contains("geheim"));
    }
}
