//! The body of `/peer/stream`: this member's status as JSON lines, for as long as somebody listens.
//!
//! News goes out at once, movement of WAL positions at most ten times a second, and `{}` when a whole interval
//! brought nothing but the passing of time. All streams beat at the same instants, so that an idle process wakes once for all of them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use futures_util::stream;
use tokio::sync::watch;

use crate::core::cluster::ClusterView;
use crate::core::cluster::change::{Change, change};
use crate::core::status::MemberStatus;

/// The shortest time between two lines that tell of movement alone.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// A line now, one with every change, and one at least each `heartbeat`; ends with the agent.
///
/// `epoch` is any fixed instant that all streams of this process share.
pub(super) fn body(view: watch::Receiver<Arc<ClusterView>>, heartbeat: Duration, epoch: Instant) -> Body {
    let lines = Lines {
        view,
        heartbeat: heartbeat.max(Duration::from_millis(1)),
        epoch,
        sent: None,
    };
    Body::from_stream(stream::unfold(lines, |mut lines| async {
        let line = lines.next().await?;
        Some((Ok::<_, Infallible>(line), lines))
    }))
}

struct Lines {
    view: watch::Receiver<Arc<ClusterView>>,
    heartbeat: Duration,
    epoch: Instant,
    sent: Option<(MemberStatus, Instant)>,
}

impl Lines {
    /// The next line; `None` once the agent is gone.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let view = self.view.borrow_and_update().clone();
            let Some((sent, sent_at)) = &self.sent else {
                return self.full(&view.me);
            };
            let change = change(sent, &view.me);
            let due = match change {
                Change::News => return self.full(&view.me),
                Change::Progress => *sent_at + PROGRESS_INTERVAL.min(self.heartbeat),
                Change::Age | Change::None => self.next_beat(*sent_at),
            };
            if Instant::now() >= due {
                return if change <= Change::Age {
                    self.empty()
                } else {
                    self.full(&view.me)
                };
            }
            tokio::select! {
                changed = self.view.changed() => changed.ok()?,
                () = tokio::time::sleep_until(due.into()) => {}
            }
        }
    }

    fn full(&mut self, status: &MemberStatus) -> Option<Bytes> {
        let mut line = serde_json::to_vec(status).ok()?;
        line.push(b'\n');
        self.sent = Some((status.clone(), Instant::now()));
        Some(line.into())
    }

    fn empty(&mut self) -> Option<Bytes> {
        let (_, sent_at) = self.sent.as_mut()?;
        *sent_at = Instant::now();
        Some(Bytes::from_static(b"{}\n"))
    }

    /// The first common beat after `sent_at`.
    fn next_beat(&self, sent_at: Instant) -> Instant {
        let since_epoch = sent_at.saturating_duration_since(self.epoch).as_nanos();
        let rest = self.heartbeat.as_nanos() - since_epoch % self.heartbeat.as_nanos();
        sent_at + Duration::from_nanos(u64::try_from(rest).unwrap_or(u64::MAX))
    }
}
