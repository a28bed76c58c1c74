//! What is known of the Lease, kept in order: a pure state that reads, watch events and writes are fed into.
//!
//! Versions are opaque, so order comes from how they arrived. A write names the version that it replaced, so its answer is
//! newer than that one. Until the watch has repeated it, what the watch brings is older. A read counts unless a
//! write has succeeded since it was sent.

use serde_json::Value;

use super::error::{LeaseError, LeaseName};
use super::record::{normalised, record_of, with_record};
use super::remembered::{OpenWrite, Remembered};
use crate::core::lease::{Identity, LeaseRecord, LeaseView, LeaseWrite, Renewal, SynchronousSet};

/// Writes without an answer that are remembered, of those that say nothing new.
const MOST_OPEN: usize = 32;

/// A write that was begun.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) over: Option<String>,
    pub(super) record: LeaseRecord,
    pub(super) object: Value,
    /// Of the record that it replaces: what would show that somebody has written.
    replaced: Option<LeaseRecord>,
    pub(super) begun_at_ms: u64,
    /// The server said no. Kept all the same, since it may have meant a copy of this very write.
    refused: bool,
}

impl Attempt {
    /// `found` came from this write: it is what was written, or what others have made of it.
    fn landed_as(&self, found: &LeaseRecord) -> bool {
        let office = |record: &LeaseRecord| (record.holder.clone(), record.term, record.renewals);
        *found == self.record
            || (office(found) == office(&self.record)
                && self.replaced.as_ref().map(office) != Some(office(&self.record)))
    }
}

impl Attempt {
    fn recalled(write: OpenWrite) -> Self {
        Self {
            over: write.over,
            record: write.record,
            object: Value::Null,
            replaced: write.replaced,
            begun_at_ms: write.begun_at_ms,
            refused: false,
        }
    }

    fn kept(&self) -> OpenWrite {
        OpenWrite {
            over: self.over.clone(),
            record: self.record.clone(),
            replaced: self.replaced.clone(),
            begun_at_ms: self.begun_at_ms,
        }
    }
}

#[derive(Debug)]
pub(super) struct Knowledge {
    lease: LeaseName,
    identity: Identity,
    pub(super) view: LeaseView,
    /// The object of the newest version, usable or not.
    base: Option<Value>,
    version: Option<String>,
    /// The newest object cannot be used; for as long as it is the newest.
    unusable: Option<LeaseError>,
    /// Our own write, that the watch has not repeated yet, and when it was answered.
    echo: Option<(String, u64)>,
    /// Writes of which no answer came, all over the newest version.
    open: Vec<Attempt>,
    /// The write that is being carried out.
    under_way: Option<Attempt>,
    /// Writes that succeeded.
    pub(super) stored_writes: u64,
}

impl Knowledge {
    pub(super) fn new(lease: LeaseName, identity: Identity) -> Self {
        Self {
            lease,
            identity,
            view: LeaseView::default(),
            base: None,
            version: None,
            unusable: None,
            echo: None,
            open: Vec::new(),
            under_way: None,
            stored_writes: 0,
        }
    }

    /// Takes over what an earlier process of this pod knew. Nothing is written before the Lease has been read.
    pub(super) fn recall(&mut self, remembered: Remembered, now_ms: u64) {
        self.view.stored = Some(remembered.stored);
        self.view.renewal = remembered.renewal;
        self.view.changed_at_ms = now_ms;
        self.open = remembered.open.into_iter().map(Attempt::recalled).collect();
        self.show_uncertain();
    }

    /// What the next process of this pod should know; `None` while there is no Lease that can be used.
    pub(super) fn remembered(&self) -> Option<Remembered> {
        let stored = self.view.stored.clone()?;
        let open = self.open.iter().chain(&self.under_way);
        Some(Remembered {
            stored,
            renewal: self.view.renewal,
            open: open.map(Attempt::kept).collect(),
        })
    }

    /// A read was answered. False if it says nothing, because a write has succeeded meanwhile: read again.
    pub(super) fn read(
        &mut self,
        object: Option<Value>,
        sent_at_ms: u64,
        writes_before: u64,
        now_ms: u64,
    ) -> bool {
        if writes_before != self.stored_writes {
            return false;
        }
        self.echo = None;
        self.answered(sent_at_ms);
        self.take(object, now_ms);
        true
    }

    /// The watch has brought an object, or its end.
    pub(super) fn event(&mut self, object: Value, deleted: bool, now_ms: u64) {
        self.answered(now_ms);
        if let Some((awaited, _)) = &self.echo {
            if deleted || Some(awaited.as_str()) != version_of(&object) {
                return;
            }
            self.echo = None;
        }
        self.take((!deleted).then_some(object), now_ms);
    }

    /// A request that asked for nothing new was answered.
    pub(super) fn answered(&mut self, at_ms: u64) {
        self.view.answered_at_ms = self.view.answered_at_ms.max(Some(at_ms));
        self.view.error = self.unusable.as_ref().map(error_text);
    }

    pub(super) fn failed(&mut self, error: &LeaseError) {
        self.view.error = Some(error_text(error));
    }

    /// Whether an object is the newest known, so that the watch has missed nothing.
    pub(super) fn is_newest(&self, object: Option<&Value>) -> bool {
        match object {
            Some(object) => self.version.is_some() && version_of(object) == self.version.as_deref(),
            None => self.view.missing,
        }
    }

    /// When the watch owes the echo of a write, since when.
    pub(super) fn echo_since_ms(&self) -> Option<u64> {
        self.echo.as_ref().map(|(_, since)| *since)
    }

    fn take(&mut self, object: Option<Value>, now_ms: u64) {
        let version = object.as_ref().and_then(version_of).map(str::to_owned);
        let first = self.base.is_none() && !self.view.missing;
        if version == self.version && !first {
            return;
        }
        self.view.changed_at_ms = now_ms;
        self.view.missing = object.is_none();
        self.version = version;
        let read = object.as_ref().map(record_of).transpose();
        self.base = object;
        match read {
            Ok(stored) => {
                self.unusable = None;
                self.view.stored = stored;
            }
            Err(source) => {
                let lease = self.lease.clone();
                self.unusable = Some(LeaseError::Unusable { lease, source });
                self.view.stored = None;
            }
        }
        self.view.error = self.unusable.as_ref().map(error_text);
        self.settle();
    }

    /// The version is another one: writes over an older one have landed or never will.
    fn settle(&mut self) {
        let version = self.version.as_deref();
        let record = self.view.stored.as_ref().map(|stored| &stored.record);
        let (open, settled): (Vec<_>, Vec<_>) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|attempt| attempt.over.as_deref() == version);
        let landed = settled
            .into_iter()
            .find(|attempt| record.is_some_and(|record| attempt.landed_as(record)));
        self.open = open;
        self.show_uncertain();
        if let Some(attempt) = landed {
            self.renewed(&attempt.record, attempt.begun_at_ms);
        }
    }

    /// Of several, the one by which the office would be another's; then the one that would change whose confirmation
    /// counts: others must reckon with it, from when it is sent.
    fn show_uncertain(&mut self) {
        let known = self.view.stored.as_ref().map(|stored| &stored.record.synchronous);
        let under_way = self
            .under_way
            .iter()
            .filter(|attempt| attempt.over == self.version);
        let lost = || self.open.iter().rev().filter(|attempt| !attempt.refused);
        let all = || under_way.clone().chain(lost());
        let away = all().find(|attempt| !attempt.record.held_by(&self.identity));
        let shown = away.or_else(|| all().find(|attempt| Some(&attempt.record.synchronous) != known));
        self.view.uncertain = shown
            .or_else(|| lost().next())
            .map(|attempt| attempt.record.clone());
    }

    fn renewed(&mut self, record: &LeaseRecord, sent_at_ms: u64) {
        self.view.write_failed_at_ms = None;
        if record.held_by(&self.identity) {
            let newest = self.view.renewal.map_or(0, |renewal| renewal.sent_at_ms);
            if newest <= sent_at_ms {
                self.view.renewal = Some(Renewal {
                    term: record.term,
                    sent_at_ms,
                });
            }
        }
    }

    /// Begins a write. `None`: one is under way, or the Lease has not been read yet. An error ends it before it was sent.
    pub(super) fn begin(&mut self, write: LeaseWrite, now_ms: u64) -> Option<Result<Attempt, LeaseError>> {
        let read = self.base.is_some() || self.version.is_some() || self.view.missing;
        if self.view.writing || !read {
            return None;
        }
        let attempt = self.prepare(write, now_ms);
        match &attempt {
            Ok(attempt) => {
                self.view.writing = true;
                self.under_way = Some(attempt.clone());
                self.show_uncertain();
            }
            Err(error) => {
                self.view.write_failed_at_ms = Some(now_ms);
                self.view.error = Some(error_text(error));
            }
        }
        Some(attempt)
    }

    /// Another count of renewals than that of any write which may still land: whichever does, it is known when that one was sent.
    /// An office that is given away keeps its 0.
    fn told_apart(&self, mut record: LeaseRecord) -> LeaseRecord {
        if !record.held_by(&self.identity) {
            return record;
        }
        let counts = self.open.iter().map(|attempt| attempt.record.renewals);
        let taken = counts.filter(|count| *count >= record.renewals).max();
        record.renewals = taken.map_or(record.renewals, |count| count + 1);
        record
    }

    fn prepare(&self, write: LeaseWrite, now_ms: u64) -> Result<Attempt, LeaseError> {
        let verb = verb(write.over.is_none());
        if write.over.is_some() && write.over != self.version || write.over.is_none() && self.base.is_some() {
            let lease = self.lease.clone();
            return Err(LeaseError::Stale { verb, lease });
        }
        let base = self.base.as_ref().filter(|_| write.over.is_some());
        let record = self.told_apart(*write.record);
        let object = with_record(&self.lease, base, &record).map_err(|source| LeaseError::Unusable {
            lease: self.lease.clone(),
            source,
        })?;
        Ok(Attempt {
            over: write.over,
            record: normalised(&record),
            object,
            replaced: self.view.stored.as_ref().map(|stored| (*stored.record).clone()),
            begun_at_ms: now_ms,
            refused: false,
        })
    }

    /// A write was answered with the stored object.
    pub(super) fn stored(&mut self, attempt: &Attempt, object: Value, sent_at_ms: u64, now_ms: u64) {
        self.view.writing = false;
        self.under_way = None;
        self.stored_writes += 1;
        self.answered(sent_at_ms);
        self.renewed(&attempt.record, sent_at_ms);
        // Otherwise the watch was faster, and what it brought is this write or a later one.
        if self.version == attempt.over {
            let version = version_of(&object).map(str::to_owned);
            self.echo = version
                .filter(|version| Some(version) != self.version.as_ref())
                .map(|v| (v, now_ms));
            self.take(Some(object), now_ms);
        }
        self.show_uncertain();
    }

    /// Of the open writes the oldest that would change nothing by landing which the rest would not: a renewal into silence, long past
    /// any use. One that would give the office away or change whose confirmation counts stays for as long as it may land.
    fn forget_one(&mut self) {
        let stored = self.view.stored.as_ref().map(|stored| office(&stored.record));
        let says_no_more = |at: usize, attempt: &Attempt| {
            let same = |later: &Attempt| {
                office(&later.record) == office(&attempt.record) && (attempt.refused || !later.refused)
            };
            stored == Some(office(&attempt.record)) || self.open[at + 1..].iter().any(same)
        };
        let mut open = self.open.iter().enumerate();
        if let Some(at) = open.position(|(at, attempt)| says_no_more(at, attempt)) {
            self.open.remove(at);
        }
    }

    /// A write ended without success. True if the Lease must be read to know more.
    pub(super) fn not_stored(&mut self, mut attempt: Attempt, error: &LeaseError, now_ms: u64) -> bool {
        self.view.writing = false;
        self.under_way = None;
        self.view.write_failed_at_ms = Some(now_ms);
        self.failed(error);
        attempt.refused = matches!(error.status(), Some(404 | 409));
        if !error.uncertain() && !attempt.refused {
            self.show_uncertain();
            return false;
        }
        if self.open.len() >= MOST_OPEN {
            self.forget_one();
        }
        let passed = attempt.over != self.version;
        self.open.push(attempt);
        self.show_uncertain();
        if passed {
            self.settle();
        }
        true
    }
}

/// What a write would make of the office, beyond the time of its renewal.
fn office(record: &LeaseRecord) -> (Option<&Identity>, u64, &SynchronousSet) {
    (record.holder.as_ref(), record.term, &record.synchronous)
}

fn verb(create: bool) -> &'static str {
    if create { "create" } else { "update" }
}

fn version_of(object: &Value) -> Option<&str> {
    object["metadata"]["resourceVersion"].as_str()
}

/// With the cause behind it; the view has room for one line.
pub(super) fn error_text(error: &LeaseError) -> String {
    let text = match error {
        LeaseError::Unusable { source, .. } => format!("{error}: {source}"),
        _ => error.to_string(),
    };
    match error.hint() {
        Some(hint) => format!("{text} ({hint})"),
        None => text,
    }
}

#[cfg(test)]
#[path = "knowledge_tests.rs"]
mod tests;
