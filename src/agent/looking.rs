//! What the loop looks at before each decision: gathers one `Observation` from all adapters, and judges nothing.

use std::collections::BTreeSet;

use crate::clock::boottime_ms;
use crate::core::cluster::PeerEntry;
use crate::core::data_directory::DataDirectory;
use crate::core::lease::LeaseView;
use crate::core::observation::{Observation, UpstreamView};
use crate::core::status::ServerStatus;
use crate::core::supervision::{JobStatus, Postmaster, SupervisorRequest, SupervisorStatus};
use crate::core::switch::SwitchPosition;
use crate::core::synchronous_names::bypass_race;
use crate::watched;

use super::names::Names;
use super::observe;
use super::run::Agent;
use super::upstream::Wanted;

/// How often the secrets' files are read again.
const LOGINS_PAUSE_MS: u64 = 10_000;

impl Agent {
    /// Once for each postmaster.
    fn warn_of_race(&self, pid: u32, server: &ServerStatus) {
        let known = self.last_answer.as_ref().is_some_and(|(of, _)| *of == pid);
        let warning = bypass_race(server.server_version).filter(|_| !known && self.office.is_some());
        if let Some(warning) = warning {
            tracing::warn!(server.version = server.server_version, "{warning}");
        }
    }

    pub(super) async fn observe(&mut self, entries: &[PeerEntry]) -> Observation {
        self.read_logins();
        self.switch.listen(entries);
        let supervisor = self.supervisor_status.borrow_and_update().clone();
        if self.office.is_none() {
            self.keep_switch(supervisor.as_ref()).await;
        }
        let names = self.names.borrow_and_update().clone();
        self.follow_peers(&names);
        let look_for_oldest_wal = observe::oldest_wal_matters(self.last_server.as_ref(), entries);
        let asked = observe::server(
            &mut self.server,
            supervisor.as_ref(),
            look_for_oldest_wal,
            &mut self.complaint,
        )
        .await;
        let mut server = asked.server;
        if let Some(server) = &mut server {
            server.receiver_streaming = self.memory.believes_streaming(server);
        }
        self.note_server(server.as_ref());
        if let Some((pid, server)) = supervisor.as_ref().and_then(running_pid).zip(server.as_ref()) {
            self.warn_of_race(pid, server);
            self.last_answer = Some((pid, server.clone()));
        }
        let own_slot = self.settings.member.slot_name();
        let mut peers = observe::peers(&names, entries, self.settings.member.ordinal, &own_slot);
        let empty = |status: &SupervisorStatus| status.data_directory == DataDirectory::Empty;
        if self.settings.policy.first() && supervisor.as_ref().is_some_and(empty) {
            observe::look_at_servers(&mut peers, &names, self.settings.postgres_port).await;
        }
        let upstream = self.upstream_view();
        let office = self.office.as_mut();
        let (lease, checkpointed_at_ms, barrier) = office.map_or_else(Default::default, |office| {
            (office.view(), office.checkpointed_at_ms(), office.barrier.clone())
        });
        let read_only = self.followed_switch(&lease).on.is_some();
        Observation {
            at_ms: boottime_ms(),
            supervisor_error: self.supervisor.last_error(),
            supervisor,
            roles_current: self.roles_current
                && server.as_ref().is_some_and(|server| server.replication_role),
            server,
            login_refused: asked.login_refused,
            dns_answered: names.asked,
            peers,
            upstream,
            own_slot,
            failed_action: self.failed_action.clone(),
            lease,
            barrier,
            request: self.requests.waiting(),
            checkpointed_at_ms,
            read_only,
            drained: self.drained(entries),
        }
    }

    /// Where the read-only switch stands, by the Lease and by what the others tell.
    pub(super) fn followed_switch(&self, lease: &LeaseView) -> SwitchPosition {
        let read = lease.stored.as_ref().map(|stored| &stored.record);
        let recorded = read.or(self.memory.lease.record.as_ref());
        SwitchPosition::followed(recorded.map(|record| record.switch()), self.switch.position())
    }

    async fn keep_switch(&self, supervisor: Option<&SupervisorStatus>) {
        let Some(position) = supervisor.and_then(|status| self.switch.recall(&status.switch)) else {
            return;
        };
        if let Err(error) = self
            .supervisor
            .request(SupervisorRequest::KeepSwitch { position })
            .await
        {
            tracing::warn!(%error, "could not have the read-only switch kept on the volume");
        }
    }

    /// Everybody who routes, members and others, says that it has left this server.
    fn drained(&self, entries: &[PeerEntry]) -> bool {
        let name = self.settings.member.to_string();
        let left = |routes: &BTreeSet<String>| routes.contains(&name);
        let own = self.routes_left.borrow().as_ref().is_none_or(left);
        let mut live = entries.iter().filter_map(PeerEntry::live_status);
        own && self.visitors.have_left(boottime_ms())
            && live.all(|status| status.routes_left.as_ref().is_none_or(left))
    }

    fn note_server(&mut self, server: Option<&ServerStatus>) {
        let started = |server: &ServerStatus| server.postmaster_start_time.clone();
        let restarted = self.last_server.as_ref().map(started) != server.map(started);
        if let Some(server) = server {
            if restarted {
                self.was_streaming = false;
                self.roles_current = false;
            }
            self.was_streaming |= server.receiver_streaming;
            self.last_server = Some(server.clone());
        }
    }

    /// What the server said last, while the same server still runs: one slow answer must not cut its sessions. Of one that does not
    /// let podgres in there is nothing newer.
    pub(super) fn running_server(&self, observation: &Observation) -> Option<&ServerStatus> {
        if observation.login_refused.is_some() {
            return self.last_server.as_ref();
        }
        let runs = observation.supervisor.as_ref().and_then(running_pid);
        let (pid, server) = self.last_answer.as_ref()?;
        (runs == Some(*pid)).then_some(server)
    }

    /// After each decision, so that a look at a new primary begins at once.
    pub(super) fn want_upstream(&self, observation: &Observation) {
        let (peers, supervisor) = (&observation.peers, observation.supervisor.as_ref());
        let server = observation.server.as_ref();
        let streaming = server.is_some_and(|server| server.receiver_streaming);
        // An earlier turn has seen the end of the last job: a look from now on is newer than what it left.
        let idle = supervisor.is_some_and(|supervisor| {
            let counted = |job: &JobStatus| job.id == self.memory.counted_job;
            let stopped = matches!(supervisor.postmaster, Postmaster::Stopped { .. });
            stopped && supervisor.job.as_ref().is_none_or(counted)
        });
        let wanted = self.followed.filter(|_| !streaming).map(|of| {
            let peer = peers.get(&of);
            Wanted {
                of,
                writable: peer.is_some_and(|peer| peer.writable),
                timeline: peer.and_then(|peer| peer.timeline),
                detached: self.memory.lease.detached.is_some(),
                idle,
            }
        });
        watched::set(&self.upstream_wanted, wanted);
    }

    /// What was found of the member that is followed now.
    fn upstream_view(&mut self) -> UpstreamView {
        let found = self.upstream.borrow_and_update().clone();
        match self.followed {
            Some(followed) if found.of != Some(followed) => self.access.unasked(followed),
            _ => found,
        }
    }

    pub(super) fn peer_entries(&self) -> Vec<PeerEntry> {
        let (cluster, now) = (&self.settings.member.cluster, std::time::Instant::now());
        let peers = self.peers.snapshot();
        peers
            .iter()
            .map(|(ordinal, peer)| peer.entry(cluster, *ordinal, now))
            .collect()
    }

    fn follow_peers(&mut self, names: &Names) {
        let own = self.settings.member.ordinal;
        let others = names.members.iter().filter(|(ordinal, _)| **ordinal != own);
        let port = self.settings.http_port;
        let targets = others.map(|(ordinal, addresses)| (*ordinal, addresses.clone(), port));
        self.peers.set_targets(targets.collect());
    }

    /// A rotated password is brought to the server by the next turn.
    fn read_logins(&mut self) {
        let now_ms = boottime_ms();
        if now_ms.saturating_sub(self.logins_read_at_ms) < LOGINS_PAUSE_MS {
            return;
        }
        self.logins_read_at_ms = now_ms;
        match (self.settings.logins)() {
            Ok(logins) if logins != self.logins => {
                tracing::info!("the secrets have changed");
                self.login_sender.send_replace(logins.1.clone());
                self.server.expect_logins(logins.0.clone(), logins.1.clone());
                self.logins = logins;
                self.roles_current = false;
            }
            Ok(_) => {}
            Err(message) => tracing::warn!(detail = message, "could not read the secrets again"),
        }
    }
}

/// The postmaster that has become ready and runs.
fn running_pid(supervisor: &SupervisorStatus) -> Option<u32> {
    match supervisor.postmaster {
        Postmaster::Running { pid, ready: true, .. } => Some(pid),
        Postmaster::Running { .. } | Postmaster::Stopped { .. } | Postmaster::Stopping { .. } => None,
    }
}
