//! Routes that are no member's, as they make themselves known: a planned move waits for them too.
//!
//! One that has fallen silent is forgotten: what it still has is cut when the server stops.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// They tell every second.
const SILENCE_MS: u64 = 3_000;
/// Those that are remembered.
const MAX_ROUTES: usize = 1_000;

/// Who was there lately, and whether it has left this server.
#[derive(Clone, Default)]
pub(super) struct Visitors {
    heard: Arc<Mutex<BTreeMap<String, (u64, bool)>>>,
    news: Arc<Notify>,
}

impl Visitors {
    /// A route has told of itself.
    pub(super) fn hear(&self, route: &str, left: bool, now_ms: u64) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.retain(|_, (at_ms, _)| now_ms.saturating_sub(*at_ms) <= SILENCE_MS);
        if heard.len() < MAX_ROUTES || heard.contains_key(route) {
            let before = heard.insert(route.to_owned(), (now_ms, left));
            if before.is_none_or(|(_, known)| known != left) {
                self.news.notify_one();
            }
        }
    }

    /// All that were heard of lately have left this server.
    pub(super) fn have_left(&self, now_ms: u64) -> bool {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let present = |at_ms: u64| now_ms.saturating_sub(at_ms) <= SILENCE_MS;
        heard.values().all(|(at_ms, left)| *left || !present(*at_ms))
    }

    /// Ends when one has come or changed its word.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_waited_for_while_it_is_heard() {
        let visitors = Visitors::default();
        assert!(visitors.have_left(0), "nobody is there");
        visitors.hear("a", false, 1_000);
        visitors.hear("b", true, 1_000);
        assert!(!visitors.have_left(2_000));
        visitors.hear("a", true, 2_000);
        assert!(visitors.have_left(2_000));
        visitors.hear("b", false, 3_000);
        assert!(!visitors.have_left(6_000));
        assert!(visitors.have_left(6_001), "it has fallen silent");
    }
}
