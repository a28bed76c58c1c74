//! Changes to the Lease by those who do not hold it: read, change, write, and again if somebody was faster.

use std::time::Duration;

use super::client::ApiClient;
use super::error::{LeaseError, LeaseName};
use super::lease_api::LeaseApi;
use super::record::{normalised, record_of, with_record};
use super::{REQUEST_LIMIT, Reach};
use crate::core::lease::{LeaseRecord, StoredLease};

/// The holder writes every retry period, so that one conflict is usual and many are not.
const ATTEMPTS: u32 = 8;

/// One Lease, for a command that comes and goes.
pub struct LeaseClient {
    api: LeaseApi,
}

impl LeaseClient {
    /// Makes no connection yet.
    #[must_use]
    pub fn new(reach: Reach, namespace: &str, name: &str) -> Self {
        let lease = LeaseName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let client = ApiClient::new(reach, REQUEST_LIMIT);
        Self {
            api: LeaseApi { client, lease },
        }
    }

    /// Reads it; `None`: there is no such Lease.
    ///
    /// # Errors
    /// No answer within 2 s, a refusal, or a Lease that cannot be used.
    pub async fn get(&self) -> Result<Option<StoredLease>, LeaseError> {
        let read = self.api.get().await?;
        read.object
            .map(|object| record_of(&object).map_err(|source| unusable(&self.api, source)))
            .transpose()
    }

    /// See [`super::LeaseStore::update`].
    ///
    /// # Errors
    /// The Lease is missing, unusable, or could not be written.
    pub async fn update(&self, change: impl Fn(&mut LeaseRecord)) -> Result<StoredLease, LeaseError> {
        update(&self.api, change).await
    }
}

/// `change` may be applied more than once, also to a record that already has it.
pub(super) async fn update(
    api: &LeaseApi,
    change: impl Fn(&mut LeaseRecord),
) -> Result<StoredLease, LeaseError> {
    for attempt in 0..ATTEMPTS {
        let object = api.get().await?.object.ok_or_else(|| LeaseError::Missing {
            lease: api.lease.clone(),
        })?;
        let stored = record_of(&object).map_err(|source| unusable(api, source))?;
        let mut record = (*stored.record).clone();
        change(&mut record);
        if normalised(&record) == *stored.record {
            return Ok(stored);
        }
        let object =
            with_record(&api.lease, Some(&object), &record).map_err(|source| unusable(api, source))?;
        match api.put(false, &object).await {
            Ok(answer) => return record_of(&answer.body).map_err(|source| unusable(api, source)),
            Err(error) if error.status() == Some(409) => {
                let longest_ms = 20 << attempt.min(4);
                tokio::time::sleep(Duration::from_millis(fastrand::u64(10..=longest_ms))).await;
            }
            Err(error) => return Err(error),
        }
    }
    Err(LeaseError::Contended {
        lease: api.lease.clone(),
        attempts: ATTEMPTS,
    })
}

fn unusable(api: &LeaseApi, source: super::RecordError) -> LeaseError {
    LeaseError::Unusable {
        lease: api.lease.clone(),
        source,
    }
}
