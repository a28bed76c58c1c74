//! Where backups are and how they are reached: flags shared by every command about them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;

use super::{Environment, InvalidSetting};
use crate::store::seal::SealKey;
use crate::store::{Destination, StoreSettings};

/// The AWS command line's own variables; the keys of `StoreSettings::aws` are these in lower case.
const AWS_VARIABLES: [&str; 18] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_STS",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
    "AWS_SERVER_SIDE_ENCRYPTION",
    "AWS_SSE_KMS_KEY_ID",
    "AWS_SKIP_SIGNATURE",
];

/// The Azure command line's own variables, and those of Azure's libraries; as keys of `StoreSettings::azure` in lower case.
const AZURE_VARIABLES: [&str; 13] = [
    "AZURE_STORAGE_ACCOUNT",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID",
    "AZURE_AUTHORITY_HOST",
    "AZURE_FEDERATED_TOKEN_FILE",
    "IDENTITY_ENDPOINT",
    "AZURE_OBJECT_ID",
];

/// The variables of Google's libraries, and those of crate `object_store` beside them; as keys of `StoreSettings::google` in
/// lower case.
const GOOGLE_VARIABLES: [&str; 6] = [
    APPLICATION_CREDENTIALS,
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_BASE_URL",
    "GCE_METADATA_HOST",
];
const APPLICATION_CREDENTIALS: &str = "GOOGLE_APPLICATION_CREDENTIALS";

/// How a destination is reached. A bucket's or container's endpoint and credentials come as everywhere else: by the
/// variables of the AWS, Azure or Google command line, by a web identity, or by the machine's own role.
#[derive(Args, Clone, Debug, Default)]
pub struct StoreArguments {
    /// A file as ~/.aws/credentials, instead of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY
    #[arg(long, env = "PODGRES_S3_CREDENTIALS_FILE")]
    pub s3_credentials_file: Option<PathBuf>,
    /// Certificate authorities for an S3, Azure or Google endpoint of your own, PEM
    #[arg(long, env = "PODGRES_S3_CA_FILE")]
    pub s3_ca_file: Option<PathBuf>,
    /// File with the key that backups are encrypted with: 64 hexadecimal digits
    #[arg(long, env = "PODGRES_BACKUP_KEY_FILE")]
    pub key_file: Option<PathBuf>,
}

impl StoreArguments {
    /// The destination with all that is needed to reach it.
    ///
    /// # Errors
    /// None is given, or it is no destination.
    pub fn settings(
        &self,
        flag: &str,
        destination: Option<&str>,
        environment: &impl Environment,
    ) -> Result<StoreSettings, InvalidSetting> {
        let hint =
            "give a folder's full path, s3://bucket/prefix, azure://container/prefix or gs://bucket/prefix";
        let text = destination
            .filter(|text| !text.is_empty())
            .ok_or_else(|| InvalidSetting::new(flag, "not set", hint))?;
        let destination: Destination = text.parse().map_err(|error: crate::store::InvalidDestination| {
            InvalidSetting::new(flag, error.to_string(), hint)
        })?;
        let of = |variables: &[&str]| -> BTreeMap<String, String> {
            let found = variables.iter().filter_map(|name| {
                let value = environment.get(name).filter(|value| !value.is_empty())?;
                Some((name.to_lowercase(), value))
            });
            found.collect()
        };
        let mut settings = StoreSettings {
            credentials_file: self.s3_credentials_file.clone(),
            authority_file: self.s3_ca_file.clone(),
            ..StoreSettings::new(destination)
        };
        match &settings.destination {
            Destination::Folder(_) => {}
            Destination::S3 { .. } => settings.aws = of(&AWS_VARIABLES),
            Destination::Azure { .. } => settings.azure = of(&AZURE_VARIABLES),
            Destination::Google { .. } => settings.google = google(of(&GOOGLE_VARIABLES), environment),
        }
        Ok(settings)
    }

    /// The key, if one is given.
    ///
    /// # Errors
    /// The file cannot be read or holds no key.
    pub fn key(&self) -> Result<Option<SealKey>, InvalidSetting> {
        let Some(path) = &self.key_file else {
            return Ok(None);
        };
        let invalid = |problem: String| {
            InvalidSetting::new(
                "PODGRES_BACKUP_KEY_FILE",
                problem,
                "make one with `openssl rand -hex 32`, and keep it where the backups are not",
            )
        };
        let text = std::fs::read_to_string(path)
            .map_err(|error| invalid(format!("could not read \"{}\": {error}", path.display())))?;
        SealKey::parse(&text)
            .map(Some)
            .map_err(|error| invalid(format!("\"{}\": {error}", path.display())))
    }
}

/// Without a key the login that `gcloud auth application-default login` has left, if there is one. It is looked for here
/// since a server's `archive_command` has another environment.
fn google(mut given: BTreeMap<String, String>, environment: &impl Environment) -> BTreeMap<String, String> {
    let has_key = given.keys().any(|name| {
        name.starts_with("google_service_account") || *name == APPLICATION_CREDENTIALS.to_lowercase()
    });
    let folder = || {
        let own = environment.get("CLOUDSDK_CONFIG").map(PathBuf::from);
        own.or_else(|| Some(PathBuf::from(environment.get("HOME")?).join(".config/gcloud")))
    };
    if !has_key
        && let Some(file) = folder().map(|folder| folder.join("application_default_credentials.json"))
        && file.is_file()
    {
        let file = file.to_string_lossy().into_owned();
        given.insert(APPLICATION_CREDENTIALS.to_lowercase(), file);
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Table(&'static [(&'static str, &'static str)]);

    impl Environment for Table {
        fn get(&self, key: &str) -> Option<String> {
            self.0
                .iter()
                .find(|(name, _)| *name == key)
                .map(|(_, value)| (*value).to_owned())
        }
    }

    #[test]
    fn row_58_no_destination_is_an_error() {
        for none in [None, Some("")] {
            let error = StoreArguments::default()
                .settings("--to", none, &Table(&[]))
                .expect_err("not set");
            assert_eq!(error.to_string(), "invalid value for --to: not set");
        }
    }

    #[test]
    fn a_bucket_or_container_is_reached_as_the_command_lines_do() {
        let table = Table(&[
            ("AWS_REGION", "eu-west-1"),
            ("AWS_SESSION_TOKEN", ""),
            ("HOME", "/root"),
        ]);
        let settings = StoreArguments::default()
            .settings("--to", Some("s3://bucket/a"), &table)
            .expect("valid");
        assert_eq!(
            settings.aws,
            BTreeMap::from([("aws_region".to_owned(), "eu-west-1".to_owned())])
        );
        let table = Table(&[("AZURE_STORAGE_ACCOUNT", "me"), ("AWS_REGION", "eu-west-1")]);
        let settings = StoreArguments::default()
            .settings("--to", Some("azure://container/a"), &table)
            .expect("valid");
        assert_eq!(
            settings.azure,
            BTreeMap::from([("azure_storage_account".to_owned(), "me".to_owned())])
        );
        assert!(settings.aws.is_empty(), "secrets go only where they are needed");
        let table = Table(&[
            ("GOOGLE_APPLICATION_CREDENTIALS", "/key.json"),
            ("AWS_REGION", "eu-west-1"),
        ]);
        let settings = StoreArguments::default()
            .settings("--to", Some("gs://bucket/a"), &table)
            .expect("valid");
        assert_eq!(
            settings.google,
            BTreeMap::from([(
                "google_application_credentials".to_owned(),
                "/key.json".to_owned()
            )])
        );
        assert!(settings.aws.is_empty(), "secrets go only where they are needed");
    }
}
