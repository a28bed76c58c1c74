//! The supervisor's one loop: everything that can happen, in the order of its urgency.
//!
//! The licence comes first, so that no request that waited in the socket while the pod was frozen
//! is served before the fence. Nothing in the loop itself waits; slow things are [`super::work`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::WaitStatus;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::bonds::{self, Errand};
use super::disk::{self, Disk};
use super::farewell::Leave;
use super::inputs::{self, Inputs};
use super::licence::LicenceClock;
use super::postmaster::Child;
use super::receiver::EndingReceiver;
use super::signals::{Asked, Signals};
use super::socket::{Call, ControlSocket, Desk};
use super::tools::{self, Found};
use super::work::{self, Task, Work};
use super::{SupervisorError, SupervisorExit, kept_switch, only_one, panic, reaper};
use crate::clock::boottime_ms;
use crate::core::supervision::{
    JobStatus, Postmaster, PostmasterExit, ServerRole, StopMode, SupervisorStatus, Terms,
};
use crate::core::switch::SwitchPosition;
use crate::postgres::given::Given;
use crate::postgres::mounted::Fingerprint;
use crate::watched;

/// How often `postmaster.pid` is read while PostgreSQL starts, and only then.
const READY_POLL: Duration = Duration::from_millis(30);
/// How often the directory of a stopped server is looked at: a stall passes, and people repair things by hand.
pub(super) const INSPECT_INTERVAL: Duration = Duration::from_secs(5);
/// Shorter than the agent's long poll, so that each of them brings a look.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
const WAITING_CALLS: usize = 16;

/// Everything the supervisor knows. Owned by the loop, seen by nobody else.
pub(super) struct Supervisor {
    pub(super) inputs: Arc<Inputs>,
    pub(super) found: Found,
    pub(super) child: Option<Child>,
    pub(super) last_exit: Option<PostmasterExit>,
    pub(super) work: Option<Work>,
    /// Beside the work, since a promise must not wait for a clone.
    pub(super) errand: Option<Errand>,
    /// As written down; `None` if that cannot be read.
    pub(super) terms: Option<Terms>,
    pub(super) ending_receiver: Option<EndingReceiver>,
    disk: Disk,
    pub(super) switch: watch::Sender<SwitchPosition>,
    pub(super) farewell_until: Option<Instant>,
    pub(super) leave: Option<Leave>,
    pub(super) job: Option<JobStatus>,
    pub(super) licence: LicenceClock,
    /// TERM came.
    pub(super) stopping: bool,
    pub(super) fenced: bool,
    /// What the running server was given.
    given: Option<Fingerprint>,
    /// What it would be given now, as last looked at.
    mounted: watch::Sender<Option<Fingerprint>>,
    /// Asks for a look at the mounted files.
    look_due: Arc<Notify>,
    looked_at: Instant,
    pub(super) version: u64,
    versions: watch::Sender<u64>,
    /// The newest version that a client has said it knows.
    known: watch::Sender<u64>,
    look_again_at: Instant,
    pub(super) inspect_at: Instant,
}

pub(super) async fn run(
    inputs: Inputs,
    socket: PathBuf,
    children_hold_volume: bool,
) -> Result<SupervisorExit, SupervisorError> {
    reaper::adopt_orphans().map_err(SupervisorError::AdoptOrphans)?;
    let mut signals = Signals::listen().map_err(SupervisorError::Signals)?;
    let child_died = signal(SignalKind::child()).map_err(SupervisorError::Signals)?;
    let inputs = Arc::new(inputs);
    let ended = SupervisorExit { last_exit: None };
    let _only_one = tokio::select! {
        biased;
        () = told_to_end(&mut signals) => return Ok(ended),
        only_one = only_one::wait(&inputs.settings.data_directory, children_hold_volume) => only_one,
    };
    let found = tokio::select! {
        biased;
        () = told_to_end(&mut signals) => return Ok(ended),
        found = tools::prepare(&inputs.settings) => found?,
    };
    let licence = LicenceClock::new().map_err(SupervisorError::Timer)?;
    let mut supervisor = Supervisor::new(Arc::clone(&inputs), found, licence);
    let control =
        ControlSocket::bind(&socket).map_err(|source| SupervisorError::Socket { path: socket, source })?;
    let (calls, asked) = mpsc::channel(WAITING_CALLS);
    let (versions, known) = (supervisor.versions.subscribe(), supervisor.known.clone());
    let (mounted, look_due) = (supervisor.mounted.clone(), Arc::clone(&supervisor.look_due));
    let (wanted, failing) = (
        supervisor.disk.wanted.subscribe(),
        supervisor.disk.failing.clone(),
    );
    let (settings, switch) = (inputs.settings.clone(), supervisor.switch.subscribe());
    tokio::select! {
        biased;
        () = supervisor.turn(signals, child_died, asked) => {}
        never = control.serve(Desk { calls, versions, known }) => match never {},
        never = disk::watch(&settings.data_directory, wanted, failing) => match never {},
        never = kept_switch::keep(&settings, switch) => match never {},
        never = inputs::watch(inputs, look_due, mounted) => match never {},
    }
    Ok(SupervisorExit {
        last_exit: supervisor.last_exit,
    })
}

async fn told_to_end(signals: &mut Signals) {
    while signals.next().await == Asked::Reload {}
}

impl Supervisor {
    pub(super) fn new(inputs: Arc<Inputs>, found: Found, licence: LicenceClock) -> Self {
        // Later than any version of an earlier supervisor on this machine, so that its client's long
        // poll ends at once.
        let version = boottime_ms();
        let terms = found.terms;
        let switch = watch::Sender::new(found.switch.clone());
        Self {
            inputs,
            found,
            child: None,
            given: None,
            mounted: watch::Sender::new(None),
            look_due: Arc::default(),
            looked_at: Instant::now(),
            last_exit: None,
            work: None,
            errand: None,
            terms,
            ending_receiver: None,
            disk: Disk::new(),
            switch,
            farewell_until: None,
            leave: None,
            known: watch::Sender::new(0),
            job: None,
            licence,
            stopping: false,
            fenced: false,
            version,
            versions: watch::Sender::new(version),
            look_again_at: Instant::now(),
            inspect_at: Instant::now() + INSPECT_INTERVAL,
        }
    }

    /// Until TERM has come and all is down.
    async fn turn(
        &mut self,
        mut signals: Signals,
        mut child_died: tokio::signal::unix::Signal,
        mut calls: mpsc::Receiver<Call>,
    ) {
        let mut mounted = self.mounted.subscribe();
        let mut failing = self.disk.failing.subscribe();
        let mut known = self.known.subscribe();
        loop {
            let farewell = if self.is_down() { self.farewell() } else { None };
            if self.is_down() && farewell.is_none() {
                return;
            }
            let escalate_at = self.child.as_ref().and_then(Child::escalate_at);
            let look_again_at = self
                .child
                .as_ref()
                .is_some_and(Child::is_starting)
                .then_some(self.look_again_at);
            let leave_at = self.leave.as_ref().map(Leave::until);
            let receiver_at = self.ending_receiver.as_ref().map(|ending| ending.look_at);
            let idle = self.child.is_none() && self.work.is_none() && !self.stopping;
            let inspect_at = idle.then_some(self.inspect_at);
            tokio::select! {
                biased;
                () = self.licence.deadline() => self.enforce_licence(),
                asked = signals.next() => self.obey(asked),
                _ = child_died.recv() => self.collect_children(),
                () = at(escalate_at) => self.escalate(),
                () = at(leave_at) => self.left_alone(),
                Ok(()) = known.changed() => { let version = *known.borrow_and_update(); self.heard(version); }
                written = bonds::next(&mut self.errand) => self.bound(written),
                happened = work::next(&mut self.work) => self.take_in(happened),
                () = at(receiver_at) => self.look_for_receiver(),
                () = at(look_again_at) => self.look_whether_ready(),
                Ok(()) = mounted.changed() => self.changed(),
                Ok(()) = failing.changed() => self.changed(),
                Some(call) = calls.recv() => self.answer(call),
                () = at(farewell) => {}
                () = at(inspect_at) => self.work = Some(Work::look(&self.inputs)),
            }
        }
    }

    pub(super) fn status(&self) -> SupervisorStatus {
        let postmaster = match (&self.child, &self.work) {
            (Some(child), _) => child.status(),
            (
                None,
                Some(Work {
                    task: Task::Settle { before, .. },
                    ..
                }),
            ) => before.clone(),
            (None, _) => Postmaster::Stopped {
                last_exit: self.last_exit.clone(),
            },
        };
        SupervisorStatus {
            version: self.version,
            pid: std::process::id(),
            postmaster,
            job: self.job.clone(),
            data_directory: self.found.seen.data_directory.clone(),
            licence: self.licence.current(),
            major_version: self.found.major_version,
            stopping: self.stopping,
            fenced: self.fenced,
            outdated: self.outdated(),
            terms: self.terms.unwrap_or_default(),
            incarnation: self.found.seen.incarnation.clone(),
            disk_failing_since_ms: *self.disk.failing.borrow(),
            diverged: self.found.seen.diverged.clone(),
            switch: self.switch.borrow().clone(),
        }
    }

    fn outdated(&self) -> bool {
        self.child.is_some() && self.given.is_some() && *self.mounted.borrow() != self.given
    }

    /// Has the mounted files looked at if that is some time ago. For whoever asks for the status: this process
    /// does not wake up by itself for it.
    pub(super) fn look_at_files(&mut self) {
        if self.child.is_some() && self.looked_at.elapsed() >= LOOK_INTERVAL {
            self.looked_at = Instant::now();
            self.look_due.notify_one();
        }
    }

    /// The running server has these files.
    pub(super) fn gave(&mut self, given: Given) {
        self.given = Some(given.files);
        if given.refused {
            // They are not what is mounted, which counts as outdated until it is given.
            self.look_due.notify_one();
        } else {
            // Newer than the last look.
            self.mounted.send_replace(self.given);
        }
    }

    /// Wakes the long polls.
    pub(super) fn changed(&mut self) {
        let primary = |child: &Child| matches!(child.role, ServerRole::Primary { .. });
        let probed = self.inputs.settings.gated && self.child.as_ref().is_some_and(primary);
        watched::set(&self.disk.wanted, probed);
        self.version += 1;
        self.versions.send_replace(self.version);
    }

    /// Stops a writable server whose licence has run out just now.
    pub(super) fn enforce_licence(&mut self) {
        if !self.licence.lapse() {
            return;
        }
        let writes = self.child.as_ref().is_some_and(|child| !child.shut_down);
        if self.stop_if_writable() && writes {
            self.fenced = true;
        }
        self.changed();
    }

    /// From one kind of stop to the next harder one. Under a Lease the whole must fit between the end of the right
    /// to be primary and that of the Lease.
    pub(super) fn patience(&self) -> Duration {
        let settings = &self.inputs.settings;
        if settings.gated {
            settings.stop_timeout / 2
        } else {
            settings.stop_timeout
        }
    }

    /// Fast, then immediate after [`Self::patience`], then killed after another.
    fn stop_if_writable(&mut self) -> bool {
        let Some(child) = &self.child else {
            return false;
        };
        let writable =
            matches!(child.role, ServerRole::Primary { .. }) || tools::was_promoted(&self.inputs.settings);
        if writable {
            self.stop(StopMode::Fast, Some(self.patience()), "its licence ran out");
        }
        writable
    }

    pub(super) fn stop(&mut self, mode: StopMode, patience: Option<Duration>, reason: &str) {
        let kill_after = self.patience();
        let Some(child) = &mut self.child else {
            return;
        };
        self.leave = None;
        // The signal first: writing the line may have to wait for whoever reads our output.
        if child.stop(mode, patience, kill_after) {
            self.watch_shut_down();
            self.changed();
            match mode {
                StopMode::Fast => tracing::info!("stopping PostgreSQL (fast): {reason}"),
                StopMode::Immediate => tracing::info!("stopping PostgreSQL (immediate): {reason}"),
            }
        }
    }

    fn escalate(&mut self) {
        let again_after = self.patience();
        if let Some(child) = &mut self.child {
            child.escalate(again_after);
            self.changed();
            tracing::warn!("PostgreSQL did not stop in time, stopping it harder");
        }
    }

    fn obey(&mut self, asked: Asked) {
        let again = self.stopping;
        match asked {
            Asked::Reload => return self.reload_as_it_runs(),
            Asked::Terminate if !again => self.begin_to_leave(),
            Asked::Terminate | Asked::Quit => {
                self.leave = None;
                self.stop(StopMode::Immediate, None, "immediate termination requested");
            }
        }
        self.stopping = true;
        self.abandon_work();
        self.watch_shut_down();
        self.changed();
    }

    /// Everybody's children while no tool runs, else only the postmaster: the others have an owner.
    pub(super) fn collect_children(&mut self) {
        let postmaster = self.child.as_ref().map(|child| child.pid);
        let status = if self.work.is_some() {
            postmaster.and_then(reaper::collect)
        } else {
            let dead = reaper::collect_all();
            dead.into_iter()
                .find(|(pid, _)| Some(*pid) == postmaster)
                .map(|(_, status)| status)
        };
        if let Some(status) = status {
            self.settle(status);
        }
    }

    /// The postmaster is dead: clears up behind it and reads its data directory, then says so.
    fn settle(&mut self, status: WaitStatus) {
        panic::record_postmaster(None);
        let Some(child) = self.child.take() else {
            return;
        };
        self.leave = None;
        self.abandon_work();
        let exit = PostmasterExit {
            requested: child.is_stopping(),
            description: reaper::describe(status),
            was_ready: child.ready,
        };
        self.work = Some(Work::settle(&self.inputs, child.status(), exit));
    }

    /// Looks for the last checkpoint, unless something else is under way: then afterwards.
    pub(super) fn watch_shut_down(&mut self) {
        if self.work.is_none() && self.child.as_ref().is_some_and(Child::is_shutting_down) {
            self.work = Some(Work::shut_down(&self.inputs));
        }
    }

    fn look_whether_ready(&mut self) {
        self.look_again_at = Instant::now() + READY_POLL;
        let Some(child) = &mut self.child else {
            return;
        };
        if tools::is_ready(&self.inputs.settings, child.pid, child.leftover.as_ref()) {
            child.ready = true;
            self.changed();
        }
    }
}

/// Never, without a time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
