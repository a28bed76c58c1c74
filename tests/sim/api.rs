//! The API server's one Lease, and the client that follows and writes it as `src/kube/knowledge.rs` does.
//!
//! A write is applied some time after it was sent; requests and replies are lost separately; a client that has given
//! up may still find its write in the Lease later.

mod client;

use std::rc::Rc;
use std::sync::Arc;

use podgres::core::lease::LeaseRecord;

use crate::config::{SECOND, Time};
use crate::event::Event;
use crate::world::World;
pub(crate) use client::{Client, LeaseKept};

/// The Lease as the server has it.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) record: Arc<LeaseRecord>,
    version: u64,
}

/// What a read found: the Lease, or that there is none.
#[derive(Debug)]
pub(crate) struct Found(Option<Rc<Stored>>);

/// See the module.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) stored: Option<Rc<Stored>>,
    /// When it was deleted last, in the order of names.
    deleted: u64,
    pub(crate) away: bool,
    pub(crate) away_for: Vec<bool>,
    /// Lost requests and replies, in percent.
    pub(crate) loss: u64,
    /// The watch of each member, and when its last event arrives.
    watches: Vec<Option<(u64, u64, Time)>>,
}

impl Api {
    pub(crate) fn new(members: usize) -> Self {
        Self {
            stored: None,
            deleted: 0,
            away: false,
            away_for: vec![false; members],
            loss: 0,
            watches: vec![None; members],
        }
    }

    fn reached(&self, member: usize) -> bool {
        !self.away && !self.away_for[member]
    }
}

impl World {
    fn api_delay(&mut self) -> Time {
        let (low, high) = self.config.api_delay;
        self.random.skewed(low, high)
    }

    fn api_lost(&mut self, member: usize) -> bool {
        let loss = self.api.loss;
        !self.api.reached(member) || self.random.chance(loss)
    }

    /// The server applies a write, or refuses it.
    pub(crate) fn put(
        &mut self,
        member: usize,
        epoch: u64,
        (attempt, over, reply): (u64, Option<u64>, bool),
        record: Arc<LeaseRecord>,
    ) {
        if self.api.away {
            return;
        }
        let version = self.api.stored.as_ref().map(|stored| stored.version);
        let stored = if version == over {
            Ok(self.store(record, over.is_none() && attempt < self.api.deleted))
        } else {
            Err(false)
        };
        let delay = self.api_delay();
        if reply && self.api.reached(member) {
            self.after(
                delay,
                Event::PutReply {
                    member,
                    epoch,
                    attempt,
                    stored,
                },
            );
        }
    }

    /// A new version, which all watches bring; `late` if it was sent before the Lease was deleted.
    pub(crate) fn store(&mut self, record: Arc<LeaseRecord>, late: bool) -> Rc<Stored> {
        self.check_record(&record, late);
        let version = self.name();
        let stored = Rc::new(Stored { record, version });
        self.api.stored = Some(Rc::clone(&stored));
        self.tell_watches();
        stored
    }

    pub(crate) fn delete_lease(&mut self) {
        self.api.stored = None;
        self.api.deleted = self.name();
        self.tell_watches();
    }

    fn tell_watches(&mut self) {
        for member in 0..self.members.len() {
            let Some((epoch, watch, last)) = self.api.watches[member] else {
                continue;
            };
            if self.api_lost(member) {
                // The rest of this watch is never heard.
                self.api.watches[member] = None;
                continue;
            }
            let at = (self.now + self.api_delay()).max(last + 1);
            self.api.watches[member] = Some((epoch, watch, at));
            let stored = self.api.stored.clone();
            self.at(
                at,
                Event::Watched {
                    member,
                    epoch,
                    watch,
                    stored,
                },
            );
        }
    }

    pub(crate) fn list_at(
        &mut self,
        member: usize,
        epoch: u64,
        (follower, sent_at_ms, writes): (u64, u64, u64),
    ) {
        let lost = self.api_lost(member);
        let delay = self.api_delay();
        let found = (!lost).then(|| Found(self.api.stored.clone()));
        if !lost {
            self.api.watches[member] = Some((epoch, follower, self.now + delay));
        }
        let delay = if lost { 2 * SECOND } else { delay };
        self.after(
            delay,
            Event::Listed {
                member,
                epoch,
                follower,
                sent_at_ms,
                writes,
                found,
            },
        );
    }
}
