//! One watch: what has changed since a version, then what changes, one JSON object per line.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::objects::{Change, Objects};

/// Where nothing else is asked for; the real server draws from 30 to 60 minutes.
const DEFAULT_LIMIT: Duration = Duration::from_mins(30);

/// What is watched.
pub(super) struct Selection {
    pub(super) namespace: String,
    pub(super) name: Option<String>,
    /// After this version; `None`: all there is, as added, and what follows.
    pub(super) after: Option<u64>,
    pub(super) limit: Option<Duration>,
    pub(super) bookmarks: bool,
}

struct Watch {
    objects: Arc<Objects>,
    selection: Selection,
    revisions: watch::Receiver<u64>,
    position: u64,
    end_at: Instant,
    /// To be sent before anything else.
    first: Option<String>,
    ended: bool,
}

/// The body of a watch's answer.
pub(super) fn body(objects: Arc<Objects>, selection: Selection) -> Body {
    let revisions = objects.subscribe();
    let (position, first) = if let Some(after) = selection.after {
        (after, None)
    } else {
        let (revision, items) = objects.list(&selection.namespace, selection.name.as_deref());
        let added = items.iter().map(|item| line("ADDED", item));
        (revision, Some(added.collect()))
    };
    let watch = Watch {
        end_at: Instant::now() + selection.limit.unwrap_or(DEFAULT_LIMIT),
        objects,
        selection,
        revisions,
        position,
        first,
        ended: false,
    };
    Body::from_stream(stream::unfold(watch, |mut watch| async move {
        let text = watch.next().await?;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(text)), watch))
    }))
}

impl Watch {
    /// The next lines; `None`: the time is over.
    async fn next(&mut self) -> Option<String> {
        if let Some(first) = self.first.take().filter(|first| !first.is_empty()) {
            return Some(first);
        }
        while !self.ended {
            self.revisions.mark_unchanged();
            match self.objects.changes_after(self.position) {
                Ok((revision, changes)) => {
                    self.position = revision;
                    let wanted = changes.iter().filter(|change| self.selection.wants(change));
                    let lines: String = wanted.map(|change| line(change.kind, &change.object)).collect();
                    if !lines.is_empty() {
                        return Some(lines);
                    }
                }
                Err(refusal) => {
                    self.ended = true;
                    return Some(line("ERROR", &refusal.body()));
                }
            }
            if timeout_at(self.end_at, self.revisions.changed()).await.is_err() {
                self.ended = true;
                return self.selection.bookmarks.then(|| self.bookmark());
            }
        }
        None
    }

    fn bookmark(&self) -> String {
        let object = json!({
            "kind": self.objects.resource.kind,
            "apiVersion": self.objects.resource.api_version(),
            "metadata": {"resourceVersion": self.position.to_string(), "creationTimestamp": null},
            "spec": {},
        });
        line("BOOKMARK", &object)
    }
}

impl Selection {
    fn wants(&self, change: &Change) -> bool {
        change.key.0 == self.namespace && self.name.as_ref().is_none_or(|name| change.key.1 == *name)
    }
}

fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}
