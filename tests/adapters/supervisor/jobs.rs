//! Jobs: a cluster is made, a clone is cancelled, and nothing half done stays.

use podgres::core::data_directory::DataDirectory;
use podgres::core::supervision::{
    CloneReason, JobKind, JobRequest, JobState, ServerRole, SupervisorRequest, SupervisorStatus, Upstream,
};
use rustix::process::{Signal, kill_process};

use super::machine::{children_of, gone, nobody, postmaster};
use super::pod::Pod;

const STANDBY: ServerRole = ServerRole::Standby { upstream: None };

#[tokio::test]
async fn initdb_makes_a_cluster_that_starts() {
    let mut pod = Pod::empty();
    pod.supervise().await;
    let job = JobRequest::Initdb;
    let status = pod.ask(SupervisorRequest::Run { job }).await;
    let job = status.job.expect("job");
    assert_eq!((job.id, job.kind), (1, JobKind::Initdb));
    let refusal = pod
        .refused(SupervisorRequest::Start {
            server: STANDBY,
            promised: None,
        })
        .await;
    assert_eq!(refusal, "job 1 is running");
    let ended =
        |status: &SupervisorStatus| !matches!(status.job.as_ref().unwrap().state, JobState::Running { .. });
    let status = pod.until(ended).await;
    assert_eq!(status.job.unwrap().state, JobState::Done, "{}", pod.log());
    assert!(matches!(status.data_directory, DataDirectory::Complete(_)));
    pod.start_primary().await;
    assert_eq!(pod.sql("SELECT 1"), "1");
}

#[tokio::test]
async fn a_cancelled_clone_leaves_no_process_and_no_staging_directory() {
    let mut source = Pod::with_data();
    source.supervise().await;
    source.start_primary().await;
    let mut pod = Pod::empty();
    pod.supervise().await;
    let status = source.ask(SupervisorRequest::Status).await;
    let system_identifier = status.data_directory.facts().unwrap().system_identifier;
    // Stopped, the upstream accepts connections through its kernel and then says nothing.
    kill_process(postmaster(&status), Signal::STOP).unwrap();
    let upstream = Upstream {
        address: source.address(),
        port: 5432,
        ..nobody()
    };
    let job = JobRequest::Clone {
        upstream,
        system_identifier,
        reason: CloneReason::Empty,
    };
    pod.ask(SupervisorRequest::Run { job }).await;
    pod.ask(SupervisorRequest::Cancel).await;
    let failed = |status: &SupervisorStatus| {
        matches!(
            status.job.as_ref().unwrap().state,
            JobState::Failed { refused: false, .. }
        )
    };
    let status = pod.until(failed).await;
    assert_eq!(status.data_directory, DataDirectory::Empty);
    let volume: Vec<_> = std::fs::read_dir(pod.path().join("volume")).unwrap().collect();
    assert!(volume.is_empty(), "{volume:?}");
    for (pid, _) in children_of(pod.pid()) {
        gone(pid).await;
    }
    kill_process(
        postmaster(&source.ask(SupervisorRequest::Status).await),
        Signal::CONT,
    )
    .unwrap();
}

#[tokio::test]
async fn term_cancels_a_job() {
    let mut pod = Pod::empty();
    pod.supervise().await;
    let job = JobRequest::Initdb;
    pod.ask(SupervisorRequest::Run { job }).await;
    pod.signal(Signal::TERM);
    assert!(pod.ended().await.success(), "{}", pod.log());
    assert!(!pod.data().exists(), "a cancelled job made a data directory");
    pod.supervise().await;
    let status = pod.ask(SupervisorRequest::Status).await;
    assert_eq!(status.data_directory, DataDirectory::Empty);
    let volume: Vec<_> = std::fs::read_dir(pod.path().join("volume")).unwrap().collect();
    assert!(volume.is_empty(), "the next start did not clean up: {volume:?}");
}
