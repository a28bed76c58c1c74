//! Waits for what must come.

use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(10);

/// Asks again and again whether it is so, for at most a minute.
pub(crate) async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !so().await {
        assert!(begun.elapsed() < LIMIT, "waited in vain for {what}");
        tokio::time::sleep(PAUSE).await;
    }
}
