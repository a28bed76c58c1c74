//! The loop: observe, decide, record, publish, execute, wait.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::clock::boottime_ms;
use crate::core::cluster::PeerEntry;
use crate::core::cluster::change::{Change, change};
use crate::core::decide::decide;
use crate::core::decision::{Decision, Memory, PostgresAction};
use crate::core::member::Ordinal;
use crate::core::observation::{FailedAction, Observation, UpstreamView};
use crate::core::policy::Leadership;
use crate::core::route_table::{route_table, with_unseen};
use crate::core::situation::{Outlook, Situation};
use crate::core::status::ServerStatus;
use crate::core::supervision::SupervisorStatus;
use crate::dns::Resolver;
use crate::peers::{Peers, Way};
use crate::postgres::Login;
use crate::postgres::query::LocalServer;
use crate::postgres::tls::ClientTls;
use crate::watched;

use super::counters::Clones;
use super::ending::{Outcome, Until, ended};
use super::execute::{Done, Hands, execute};
use super::journal::Recorder;
use super::names::Names;
use super::office::{self, Office, Requests};
use super::operator::Operator;
use super::outlets::Outlets;
use super::supervisor::Supervisor;
use super::switch::Switchboard;
use super::upstream::{Access, Wanted};
use super::visitors::Visitors;
use super::{Published, Settings, names, ordered, publish, upstream};

/// Why an agent cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("{message}")]
    Logins { message: String },
    #[error(transparent)]
    Resolver(#[from] crate::dns::ResolverError),
    #[error("could not start the commit gate's thread: {0}")]
    Gate(#[from] std::io::Error),
    #[error(transparent)]
    Tls(#[from] crate::postgres::tls::TlsError),
}

/// The loop's own things: adapters, memory, and where it publishes.
pub struct Agent {
    pub(super) settings: Settings,
    pub(super) supervisor: Supervisor,
    pub(super) office: Option<Office>,
    pub(super) requests: Requests,
    operator: Arc<Operator>,
    pub(super) supervisor_status: watch::Receiver<Option<SupervisorStatus>>,
    pub(super) names: watch::Receiver<Names>,
    pub(super) upstream: watch::Receiver<UpstreamView>,
    pub(super) access: Arc<Access>,
    pub(super) peers: Peers,
    pub(super) server: LocalServer,
    /// Why the server did not answer last time.
    pub(super) complaint: Option<String>,
    /// Superuser and replication role, as last read.
    pub(super) logins: (Login, Login),
    pub(super) logins_read_at_ms: u64,
    pub(super) login_sender: watch::Sender<Login>,
    pub(super) upstream_wanted: watch::Sender<Option<Wanted>>,
    /// The member that this one follows, or would.
    pub(super) followed: Option<Ordinal>,
    pub(super) settled: watch::Sender<bool>,
    pub(super) roles_current: bool,
    pub(super) failed_action: Option<FailedAction>,
    pub(super) last_server: Option<ServerStatus>,
    /// The postmaster that answered last, and its answer.
    pub(super) last_answer: Option<(u32, ServerStatus)>,
    pub(super) was_streaming: bool,
    pub(super) clones: Clones,
    /// The last request to the API server failed.
    pub(super) lease_failing: bool,
    pub(super) memory: Memory,
    /// The leaving servers that the routes of this process have left; `None` where nothing routes.
    pub(super) routes_left: watch::Receiver<Option<BTreeSet<String>>>,
    /// The newest term for which they have left the primaries of earlier ones.
    pub(super) routes_term: watch::Receiver<Option<u64>>,
    pub(super) switch: Switchboard,
    pub(super) visitors: Visitors,
    pub(super) recorder: Recorder,
    outlets: Outlets,
}

impl Agent {
    /// Starts the adapters; must be called on a tokio runtime.
    pub fn start(settings: Settings) -> Result<(Self, Published), AgentError> {
        let logins = (settings.logins)().map_err(|message| AgentError::Logins { message })?;
        let resolver = Resolver::new(settings.dns_server)?;
        let tls = settings
            .tls
            .as_deref()
            .map(ClientTls::open)
            .transpose()?
            .map(Arc::new);
        let (login_sender, login) = watch::channel(logins.1.clone());
        let way = tls.as_ref().map_or_else(Way::plain, |tls| {
            let tls = Arc::clone(tls);
            Way::verified(Arc::new(move || tls.config()), settings.topology.service_host())
        });
        let access = Arc::new(Access {
            topology: settings.topology.clone(),
            port: settings.postgres_port,
            slot: settings.member.slot_name(),
            application_name: settings.member.to_string(),
            login,
            tls,
        });
        let (upstream_wanted, wanted) = watch::channel(None);
        let (settled, settled_receiver) = watch::channel(false);
        let supervisor = Supervisor::follow(settings.supervisor_socket.clone());
        let office = office(&settings)?;
        let requests = Requests::default();
        let switch = Switchboard::open(&settings.run_directory);
        let (outlets, published, journal) =
            Outlets::open(&settings, office.as_ref(), &requests, &switch, &way);
        let names = names::follow(
            resolver.clone(),
            settings.topology.clone(),
            settled_receiver,
            Arc::clone(&published.visited),
        );
        let agent = Self {
            office,
            requests,
            supervisor_status: supervisor.subscribe(),
            supervisor,
            upstream: upstream::follow(
                Arc::clone(&access),
                resolver,
                names.clone(),
                settings.policy.first_ordinal,
                wanted,
            ),
            names,
            access,
            peers: Peers::new(&settings.member.cluster, settings.peer_timeout, way),
            server: LocalServer::at(
                settings.server_address,
                Some(settings.member.clone()),
                logins.0.clone(),
                logins.1.clone(),
            ),
            logins,
            complaint: None,
            logins_read_at_ms: 0,
            login_sender,
            upstream_wanted,
            followed: followed_at_first(&settings),
            settled,
            roles_current: false,
            failed_action: None,
            last_server: None,
            last_answer: None,
            was_streaming: false,
            clones: Clones::default(),
            lease_failing: false,
            memory: Memory::default(),
            routes_left: published.routes_left.subscribe(),
            routes_term: published.routes_term.subscribe(),
            switch,
            visitors: published.operator.visitors.clone(),
            operator: Arc::clone(&published.operator),
            recorder: Recorder::new(journal),
            outlets,
            settings,
        };
        Ok((agent, published))
    }

    /// Turns until `until`.
    pub async fn run(mut self, until: Until) -> Outcome {
        let _ordered = self.follow_orders(until);
        loop {
            let entries = self.peer_entries();
            let observation = self.observe(&entries).await;
            let decision = decide(&self.settings.policy, &self.memory, &observation);
            self.recorder
                .record(&self.settings.policy, &self.memory, &observation, &decision);
            let shown = self.recorder.shown(&decision).into_owned();
            self.publish(entries, &observation, &shown);
            if until == Until::DirectoryReady
                && let Some(outcome) = ended(&self.settings.policy, &decision, &observation)
            {
                return outcome;
            }
            self.take_office(&observation, &decision);
            self.take_up(&observation, &decision);
            self.followed = if self.office.is_some() {
                decision.upstream
            } else {
                self.followed
            };
            self.memory = *decision.memory;
            self.want_upstream(&observation);
            if let Some(action) = decision.postgres {
                let supervisor = observation.supervisor.as_ref();
                self.execute(action, supervisor.map(|status| status.terms.promised))
                    .await;
            }
            self.wait(Duration::from_millis(decision.recheck_after_ms)).await;
        }
    }

    /// For as long as this process is the one that PostgreSQL is told by.
    fn follow_orders(&self, until: Until) -> Option<AbortOnDropHandle<()>> {
        let store = self.office.as_ref().filter(|_| until == Until::Ended)?.store();
        let task = tokio::spawn(ordered::follow(Arc::clone(&self.operator), store));
        Some(AbortOnDropHandle::new(task))
    }

    fn take_office(&mut self, observation: &Observation, decision: &Decision) {
        let Some(office) = &mut self.office else { return };
        let server = observation.server.as_ref().map(|server| server.system_identifier);
        let recorded = observation
            .lease
            .stored
            .as_ref()
            .and_then(|stored| stored.record.system_identifier);
        let target = office::gate_target(
            observation.supervisor.as_ref(),
            self.settings.server_address,
            &self.logins.1,
            server.or(recorded),
        );
        office.open_gate(decision.gate_until_ms, target);
        if decision.read_lease {
            office.read();
        }
        if let Some(write) = decision.lease.clone() {
            office.write(write);
        }
    }

    /// A request to this member is the agent's from its first deed on.
    fn take_up(&self, observation: &Observation, decision: &Decision) {
        let taken_up = matches!(
            decision.postgres,
            Some(PostgresAction::Stop { .. } | PostgresAction::Run { .. })
        );
        if taken_up && observation.request.is_some() {
            self.requests.taken_up();
        }
    }

    fn publish(&mut self, peers: Vec<PeerEntry>, observation: &Observation, decision: &Decision) {
        if let Some(reason) = self.clones.ended(observation) {
            self.outlets.counters.cloned(reason);
        }
        if matches!(
            decision.situation,
            Situation::WalGone | Situation::Diverged | Situation::ForeignDataDirectory
        ) {
            self.was_streaming = false;
        }
        let routes_left = self.routes_left.borrow_and_update().clone();
        let routes_term = *self.routes_term.borrow_and_update();
        let switch = self.followed_switch(&observation.lease);
        let known = publish::Known {
            running: self.running_server(observation),
            clones_total: self.clones.total,
            was_streaming: self.was_streaming,
            routes_left: routes_left.as_ref(),
            routes_term,
            switch: &switch,
        };
        let status = publish::member_status(&self.settings, observation, decision, known);
        let view = publish::view(
            &self.settings,
            decision.memory.lease.record.as_deref(),
            status,
            peers,
        );
        let settled =
            decision.situation.outlook() == Outlook::Steady && view.peers.iter().all(PeerEntry::connected);
        watched::set(&self.settled, settled);
        let table = route_table(&view);
        let table = with_unseen(table, &self.outlets.routes.borrow(), &view);
        watched::set(&self.outlets.routes, Arc::new(table));
        // Those who only show the view look when they are asked; the streams to the peers are woken for change.
        self.outlets.view.send_if_modified(|known| {
            let woken = change(&known.me, &view.me) > Change::Age;
            *known = Arc::new(view);
            woken
        });
        self.count(observation, decision);
        self.outlets.beat.turned();
    }

    fn count(&mut self, observation: &Observation, decision: &Decision) {
        let attached = self.office.as_ref().and_then(Office::gate_attached);
        let counters = &self.outlets.counters;
        counters.turned(observation, (decision.gate_until_ms, attached));
        let failing = observation.lease.error.is_some();
        if failing && !std::mem::replace(&mut self.lease_failing, failing) {
            counters.lease_failed();
        }
        self.lease_failing = failing;
    }

    async fn execute(&mut self, action: PostgresAction, promised: Option<u64>) {
        self.clones.note(&action);
        let hands = Hands {
            supervisor: &self.supervisor,
            server: &mut self.server,
            access: &self.access,
            superuser: &self.logins.0,
            replication: &self.logins.1,
            promised,
        };
        match execute(action.clone(), hands).await {
            Ok(done) => {
                self.roles_current |= done.roles_ensured;
                self.note_done(done);
                self.failed_action = None;
            }
            Err(message) => {
                tracing::warn!(detail = message, "could not carry out the decision");
                let at_ms = boottime_ms();
                self.failed_action = Some(FailedAction {
                    action,
                    message,
                    at_ms,
                });
            }
        }
    }

    fn note_done(&mut self, done: Done) {
        let Some(office) = &mut self.office else { return };
        if done.barrier.is_some() {
            office.barrier = done.barrier;
        }
        if done.checkpoint {
            let (superuser, replication) = self.logins.clone();
            let server = LocalServer::at(self.settings.server_address, None, superuser, replication);
            office.checkpoint(server, boottime_ms());
        }
    }

    /// Until something happens, or until it is time to look again anyway.
    async fn wait(&mut self, limit: Duration) {
        let office = async {
            match &mut self.office {
                Some(office) => office.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = office => {}
            () = self.requests.asked() => {}
            _ = self.supervisor_status.changed() => {}
            _ = self.names.changed() => {}
            Ok(()) = self.routes_left.changed() => {}
            Ok(()) = self.routes_term.changed() => {}
            () = self.switch.turned() => {}
            () = self.visitors.news() => {}
            _ = self.upstream.changed() => {}
            () = self.peers.changed() => {}
            () = tokio::time::sleep(limit) => {}
        }
    }
}

/// `None` until the Lease has been read.
fn followed_at_first(settings: &Settings) -> Option<Ordinal> {
    let fixed = settings.policy.leadership == Leadership::Fixed && !settings.policy.first();
    fixed.then_some(settings.policy.first_ordinal)
}

fn office(settings: &Settings) -> Result<Option<Office>, AgentError> {
    let lease = settings.lease.clone();
    let gate = settings.gate && settings.policy.gate;
    Ok(lease.map(|lease| Office::start(lease, gate)).transpose()?)
}
