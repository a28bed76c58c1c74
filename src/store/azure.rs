//! A container of Azure's blob storage, over the same HTTP and TLS as a bucket.

use object_store::azure::{AzureConfigKey, MicrosoftAzure, MicrosoftAzureBuilder};

use super::http;
use super::settings::{Destination, StoreSettings};

/// The client of a container; connects at the first use.
pub(super) fn container(settings: &StoreSettings) -> Result<MicrosoftAzure, object_store::Error> {
    let Destination::Azure { container, .. } = &settings.destination else {
        return Err(http::failed("the destination is no container"));
    };
    let mut builder = MicrosoftAzureBuilder::new().with_container_name(container);
    let mut endpoint_in_clear = false;
    for (name, value) in &settings.azure {
        endpoint_in_clear |= name.contains("endpoint") && value.starts_with("http://");
        if let Ok(key) = key(name).parse::<AzureConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    builder
        .with_allow_http(endpoint_in_clear)
        .with_http_connector(http::connector(settings)?)
        .with_retry(http::retry())
        .build()
}

/// What the Azure command line and its libraries call otherwise than the crate.
fn key(name: &str) -> &str {
    match name {
        "azure_storage_account" => "azure_storage_account_name",
        "azure_storage_key" => "azure_storage_account_key",
        name => name,
    }
}
