//! A look at the upstream: its name, its position, its history.

use std::net::IpAddr;

use podgres::core::data_directory::SystemIdentifier;
use podgres::core::member::Ordinal;
use podgres::core::observation::{NameState, ProbeState, UpstreamFacts, UpstreamView};
use podgres::core::supervision::{Postmaster, ServerRole};

use super::{index, ordinal};
use crate::config::{MS, SECOND, Time};
use crate::event::Event;
use crate::world::World;

const LOOK_PAUSE: Time = 900 * MS;

pub(super) fn unasked() -> UpstreamView {
    UpstreamView {
        of: None,
        host: "pg-0".to_owned(),
        port: 5432,
        looked_at_ms: 0,
        name: NameState::Unasked,
        probe: ProbeState::Untried,
    }
}

pub(super) fn host(member: usize) -> String {
    format!("pg-{member}")
}

impl World {
    /// Looks at the member wanted, about once a second, while this one does not stream from it.
    pub(super) fn look_upstream(&mut self, member: usize, wanted: Option<Ordinal>) {
        let (now, clock_ms) = (self.now, self.clock_ms(member));
        let (low, high) = self.config.link_delay;
        let delay = self.random.skewed(low, high) + 200;
        let there = &mut self.members[member];
        let Some(sidecar) = &mut there.sidecar else {
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
            }) => there.policy.ordinal_of(&upstream.host),
            _ => None,
        };
        let streams = sidecar
            .observation
            .server
            .as_ref()
            .is_some_and(|server| server.receiver_streaming);
        let wanted = wanted.filter(|of| !(streams && known == Some(*of)));
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
}
