//! The sidecar: observes, calls the shipped `decide`, carries out what it says, and is the commit gate.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use podgres::core::cluster::PeerContact;
use podgres::core::data_directory::SystemIdentifier;
use podgres::core::decide::decide;
use podgres::core::decision::{Decision, Memory, PostgresAction};
use podgres::core::member::{Ordinal, slot_name};
use podgres::core::observation::{
    Barrier, FailedAction, NameState, Observation, PeerView, ProbeState, UpstreamFacts, UpstreamView,
};
use podgres::core::situation::Situation;
use podgres::core::status::{HeldData, ReplicationStatus, ServerStatus};
use podgres::core::supervision::{Postmaster, ServerRole};
use podgres::core::wal::Lsn;

use crate::api::Client;
use crate::config::{MS, SECOND, Time};
use crate::event::Event;
use crate::network::Ear;
use crate::supervisor::slot;
use crate::wal::lsn;
use crate::world::{CLUSTER, World};

/// What the executor does with an action that hangs.
const ACTION_LIMIT: Time = 5 * SECOND;
/// No agent waits longer for its next turn.
const SLOWEST_MS: u64 = 1_000;
const LOOK_PAUSE: Time = 900 * MS;
const GATE_REPEAT: Time = 250 * MS;

/// See the module. The observation is kept and brought up to date in place.
pub(crate) struct Sidecar {
    pub(crate) epoch: u64,
    pub(crate) observation: Observation,
    memory: Memory,
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

fn index(ordinal: Ordinal) -> usize {
    ordinal.0 as usize
}

fn host(member: usize) -> String {
    format!("pg-{member}")
}

fn unasked() -> UpstreamView {
    UpstreamView {
        of: None,
        host: "pg-0".to_owned(),
        port: 5432,
        looked_at_ms: 0,
        name: NameState::Unasked,
        probe: ProbeState::Untried,
    }
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
            memory: Memory::default(),
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
        let decision = decide(&there.policy, &sidecar.memory, &sidecar.observation);
        sidecar.turn_at = Time::MAX;
        self.tell(member, &decision);
        self.publish(member, &decision);
        self.look_upstream(member, decision.upstream);
        let Some(sidecar) = &mut self.members[member].sidecar else {
            return;
        };
        sidecar.situation = decision.situation;
        sidecar.memory = decision.memory;
        sidecar.gate_until_ms = decision.gate_until_ms;
        self.gate_confirm(member);
        if let Some(write) = decision.lease {
            self.begin_put(member, write);
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

    fn observe(&mut self, member: usize) {
        let (now, clock_ms) = (self.now, self.clock_ms(member));
        self.show_licence(member, clock_ms);
        let there = &mut self.members[member];
        let Some(sidecar) = &mut there.sidecar else { return };
        let observation = &mut sidecar.observation;
        observation.at_ms = clock_ms;
        match &there.supervisor {
            None => {
                observation.supervisor = None;
                sidecar.seen = (0, 0);
            }
            Some(supervisor) => {
                let seen = (supervisor.epoch, supervisor.status.version);
                match &mut observation.supervisor {
                    Some(known) if sidecar.seen == seen => known.licence = supervisor.status.licence,
                    known => *known = Some(supervisor.status.clone()),
                }
                sidecar.seen = seen;
            }
        }
        for (peer, view) in &mut observation.peers {
            view.heard_ms_ago = sidecar.ears[index(*peer)].heard_ms_ago(now);
        }
        self.observe_server(member);
    }

    fn observe_server(&mut self, member: usize) {
        let now = self.now;
        let there = &mut self.members[member];
        let Some(sidecar) = &mut there.sidecar else { return };
        let running = sidecar.observation.supervisor.as_ref().is_some_and(|supervisor| {
            matches!(supervisor.postmaster, Postmaster::Running { ready: true, .. })
        });
        let open = there
            .postgres
            .as_mut()
            .filter(|p| running && p.is_ready && p.stopping.is_none());
        let (Some(postgres), Some(data)) = (open, &there.data) else {
            sidecar.observation.server = None;
            return;
        };
        let fresh = sidecar.observation.server.is_none();
        let server = sidecar
            .observation
            .server
            .get_or_insert_with(|| empty_status(data.system_identifier));
        let (waiting, end) = (now >= postgres.replayed_at, data.wal.end());
        server.timeline = end.timeline;
        server.in_recovery = postgres.in_recovery;
        server.flush_lsn = end.lsn;
        server.replay_lsn = if waiting {
            end.lsn
        } else {
            Lsn(end.lsn.0.saturating_sub(16))
        };
        server.replay_waiting = waiting;
        server.receiver_streaming = postgres.receiver.is_some();
        server.receiver_present = postgres.receiver.is_some();
        server.receiver_silent_ms = postgres
            .receiver
            .as_ref()
            .map(|receiver| receiver.cut_at.map_or(100, |cut| (now - cut) / MS + 100));
        let shown = postgres.shown.at(now);
        if server.synchronous_standby_names != shown.text {
            server.synchronous_standby_names.clone_from(&shown.text);
        }
        if server.slots != data.slots {
            server.slots.clone_from(&data.slots);
        }
        if fresh || sidecar.senders_seen != postgres.pg ^ postgres.senders_changed {
            sidecar.senders_seen = postgres.pg ^ postgres.senders_changed;
            server.replication = postgres.senders.iter().map(|sender| row(&sender.name)).collect();
        }
        for (row, sender) in server.replication.iter_mut().zip(&postgres.senders) {
            row.flush_lsn = Some(lsn(sender.flushed));
            if sender.caught_up && row.state != "streaming" {
                "streaming".clone_into(&mut row.state);
            }
        }
    }

    /// What the others are told; a line goes out when something has changed.
    fn publish(&mut self, member: usize, decision: &Decision) {
        let there = &self.members[member];
        let Some(sidecar) = &there.sidecar else { return };
        let observation = &sidecar.observation;
        let server = observation.server.as_ref();
        let directory = observation
            .supervisor
            .as_ref()
            .map(|supervisor| &supervisor.data_directory);
        let facts = directory.and_then(|directory| directory.facts());
        let view = PeerView {
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
            uid: there.policy.identity.uid.clone(),
            leadership: decision.report.clone(),
            ..PeerView::untried()
        };
        let known = sidecar.published.as_deref();
        if known == Some(&view) {
            return;
        }
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
                self.request(member, id, other);
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

    /// Looks at the member wanted, about once a second, while this one does not stream from it.
    fn look_upstream(&mut self, member: usize, wanted: Option<Ordinal>) {
        let (now, clock_ms) = (self.now, self.clock_ms(member));
        let (low, high) = self.config.link_delay;
        let delay = self.random.skewed(low, high) + 200;
        let Some(sidecar) = &mut self.members[member].sidecar else {
            return;
        };
        let known = match sidecar
            .observation
            .supervisor
            .as_ref()
            .map(|supervisor| &supervisor.postmaster)
        {
            Some(Postmaster::Running {
                role: ServerRole::Standby {
                    upstream: Some(upstream),
                },
                ..
            }) => Some(upstream.host.clone()),
            _ => None,
        };
        let streams = sidecar
            .observation
            .server
            .as_ref()
            .is_some_and(|server| server.receiver_streaming);
        let wanted = wanted.filter(|of| !(streams && known == Some(host(index(*of)))));
        let Some(of) = wanted else {
            if sidecar.observation.upstream.of.is_some() {
                sidecar.observation.upstream = unasked();
            }
            return;
        };
        let other = sidecar.observation.upstream.of != Some(of);
        if sidecar.looking || !(other || now >= sidecar.look_next) {
            return;
        }
        sidecar.looking = true;
        sidecar.look_next = now + LOOK_PAUSE;
        let epoch = sidecar.epoch;
        self.after(
            delay,
            Event::LookSample {
                member,
                epoch,
                of: index(of),
                looked_at_ms: clock_ms,
            },
        );
    }

    pub(crate) fn look_sample(&mut self, member: usize, epoch: u64, of: usize, looked_at_ms: u64) {
        let there = &self.members[of];
        let open = there
            .postgres
            .as_ref()
            .filter(|p| p.is_ready && p.stopping.is_none() && !there.frozen);
        let reached = self.network.up(member, of) && self.network.up(of, member);
        let address: IpAddr = self.address(of);
        let probe = match open.zip(there.data.as_ref()).filter(|_| reached) {
            None => ProbeState::Failed {
                message: "could not connect".to_owned(),
            },
            Some((postgres, data)) => ProbeState::Ready {
                facts: UpstreamFacts {
                    address,
                    system_identifier: SystemIdentifier(data.system_identifier),
                    flush_lsn: data.wal.end().lsn,
                    history: data.wal.history.clone(),
                    in_recovery: Some(postgres.in_recovery),
                },
            },
        };
        let name = if there.exists {
            NameState::Resolved {
                addresses: vec![address],
            }
        } else {
            NameState::Missing
        };
        let view = Box::new(UpstreamView {
            of: Some(ordinal(of)),
            host: host(of),
            port: 5432,
            looked_at_ms,
            name,
            probe,
        });
        let (low, high) = self.config.link_delay;
        let delay = if reached {
            self.random.skewed(low, high)
        } else {
            self.random.between(100 * MS, 3 * SECOND)
        };
        self.after(delay, Event::LookDone { member, epoch, view });
    }

    pub(crate) fn look_done(&mut self, member: usize, epoch: u64, view: UpstreamView) {
        let Some(sidecar) = self.sidecar(member, epoch) else {
            return;
        };
        sidecar.looking = false;
        let news =
            sidecar.observation.upstream.probe != view.probe || sidecar.observation.upstream.of != view.of;
        sidecar.observation.upstream = view;
        if news {
            self.wake(member, 200);
        }
    }

    /// The gate goes to a primary that is open.
    pub(crate) fn gate_wanted(&mut self, member: usize) {
        let delay = self.random.skewed(2 * MS, 100 * MS);
        if let Some(sidecar) = &self.members[member].sidecar {
            let epoch = sidecar.epoch;
            self.after(delay, Event::GateAttach { member, epoch });
        }
    }

    pub(crate) fn gate_attach(&mut self, member: usize, epoch: u64) {
        let open = self.members[member].postgres.as_ref().is_some_and(|postgres| {
            postgres.is_ready && !postgres.in_recovery && postgres.stopping.is_none()
        });
        if !open || self.sidecar(member, epoch).is_none() {
            return;
        }
        let Some(conn) = self.attach_gate(member) else {
            return;
        };
        if let Some(sidecar) = self.sidecar(member, epoch) {
            sidecar.gate = Some(conn);
        }
        self.gate_confirm(member);
    }

    /// Confirms what is flushed, while the right of the last decision lasts.
    pub(crate) fn gate_confirm(&mut self, member: usize) {
        let (clock_ms, now) = (self.clock_ms(member), self.now);
        let there = &mut self.members[member];
        if !there.sidecar_runs() {
            return;
        }
        let (Some(sidecar), Some(postgres), Some(data)) =
            (&mut there.sidecar, &mut there.postgres, &there.data)
        else {
            return;
        };
        let Some(conn) = sidecar.gate else { return };
        if !postgres.is_waiting() {
            return;
        }
        if !sidecar.repeating {
            sidecar.repeating = true;
            let epoch = sidecar.epoch;
            self.order_repeat(member, epoch);
            return self.gate_confirm(member);
        }
        if clock_ms >= sidecar.gate_until_ms {
            return;
        }
        let Some(sender) = postgres.senders.iter_mut().find(|sender| sender.conn == conn) else {
            return;
        };
        sender.flushed = data.wal.len();
        postgres.gate_confirmed_at = now;
        self.release(member, conn);
    }

    fn order_repeat(&mut self, member: usize, epoch: u64) {
        self.after(GATE_REPEAT, Event::GateRepeat { member, epoch });
    }

    pub(crate) fn gate_repeat(&mut self, member: usize, epoch: u64) {
        if let Some(sidecar) = self.sidecar(member, epoch) {
            sidecar.repeating = false;
            self.gate_confirm(member);
        }
    }
}

fn row(name: &str) -> ReplicationStatus {
    ReplicationStatus {
        application_name: name.to_owned(),
        client_addr: None,
        state: "catchup".to_owned(),
        sent_lsn: None,
        flush_lsn: None,
        replay_lsn: None,
        sync_state: String::new(),
        sync_priority: 1,
        usename: "podgres_replication".to_owned(),
        pid: 1,
    }
}

fn empty_status(system_identifier: u64) -> ServerStatus {
    ServerStatus {
        server_version: 160_009,
        system_identifier: SystemIdentifier(system_identifier),
        timeline: podgres::core::wal::TimelineId(1),
        in_recovery: true,
        receiver_streaming: false,
        flush_lsn: Lsn(0),
        replay_lsn: Lsn(0),
        upstream_lsn: None,
        replay_age_ms: None,
        postmaster_start_time: String::new(),
        replication: Vec::new(),
        slots: Vec::new(),
        oldest_wal_lsn: None,
        wal_segment_size_bytes: 16 << 20,
        replication_role: true,
        receiver_present: false,
        receiver_silent_ms: None,
        replay_waiting: false,
        synchronous_standby_names: String::new(),
        superseded_slots: Vec::new(),
        archive: None,
    }
}
