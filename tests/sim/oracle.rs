//! What must always hold, looked at from outside, where true time and every directory can be seen.

mod settled;

use std::collections::BTreeMap;
use std::sync::Arc;

use podgres::core::lease::{Durability, LeaseRecord};
use podgres::core::supervision::{ServerRole, Terms};
use podgres::core::wal::TimelineId;

use crate::config::{SECOND, Time};
use crate::event::Event;
use crate::supervisor::Supervisor;
use crate::world::{Member, World};

/// A forced move is over after that long.
const FORCED: Time = 60 * SECOND;
/// How long it has to stay settled.
const SETTLED: Time = 3 * SECOND;
/// What has been well for so long is in its periods again.
const QUIET: Time = SECOND;

/// What has been seen, and the first violation.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) violation: Option<String>,
    /// Acknowledged commits: where they end, and which they are.
    acked: Vec<(usize, u64)>,
    pub(crate) acknowledged: u64,
    pub(crate) lost: u64,
    pub(crate) promotions: u64,
    /// The newest term in which anybody acknowledged: who, and when first.
    newest: (u64, usize, Time),
    /// WAL of the newest promotion.
    promoted: Option<(u64, Vec<u64>)>,
    identifier: Option<u64>,
    term: u64,
    /// The newest term that each pod was given by the Lease, by UID.
    given: BTreeMap<String, u64>,
    /// Timelines that were begun, and who did.
    timelines: BTreeMap<TimelineId, usize>,
    /// When the operator asked for a move that may lose commits; forgotten some time after all was well again.
    pub(crate) forced_at: Option<Time>,
    /// A process has been held up in this schedule.
    pub(crate) paused: bool,
    pub(crate) volumes_lost: usize,
    pub(crate) settled_at: Option<Time>,
    pub(crate) converged_at: Option<Time>,
    acked_when_healed: u64,
}

impl World {
    pub(crate) fn violation(&mut self, text: String) {
        self.trace.add(self.now, || format!("VIOLATION {text}"));
        self.oracle.violation.get_or_insert(text);
    }

    fn may_lose(&self) -> bool {
        self.config.durability == Durability::Async || self.oracle.forced_at.is_some()
    }

    /// A client has been told that its commit is durable.
    pub(crate) fn acknowledge(&mut self, member: usize, end: usize, id: u64) {
        let term = self.members[member].terms.held;
        let confirmed_at = self.members[member]
            .postgres
            .as_ref()
            .map_or(0, |p| p.gate_confirmed_at);
        let now = self.now;
        self.oracle.acknowledged += 1;
        let (newest, by, since) = self.oracle.newest;
        if term > newest {
            self.oracle.newest = (term, member, now);
        } else if self.config.durability == Durability::Async
            && (term < newest || by != member)
            && confirmed_at > since
        {
            // With a quorum a late acknowledgement harms nobody if the later primary has the commit: see below.
            self.violation(format!(
                "pg-{member} acknowledges in term {term} after pg-{by} did so in term {newest}"
            ));
        }
        let elsewhere = self.oracle.promoted.as_ref().filter(|(later, _)| *later > term);
        if elsewhere.is_some_and(|(_, wal)| wal.get(end - 1) != Some(&id)) {
            if !self.may_lose() {
                self.violation(format!(
                    "pg-{member} acknowledges {id} in term {term}, which a later primary lacks"
                ));
            }
            self.oracle.lost += 1;
            return;
        }
        self.oracle.acked.push((end, id));
    }

    /// A server has opened for writes.
    pub(crate) fn check_primary(&mut self, member: usize) {
        let open = self.members[member]
            .postgres
            .as_ref()
            .is_some_and(|postgres| !postgres.in_recovery);
        if !open {
            return;
        }
        self.oracle.promotions += 1;
        if !self.licensed(member) {
            self.violation(format!("pg-{member} opens for writes without a licence"));
        }
        self.check_alone(member);
        let Some(data) = &self.members[member].data else {
            return;
        };
        let has = |(end, id): &(usize, u64)| data.wal.entries.get(end - 1) == Some(id);
        let missing: Vec<_> = self
            .oracle
            .acked
            .iter()
            .filter(|acked| !has(acked))
            .copied()
            .collect();
        let wal = data.wal.entries.clone();
        let term = self.members[member].terms.held;
        let later = self
            .oracle
            .promoted
            .as_ref()
            .is_some_and(|(later, _)| *later > term);
        if later && self.config.durability != Durability::Async {
            // A crashed primary comes up again beside a later one: without its quorum it acknowledges nothing.
            return;
        }
        self.oracle.promoted = Some((term, wal));
        if missing.is_empty() {
            return;
        }
        if !self.may_lose() {
            self.violation(format!(
                "pg-{member} opens in term {term} without {} acknowledged commits, the first {:?}",
                missing.len(),
                missing.first()
            ));
        }
        self.oracle.lost += missing.len() as u64;
        self.oracle.acked.retain(|acked| !missing.contains(acked));
    }

    /// A promotion has begun a timeline: nobody else may have begun one of its number.
    pub(crate) fn check_timeline(&mut self, member: usize, timeline: TimelineId) {
        if let Some(other) = self.oracle.timelines.insert(timeline, member) {
            self.violation(format!(
                "pg-{member} begins timeline {timeline}, which pg-{other} has begun before"
            ));
        }
    }

    fn check_alone(&mut self, member: usize) {
        if self.config.durability != Durability::Async || self.oracle.paused {
            return;
        }
        let writable = |other: &usize| {
            let there = &self.members[*other];
            let open = there
                .postgres
                .as_ref()
                .is_some_and(|p| !p.in_recovery && p.is_ready && p.stopping.is_none());
            *other != member && open && self.licensed(*other)
        };
        if let Some(other) = (0..self.members.len()).find(writable) {
            self.violation(format!(
                "pg-{member} and pg-{other} accept writes, both within their licence"
            ));
        }
    }

    /// The promotion file is made.
    pub(crate) fn check_promotion(&mut self, member: usize) {
        if !self.licensed(member) {
            self.violation(format!("pg-{member} is promoted without a licence"));
        }
    }

    /// A standby connects.
    pub(crate) fn check_stream(&mut self, from: usize, member: usize) {
        let (upstream, standby) = (&self.members[from], &self.members[member]);
        let Some((source, data)) = upstream.data.as_ref().zip(standby.data.as_ref()) else {
            return;
        };
        if !data.wal.is_prefix_of(&source.wal) {
            let (have, common) = (data.wal.len(), data.wal.common(&source.wal));
            return self.violation(format!(
                "pg-{member} streams from pg-{from}, whose WAL it shares only {common} of {have} entries with"
            ));
        }
        let primary = upstream
            .postgres
            .as_ref()
            .is_some_and(|postgres| !postgres.in_recovery);
        // It may not have heard of it itself.
        let begun = self
            .oracle
            .given
            .get(&upstream.policy.identity.uid)
            .copied()
            .unwrap_or(0);
        let (promised, held) = (standby.terms.promised, upstream.terms.held.max(begun));
        // Between the promise and the reload that makes it true nothing is told to anybody.
        let detaching = standby.supervisor.as_ref().is_none_or(Supervisor::is_working);
        if primary && held < promised && !detaching {
            self.violation(format!(
                "pg-{member} has promised term {promised} and streams from pg-{from} of term {held}"
            ));
        }
    }

    pub(crate) fn check_terms(&mut self, member: usize, terms: Terms) {
        let known = self.members[member].terms;
        if terms.promised < known.promised || terms.held < known.held {
            self.violation(format!(
                "the terms of pg-{member} go back from {known:?} to {terms:?}"
            ));
        }
    }

    pub(crate) fn oracle_initdb(&mut self, member: usize, identifier: u64) {
        if let Some(known) = self.oracle.identifier {
            self.violation(format!("pg-{member} runs initdb although cluster {known} exists"));
        }
        self.oracle.identifier.get_or_insert(identifier);
    }

    /// A create that was sent before the Lease was deleted may arrive `late`, and nothing tells it from a new one. Whoever has a
    /// later term on disk does nothing under it, which the other checks see.
    pub(crate) fn check_record(&mut self, record: &Arc<LeaseRecord>, late: bool) {
        if record.term < self.oracle.term && !late {
            let known = self.oracle.term;
            self.violation(format!(
                "the Lease goes back from term {known} to {}",
                record.term
            ));
        }
        self.oracle.term = record.term;
        if let Some(holder) = &record.holder {
            let given = &mut self.oracle.given;
            match given.get_mut(&holder.uid) {
                Some(newest) => *newest = record.term.max(*newest),
                None => drop(given.insert(holder.uid.clone(), record.term)),
            }
        }
        let foreign = record
            .system_identifier
            .is_some_and(|known| Some(known.0) != self.oracle.identifier);
        if foreign {
            self.violation("the Lease names another cluster".to_owned());
        }
        if self.trace.on {
            let holder = record.holder.as_ref().map(|holder| holder.pod.clone());
            let (term, set) = (record.term, record.synchronous.clone());
            let changed = self.api.stored.as_ref().is_none_or(|stored| {
                (
                    stored.record.term,
                    &stored.record.synchronous,
                    &stored.record.holder,
                ) != (term, &set, &record.holder)
            });
            if changed {
                self.trace
                    .add(self.now, || format!("LEASE is {holder:?} term {term} {set:?}"));
            }
        }
    }

    /// Looks now and then whether all is well.
    pub(crate) fn look(&mut self) {
        self.after(SECOND / 2, Event::Look);
        self.check_licences();
        if self.is_settled().is_err() {
            self.oracle.settled_at = None;
            return;
        }
        let since = *self.oracle.settled_at.get_or_insert(self.now);
        self.oracle.volumes_lost = 0;
        if !self.healed {
            let now = self.now;
            self.oracle.forced_at.take_if(|at| *at + FORCED < now);
            self.oracle.acked_when_healed = self.oracle.acknowledged;
            self.leave_quiet_out(since);
            return;
        }
        let commits = self.oracle.acknowledged > self.oracle.acked_when_healed + 3;
        if commits && self.now >= since + SETTLED {
            self.check_end();
            self.oracle.converged_at = Some(since);
        }
    }

    /// Where nothing is wrong and nothing lasts, each period is as the one before: the next fault comes now.
    fn leave_quiet_out(&mut self, since: Time) {
        let whole = |member: &Member| {
            member.exists && member.sidecar.is_some() && member.disk_ok_at.max(member.starts_at) <= self.now
        };
        let complete = self.members.iter().all(|member| !member.wanted || whole(member));
        let next = self.fault_at.min(self.heal_at);
        let quiet = self.lasting == 0 && complete && self.now >= since + QUIET;
        if !quiet || next < self.now + QUIET {
            return;
        }
        // Wherever in its periods.
        let rest = self.random.between(0, SECOND);
        let left_out = next - self.now - rest;
        self.skipped += left_out;
        self.expect(self.fault_at - left_out, self.heal_at - left_out);
    }

    fn check_licences(&mut self) {
        for member in 0..self.members.len() {
            let there = &self.members[member];
            let primary = there
                .postgres
                .as_ref()
                .is_some_and(|p| matches!(p.role, ServerRole::Primary { .. }) && p.stopping.is_none());
            // What goes on in this moment has its fence before it, and this look between them.
            let runs = !there.frozen && there.resumed_at < self.now;
            if primary && runs && !self.licensed_lately(member) {
                self.violation(format!("pg-{member} runs as primary without a licence"));
            }
        }
    }

    /// Every member has everything that was acknowledged, but for what is under way this moment.
    fn check_end(&mut self) {
        let Some(primary) = self.primary() else { return };
        let under_way = 40;
        for member in 0..self.members.len() {
            if !self.members[member].wanted {
                continue;
            }
            let Some(data) = &self.members[member].data else {
                continue;
            };
            let all = self.oracle.acked.iter();
            let old = all.filter(|(end, _)| {
                member == primary || *end + under_way < data.wal.len() || *end <= data.wal.len()
            });
            let missing = old
                .filter(|(end, id)| data.wal.entries.get(end - 1) != Some(id))
                .count();
            if missing > 0 {
                self.violation(format!(
                    "pg-{member} lacks {missing} acknowledged commits at the end"
                ));
                return;
            }
            let Some(whole) = &self.members[primary].data else {
                return;
            };
            if !data.wal.is_prefix_of(&whole.wal) {
                self.violation(format!("pg-{member} is no copy of pg-{primary} at the end"));
                return;
            }
        }
    }
}
