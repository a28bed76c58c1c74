//! Two pods under a Lease: one primary, one standby that streams from it; without agents, the tests play them.

use std::time::Duration;

use podgres::clock::boottime_ms;
use podgres::core::data_directory::SystemIdentifier;
use podgres::core::supervision::{
    CloneReason, JobRequest, JobState, NextTimeline, ServerRole, SupervisorRequest, SupervisorStatus,
    Upstream,
};
use podgres::core::wal::TimelineId;

use crate::postgresql::programs;

use super::machine::nobody;
use super::pod::{LIMIT, Pod};
use crate::wait::eventually;

pub(super) const ALONE: ServerRole = ServerRole::Standby { upstream: None };

pub(super) struct Pair {
    pub(super) first: Pod,
    pub(super) second: Pod,
    pub(super) system_identifier: SystemIdentifier,
}

impl Pair {
    /// `first` is primary of term 1, `second` streams from it.
    pub(super) async fn streaming(major: u32) -> Self {
        let mut first = Pod::empty();
        let mut second = Pod::empty();
        for (pod, name) in [(&mut first, "pg-0"), (&mut second, "pg-1")] {
            name.clone_into(&mut pod.member);
            pod.programs = programs(major);
            pod.gated = true;
            pod.supervise().await;
        }
        let status = first.job(JobRequest::Initdb).await;
        let system_identifier = status.data_directory.facts().unwrap().system_identifier;
        first.ask(licence(LIMIT)).await;
        first.ask(SupervisorRequest::Hold { term: 1 }).await;
        first.start(ServerRole::alone()).await;
        let pair = Self {
            first,
            second,
            system_identifier,
        };
        pair.join(&pair.second, &pair.first).await;
        pair
    }

    /// `pod` becomes a standby of `upstream` by a clone.
    pub(super) async fn join(&self, pod: &Pod, upstream: &Pod) {
        slot(upstream, pod);
        let status = pod.job(self.clone_of(upstream, pod, CloneReason::Empty)).await;
        assert_eq!(status.job.unwrap().state, JobState::Done, "{}", pod.log());
        pod.start(follow(upstream, pod)).await;
        streams(pod).await;
    }

    pub(super) fn clone_of(&self, upstream: &Pod, pod: &Pod, reason: CloneReason) -> JobRequest {
        JobRequest::Clone {
            upstream: upstream_of(upstream, pod),
            system_identifier: self.system_identifier,
            reason,
        }
    }

    /// `second` is detached and promoted in `term`; `first` goes on undisturbed.
    pub(super) async fn fail_over(&self, term: u64) {
        self.second.ask(SupervisorRequest::Detach { term }).await;
        promote(&self.second, term).await;
    }
}

/// The first of the timelines that nobody has begun.
pub(super) const NEXT: NextTimeline = NextTimeline {
    own: TimelineId(1),
    next: TimelineId(2),
};

pub(super) async fn promote(pod: &Pod, term: u64) {
    pod.ask(licence(LIMIT)).await;
    pod.ask(SupervisorRequest::Promote {
        synchronous_standby_names: String::new(),
        read_only: false,
        term,
        timeline: NEXT,
    })
    .await;
    eventually("the promotion", async || {
        pod.sql("SELECT pg_is_in_recovery()") == "f"
    })
    .await;
}

pub(super) fn licence(duration: Duration) -> SupervisorRequest {
    SupervisorRequest::GrantLicence {
        until_ms: Some(boottime_ms() + u64::try_from(duration.as_millis()).unwrap()),
    }
}

/// The slot that `pod` uses on `upstream`.
pub(super) fn slot(upstream: &Pod, pod: &Pod) {
    let name = upstream_of(upstream, pod).slot;
    upstream.sql(&format!(
        "SELECT pg_create_physical_replication_slot('{name}', true) WHERE NOT EXISTS \
         (SELECT 1 FROM pg_replication_slots WHERE slot_name = '{name}')"
    ));
}

pub(super) fn upstream_of(upstream: &Pod, pod: &Pod) -> Upstream {
    Upstream {
        address: upstream.address(),
        port: 5432,
        slot: format!("podgres_{}", pod.member.replace('-', "_")),
        ..nobody()
    }
}

pub(super) fn follow(upstream: &Pod, pod: &Pod) -> ServerRole {
    ServerRole::Standby {
        upstream: Some(upstream_of(upstream, pod)),
    }
}

pub(super) async fn streams(pod: &Pod) {
    eventually("a streaming standby", async || receiver(pod) == "streaming").await;
}

/// The state of the WAL receiver; empty if there is none.
pub(super) fn receiver(pod: &Pod) -> String {
    pod.sql("SELECT status FROM pg_stat_wal_receiver")
}

impl Pod {
    /// Runs a job to its end.
    pub(super) async fn job(&self, job: JobRequest) -> SupervisorStatus {
        self.ask(SupervisorRequest::Run { job }).await;
        let ended = |status: &SupervisorStatus| {
            !matches!(status.job.as_ref().unwrap().state, JobState::Running { .. })
        };
        self.until(ended).await
    }
}
