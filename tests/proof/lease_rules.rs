//! What must hold of each decision under a Lease, said again without looking at how it is decided.

use podgres::core::cluster::PeerContact;
use podgres::core::data_directory::{ControlState, DataDirectory, DataDirectoryFacts};
use podgres::core::decision::{Decision, Memory, PostgresAction};
use podgres::core::lease::{
    Durability, FinalPosition, LeadershipReport, LeasePurpose, LeaseRecord, MoveRequest,
};
use podgres::core::member::Ordinal;
use podgres::core::observation::{Observation, ProbeState, UpstreamFacts};
use podgres::core::policy::Policy;
use podgres::core::status::HeldData;
use podgres::core::supervision::{
    CloneReason, JobRequest, JobState, JobStatus, Licence, Postmaster, ServerRole, SupervisorStatus, Upstream,
};
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

type Rule = (&'static str, fn(&Case<'_>) -> bool);

/// Each rule by the sentence that a failure prints.
pub(crate) const RULES: &[Rule] = &[
    (
        "the gate is open only in the holder's running primary, and no longer than the right",
        gate,
    ),
    (
        "opens for writes only as the holder, within the right, and in its own term",
        opens,
    ),
    (
        "what commits wait for covers every record that may be in the Lease",
        told_covers,
    ),
    (
        "nothing is done without a supervisor, beside a job that reads from the holder, or to begin anything in a pod that ends",
        idle_hands,
    ),
    (
        "only what runs is stopped, only what is stopped is started",
        states,
    ),
    (
        "one write at a time, over the version that was seen",
        writes_in_order,
    ),
    (
        "terms never go down, a claim's goes up, and a system identifier stays",
        terms_grow,
    ),
    ("a number for a timeline is never given twice", timelines_grow),
    (
        "only the holder renews, records, answers, releases or hands over",
        only_the_holder,
    ),
    ("a claim takes the proof for it", claims),
    (
        "a hand-over follows a clean stop and names one that has everything",
        hands_over,
    ),
    (
        "a set is recorded only once it is covered and its members have what was acknowledged",
        records,
    ),
    (
        "WAL is taken only from the holder, whose history contains one's own, and never against a promise",
        follows,
    ),
    (
        "a former primary's directory becomes a standby's only if it is contained, or is a witness",
        former_primary,
    ),
    ("a job fits the directory", jobs),
    (
        "a foreign directory is neither started, nor replaced, nor rewound",
        foreign,
    ),
    ("promises never go down", promises),
    ("what is told of oneself is true", reports),
    (
        "paused: nobody takes over, nothing that others stopped is opened, nothing is rewound or replaced",
        paused,
    ),
    ("a failing disk does not renew", disk),
];

/// The first rule that a case breaks.
pub(crate) fn broken(case: &Case<'_>) -> Option<&'static str> {
    RULES
        .iter()
        .find(|(_, holds)| !holds(case))
        .map(|(rule, _)| *rule)
}

impl<'a> Case<'a> {
    fn record(&self) -> Option<&'a LeaseRecord> {
        Some(&self.observation.lease.stored.as_ref()?.record)
    }

    fn term(&self) -> u64 {
        self.record().map_or(0, |record| record.term)
    }

    fn holds(&self) -> bool {
        self.record()
            .is_some_and(|record| record.holder.as_ref() == Some(&self.policy.identity))
    }

    fn supervisor(&self) -> Option<&'a SupervisorStatus> {
        self.observation.supervisor.as_ref()
    }

    fn promised(&self) -> u64 {
        self.supervisor()
            .map_or(0, |supervisor| supervisor.terms.promised)
    }

    /// Until when this member may acknowledge.
    fn right_until_ms(&self) -> u64 {
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

    fn in_right(&self) -> bool {
        self.observation.at_ms < self.right_until_ms()
    }

    fn running_role(&self) -> Option<&'a ServerRole> {
        match &self.supervisor()?.postmaster {
            Postmaster::Running { role, .. } => Some(role),
            Postmaster::Stopped { .. } | Postmaster::Stopping { .. } => None,
        }
    }

    fn stopped(&self) -> bool {
        self.supervisor()
            .is_some_and(|s| matches!(s.postmaster, Postmaster::Stopped { .. }))
    }

    fn facts(&self) -> Option<&'a DataDirectoryFacts> {
        self.supervisor()?.data_directory.facts()
    }

    fn expired(&self) -> bool {
        let lease = &self.observation.lease;
        self.record()
            .is_some_and(|record| self.observation.at_ms >= lease.changed_at_ms + record.lease_duration_ms)
    }

    fn covered(&self, names: &str) -> bool {
        let (Some(record), Some(told)) = (self.record(), read(names)) else {
            return false;
        };
        let uncertain = self.observation.lease.uncertain.as_ref();
        std::iter::once(record)
            .chain(uncertain)
            .all(|record| covers(&told, &record.synchronous, self.policy.ordinal))
    }

    /// Recorded members that are connected, with their words.
    fn recorded_peers(&self) -> impl Iterator<Item = &'a LeadershipReport> {
        let members = self.record().map(|record| &record.synchronous.members);
        self.observation.peers.iter().filter_map(move |(ordinal, peer)| {
            let report = peer.leadership.as_ref()?;
            let same = report.incarnation.is_some() && members?.get(ordinal) == report.incarnation.as_ref();
            (same && peer.contact == PeerContact::Connected).then_some(report)
        })
    }

    fn in_set(&self) -> bool {
        let own = self
            .supervisor()
            .and_then(|supervisor| supervisor.incarnation.as_ref());
        let recorded = self
            .record()
            .and_then(|r| r.synchronous.members.get(&self.policy.ordinal));
        own.is_some() && own == recorded
    }

    fn own_final_position(&self) -> Option<FinalPosition> {
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

    fn upstream_facts(&self) -> Option<&'a UpstreamFacts> {
        match &self.observation.upstream.probe {
            ProbeState::Ready { facts } => Some(facts),
            _ => None,
        }
    }

    /// What the holder, looked at a moment ago, says of a position; `None` if it said nothing that counts.
    fn relation(&self, position: WalPosition) -> Option<Relation> {
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

fn read(names: &str) -> Option<Told> {
    let names = synchronous_names::parse(names)?;
    let ordinal = |name: &String| name.strip_prefix("pg-")?.parse().ok().map(Ordinal);
    let members = names.members.iter().map(ordinal).collect::<Option<_>>()?;
    names.gate.then(|| Told::new(members, names.quorum))
}

fn was_primary(facts: &DataDirectoryFacts) -> bool {
    let copy = facts.backup_label && !facts.recovery_signal;
    !(facts.standby_signal || copy || facts.control_state.was_standby())
}

fn gate(case: &Case<'_>) -> bool {
    let primary = matches!(case.running_role(), Some(ServerRole::Primary { .. }));
    let until_ms = case.decision.gate_until_ms;
    until_ms == 0 || (primary && until_ms <= case.right_until_ms())
}

fn opens(case: &Case<'_>) -> bool {
    let Some(supervisor) = case.supervisor() else {
        return true;
    };
    let licensed = match supervisor.licence {
        Licence::Limited { until_ms } => case.observation.at_ms < until_ms,
        Licence::Unlimited | Licence::None => false,
    };
    match &case.decision.postgres {
        Some(PostgresAction::GrantLicence { until_ms }) => {
            case.in_right() && until_ms.is_some_and(|until| until <= case.right_until_ms())
        }
        Some(PostgresAction::Promote { term, .. }) => {
            let detached = case
                .observation
                .server
                .as_ref()
                .is_some_and(|server| !server.receiver_present);
            case.in_right() && licensed && *term == case.term() && detached
        }
        Some(PostgresAction::Start {
            server: ServerRole::Primary { .. },
        }) => {
            let own = case.facts().is_some_and(was_primary) && supervisor.terms.held == case.term();
            case.in_right() && licensed && own
        }
        Some(PostgresAction::Hold { term }) => case.in_right() && *term == case.term(),
        Some(PostgresAction::EnsureRoles | PostgresAction::Barrier { .. } | PostgresAction::Checkpoint) => {
            case.in_right()
        }
        _ => true,
    }
}

fn told_covers(case: &Case<'_>) -> bool {
    match &case.decision.postgres {
        Some(
            PostgresAction::Start {
                server:
                    ServerRole::Primary {
                        synchronous_standby_names: names,
                    },
            }
            | PostgresAction::Reload {
                server:
                    ServerRole::Primary {
                        synchronous_standby_names: names,
                    },
            }
            | PostgresAction::Promote {
                synchronous_standby_names: names,
                ..
            },
        ) => case.holds() && case.covered(names),
        _ => true,
    }
}

fn idle_hands(case: &Case<'_>) -> bool {
    let Some(supervisor) = case.supervisor() else {
        return case.decision.postgres.is_none();
    };
    let job = supervisor.job.as_ref();
    let running = job.filter(|job| matches!(job.state, JobState::Running { .. }));
    let cancels = case.decision.postgres == Some(PostgresAction::Cancel);
    match running {
        Some(job) => cancels == reads_elsewhere(case, job) && (cancels || case.decision.postgres.is_none()),
        None => case.decision.postgres.is_none() || !(cancels || supervisor.stopping),
    }
}

/// The job reads from one member while another holds the Lease.
fn reads_elsewhere(case: &Case<'_>, job: &JobStatus) -> bool {
    let holder = case.record().and_then(|record| record.holder.as_ref());
    let holder = holder.filter(|holder| **holder != case.policy.identity);
    let holder = holder.map(|holder| format!("{}.", holder.pod));
    let host = job.upstream.as_ref();
    host.zip(holder)
        .is_some_and(|(host, holder)| !host.starts_with(&holder))
}

fn states(case: &Case<'_>) -> bool {
    let standby = matches!(case.running_role(), Some(ServerRole::Standby { .. }));
    let primary = matches!(case.running_role(), Some(ServerRole::Primary { .. }));
    match &case.decision.postgres {
        Some(PostgresAction::Start { .. } | PostgresAction::Run { .. }) => case.stopped(),
        Some(PostgresAction::Stop { .. }) => standby || primary,
        Some(PostgresAction::Promote { .. } | PostgresAction::Detach { .. }) => standby,
        Some(PostgresAction::Reload { server }) => {
            matches!(server, ServerRole::Primary { .. }) == primary && (standby || primary)
        }
        _ => true,
    }
}

fn writes_in_order(case: &Case<'_>) -> bool {
    let Some(write) = &case.decision.lease else {
        return true;
    };
    let lease = &case.observation.lease;
    let version = lease
        .stored
        .as_ref()
        .map(|stored| stored.resource_version.clone());
    !lease.writing && write.over == version && (version.is_some() || lease.missing)
}

fn terms_grow(case: &Case<'_>) -> bool {
    let Some(write) = &case.decision.lease else {
        return true;
    };
    let Some(record) = case.record() else {
        // Made anew: no earlier than what is known here and by those who can be heard.
        let known = case.supervisor().map_or(0, |supervisor| supervisor.terms.held);
        return write.record.term >= known;
    };
    let identifier = record.system_identifier;
    let term = match write.purpose {
        LeasePurpose::Claim => write.record.term > record.term,
        LeasePurpose::HandOver => write.record.term == record.term + 1,
        _ => write.record.term == record.term,
    };
    term && (identifier.is_none() || identifier == write.record.system_identifier)
}

fn timelines_grow(case: &Case<'_>) -> bool {
    if let Some(PostgresAction::Promote { timeline, .. }) = &case.decision.postgres {
        let server = case.observation.server.as_ref();
        let own = server.is_some_and(|server| server.timeline == timeline.own);
        if !own
            || case
                .record()
                .is_none_or(|record| record.timeline != timeline.next)
        {
            return false;
        }
    }
    let Some((write, record)) = case.decision.lease.as_ref().zip(case.record()) else {
        return true;
    };
    let given = match (write.purpose, case.own_final_position(), case.facts()) {
        // A standby that is to be promoted in the new term, or the one that is named.
        (LeasePurpose::Claim, Some(own), _) if !case.holds() => Some(own.timeline),
        (LeasePurpose::HandOver, _, Some(facts)) => Some(facts.timeline),
        _ => None,
    };
    match given {
        Some(own) => write.record.timeline > record.timeline.max(own),
        None => write.record.timeline >= record.timeline,
    }
}

fn only_the_holder(case: &Case<'_>) -> bool {
    let Some(write) = &case.decision.lease else {
        return true;
    };
    match write.purpose {
        LeasePurpose::Claim => write.record.holder.as_ref() == Some(&case.policy.identity),
        LeasePurpose::Renew | LeasePurpose::Record | LeasePurpose::Answer => {
            case.holds() && write.record.holder.as_ref() == Some(&case.policy.identity)
        }
        LeasePurpose::Release => case.holds() && write.record.holder.is_none() && !open_gate(case),
        LeasePurpose::HandOver => case.holds(),
    }
}

/// Under `async` nothing but the gate stands between a released Lease and an acknowledgement.
fn open_gate(case: &Case<'_>) -> bool {
    case.decision.gate_until_ms > 0 && case.record().is_some_and(|record| record.synchronous.quorum == 0)
}

fn claims(case: &Case<'_>) -> bool {
    let Some(write) = case
        .decision
        .lease
        .as_ref()
        .filter(|write| write.purpose == LeasePurpose::Claim)
    else {
        return true;
    };
    let Some(record) = case.record() else {
        return claims_missing(case);
    };
    if write.record.synchronous != record.synchronous {
        return false;
    }
    let running_primary = matches!(case.running_role(), Some(ServerRole::Primary { .. }));
    if case.holds() && running_primary && case.in_right() {
        // Overtaken: it goes on in a newer term.
        return true;
    }
    if record.system_identifier.is_none()
        && case
            .supervisor()
            .is_some_and(|s| s.data_directory == DataDirectory::Empty)
    {
        return case.policy.first() && (record.holder.is_none() || case.expired());
    }
    last_holder(case, record) || stands(case, record, write.record.term)
}

fn claims_missing(case: &Case<'_>) -> bool {
    let known = case.memory.lease.record.as_ref();
    let again = known.is_some_and(|record| record.holder.as_ref() == Some(&case.policy.identity))
        && case.running_role().is_some();
    let first = case.policy.first()
        && case.supervisor().is_some_and(|supervisor| {
            let empty = supervisor.data_directory == DataDirectory::Empty;
            (empty && nobody_has_data(case)) || (!empty && supervisor.terms.held == 0)
        });
    let last = case.supervisor().is_some_and(|supervisor| {
        let later = case
            .observation
            .peers
            .values()
            .filter_map(|peer| peer.leadership.as_ref());
        supervisor.terms.held > 0
            && supervisor.terms.promised <= supervisor.terms.held
            && later
                .into_iter()
                .all(|report| report.promised_term <= supervisor.terms.held)
    });
    case.observation.lease.missing && (again || first || last)
}

/// As far as anybody can say who is there.
fn nobody_has_data(case: &Case<'_>) -> bool {
    let mut peers = case.observation.peers.values();
    case.policy.new_cluster || peers.all(|peer| peer.held_data != HeldData::Some)
}

/// Nobody has begun a newer term than the one in which this directory was written.
fn last_holder(case: &Case<'_>, record: &LeaseRecord) -> bool {
    let Some(facts) = case.facts().filter(|_| case.stopped()) else {
        return false;
    };
    let clean = facts.control_state == ControlState::ShutDown;
    let released = record.released_by == Some(case.policy.ordinal) && clean;
    let identity = record.holder.as_ref();
    let earlier = identity.is_some_and(|holder| holder.pod == case.policy.identity.pod) && !case.holds();
    let held = case.supervisor().map_or(0, |supervisor| supervisor.terms.held);
    let nobody_since = held > 0
        && record
            .history
            .iter()
            .all(|e| e.term <= held || e.new_leader == case.policy.identity.pod);
    let mine = (record.holder.is_none() && (released || (nobody_since && case.expired())))
        || (earlier && case.expired());
    mine && !facts.half_rewound && case.promised() <= record.term
}

/// Detached under the term that is claimed, with the proof that nothing is missing, or after the old right has ended.
fn stands(case: &Case<'_>, record: &LeaseRecord, term: u64) -> bool {
    let Some(own) = case.own_final_position().filter(|_| case.promised() >= term) else {
        return false;
    };
    let vacant = record.holder.is_none();
    let forced =
        matches!(record.request, Some(MoveRequest::Failover { to, .. }) if to == case.policy.ordinal);
    if forced {
        return vacant || case.expired();
    }
    let behind = case.recorded_peers().filter(|report| {
        report.promised_term >= term && report.final_position.is_some_and(|position| position <= own)
    });
    let proven = record
        .synchronous
        .proof()
        .is_some_and(|proof| behind.count() + 1 >= proof as usize);
    let times = case.policy.times;
    let recently = |since_ms: u64| case.observation.at_ms < since_ms + times.renew_deadline_ms;
    let bound = case
        .memory
        .lease
        .confirmed
        .is_some_and(|(office, given)| office.term == record.term && recently(given));
    let young = case.memory.began_at_ms.is_none_or(recently);
    let over = vacant || (case.expired() && !bound && !young);
    let unproven = record.synchronous.quorum == 0 && record.durability == Durability::Async;
    case.in_set() && (proven || (unproven && over))
}

fn hands_over(case: &Case<'_>) -> bool {
    let Some(write) = case
        .decision
        .lease
        .as_ref()
        .filter(|write| write.purpose == LeasePurpose::HandOver)
    else {
        return true;
    };
    let Some((facts, record)) = case.facts().zip(case.record()).filter(|_| case.stopped()) else {
        return false;
    };
    let forced = case.memory.lease.handing_over.is_some_and(|moving| moving.forced);
    let everything = |ordinal: &Ordinal| {
        // After a clean stop the one that hands over has everything itself.
        let own = *ordinal == case.policy.ordinal;
        own || case.observation.peers.get(ordinal).is_some_and(|peer| {
            let has = peer.timeline == Some(facts.timeline) && peer.flush_lsn >= Some(facts.control_lsn);
            peer.contact == PeerContact::Connected && has
        })
    };
    let successor = write.record.holder.as_ref().is_some_and(|holder| {
        let mut peers = case.observation.peers.iter();
        peers.any(|(ordinal, peer)| {
            let named = holder.pod == format!("pg-{ordinal}") && holder.uid == peer.uid;
            named && !peer.writable && (forced || everything(ordinal))
        })
    });
    let witnesses = &write.record.synchronous;
    let enough = witnesses.quorum == record.synchronous.quorum && witnesses.members.keys().all(everything);
    facts.control_state == ControlState::ShutDown && successor && (*witnesses == record.synchronous || enough)
}

fn records(case: &Case<'_>) -> bool {
    let Some((write, record)) = case.decision.lease.as_ref().zip(case.record()) else {
        return true;
    };
    let set = &write.record.synchronous;
    if *set == record.synchronous || write.purpose == LeasePurpose::HandOver {
        return true;
    }
    let (
        Some(ServerRole::Primary {
            synchronous_standby_names: names,
        }),
        Some(server),
    ) = (case.running_role(), &case.observation.server)
    else {
        return false;
    };
    let in_force = server.synchronous_standby_names == *names;
    let covered = read(names).is_some_and(|told| covers(&told, set, case.policy.ordinal));
    let barrier = case
        .observation
        .barrier
        .as_ref()
        .filter(|b| b.synchronous_standby_names == *names);
    let reached = set.quorum == 0
        || barrier.is_some_and(|barrier| {
            let has_it = |member: &Ordinal| {
                let mut rows = server.replication.iter();
                *member == case.policy.ordinal
                    || rows.any(|row| {
                        row.application_name == format!("pg-{member}") && row.flush_lsn >= Some(barrier.lsn)
                    })
            };
            set.members.keys().filter(|member| has_it(member)).count() >= set.quorum as usize
        });
    write.purpose == LeasePurpose::Record && in_force && covered && reached
}

/// Where this member stands, as far as is known: its server, or its directory before the server answers.
fn position(case: &Case<'_>) -> Option<WalPosition> {
    let ready = matches!(
        case.supervisor().map(|supervisor| &supervisor.postmaster),
        Some(Postmaster::Running { ready: true, .. })
    );
    match case.observation.server.as_ref().filter(|_| ready) {
        Some(server) => Some(WalPosition {
            timeline: server.timeline,
            lsn: server.flush_lsn.max(server.replay_lsn),
        }),
        None => case.facts().map(DataDirectoryFacts::position),
    }
}

fn follows(case: &Case<'_>) -> bool {
    let given: &Upstream = match &case.decision.postgres {
        Some(
            PostgresAction::Start {
                server: ServerRole::Standby {
                    upstream: Some(upstream),
                },
            }
            | PostgresAction::Reload {
                server: ServerRole::Standby {
                    upstream: Some(upstream),
                },
            },
        ) => upstream,
        _ => return true,
    };
    // A receiver that is still there may bring WAL of the former upstream after the look.
    let attached = matches!(
        case.running_role(),
        Some(ServerRole::Standby { upstream: Some(_) })
    );
    let relation = position(case).and_then(|position| case.relation(position));
    let contained = relation == Some(Relation::Contained);
    let own_name = case.record().is_some_and(|record| {
        let recorded = record.synchronous.members.get(&case.policy.ordinal);
        let own = case
            .supervisor()
            .and_then(|supervisor| supervisor.incarnation.as_ref());
        recorded.is_none() || recorded == own || given.application_name.is_some()
    });
    !attached && contained && case.promised() <= case.term() && own_name
}

fn former_primary(case: &Case<'_>) -> bool {
    let Some(PostgresAction::Start {
        server: ServerRole::Standby { upstream },
    }) = &case.decision.postgres
    else {
        return true;
    };
    let Some(facts) = case.facts() else { return false };
    let recorded = case.record().is_some_and(|record| {
        let known = record.synchronous.members.get(&case.policy.ordinal);
        let own = case
            .supervisor()
            .and_then(|supervisor| supervisor.incarnation.as_ref());
        known.is_some() && known == own
    });
    let mut position = facts.position();
    position.lsn.0 += 1;
    let contained = case.relation(position) == Some(Relation::Contained);
    let clean = facts.control_state == ControlState::ShutDown;
    // It handed over, stopped cleanly, and is recorded as one that has everything: detached it may prove so.
    let witness = clean && recorded && upstream.is_none();
    !facts.half_rewound && (!was_primary(facts) || (contained && clean) || witness)
}

fn jobs(case: &Case<'_>) -> bool {
    let Some(PostgresAction::Run { job }) = &case.decision.postgres else {
        return true;
    };
    let Some((supervisor, record)) = case.supervisor().zip(case.record()) else {
        return false;
    };
    match job {
        JobRequest::Initdb => {
            let empty = supervisor.data_directory == DataDirectory::Empty;
            let unmade = record.system_identifier.is_none() && nobody_has_data(case);
            empty && case.policy.first() && case.in_right() && unmade
        }
        JobRequest::Clone {
            system_identifier,
            reason,
            ..
        } => {
            let same = record
                .system_identifier
                .is_none_or(|known| known == *system_identifier);
            let anything = WalPosition::default();
            let primary = case.relation(anything).is_some() && case.promised() <= case.term();
            same && primary && replaceable(case, supervisor, *reason)
        }
        JobRequest::Rewind {
            system_identifier, ..
        } => {
            let Some(facts) = case.facts() else { return false };
            let relation = case.relation(facts.position());
            let same = facts.system_identifier == *system_identifier;
            let condemned = case.decision.memory.condemned == Some(CloneReason::Diverged);
            let gone_another_way = was_primary(facts) || condemned || relation == Some(Relation::Forked);
            same && relation.is_some() && gone_another_way && !facts.half_rewound
        }
    }
}

fn replaceable(case: &Case<'_>, supervisor: &SupervisorStatus, reason: CloneReason) -> bool {
    match &supervisor.data_directory {
        DataDirectory::Empty => reason == CloneReason::Empty,
        DataDirectory::Unusable { .. } => false,
        DataDirectory::Complete(facts) => {
            let refused = case.decision.memory.condemned == Some(CloneReason::NotRewound);
            let asked = reason == CloneReason::Requested;
            let rewound_first = !was_primary(facts) || facts.half_rewound || refused || asked;
            let wanted = case.policy.reclone || reason == CloneReason::Requested;
            let vacant = case.record().is_some_and(|record| record.holder.is_none());
            reason != CloneReason::Empty && wanted && rewound_first && !vacant
        }
    }
}

fn foreign(case: &Case<'_>) -> bool {
    let recorded = case.record().and_then(|record| record.system_identifier);
    let is_foreign = case
        .facts()
        .is_some_and(|facts| recorded.is_some_and(|known| known != facts.system_identifier));
    let untouched = !matches!(
        case.decision.postgres,
        Some(PostgresAction::Start { .. } | PostgresAction::Run { .. })
    );
    let own = case.facts().map(|facts| facts.system_identifier);
    let follows = matches!(
        &case.decision.postgres,
        Some(
            PostgresAction::Start {
                server: ServerRole::Standby { upstream: Some(_) }
            } | PostgresAction::Reload {
                server: ServerRole::Standby { upstream: Some(_) }
            }
        )
    );
    let server = case
        .observation
        .server
        .as_ref()
        .filter(|_| case.running_role().is_some())
        .map(|server| server.system_identifier);
    let same = case.upstream_facts().map(|facts| facts.system_identifier) == server.or(own);
    (!is_foreign || untouched) && (!follows || same)
}

fn promises(case: &Case<'_>) -> bool {
    match case.decision.postgres {
        Some(PostgresAction::Detach { term }) => term >= case.promised() && term >= case.term(),
        _ => true,
    }
}

fn reports(case: &Case<'_>) -> bool {
    let Some(report) = &case.decision.report else {
        return false;
    };
    let own = case.own_final_position();
    let office = report
        .office
        .is_none_or(|office| case.holds() && office.term == case.term());
    let confirms = report
        .confirms
        .is_none_or(|office| office.term == case.term() && case.promised() <= office.term && !case.holds());
    let remembered = report
        .confirms
        .is_none_or(|office| case.decision.memory.lease.confirmed == Some((office, case.observation.at_ms)));
    report.promised_term == case.promised()
        && report.final_position == own
        && office
        && confirms
        && remembered
}

fn paused(case: &Case<'_>) -> bool {
    let (Some(record), Some(supervisor)) = (case.record().filter(|record| record.paused), case.supervisor())
    else {
        return true;
    };
    let standby = matches!(case.running_role(), Some(ServerRole::Standby { .. }));
    let claims = case
        .decision
        .lease
        .as_ref()
        .is_some_and(|write| write.purpose == LeasePurpose::Claim);
    let by_others = matches!(
        &supervisor.postmaster,
        Postmaster::Stopped { last_exit: Some(exit) } if !exit.requested
    );
    let opens = matches!(
        &case.decision.postgres,
        Some(PostgresAction::Start {
            server: ServerRole::Primary { .. }
        })
    );
    let asked =
        case.observation.request.is_some() || case.decision.memory.condemned == Some(CloneReason::Requested);
    let replaced =
        case.facts().is_some() && matches!(case.decision.postgres, Some(PostgresAction::Run { .. }));
    let takes_over = claims && standby && record.system_identifier.is_some();
    !(takes_over || (opens && by_others) || (replaced && !asked))
}

fn disk(case: &Case<'_>) -> bool {
    let failing = case
        .supervisor()
        .is_some_and(|supervisor| supervisor.disk_failing_since_ms.is_some());
    let renews = case
        .decision
        .lease
        .as_ref()
        .is_some_and(|write| write.purpose == LeasePurpose::Renew);
    !(failing && renews)
}
