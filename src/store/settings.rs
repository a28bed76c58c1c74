//! How a destination is written and reached: `/backups`, `file:///backups`, `s3://bucket/prefix`,
//! `azure://container/prefix`, `gs://bucket/prefix`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A folder, a bucket of S3 or Google, or a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Destination {
    Folder(PathBuf),
    S3 { bucket: String, prefix: String },
    Azure { container: String, prefix: String },
    Google { bucket: String, prefix: String },
}

/// A text that names none of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{text}\" is no destination: write a folder's full path, s3://bucket/prefix, azure://container/prefix or gs://bucket/prefix"
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
        let place = |rest: &str, is_name: fn(&str) -> bool| {
            let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let place = (name.to_owned(), prefix.trim_matches('/').to_owned());
            is_name(name).then_some(place).ok_or_else(invalid)
        };
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = place(rest, |name| name.len() >= 3 && consists_of(name, b"-._"))?;
            return Ok(Self::S3 { bucket, prefix });
        }
        if let Some(rest) = text.strip_prefix("azure://") {
            let (container, prefix) = place(rest, |name| name.len() >= 3 && consists_of(name, b"-"))?;
            return Ok(Self::Azure { container, prefix });
        }
        if let Some(rest) = text.strip_prefix("gs://") {
            let (bucket, prefix) = place(rest, is_google_bucket)?;
            return Ok(Self::Google { bucket, prefix });
        }
        let path = text.strip_prefix("file://").unwrap_or(text);
        if path.is_empty() || path.contains("://") {
            return Err(invalid());
        }
        std::path::absolute(path).map(Self::Folder).map_err(|_| invalid())
    }
}

/// Small letters, digits and what else is allowed.
fn consists_of(name: &str, more: &[u8]) -> bool {
    name.bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || more.contains(&b))
}

/// Source: <https://cloud.google.com/storage/docs/buckets#naming>.
fn is_google_bucket(name: &str) -> bool {
    let letter = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let parts = || name.split('.');
    // With a dot it is a domain's name.
    let most = if parts().count() > 1 { 222 } else { 63 };
    consists_of(name, b"-._")
        && (3..=most).contains(&name.len())
        && parts().all(|part| (1..=63).contains(&part.len()))
        && letter(name.as_bytes().first())
        && letter(name.as_bytes().last())
        && name.parse::<Ipv4Addr>().is_err()
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, name, prefix) = match self {
            Self::Folder(path) => return write!(f, "{}", path.display()),
            Self::S3 { bucket, prefix } => ("s3", bucket, prefix),
            Self::Azure { container, prefix } => ("azure", container, prefix),
            Self::Google { bucket, prefix } => ("gs", bucket, prefix),
        };
        let slash = if prefix.is_empty() { "" } else { "/" };
        write!(f, "{scheme}://{name}{slash}{prefix}")
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
    /// The same of Google's, e.g. `google_application_credentials`.
    #[serde(default)]
    pub google: BTreeMap<String, String>,
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
            google: BTreeMap::new(),
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
            .field("google", &self.google.keys())
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
            ("gs://my-bucket_1", "gs://my-bucket_1"),
            ("gs://backups.example.com/a/b/", "gs://backups.example.com/a/b"),
        ] {
            assert_eq!(
                text.parse()
                    .map(|found: Destination| found.to_string())
                    .as_deref(),
                Ok(shown)
            );
        }
        for text in [
            "",
            "s3://",
            "s3://B",
            "azure://A_b",
            "gcs://bucket",
            "https://x/y",
        ] {
            assert!(text.parse::<Destination>().is_err(), "{text:?} was taken");
        }
        let too_long = format!("{}x", "a".repeat(63));
        for bucket in [
            "", "ab", "Bucket", "-bucket", "bucket-", "a..b", "10.0.0.1", &too_long,
        ] {
            let text = format!("gs://{bucket}/a");
            assert!(text.parse::<Destination>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let mut settings = StoreSettings::new("s3://bucket".parse().expect("valid"));
        for (settings, key) in [
            (&mut settings.aws, "aws_secret_access_key"),
            (&mut settings.google, "google_service_account_key"),
        ] {
            settings.insert(key.to_owned(), "geheim".to_owned());
        }
        assert!(!format!("{settings:?}").contains("geheim"));
    }
}
