//! Keeps an EndpointSlice for each endpoint of the routes, for clients that want no route in their path.
//!
//! The holder of the Lease does it for all; the others keep still. An opt-in without a say in anything else: what cannot be written is
//! logged once and tried again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::clock::boottime_ms;
use crate::core::cluster::ClusterView;
use crate::core::routing::RoutePolicy;
use crate::core::routing::slice::{Places, Slice, slice_name};
use crate::kube::slice::{SliceApi, SliceError, StoredSlice};
use crate::proxy::Knowledge;

/// Between two looks at least, however much changes.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// And at most: a standby grows stale without a word.
const LOOK_LIMIT: Duration = Duration::from_secs(1);
/// What stands in the API is read anew after this long, in case somebody else has changed it.
const READ_PAUSE: Duration = Duration::from_secs(30);
/// After an error.
const AGAIN: Duration = Duration::from_secs(5);

/// One slice with its policy.
struct Kept {
    name: String,
    policy: RoutePolicy,
    places: Places,
    /// And when it was read or written.
    stored: Option<(StoredSlice, Instant)>,
    again_at: Instant,
    complaint: String,
}

/// Keeps the slices of these endpoints, by their names, until nobody has a view any more.
pub(super) async fn keep_slices(
    api: SliceApi,
    cluster: String,
    endpoints: Vec<(String, RoutePolicy)>,
    mut knowledge: Knowledge,
    mut view: watch::Receiver<Arc<ClusterView>>,
) {
    let kept = |(endpoint, policy): (String, RoutePolicy)| Kept {
        name: slice_name(&cluster, &endpoint),
        policy,
        places: Places::default(),
        stored: None,
        again_at: Instant::now(),
        complaint: String::new(),
    };
    let mut slices: Vec<Kept> = endpoints.into_iter().map(kept).collect();
    loop {
        let next_look = Instant::now() + LOOK_PAUSE;
        knowledge.mark_seen();
        let table = knowledge.now();
        let office = view
            .borrow_and_update()
            .me
            .leadership
            .as_ref()
            .and_then(|report| report.office);
        for slice in &mut slices {
            let endpoints = slice.places.next(&slice.policy, &table, boottime_ms());
            match office {
                Some(office) => {
                    let term = office.term;
                    slice.keep(&api, Slice { term, endpoints }).await;
                }
                // Somebody else writes it now.
                None => slice.stored = None,
            }
        }
        tokio::select! {
            () = knowledge.changed() => {}
            changed = view.changed() => if changed.is_err() { return },
            () = sleep(LOOK_LIMIT) => {}
        }
        sleep_until(next_look).await;
    }
}

impl Kept {
    async fn keep(&mut self, api: &SliceApi, wanted: Slice) {
        if Instant::now() < self.again_at {
            return;
        }
        match self.bring_about(api, wanted).await {
            Ok(()) => self.complaint.clear(),
            Err(error) if error.is_conflict() => {}
            Err(error) => {
                self.again_at = Instant::now() + AGAIN;
                let text = error.to_string();
                if self.complaint != text {
                    let hint = error.hint().unwrap_or_default();
                    tracing::warn!(detail = text, hint, "an EndpointSlice is not kept up to date");
                    self.complaint = text;
                }
            }
        }
    }

    async fn bring_about(&mut self, api: &SliceApi, mut wanted: Slice) -> Result<(), SliceError> {
        let known = self.stored.take().filter(|(_, at)| at.elapsed() < READ_PAUSE);
        let (stored, at) = match known {
            Some(known) => known,
            None => (api.get(&self.name).await?, Instant::now()),
        };
        wanted
            .endpoints
            .retain(|_, address| address.is_ipv6() == stored.ipv6);
        self.stored = Some(if wanted.replaces(&stored.slice) {
            let stored = api.patch(&self.name, &stored.version, &wanted).await?;
            let named: Vec<&str> = wanted.endpoints.keys().map(String::as_str).collect();
            tracing::info!(
                slice = self.name,
                endpoints = named.join(", "),
                "an EndpointSlice names other servers"
            );
            (stored, Instant::now())
        } else {
            (stored, at)
        });
        Ok(())
    }
}
