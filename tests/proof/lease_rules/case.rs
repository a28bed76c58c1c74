//! A decision with all that it was made from, read in the words of the rules.

use podgres::core::cluster::PeerContact;
use podgres::core::data_directory::DataDirectoryFacts;
use podgres::core::decision::{Decision, Memory};
use podgres::core::lease::{FinalPosition, LeadershipReport, LeaseRecord};
use podgres::core::member::Ordinal;
use podgres::core::observation::{Observation, ProbeState, UpstreamFacts};
use podgres::core::policy::Policy;
use podgres::core::supervision::{Postmaster, ServerRole, SupervisorStatus};
use podgres::core::sync::{Told, covers};
use podgres::core::synchronous_names;
use podgres::core::wal::{Relation, WalPosition};

/// Everything that a rule may look at.
pub(crate) struct Case<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) memory: &'a Memory,
    pub(crate) observation: &'a Observation,
    pub(crate) decision: &'a Decision,
}

impl<'a> Case<'a> {
    pub(super) fn record(&self) -> Option<&'a LeaseRecord> {
        Some(&self.observation.lease.stored.as_ref()?.record)
    }

    pub(super) fn term(&self) -> u64 {
        self.record().map_or(0, |record| record.term)
    }

    pub(super) fn holds(&self) -> bool {
        self.record()
            .is_some_and(|record| record.holder.as_ref() == Some(&self.policy.identity))
    }

    pub(super) fn supervisor(&self) -> Option<&'a SupervisorStatus> {
        self.observation.supervisor.as_ref()
    }

    pub(super) fn promised(&self) -> u64 {
        self.supervisor()
            .map_or(0, |supervisor| supervisor.terms.promised)
    }

    /// Until when this member may acknowledge.
    pub(super) fn right_until_ms(&self) -> u64 {
        let lease = &self.observation.lease;
        let uncertain = lease.uncertain.as_ref();
        let given_away =
            uncertain.is_some_and(|record| record.holder.as_ref() != Some(&self.policy.identity));
        if !self.holds() || self.promised() > self.term() || given_away {
            return 0;
        }
        let renewal = lease.renewal.filter(|renewal| renewal.term == self.term());
        let renewed_ms = renewal.map_or(0, |r| r.sent_at_ms + self.policy.times.renew_deadline_ms);
        let confirmed = &self.decision.memory.lease;
        let confirmed_ms = if confirmed.confirmed_term == self.term() {
            confirmed.confirmed_until_ms
        } else {
            0
        };
        renewed_ms.max(confirmed_ms)
    }

    pub(super) fn in_right(&self) -> bool {
        self.observation.at_ms < self.right_until_ms()
    }

    pub(super) fn running_role(&self) -> Option<&'a ServerRole> {
        match &self.supervisor()?.postmaster {
            Postmaster::Running { role, .. } => Some(role),
            Postmaster::Stopped { .. } | Postmaster::Stopping { .. } => None,
        }
    }

    pub(super) fn stopped(&self) -> bool {
        self.supervisor()
            .is_some_and(|s| matches!(s.postmaster, Postmaster::Stopped { .. }))
    }

    /// Or its last checkpoint is written.
    pub(super) fn writes_no_more(&self) -> bool {
        let shut_down =
            |s: &SupervisorStatus| matches!(s.postmaster, Postmaster::Stopping { shut_down: true, .. });
        self.stopped() || self.supervisor().is_some_and(shut_down)
    }

    pub(super) fn facts(&self) -> Option<&'a DataDirectoryFacts> {
        self.supervisor()?.data_directory.facts()
    }

    /// Never opened under a Lease, it is a backup's: it lacks what the recorded standbys have confirmed, and its timeline's number may be another's.
    pub(super) fn restored(&self) -> bool {
        let held = self.supervisor().map_or(0, |supervisor| supervisor.terms.held);
        let confirmed = self
            .record()
            .is_some_and(|record| !record.synchronous.members.is_empty());
        let whole = self.facts().filter(|facts| !facts.half_rewound);
        whole.is_some_and(was_primary) && held == 0 && confirmed && !self.holds()
    }

    pub(super) fn expired(&self) -> bool {
        let lease = &self.observation.lease;
        self.record()
            .is_some_and(|record| self.observation.at_ms >= lease.changed_at_ms + record.lease_duration_ms)
    }

    pub(super) fn covered(&self, names: &str) -> bool {
        let (Some(record), Some(told)) = (self.record(), read(names)) else {
            return false;
        };
        let uncertain = self.observation.lease.uncertain.as_ref();
        std::iter::once(record)
            .chain(uncertain)
            .all(|record| covers(&told, &record.synchronous, self.policy.ordinal))
    }

    /// Recorded members that are connected, with their words.
    pub(super) fn recorded_peers(&self) -> impl Iterator<Item = &'a LeadershipReport> {
        let members = self.record().map(|record| &record.synchronous.members);
        self.observation.peers.iter().filter_map(move |(ordinal, peer)| {
            let report = peer.leadership.as_ref()?;
            let same = report.incarnation.is_some() && members?.get(ordinal) == report.incarnation.as_ref();
            (same && peer.contact == PeerContact::Connected).then_some(report)
        })
    }

    pub(super) fn in_set(&self) -> bool {
        let own = self
            .supervisor()
            .and_then(|supervisor| supervisor.incarnation.as_ref());
        let recorded = self
            .record()
            .and_then(|r| r.synchronous.members.get(&self.policy.ordinal));
        own.is_some() && own == recorded
    }

    pub(super) fn own_final_position(&self) -> Option<FinalPosition> {
        let server = self.observation.server.as_ref()?;
        let alone = self.running_role() == Some(&ServerRole::Standby { upstream: None });
        let ready = matches!(
            self.supervisor()?.postmaster,
            Postmaster::Running { ready: true, .. }
        );
        let rests = server.in_recovery && !server.receiver_present && server.replay_waiting && alone && ready;
        rests.then_some(FinalPosition {
            timeline: server.timeline,
            flush_lsn: server.flush_lsn,
        })
    }

    pub(super) fn upstream_facts(&self) -> Option<&'a UpstreamFacts> {
        match &self.observation.upstream.probe {
            ProbeState::Ready { facts } => Some(facts),
            _ => None,
        }
    }

    /// What the holder, looked at a moment ago, says of a position; `None` if it said nothing that counts.
    pub(super) fn relation(&self, position: WalPosition) -> Option<Relation> {
        let upstream = &self.observation.upstream;
        let holder = self.record()?.holder.as_ref()?;
        let of_holder = format!("pg-{}", upstream.of?) == holder.pod && !self.holds();
        let facts = self.upstream_facts()?;
        let looked = of_holder && upstream.looked_at_ms > 0;
        let relation = facts.history.relation(position, facts.flush_lsn);
        let primary = facts.in_recovery == Some(false);
        // Bound to its term, it takes nothing of an earlier primary any more; and it has all that is here.
        let peer = self.observation.peers.get(&upstream.of?);
        let bound = peer
            .and_then(|peer| peer.leadership.as_ref())
            .is_some_and(|report| report.promised_term == self.term());
        let before = bound && facts.history.timeline == position.timeline && position.lsn <= facts.flush_lsn;
        (looked && (primary || before)).then_some(relation)
    }
}

pub(super) fn read(names: &str) -> Option<Told> {
    let names = synchronous_names::parse(names)?;
    let ordinal = |name: &String| name.strip_prefix("pg-")?.parse().ok().map(Ordinal);
    let members = names.members.iter().map(ordinal).collect::<Option<_>>()?;
    names.gate.then(|| Told::new(members, names.quorum))
}

pub(super) fn was_primary(facts: &DataDirectoryFacts) -> bool {
    let copy = facts.backup_label && !facts.recovery_signal;
    !(facts.standby_signal || copy || facts.control_state.was_standby())
}
