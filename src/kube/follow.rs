//! Follows the Lease: reads it, watches it from there, and reads it again when the watch is lost, stale or silent.
//!
//! Source: Kubernetes API concepts, "Efficient detection of changes": list, watch from the list's version, list again
//! when the server has forgotten it (410).

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep_until, timeout};

use super::client::Lines;
use super::error::LeaseError;
use super::store::Shared;
use crate::clock::boottime_ms;

/// The server ends a watch after this many seconds, at random so that members do not come back together.
const WATCH_SECONDS: std::ops::Range<u64> = 40..60;
/// For a server that does not end it.
const WATCH_GRACE: Duration = Duration::from_secs(5);
/// Between two requests after a failure: doubles from the one to the other.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// `Retry-After` is obeyed up to here.
const LONGEST_ASKED_PAUSE: Duration = Duration::from_secs(10);
/// However often somebody wants the Lease read.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

/// Why a watch is not gone on with.
enum Ended {
    /// The Lease is read again at once: what was missed is not known.
    Lost,
    /// The same, after a pause.
    Failed(LeaseError),
}

/// Runs until it is aborted.
pub(super) async fn follow(shared: Arc<Shared>) {
    let mut pause = Pause::default();
    loop {
        let ended = match read(&shared).await {
            Ok(Some(position)) => {
                pause = Pause::default();
                watch(&shared, position).await
            }
            Ok(None) => Ended::Lost,
            Err(error) => Ended::Failed(error),
        };
        match ended {
            Ended::Lost => tokio::time::sleep(SHORTEST_PAUSE).await,
            Ended::Failed(error) => {
                shared.change(|knowledge| knowledge.failed(&error));
                pause.wait(&shared, error.retry_after()).await;
            }
        }
    }
}

/// Where to watch from; `None` if a write went by meanwhile.
async fn read(shared: &Shared) -> Result<Option<String>, LeaseError> {
    let writes_before = shared.lock().stored_writes;
    let read = shared.api.list().await?;
    let counts =
        shared.change(|knowledge| knowledge.read(read.object, read.sent_at_ms, writes_before, boottime_ms()));
    Ok(read.position.filter(|_| counts))
}

/// Watches from `position`, over as many requests as it takes.
async fn watch(shared: &Shared, mut position: String) -> Ended {
    loop {
        let seconds = fastrand::u64(WATCH_SECONDS);
        let lines = match shared.api.watch(&position, seconds).await {
            Ok(lines) => lines,
            Err(error) if error.status() == Some(410) => return Ended::Lost,
            Err(error) => return Ended::Failed(error),
        };
        shared.change(|knowledge| knowledge.answered(lines.sent_at_ms));
        let opened = Instant::now();
        let limit = Duration::from_secs(seconds) + WATCH_GRACE;
        match timeout(limit, listen(shared, lines, &mut position)).await {
            // The server has ended it in good order, or should have.
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(ended)) => return ended,
        }
        if opened.elapsed() < Duration::from_secs(1) {
            tokio::time::sleep(FIRST_PAUSE * 5).await;
        }
    }
}

/// Takes what one watch brings, and asks when it brings nothing.
async fn listen(shared: &Shared, mut lines: Lines, position: &mut String) -> Result<(), Ended> {
    let silence = shared.settings.silence();
    let mut ask_at = Instant::now() + silence;
    loop {
        tokio::select! {
            line = lines.next() => {
                let line = line.map_err(|failure| Ended::Failed(shared.api.no_answer("watch", failure)))?;
                let Some(line) = line else { return Ok(()) };
                take(shared, &line, position)?;
                // The echo of a write is owed soon, whatever else comes.
                if shared.lock().echo_since_ms().is_none() {
                    ask_at = Instant::now() + silence;
                }
            }
            () = sleep_until(ask_at) => ask_at = probe(shared).await? + silence,
            () = shared.nudge.notified() => ask_at = probe(shared).await? + silence,
        }
    }
}

/// Reads the Lease beside the watch. What it finds is only compared, so that nothing overtakes the watch.
async fn probe(shared: &Shared) -> Result<Instant, Ended> {
    match shared.api.get().await {
        Ok(read) => {
            let complete = shared.change(|knowledge| {
                let newest = knowledge.is_newest(read.object.as_ref());
                let overdue = knowledge
                    .echo_since_ms()
                    .is_some_and(|since| since < read.sent_at_ms);
                if newest {
                    knowledge.answered(read.sent_at_ms);
                }
                newest && !overdue
            });
            if complete {
                Ok(Instant::now())
            } else {
                Err(Ended::Lost)
            }
        }
        // The server is there and the watch as well; more requests would make it worse.
        Err(error) if error.status().is_some() => {
            shared.change(|knowledge| knowledge.failed(&error));
            Ok(Instant::now() + error.retry_after().unwrap_or_default().min(LONGEST_ASKED_PAUSE))
        }
        Err(error) => Err(Ended::Failed(error)),
    }
}

/// One event of the watch.
fn take(shared: &Shared, line: &[u8], position: &mut String) -> Result<(), Ended> {
    let Ok(mut event) = serde_json::from_slice::<Value>(line) else {
        return Err(Ended::Lost);
    };
    let object = event["object"].take();
    let kind = event["type"].as_str().unwrap_or_default();
    // 410 Gone, or that the server has a trouble of its own: what was missed is not known.
    if kind == "ERROR" {
        return Err(Ended::Lost);
    }
    if let Some(version) = object["metadata"]["resourceVersion"].as_str() {
        version.clone_into(position);
    }
    let now_ms = boottime_ms();
    match kind {
        "ADDED" | "MODIFIED" | "DELETED" if shared.api.is_ours(&object) => {
            shared.change(|knowledge| knowledge.event(object, kind == "DELETED", now_ms));
        }
        _ => shared.change(|knowledge| knowledge.answered(now_ms)),
    }
    Ok(())
}

/// Doubling pauses with some chance in them, so that members do not come all at once.
struct Pause {
    next: Duration,
}

impl Default for Pause {
    fn default() -> Self {
        Self { next: FIRST_PAUSE }
    }
}

impl Pause {
    /// Waits, or until somebody wants the Lease read.
    async fn wait(&mut self, shared: &Shared, asked: Option<Duration>) {
        let pause = self.next.max(asked.unwrap_or_default().min(LONGEST_ASKED_PAUSE));
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        tokio::time::sleep(SHORTEST_PAUSE).await;
        let pause = pause.mul_f64(0.75 + 0.5 * fastrand::f64());
        // A nudge ends it early; the limit is its own end.
        drop(timeout(pause, shared.nudge.notified()).await);
    }
}
