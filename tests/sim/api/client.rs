//! The client that follows and writes the Lease as `src/kube/knowledge.rs` does; one that has given up may still find its write later.

use std::rc::Rc;
use std::sync::Arc;

use podgres::core::lease::{Identity, LeaseRecord, LeaseView, LeaseWrite, Renewal, StoredLease};

use super::{Found, Stored};
use crate::config::{MS, SECOND, Time};
use crate::event::Event;
use crate::world::World;

/// A write that was begun.
#[derive(Debug)]
struct Attempt {
    id: u64,
    over: Option<u64>,
    record: Arc<LeaseRecord>,
    replaced: Option<Arc<LeaseRecord>>,
    sent_at_ms: u64,
    refused: bool,
}

fn office(record: &LeaseRecord) -> (Option<&Identity>, u64, u64) {
    (record.holder.as_ref(), record.term, record.renewals)
}

impl Attempt {
    fn landed_as(&self, found: &LeaseRecord) -> bool {
        let ours = office(&self.record);
        let before = self.replaced.as_deref().map(office);
        *found == *self.record || (office(found) == ours && before != Some(ours))
    }
}

/// What a member knows besides the view in its observation.
#[derive(Debug, Default)]
pub(crate) struct Client {
    version: Option<u64>,
    known: bool,
    current: Option<Attempt>,
    open: Vec<Attempt>,
    /// Our own write that the watch has not repeated yet.
    echo: Option<u64>,
    stored_writes: u64,
    /// Which watch is on, and since when nothing came.
    follower: u64,
    heard_at: Time,
}

/// What a sidecar leaves behind for the next one of its pod: all that it knew, and the writes that may still land.
pub(crate) struct LeaseKept {
    view: LeaseView,
    open: Vec<Attempt>,
}

impl LeaseKept {
    pub(crate) fn of(view: LeaseView, client: Client) -> Self {
        let open = client.open.into_iter().chain(client.current).collect();
        Self { view, open }
    }

    /// As the next sidecar begins with it: the API server has told that one nothing yet.
    pub(crate) fn recalled(self, identity: &Identity, now_ms: u64) -> (LeaseView, Client) {
        let mut view = LeaseView {
            stored: self.view.stored,
            renewal: self.view.renewal,
            changed_at_ms: now_ms,
            ..LeaseView::default()
        };
        let client = Client {
            open: self.open,
            ..Client::default()
        };
        show_uncertain(&mut view, &client, identity);
        (view, client)
    }
}

impl World {
    /// A write begins; its outcome shows in the view.
    pub(crate) fn begin_put(&mut self, member: usize, write: LeaseWrite) {
        let (now_ms, id) = (self.clock_ms(member), self.name());
        let there = &mut self.members[member];
        let identity = &there.policy.identity;
        let Some(sidecar) = &mut there.sidecar else {
            return;
        };
        let (view, client) = (&mut sidecar.observation.lease, &mut sidecar.client);
        if view.writing || !client.known {
            return;
        }
        let over = write.over.as_ref().and_then(|version| version.parse().ok());
        let stale = if write.over.is_some() {
            over != client.version
        } else {
            view.stored.is_some()
        };
        if stale {
            view.write_failed_at_ms = Some(now_ms);
            return;
        }
        view.writing = true;
        let record = Arc::new(told_apart(client, *write.record, identity));
        client.current = Some(Attempt {
            id,
            over,
            record: Arc::clone(&record),
            replaced: view.stored.as_ref().map(|stored| Arc::clone(&stored.record)),
            sent_at_ms: now_ms,
            refused: false,
        });
        show_uncertain(view, client, identity);
        let epoch = sidecar.epoch;
        let limit = self.members[member].policy.times.retry_period_ms.min(2_000) * MS;
        self.after(
            limit,
            Event::PutReply {
                member,
                epoch,
                attempt: id,
                stored: Err(true),
            },
        );
        let lost = self.api_lost(member);
        let delay = self.api_delay();
        let late = self.api.loss > 0 && self.random.chance(20);
        let delay = if late {
            self.random.between(delay, 2 * limit)
        } else {
            delay
        };
        if !lost {
            let reply = !self.api_lost(member);
            self.after(
                delay,
                Event::Put {
                    member,
                    epoch,
                    attempt: id,
                    over,
                    record,
                    reply,
                },
            );
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "an event is given whole")]
    pub(crate) fn watched(&mut self, member: usize, epoch: u64, watch: u64, stored: Option<Rc<Stored>>) {
        let (now, now_ms) = (self.now, self.clock_ms(member));
        let Some(sidecar) = self.sidecar(member, epoch) else {
            return;
        };
        if sidecar.client.follower != watch {
            return;
        }
        sidecar.client.heard_at = now;
        sidecar.observation.lease.answered_at_ms = Some(now_ms);
        sidecar.observation.lease.error = None;
        if let Some(echo) = sidecar.client.echo {
            if stored.as_ref().map(|stored| stored.version) != Some(echo) {
                return;
            }
            sidecar.client.echo = None;
        }
        self.take(member, stored.as_ref());
    }

    /// The newest object, as far as this member knows.
    fn take(&mut self, member: usize, stored: Option<&Rc<Stored>>) {
        let now_ms = self.clock_ms(member);
        let there = &mut self.members[member];
        let identity = &there.policy.identity;
        let Some(sidecar) = &mut there.sidecar else { return };
        let (view, client) = (&mut sidecar.observation.lease, &mut sidecar.client);
        let version = stored.map(|stored| stored.version);
        if version == client.version && client.known {
            return;
        }
        client.known = true;
        client.version = version;
        view.changed_at_ms = now_ms;
        view.missing = stored.is_none();
        view.error = None;
        view.stored = stored.map(|stored| StoredLease {
            record: Arc::clone(&stored.record),
            resource_version: stored.version.to_string(),
        });
        let (open, settled): (Vec<_>, Vec<_>) = std::mem::take(&mut client.open)
            .into_iter()
            .partition(|attempt| attempt.over == version);
        client.open = open;
        show_uncertain(view, client, identity);
        let found = stored.map(|stored| &*stored.record);
        let landed = settled
            .into_iter()
            .find(|attempt| found.is_some_and(|found| attempt.landed_as(found)));
        if let Some(attempt) = landed {
            renewed(view, &attempt, identity);
        }
        self.wake(member, 200);
    }

    pub(crate) fn put_reply(
        &mut self,
        member: usize,
        epoch: u64,
        attempt: u64,
        stored: Result<Rc<Stored>, bool>,
    ) {
        let now_ms = self.clock_ms(member);
        let there = &mut self.members[member];
        let identity = &there.policy.identity;
        let Some(sidecar) = there.sidecar.as_mut().filter(|sidecar| sidecar.epoch == epoch) else {
            return;
        };
        let (view, client) = (&mut sidecar.observation.lease, &mut sidecar.client);
        let Some(attempt) = client.current.take_if(|current| current.id == attempt) else {
            return;
        };
        view.writing = false;
        match stored {
            Ok(stored) => {
                client.stored_writes += 1;
                view.answered_at_ms = view.answered_at_ms.max(Some(attempt.sent_at_ms));
                view.error = None;
                renewed(view, &attempt, identity);
                show_uncertain(view, client, identity);
                if client.version == attempt.over {
                    client.echo = Some(stored.version);
                    self.take(member, Some(&stored));
                }
            }
            Err(uncertain) => {
                view.write_failed_at_ms = Some(now_ms);
                view.error = Some("the write failed".to_owned());
                client.open.push(Attempt {
                    refused: !uncertain,
                    ..attempt
                });
                show_uncertain(view, client, identity);
                let version = client.version;
                if client.open.last().map(|open| open.over) != Some(version) {
                    settle(view, client, identity);
                }
                self.after(MS, Event::List { member, epoch });
            }
        }
        self.wake(member, 200);
    }

    /// The follower reads the Lease and watches from there.
    pub(crate) fn list(&mut self, member: usize, epoch: u64) {
        let (sent_at_ms, follower) = (self.clock_ms(member), self.name());
        let Some(sidecar) = self.sidecar(member, epoch) else {
            return;
        };
        sidecar.client.follower = follower;
        let writes = sidecar.client.stored_writes;
        self.api.watches[member] = None;
        if self.api_lost(member) {
            let limit = self.members[member].policy.times.retry_period_ms.min(2_000) * MS;
            return self.after(
                limit,
                Event::Listed {
                    member,
                    epoch,
                    follower,
                    sent_at_ms,
                    writes,
                    found: None,
                },
            );
        }
        let delay = self.api_delay();
        self.after(
            delay,
            Event::ListAt {
                member,
                epoch,
                follower,
                sent_at_ms,
                writes,
            },
        );
    }

    pub(crate) fn listed(
        &mut self,
        member: usize,
        epoch: u64,
        (follower, sent_at_ms, writes): (u64, u64, u64),
        found: Option<Found>,
    ) {
        let now = self.now;
        let pause = self.random.between(75 * MS, SECOND);
        let silence = self.members[member].policy.times.retry_period_ms * 2 * MS;
        let Some(sidecar) = self
            .sidecar(member, epoch)
            .filter(|s| s.client.follower == follower)
        else {
            return;
        };
        let Some(Found(stored)) = found else {
            sidecar.observation.lease.error = Some("the API server does not answer".to_owned());
            self.wake(member, 200);
            return self.after(pause, Event::List { member, epoch });
        };
        if sidecar.client.stored_writes != writes {
            return self.after(50 * MS, Event::List { member, epoch });
        }
        sidecar.client.echo = None;
        sidecar.client.heard_at = now;
        let view = &mut sidecar.observation.lease;
        view.answered_at_ms = view.answered_at_ms.max(Some(sent_at_ms));
        view.error = None;
        self.take(member, stored.as_ref());
        self.wake(member, 200);
        self.after(
            silence,
            Event::Silence {
                member,
                epoch,
                follower,
            },
        );
    }

    /// Nothing came for two retry periods: the Lease is read.
    pub(crate) fn silence(&mut self, member: usize, epoch: u64, follower: u64) {
        let now = self.now;
        let silence = self.members[member].policy.times.retry_period_ms * 2 * MS;
        let Some(sidecar) = self
            .sidecar(member, epoch)
            .filter(|s| s.client.follower == follower)
        else {
            return;
        };
        let due = sidecar.client.heard_at + silence;
        if now < due {
            return self.at(
                due,
                Event::Silence {
                    member,
                    epoch,
                    follower,
                },
            );
        }
        self.list(member, epoch);
    }
}

/// The one by which the office would be another's, then one that changes whose confirmation counts, then any.
fn show_uncertain(view: &mut LeaseView, client: &Client, identity: &Identity) {
    let known = view.stored.as_ref().map(|stored| &stored.record.synchronous);
    let under_way = client
        .current
        .iter()
        .filter(|attempt| attempt.over == client.version);
    let lost = || client.open.iter().rev().filter(|attempt| !attempt.refused);
    let all = || under_way.clone().chain(lost());
    let away = all().find(|attempt| !attempt.record.held_by(identity));
    let shown = away.or_else(|| all().find(|attempt| Some(&attempt.record.synchronous) != known));
    let shown = shown.or_else(|| lost().next());
    view.uncertain = shown.map(|attempt| (*attempt.record).clone());
}

/// Another count of renewals than that of any write which may still land.
fn told_apart(client: &Client, mut record: LeaseRecord, identity: &Identity) -> LeaseRecord {
    if !record.held_by(identity) {
        return record;
    }
    let counts = client.open.iter().map(|attempt| attempt.record.renewals);
    let taken = counts.filter(|count| *count >= record.renewals).max();
    record.renewals = taken.map_or(record.renewals, |count| count + 1);
    record
}

fn renewed(view: &mut LeaseView, attempt: &Attempt, identity: &Identity) {
    view.write_failed_at_ms = None;
    let newest = view.renewal.map_or(0, |renewal| renewal.sent_at_ms);
    if attempt.record.held_by(identity) && newest <= attempt.sent_at_ms {
        view.renewal = Some(Renewal {
            term: attempt.record.term,
            sent_at_ms: attempt.sent_at_ms,
        });
    }
}

fn settle(view: &mut LeaseView, client: &mut Client, identity: &Identity) {
    let version = client.version;
    let (open, settled): (Vec<_>, Vec<_>) = std::mem::take(&mut client.open)
        .into_iter()
        .partition(|attempt| attempt.over == version);
    client.open = open;
    show_uncertain(view, client, identity);
    let found = view.stored.as_ref().map(|stored| &stored.record);
    let landed = settled
        .into_iter()
        .find(|attempt| found.is_some_and(|found| attempt.landed_as(found)));
    if let Some(attempt) = landed {
        renewed(view, &attempt, identity);
    }
}
