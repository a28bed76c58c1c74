//! A bucket of Google's cloud storage, over the same HTTP and TLS as one of S3.
//!
//! A service account's key signs each token here, on this machine: nobody is asked for one. Keys are read and judged before
//! the crate sees them, whose errors may quote them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder};
use serde_json::Value;

use super::google_machine::Machine;
use super::http;
use super::settings::{Destination, StoreSettings};

/// Where a key's file may be named, the first one first.
const FILES: [&str; 3] = [
    "google_service_account",
    "google_service_account_path",
    "google_application_credentials",
];
const KEY: &str = "google_service_account_key";

/// Why the bucket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("could not read \"{}\"", path.display())]
    File { path: PathBuf, source: std::io::Error },
    /// Never says what is in it.
    #[error("{place} holds no credentials: {problem}")]
    NoKey { place: String, problem: String },
    #[error(transparent)]
    Crate(#[from] object_store::Error),
}

/// Who asks.
#[derive(Debug, PartialEq, Eq)]
enum Credentials {
    /// A service account's key, as JSON.
    ServiceAccount(String),
    /// A person's login, in a file.
    Person(PathBuf),
}

/// The client of a bucket; connects at the first use.
pub(super) fn bucket(settings: &StoreSettings) -> Result<GoogleCloudStorage, OpenError> {
    let Destination::Google { bucket, .. } = &settings.destination else {
        return Err(http::failed("the destination is no bucket").into());
    };
    let google = &settings.google;
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(bucket)
        .with_http_connector(http::connector(settings)?)
        .with_retry(http::retry());
    if let Some(url) = google.get("google_base_url") {
        builder = builder.with_base_url(url.trim_end_matches('/'));
    }
    builder = match credentials(google)? {
        Some(Credentials::ServiceAccount(key)) => builder.with_service_account_key(key),
        Some(Credentials::Person(file)) => builder.with_application_credentials(file.to_string_lossy()),
        None => {
            let host = google.get("gce_metadata_host").map(String::as_str);
            let machine = Machine::new(&http::connector(settings)?, host, bucket)?;
            builder.with_credentials(Arc::new(machine))
        }
    };
    Ok(builder.build()?)
}

/// What is set; `None` leaves it to the machine.
fn credentials(google: &BTreeMap<String, String>) -> Result<Option<Credentials>, OpenError> {
    if let Some(text) = google.get(KEY) {
        return match judge(&KEY.to_uppercase(), text)? {
            Kind::ServiceAccount => Ok(Some(Credentials::ServiceAccount(text.clone()))),
            Kind::Person => Err(no_key(&KEY.to_uppercase(), "it is a person's login, not a key")),
        };
    }
    let Some(path) = FILES.iter().find_map(|name| google.get(*name)).map(Path::new) else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(path).map_err(|source| OpenError::File {
        path: path.to_owned(),
        source,
    })?;
    Ok(Some(match judge(&format!("\"{}\"", path.display()), &text)? {
        Kind::ServiceAccount => Credentials::ServiceAccount(text),
        Kind::Person => Credentials::Person(path.to_owned()),
    }))
}

enum Kind {
    ServiceAccount,
    Person,
}

fn judge(place: &str, text: &str) -> Result<Kind, OpenError> {
    // Of broken JSON the error tells where, not what.
    let value: Value = serde_json::from_str(text).map_err(|error| no_key(place, &error.to_string()))?;
    let (kind, fields) = match value["type"].as_str() {
        Some("service_account") | None => (
            Kind::ServiceAccount,
            ["client_email", "private_key", "private_key_id"],
        ),
        Some("authorized_user") => (Kind::Person, ["client_id", "client_secret", "refresh_token"]),
        Some(other) => {
            let problem = format!("type \"{other}\" is not supported, only a service account's key");
            return Err(no_key(place, &problem));
        }
    };
    match fields.into_iter().find(|field| !value[*field].is_string()) {
        Some(field) => Err(no_key(place, &format!("it has no \"{field}\""))),
        None => Ok(kind),
    }
}

fn no_key(place: &str, problem: &str) -> OpenError {
    OpenError::NoKey {
        place: place.to_owned(),
        problem: problem.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(key: &str) -> Result<Option<Credentials>, String> {
        credentials(&BTreeMap::from([(KEY.to_owned(), key.to_owned())])).map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_is_known_as_such_and_never_quoted() {
        let key = r#"{"client_email": "a@b", "private_key": "geheim", "private_key_id": "1"}"#;
        assert_eq!(given(key), Ok(Some(Credentials::ServiceAccount(key.to_owned()))));
        for (text, problem) in [
            ("geheim", "expected value at line 1 column 1"),
            (r#""geheim""#, "it has no \"client_email\""),
            (
                r#"{"client_email": "a@b", "private_key": ["geheim"]}"#,
                "it has no \"private_key\"",
            ),
            (
                r#"{"type": "external_account", "token": "geheim"}"#,
                "type \"external_account\" is not supported, only a service account's key",
            ),
            (
                r#"{"type": "authorized_user", "client_id": "a", "client_secret": "geheim", "refresh_token": "c"}"#,
                "it is a person's login, not a key",
            ),
        ] {
            let expected = format!("GOOGLE_SERVICE_ACCOUNT_KEY holds no credentials: {problem}");
            assert_eq!(given(text), Err(expected));
        }
    }

    #[test]
    fn nothing_given_leaves_it_to_the_machine() {
        assert!(matches!(credentials(&BTreeMap::new()), Ok(None)));
    }
}
