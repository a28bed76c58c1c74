//! How many sessions each client address has, so that one cannot take all places.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// The clients of one listener that have sessions.
#[derive(Debug, Default)]
pub(super) struct ClientCounts {
    by_address: Mutex<BTreeMap<IpAddr, usize>>,
}

impl ClientCounts {
    /// One more session of that client, unless it has `most` already.
    pub(super) fn enter(self: &Arc<Self>, client: IpAddr, most: usize) -> Option<ClientPlace> {
        let client = client.to_canonical();
        let mut by_address = self.lock();
        let count = by_address.entry(client).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(ClientPlace {
            counts: Arc::clone(self),
            client,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        self.by_address.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session of a client, until it is dropped.
#[derive(Debug)]
pub(super) struct ClientPlace {
    counts: Arc<ClientCounts>,
    client: IpAddr,
}

impl Drop for ClientPlace {
    fn drop(&mut self) {
        let mut by_address = self.counts.lock();
        if let Some(count) = by_address.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_limit() {
        let counts = Arc::new(ClientCounts::default());
        let address = |text: &str| -> IpAddr { text.parse().expect("address") };
        let first = counts.enter(address("192.0.2.1"), 1).expect("free");
        assert!(
            counts.enter(address("::ffff:192.0.2.1"), 1).is_none(),
            "the same client"
        );
        assert!(counts.enter(address("192.0.2.2"), 1).is_some());
        drop(first);
        assert!(counts.enter(address("192.0.2.1"), 1).is_some());
        assert!(counts.lock().is_empty(), "nobody is left");
    }
}
