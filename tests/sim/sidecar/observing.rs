//! What a sidecar sees of its own pod at each turn.

use podgres::core::data_directory::SystemIdentifier;
use podgres::core::status::{ReplicationStatus, ServerStatus};
use podgres::core::supervision::Postmaster;
use podgres::core::wal::Lsn;

use super::index;
use crate::config::MS;
use crate::wal::lsn;
use crate::world::World;

impl World {
    pub(super) fn observe(&mut self, member: usize) {
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
