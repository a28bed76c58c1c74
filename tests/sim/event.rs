//! What can happen in the world, and to whose process.

use std::rc::Rc;
use std::sync::Arc;

use podgres::core::lease::LeaseRecord;
use podgres::core::observation::{PeerView, UpstreamView};
use podgres::core::supervision::JobRequest;

use crate::api::{Found, Stored};
use crate::config::Time;
use crate::supervisor::Step;

/// What can happen. Processes are named with their epoch: an event for an earlier one is void.
#[derive(Debug)]
pub(crate) enum Event {
    // The sidecar's.
    Turn {
        member: usize,
        epoch: u64,
    },
    Execute {
        member: usize,
        epoch: u64,
    },
    Executed {
        member: usize,
        epoch: u64,
        action: u64,
        error: Option<&'static str>,
    },
    Line {
        observer: usize,
        epoch: u64,
        from: usize,
        stream: u64,
        view: Rc<PeerView>,
        news: bool,
    },
    Hear {
        observer: usize,
        epoch: u64,
        of: usize,
    },
    LookSample {
        member: usize,
        epoch: u64,
        of: usize,
        looked_at_ms: u64,
    },
    LookDone {
        member: usize,
        epoch: u64,
        view: Box<UpstreamView>,
    },
    GateAttach {
        member: usize,
        epoch: u64,
    },
    GateRepeat {
        member: usize,
        epoch: u64,
    },
    CheckpointDone {
        member: usize,
        epoch: u64,
    },
    // The sidecar's client of the API.
    List {
        member: usize,
        epoch: u64,
    },
    Listed {
        member: usize,
        epoch: u64,
        follower: u64,
        sent_at_ms: u64,
        writes: u64,
        found: Option<Found>,
    },
    Watched {
        member: usize,
        epoch: u64,
        watch: u64,
        stored: Option<Rc<Stored>>,
    },
    Silence {
        member: usize,
        epoch: u64,
        follower: u64,
    },
    PutReply {
        member: usize,
        epoch: u64,
        attempt: u64,
        stored: Result<Rc<Stored>, bool>,
    },
    // The API server's.
    Put {
        member: usize,
        epoch: u64,
        attempt: u64,
        over: Option<u64>,
        record: Arc<LeaseRecord>,
        reply: bool,
    },
    ListAt {
        member: usize,
        epoch: u64,
        follower: u64,
        sent_at_ms: u64,
        writes: u64,
    },
    // The supervisor's and PostgreSQL's.
    Fence {
        member: usize,
        epoch: u64,
    },
    Step {
        member: usize,
        epoch: u64,
        step: Box<Step>,
    },
    JobEnd {
        member: usize,
        epoch: u64,
        id: u64,
        job: Box<JobRequest>,
    },
    DiskLook {
        member: usize,
        epoch: u64,
    },
    Ready {
        member: usize,
        pg: u64,
    },
    Promoted {
        member: usize,
        pg: u64,
    },
    /// The supervisor reads that PostgreSQL has written its last checkpoint.
    ShutDown {
        member: usize,
        pg: u64,
    },
    Stopped {
        member: usize,
        pg: u64,
    },
    Harder {
        member: usize,
        pg: u64,
    },
    LeftAlone {
        member: usize,
        pg: u64,
    },
    Settled {
        member: usize,
        epoch: u64,
        clean: bool,
        requested: bool,
        ready: bool,
    },
    Write {
        member: usize,
        pg: u64,
    },
    Connect {
        member: usize,
        pg: u64,
    },
    ReceiverEnd {
        member: usize,
        pg: u64,
        conn: u64,
    },
    SenderEnd {
        member: usize,
        pg: u64,
        conn: u64,
    },
    CutLook {
        member: usize,
        pg: u64,
        conn: u64,
        cut_at: Time,
    },
    Ship {
        to: usize,
        pg: u64,
        from: usize,
        conn: u64,
        lineage: u64,
        upto: usize,
    },
    Confirm {
        from: usize,
        pg: u64,
        conn: u64,
        flushed: usize,
    },
    // The pod's and the cluster's.
    StartSidecar {
        member: usize,
        pod: u64,
    },
    StartSupervisor {
        member: usize,
        pod: u64,
    },
    /// The supervisor looks whether all is down, and then, for who wants to know, once more.
    Farewell {
        member: usize,
        epoch: u64,
        told: bool,
    },
    Killed {
        member: usize,
        pod: u64,
        back: Time,
    },
    Replace {
        member: usize,
        pod: u64,
    },
    Fault,
    Undo(crate::faults::Undo),
    Heal,
    Look,
}

impl Event {
    /// The member one of whose processes has to run for this to happen, and whether it is the sidecar.
    pub(crate) fn process(&self) -> Option<(usize, bool)> {
        use Event as E;
        match self {
            E::Turn { member, .. }
            | E::Execute { member, .. }
            | E::Executed { member, .. }
            | E::LookSample { member, .. }
            | E::LookDone { member, .. }
            | E::GateAttach { member, .. }
            | E::GateRepeat { member, .. }
            | E::CheckpointDone { member, .. }
            | E::List { member, .. }
            | E::Listed { member, .. }
            | E::Watched { member, .. }
            | E::Silence { member, .. }
            | E::PutReply { member, .. } => Some((*member, true)),
            E::Line { observer, .. } => Some((*observer, true)),
            E::Fence { member, .. }
            | E::Step { member, .. }
            | E::JobEnd { member, .. }
            | E::DiskLook { member, .. }
            | E::Ready { member, .. }
            | E::Promoted { member, .. }
            | E::ShutDown { member, .. }
            | E::Stopped { member, .. }
            | E::Harder { member, .. }
            | E::LeftAlone { member, .. }
            | E::Settled { member, .. }
            | E::Farewell { member, .. }
            | E::Write { member, .. }
            | E::Connect { member, .. }
            | E::ReceiverEnd { member, .. }
            | E::SenderEnd { member, .. }
            | E::CutLook { member, .. } => Some((*member, false)),
            E::Ship { to, .. } => Some((*to, false)),
            E::Confirm { from, .. } => Some((*from, false)),
            E::Hear { .. }
            | E::Put { .. }
            | E::ListAt { .. }
            | E::StartSidecar { .. }
            | E::StartSupervisor { .. }
            | E::Killed { .. }
            | E::Replace { .. }
            | E::Fault
            | E::Undo(_)
            | E::Heal
            | E::Look => None,
        }
    }
}
