//! Looks at the server to follow, while this member does not stream from it: DNS, then a replication connection.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::boottime_ms;
use crate::core::member::{Ordinal, Topology};
use crate::core::observation::{NameState, ProbeState, UpstreamFacts, UpstreamView};
use crate::core::supervision::Upstream;
use crate::core::wal::TimelineId;
use crate::dns::Resolver;
use crate::postgres::Login;
use crate::postgres::error::describe;
use crate::postgres::replication::{UpstreamAccess, ensure_slot, probe_upstream};
use crate::postgres::tls::ClientTls;
use crate::watched;

use super::names::{self, Names};

const PAUSE: Duration = Duration::from_millis(900);
/// So that standbys which lost their primary together do not come back together.
const JITTER_MS: std::ops::RangeInclusive<u64> = 0..=200;
const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// How to reach the upstream: everything but its address.
pub(super) struct Access {
    pub(super) topology: Topology,
    pub(super) port: u16,
    pub(super) slot: String,
    pub(super) application_name: String,
    pub(super) login: watch::Receiver<Login>,
    pub(super) tls: Option<Arc<ClientTls>>,
}

impl Access {
    pub(super) fn unasked(&self, of: Ordinal) -> UpstreamView {
        self.view(of, 0, NameState::Unasked, ProbeState::Untried)
    }

    fn view(&self, of: Ordinal, looked_at_ms: u64, name: NameState, probe: ProbeState) -> UpstreamView {
        UpstreamView {
            of: Some(of),
            host: self.topology.pod_host(of),
            port: self.port,
            looked_at_ms,
            name,
            probe,
        }
    }

    fn at(&self, of: Ordinal, address: IpAddr) -> Upstream {
        Upstream {
            host: self.topology.pod_host(of),
            address,
            port: self.port,
            slot: self.slot.clone(),
            application_name: None,
        }
    }

    /// Sees to it that this member's slot is on the upstream, so that no WAL is lost from here on.
    pub(super) async fn ensure_slot(&self, upstream: &Upstream) -> Result<(), String> {
        let login = self.login.borrow().clone();
        let access = UpstreamAccess {
            upstream,
            login: &login,
            application_name: &self.application_name,
            tls: self.tls.as_deref(),
        };
        ensure_slot(&access, PROBE_LIMIT)
            .await
            .map(|_| ())
            .map_err(|error| error.to_string())
    }

    async fn probe(&self, of: Ordinal, address: IpAddr) -> Result<UpstreamFacts, String> {
        let upstream = self.at(of, address);
        let login = self.login.borrow().clone();
        let access = UpstreamAccess {
            upstream: &upstream,
            login: &login,
            application_name: &self.application_name,
            tls: self.tls.as_deref(),
        };
        match probe_upstream(&access, PROBE_LIMIT).await {
            Ok(facts) => Ok(UpstreamFacts {
                address,
                system_identifier: facts.identity.system_identifier,
                flush_lsn: facts.identity.position.lsn,
                history: facts.history,
                in_recovery: facts.in_recovery,
            }),
            Err(error) => Err(match error.hint() {
                Some(hint) => format!("{} ({hint})", describe(&error)),
                None => describe(&error),
            }),
        }
    }

    async fn look(&self, resolver: &Resolver, known: Vec<IpAddr>, of: Ordinal) -> UpstreamView {
        let looked_at_ms = boottime_ms();
        let addresses = match names::addresses(resolver, &self.topology.pod_host(of), known).await {
            Ok(addresses) => addresses,
            Err(error) if error.absent() => {
                return self.view(of, looked_at_ms, NameState::Missing, ProbeState::Untried);
            }
            Err(error) => {
                let message = error.to_string();
                return self.view(
                    of,
                    looked_at_ms,
                    NameState::Failed { message },
                    ProbeState::Untried,
                );
            }
        };
        let mut probe = ProbeState::Untried;
        for address in &addresses {
            match self.probe(of, *address).await {
                Ok(facts) => {
                    probe = ProbeState::Ready { facts };
                    break;
                }
                Err(message) => probe = ProbeState::Failed { message },
            }
        }
        self.view(of, looked_at_ms, NameState::Resolved { addresses }, probe)
    }
}

/// Whom to look at, and what makes an earlier look outdated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) of: Ordinal,
    /// It says of itself that it accepts writes, and on which timeline.
    pub(super) writable: bool,
    pub(super) timeline: Option<TimelineId>,
    /// This member waits for the answer before it follows, or starts.
    pub(super) detached: bool,
    pub(super) idle: bool,
}

/// Looks about once a second while something is wanted, and at once when that changes; what was found is forgotten when
/// nothing is wanted any more.
pub(super) fn follow(
    access: Arc<Access>,
    resolver: Resolver,
    names: watch::Receiver<Names>,
    first: Ordinal,
    mut wanted: watch::Receiver<Option<Wanted>>,
) -> watch::Receiver<UpstreamView> {
    let (sender, receiver) = watch::channel(access.unasked(first));
    tokio::spawn(async move {
        loop {
            let Ok(Some(now)) = wanted.wait_for(Option::is_some).await.map(|wanted| *wanted) else {
                return;
            };
            let known = names.borrow().members.get(&now.of).cloned().unwrap_or_default();
            let look = access.look(&resolver, known, now.of);
            // A look at a server that hangs must not keep it from looking at another. One that is merely not wanted any more
            // comes to its end: breaking it off would be an error in that server's log.
            let view = tokio::select! {
                view = look => view,
                _ = wanted.wait_for(|wanted| wanted.is_some_and(|wanted| wanted.of != now.of)) => continue,
            };
            watched::set(&sender, view);
            let pause = PAUSE + Duration::from_millis(fastrand::u64(JITTER_MS));
            let changed = tokio::time::timeout(pause, wanted.wait_for(|wanted| *wanted != Some(now))).await;
            if let Ok(Ok(wanted)) = changed
                && wanted.is_none()
            {
                sender.send_replace(access.unasked(now.of));
            }
        }
    });
    receiver
}
