//! The sidecar: observes, calls the shipped `decide`, carries out what it says, and is the commit gate.

mod gate;
mod looking;
mod observing;

use std::collections::BTreeMap;
use std::rc::Rc;

use podgres::core::cluster::PeerContact;
use podgres::core::decide::decide_with;
use podgres::core::decision::{Decision, Memory, PostgresAction};
use podgres::core::lease::LeadershipReport;
use podgres::core::member::{Ordinal, slot_name};
use podgres::core::observation::{Barrier, FailedAction, Observation, PeerView};
use podgres::core::situation::Situation;
use podgres::core::status::HeldData;

use crate::api::Client;
use crate::config::{MS, SECOND, Time};
use crate::event::Event;
use crate::network::Ear;
use crate::supervisor::slot;
use crate::wal::lsn;
use crate::world::{CLUSTER, World};
use looking::unasked;

/// What the executor does with an action that hangs.
const ACTION_LIMIT: Time = 5 * SECOND;
/// No agent waits longer for its next turn.
const SLOWEST_MS: u64 = 1_000;

/// See the module. The observation is kept and brought up to date in place.
pub(crate) struct Sidecar {
    pub(crate) epoch: u64,
    pub(crate) observation: Observation,
    /// Away only while it is decided with.
    memory: Option<Box<Memory>>,
    turn_at: Time,
    /// The action that is being carried out.
    executing: Option<(u64, PostgresAction)>,
    again: bool,
    pub(crate) gate_until_ms: u64,
    gate: Option<u64>,
    repeating: bool,
    pub(crate) ears: Vec<Ear>,
    pub(crate) published: Option<Rc<PeerView>>,
    looking: bool,
    look_next: Time,
    pub(crate) client: Client,
    pub(crate) situation: Situation,
    seen: (u64, u64),
    senders_seen: u64,
}

fn ordinal(member: usize) -> Ordinal {
    Ordinal(u32::try_from(member).unwrap_or(0))
}

/// One process tells the same of itself; what it is called does not change.
fn same_words(one: &PeerView, other: &PeerView) -> bool {
    one.flush_lsn == other.flush_lsn
        && one.leadership == other.leadership
        && (one.running, one.writable) == (other.running, other.writable)
        && (one.timeline, one.system_identifier) == (other.timeline, other.system_identifier)
        && one.held_data == other.held_data
}

fn index(ordinal: Ordinal) -> usize {
    ordinal.0 as usize
}

impl World {
    pub(crate) fn start_sidecar(&mut self, member: usize, pod: u64) {
        let there = &self.members[member];
        if !there.exists || there.pod != pod || there.sidecar.is_some() {
            return;
        }
        let now_ms = self.clock_ms(member);
        let identity = self.members[member].policy.identity.clone();
        let kept = self.members[member].kept_lease.take();
        let kept = kept
            .filter(|(of, _)| *of == pod)
            .map(|(_, kept)| kept.recalled(&identity, now_ms));
        let (lease, client) = kept.unwrap_or_default();
        let epoch = self.name();
        let ears = (0..self.members.len()).map(|_| Ear::default()).collect();
        let others = (0..self.members.len()).filter(|other| *other != member && self.members[*other].exists);
        let peers: BTreeMap<_, _> = others
            .map(|other| (ordinal(other), PeerView::untried()))
            .collect();
        self.members[member].sidecar = Some(Sidecar {
            epoch,
            observation: Observation {
                drained: true,
                at_ms: 0,
                supervisor: None,
                supervisor_error: None,
                server: None,
                login_refused: None,
                roles_current: true,
                dns_answered: true,
                peers,
                upstream: unasked(),
                own_slot: slot_name(CLUSTER, ordinal(member)),
                failed_action: None,
                lease,
                barrier: None,
                request: None,
                read_only: false,
                checkpointed_at_ms: None,
            },
            memory: None,
            turn_at: Time::MAX,
            executing: None,
            again: false,
            gate_until_ms: 0,
            gate: None,
            repeating: false,
            ears,
            published: None,
            looking: false,
            look_next: 0,
            client,
            situation: Situation::SupervisorUnreachable,
            seen: (0, 0),
            senders_seen: 0,
        });
        self.log(member, || "sidecar begins".to_owned());
        self.wake(member, 5 * MS);
        self.after(MS, Event::List { member, epoch });
        self.gate_wanted(member);
        self.touch(member);
    }

    pub(crate) fn sidecar(&mut self, member: usize, epoch: u64) -> Option<&mut Sidecar> {
        self.members[member]
            .sidecar
            .as_mut()
            .filter(|sidecar| sidecar.epoch == epoch)
    }

    /// A turn, this late at the latest.
    pub(crate) fn wake(&mut self, member: usize, delay: Time) {
        let at = self.now + delay;
        let Some(sidecar) = &mut self.members[member].sidecar else {
            return;
        };
        if sidecar.executing.is_some() {
            sidecar.again = true;
        } else if at < sidecar.turn_at {
            sidecar.turn_at = at;
            let epoch = sidecar.epoch;
            self.at(at, Event::Turn { member, epoch });
        }
    }

    pub(crate) fn turn(&mut self, member: usize, epoch: u64) {
        let now = self.now;
        let due = |sidecar: &Sidecar| sidecar.turn_at <= now && sidecar.executing.is_none();
        if !self.sidecar(member, epoch).is_some_and(|sidecar| due(sidecar)) {
            return;
        }
        self.observe(member);
        let there = &mut self.members[member];
        let Some(sidecar) = &mut there.sidecar else { return };
        let memory = sidecar.memory.take().unwrap_or_default();
        let mut decision = decide_with(&there.policy, memory, &sidecar.observation);
        sidecar.turn_at = Time::MAX;
        self.tell(member, &decision);
        self.publish(member, decision.report.take());
        self.look_upstream(member, decision.upstream);
        let Some(sidecar) = &mut self.members[member].sidecar else {
            return;
        };
        sidecar.situation = decision.situation;
        sidecar.memory = Some(decision.memory);
        sidecar.gate_until_ms = decision.gate_until_ms;
        self.gate_confirm(member);
        if let Some(write) = decision.lease {
            self.begin_put(member, write);
        }
        if decision.read_lease {
            self.after(MS, Event::List { member, epoch });
        }
        match decision.postgres {
            None => self.wake(
                member,
                (decision.recheck_after_ms * self.config.slowness)
                    .min(SLOWEST_MS.max(decision.recheck_after_ms))
                    * MS,
            ),
            Some(action) => self.begin_action(member, epoch, action),
        }
    }

    fn begin_action(&mut self, member: usize, epoch: u64, action: PostgresAction) {
        let id = self.name();
        let slow = self.random.chance(1);
        let delay = self.random.skewed(200, if slow { 500 * MS } else { 3 * MS });
        let Some(sidecar) = &mut self.members[member].sidecar else {
            return;
        };
        sidecar.executing = Some((id, action));
        self.after(delay, Event::Execute { member, epoch });
    }

    fn tell(&mut self, member: usize, decision: &Decision) {
        if !self.trace.on {
            return;
        }
        let quiet = matches!(
            (&decision.postgres, &decision.lease),
            (
                None | Some(PostgresAction::GrantLicence { .. } | PostgresAction::ReconcileSlots { .. }),
                None
            )
        );
        let Some(sidecar) = &self.members[member].sidecar else {
            return;
        };
        if quiet && sidecar.situation == decision.situation {
            return;
        }
        let write = decision.lease.as_ref().map(|write| {
            let record = &write.record;
            let holder = record.holder.as_ref().map(|holder| holder.pod.clone());
            format!(
                " LEASE {:?} over {:?}: {holder:?} term {} set {:?} members {:?}",
                write.purpose, write.over, record.term, record.synchronous, record.members
            )
        });
        let action = decision.postgres.as_ref().map(|action| format!(" DO {action:?}"));
        let (situation, detail) = (decision.situation, &decision.detail);
        let line = format!(
            "{situation:?}: {detail}{}{}",
            write.unwrap_or_default(),
            action.unwrap_or_default()
        );
        self.log(member, || line);
    }

    /// What the others are told; a line goes out when something has changed.
    fn publish(&mut self, member: usize, report: Option<LeadershipReport>) {
        let there = &self.members[member];
        let Some(sidecar) = &there.sidecar else { return };
        let observation = &sidecar.observation;
        let server = observation.server.as_ref();
        let directory = observation
            .supervisor
            .as_ref()
            .map(|supervisor| &supervisor.data_directory);
        let facts = directory.and_then(|directory| directory.facts());
        let mut view = PeerView {
            contact: PeerContact::Connected,
            held_data: match directory {
                None => HeldData::Unknown,
                Some(directory) if directory.facts().is_none() => HeldData::None,
                Some(_) => HeldData::Some,
            },
            system_identifier: server
                .map(|s| s.system_identifier)
                .or(facts.map(|f| f.system_identifier)),
            timeline: server.map(|server| server.timeline),
            writable: server.is_some_and(|server| !server.in_recovery),
            running: server.is_some_and(|server| server.receiver_streaming || !server.in_recovery),
            flush_lsn: server.map(|server| server.flush_lsn),
            leadership: report,
            ..PeerView::untried()
        };
        let known = sidecar.published.as_deref();
        if known.is_some_and(|known| same_words(known, &view)) {
            return;
        }
        view.uid.clone_from(&there.policy.identity.uid);
        let news = known.is_none_or(|known| {
            known.leadership != view.leadership
                || known.running != view.running
                || known.writable != view.writable
                || known.timeline != view.timeline
        });
        let view = Rc::new(view);
        if let Some(sidecar) = &mut self.members[member].sidecar {
            sidecar.published = Some(Rc::clone(&view));
        }
        self.send_lines(member, &view, news);
    }

    pub(crate) fn execute(&mut self, member: usize, epoch: u64) {
        let Some((id, action)) = self
            .sidecar(member, epoch)
            .and_then(|sidecar| sidecar.executing.clone())
        else {
            return;
        };
        let done = |error| Event::Executed {
            member,
            epoch,
            action: id,
            error,
        };
        match action {
            PostgresAction::Barrier {
                synchronous_standby_names,
            } => {
                self.barrier(member, synchronous_standby_names);
                self.after(MS, done(None));
            }
            PostgresAction::Checkpoint => {
                let delay = self.random.skewed(20 * MS, SECOND);
                // The longest take longer than a licence, without another draw.
                let delay = if delay > SECOND / 2 { 14 * delay } else { delay };
                self.after(delay, Event::CheckpointDone { member, epoch });
                self.after(MS, done(None));
            }
            PostgresAction::EnsureRoles | PostgresAction::DropSlots { .. } => self.after(MS, done(None)),
            PostgresAction::ReconcileSlots { expected, .. } => {
                if let Some(data) = &mut self.members[member].data {
                    data.slots = expected.into_iter().map(slot).collect();
                }
                self.after(MS, done(None));
            }
            other => {
                self.after(ACTION_LIMIT, done(Some("no answer in time")));
                let sidecar = self.members[member].sidecar.as_ref();
                let seen = sidecar.and_then(|sidecar| sidecar.observation.supervisor.as_ref());
                let promised = seen.map_or(0, |status| status.terms.promised);
                self.request(member, id, other, promised);
            }
        }
    }

    /// Reads the WAL position once the setting is seen by this session; the lag of other processes is waited out.
    fn barrier(&mut self, member: usize, names: String) {
        let (now, at_ms) = (self.now, self.clock_ms(member));
        let end = lsn(self.wal_len(member));
        let there = &mut self.members[member];
        let shown = there
            .postgres
            .as_mut()
            .map(|postgres| postgres.shown.at(now).text == names);
        let Some(sidecar) = &mut there.sidecar else { return };
        if shown == Some(true) {
            sidecar.observation.barrier = Some(Barrier {
                synchronous_standby_names: names,
                lsn: end,
                at_ms,
            });
        }
    }

    pub(crate) fn checkpoint_done(&mut self, member: usize, epoch: u64) {
        let clock_ms = self.clock_ms(member);
        if let Some(sidecar) = self.sidecar(member, epoch) {
            sidecar.observation.checkpointed_at_ms = Some(clock_ms);
            self.wake(member, MS);
        }
    }

    pub(crate) fn executed(&mut self, member: usize, epoch: u64, action: u64, error: Option<&'static str>) {
        let at_ms = self.clock_ms(member);
        let Some(sidecar) = self.sidecar(member, epoch) else {
            return;
        };
        let Some((_, done)) = sidecar.executing.take_if(|(id, _)| *id == action) else {
            return;
        };
        let pause = if std::mem::take(&mut sidecar.again) {
            MS
        } else {
            50 * MS
        };
        sidecar.observation.failed_action = error.map(|message| FailedAction {
            action: done,
            message: message.to_owned(),
            at_ms,
        });
        if let Some(message) = error {
            self.log(member, || format!("action failed: {message}"));
        }
        self.wake(member, pause);
    }

    /// The action that waits for an answer of a process that is gone.
    pub(crate) fn action_lost(&mut self, member: usize) {
        let Some(sidecar) = &self.members[member].sidecar else {
            return;
        };
        let Some((action, _)) = sidecar.executing else {
            return;
        };
        let epoch = sidecar.epoch;
        let error = Some("the supervisor is gone");
        self.after(
            2 * MS,
            Event::Executed {
                member,
                epoch,
                action,
                error,
            },
        );
    }
}
