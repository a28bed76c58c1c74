//! The fence: a primary whose licence runs out is stopped, whoever is frozen or gone.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use podgres::core::supervision::{
    Licence, Postmaster, ServerRole, StopMode, SupervisorRequest, SupervisorStatus,
};
use rustix::process::{Signal, kill_process};

use super::machine::gone;
use super::pod::Pod;

fn grant(duration: Duration) -> SupervisorRequest {
    SupervisorRequest::GrantLicence {
        until_ms: Some(podgres::clock::boottime_ms() + u64::try_from(duration.as_millis()).unwrap()),
    }
}

fn stopped(status: &SupervisorStatus) -> bool {
    matches!(status.postmaster, Postmaster::Stopped { .. })
}

#[tokio::test]
async fn a_primary_stops_by_itself_when_nobody_renews() {
    let mut pod = Pod::with_data();
    pod.supervise().await;
    let postmaster = pod.start_primary().await;
    let granted = Instant::now();
    pod.ask(grant(Duration::from_millis(700))).await;
    // Nobody talks to the supervisor from here on.
    gone(postmaster).await;
    assert!(
        granted.elapsed() >= Duration::from_millis(700),
        "stopped too early"
    );
    let status = pod.until(stopped).await;
    assert!(status.fenced);
    assert_eq!(status.licence, Licence::None);
    assert_eq!(pod.control_state(), "shut down");
    let start = |server| SupervisorRequest::Start {
        server,
        promised: None,
    };
    assert_eq!(
        pod.refused(start(ServerRole::alone())).await,
        "cannot start as primary: no licence"
    );
    pod.start_primary().await;
    assert!(!pod.ask(SupervisorRequest::Status).await.fenced);
}

#[tokio::test]
async fn a_postmaster_that_does_not_react_is_killed_by_the_fence() {
    let mut pod = Pod::with_data();
    pod.stop_timeout = Duration::from_millis(200);
    pod.supervise().await;
    let postmaster = pod.start_primary().await;
    kill_process(postmaster, Signal::STOP).unwrap();
    let granted = Instant::now();
    pod.ask(grant(Duration::from_millis(300))).await;
    gone(postmaster).await;
    assert!(
        granted.elapsed() >= Duration::from_millis(700),
        "fast and immediate had no time"
    );
    assert!(
        granted.elapsed() < Duration::from_secs(10),
        "took {:?}",
        granted.elapsed()
    );
    assert!(pod.until(stopped).await.fenced);
}

#[tokio::test]
async fn a_renewal_extends_and_an_unlimited_licence_needs_none() {
    let mut pod = Pod::with_data();
    pod.supervise().await;
    pod.start_primary().await;
    for _ in 0..4 {
        let version = pod.ask(grant(Duration::from_secs(2))).await.version;
        let timeout_ms = 800;
        let status = pod.ask(SupervisorRequest::Wait { version, timeout_ms }).await;
        assert_eq!(status.version, version, "something changed: {status:?}");
    }
    let version = pod
        .ask(SupervisorRequest::GrantLicence { until_ms: None })
        .await
        .version;
    let timeout_ms = 2500;
    let status = pod.ask(SupervisorRequest::Wait { version, timeout_ms }).await;
    assert!(
        matches!(status.postmaster, Postmaster::Running { .. }),
        "{status:?}"
    );
    assert_eq!(status.licence, Licence::Unlimited);
}

#[tokio::test]
async fn a_licence_that_ran_out_stops_no_standby_but_one_that_others_promoted() {
    let mut pod = Pod::with_data();
    pod.supervise().await;
    pod.start(ServerRole::Standby { upstream: None }).await;
    pod.ask(grant(Duration::from_millis(100))).await;
    let lapsed = pod.until(|status| status.licence == Licence::None).await;
    assert!(
        matches!(lapsed.postmaster, Postmaster::Running { .. }),
        "{lapsed:?}"
    );
    assert!(!lapsed.fenced);
    // Promoted behind the supervisor's back it has no right to be writable.
    pod.ask(grant(Duration::from_mins(1))).await;
    pod.sql("SELECT pg_promote()");
    pod.ask(grant(Duration::from_millis(300))).await;
    pod.until(stopped).await;
}

#[tokio::test]
async fn a_renewal_that_waited_while_the_pod_was_frozen_comes_too_late() {
    let mut pod = Pod::with_data();
    pod.supervise().await;
    let postmaster = pod.start_primary().await;
    pod.ask(grant(Duration::from_millis(500))).await;
    let deadline = Instant::now() + Duration::from_millis(600);
    pod.freeze();
    let mut sidecar = UnixStream::connect(pod.socket()).unwrap();
    let mut line = serde_json::to_vec(&grant(Duration::from_mins(1))).unwrap();
    line.push(b'\n');
    sidecar.write_all(&line).unwrap();
    tokio::time::sleep_until(deadline.into()).await;
    pod.signal(Signal::CONT);
    gone(postmaster).await;
    assert!(pod.until(stopped).await.fenced);
}

#[tokio::test]
async fn under_a_lease_the_whole_stop_fits_the_stop_timeout() {
    let mut pod = Pod::with_data();
    pod.gated = true;
    pod.stop_timeout = Duration::from_secs(1);
    pod.supervise().await;
    let postmaster = pod.start_primary().await;
    kill_process(postmaster, Signal::STOP).unwrap();
    let granted = Instant::now();
    pod.ask(grant(Duration::from_millis(300))).await;
    gone(postmaster).await;
    let took = granted.elapsed();
    assert!(
        took >= Duration::from_millis(1300),
        "fast and immediate had no time: {took:?}"
    );
    assert!(took < Duration::from_secs(2), "took {took:?}");
    assert!(pod.until(stopped).await.fenced);
}

#[tokio::test]
async fn a_licence_that_comes_after_its_end_changes_nothing() {
    let mut pod = Pod::with_data();
    pod.supervise().await;
    let late = SupervisorRequest::GrantLicence {
        until_ms: Some(podgres::clock::boottime_ms() - 5),
    };
    let refusal = pod.refused(late.clone()).await;
    assert!(refusal.starts_with("the licence would have ended "), "{refusal}");
    assert_eq!(pod.ask(SupervisorRequest::Status).await.licence, Licence::None);
    pod.start_primary().await;
    pod.ask(grant(Duration::from_mins(1))).await;
    pod.refused(late).await;
    let status = pod.ask(SupervisorRequest::Status).await;
    assert!(matches!(status.licence, Licence::Limited { .. }), "{status:?}");
    assert!(
        matches!(status.postmaster, Postmaster::Running { .. }),
        "{status:?}"
    );
    // Shortened, it ends sooner.
    pod.ask(grant(Duration::from_millis(200))).await;
    assert!(pod.until(stopped).await.fenced);
}

async fn primary_under_a_lease() -> Pod {
    let mut pod = Pod::with_data();
    pod.gated = true;
    pod.supervise().await;
    pod.start_primary().await;
    pod.ask(grant(Duration::from_mins(1))).await;
    pod
}

#[tokio::test]
async fn told_to_end_a_primary_under_a_lease_is_left_to_its_sidecar_if_that_has_heard() {
    let mut pod = primary_under_a_lease().await;
    pod.signal(Signal::TERM);
    let told = pod.until(|status| status.stopping).await;
    assert!(matches!(told.postmaster, Postmaster::Running { .. }), "{told:?}");
    // Longer than one that nobody has heard is waited for.
    for _ in 0..3 {
        let wait = SupervisorRequest::Wait {
            version: told.version,
            timeout_ms: 600,
        };
        let still = pod.ask(wait).await;
        assert!(
            matches!(still.postmaster, Postmaster::Running { .. }),
            "{still:?}"
        );
    }
    pod.ask(SupervisorRequest::Stop { mode: StopMode::Fast }).await;
    assert!(pod.ended().await.success(), "{}", pod.log());
    assert_eq!(pod.control_state(), "shut down");
}

#[tokio::test]
async fn told_to_end_a_primary_whose_sidecar_is_gone_stops_by_itself() {
    let mut pod = primary_under_a_lease().await;
    let asked = Instant::now();
    pod.signal(Signal::TERM);
    assert!(pod.ended().await.success(), "{}", pod.log());
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    assert_eq!(pod.control_state(), "shut down");
}
