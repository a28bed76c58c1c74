//! Start, stop, reload, death and signals.

use podgres::core::data_directory::ControlState;
use podgres::core::supervision::{
    JobRequest, Postmaster, ServerRole, StopMode, SupervisorRequest, SupervisorStatus,
};
use rustix::process::{Signal, kill_process};

use super::machine::{children_of, nobody};
use super::pod::Pod;

const STANDBY: ServerRole = ServerRole::Standby { upstream: None };
const FAST: SupervisorRequest = SupervisorRequest::Stop { mode: StopMode::Fast };

fn stopped(status: &SupervisorStatus) -> bool {
    matches!(status.postmaster, Postmaster::Stopped { .. })
}

fn stopping(mode: StopMode) -> impl Fn(&SupervisorStatus) -> bool {
    move |status| matches!(status.postmaster, Postmaster::Stopping { mode: now, .. } if now == mode)
}

fn control_state(status: &SupervisorStatus) -> ControlState {
    status
        .data_directory
        .facts()
        .expect("complete directory")
        .control_state
}

async fn starts_stops_and_starts_again(mut pod: Pod) {
    pod.supervise().await;
    let first = pod.start_primary().await;
    assert_eq!(pod.sql("SELECT pg_is_in_recovery()"), "f");
    pod.ask(FAST).await;
    let status = pod.until(stopped).await;
    assert_eq!(
        control_state(&status),
        ControlState::ShutDown,
        "read before the stop is told"
    );
    let Postmaster::Stopped {
        last_exit: Some(exit),
    } = &status.postmaster
    else {
        panic!("{status:?}");
    };
    assert!(exit.requested && exit.was_ready, "{exit:?}");
    assert_eq!(exit.description, "exited with code 0");
    let second = pod.start(ServerRole::alone()).await;
    assert_ne!(first, second);
}

#[tokio::test]
async fn a_server_starts_stops_and_starts_again_15() {
    starts_stops_and_starts_again(Pod::with_data()).await;
}

#[tokio::test]
async fn a_server_starts_stops_and_starts_again_18() {
    starts_stops_and_starts_again(Pod::with_data_of_18()).await;
}

#[tokio::test]
async fn a_killed_postmaster_is_noticed_and_nothing_of_it_is_left() {
    let mut pod = Pod::with_data();
    pod.supervise().await;
    let postmaster = pod.start_primary().await;
    // A backend that computes does not look whether its postmaster lives.
    let mut busy = pod
        .sql_command("SET statement_timeout = '60s'; DO $$BEGIN LOOP END LOOP; END$$")
        .spawn()
        .unwrap();
    let count = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()";
    while pod.sql(count) != "1" {}
    let backends = children_of(postmaster);
    assert!(backends.len() >= 4, "{backends:?}");
    let killed = std::time::Instant::now();
    kill_process(postmaster, Signal::KILL).unwrap();
    let status = pod.until(stopped).await;
    assert!(
        killed.elapsed() < std::time::Duration::from_secs(3),
        "took {:?}",
        killed.elapsed()
    );
    let Postmaster::Stopped {
        last_exit: Some(exit),
    } = &status.postmaster
    else {
        panic!("{status:?}");
    };
    assert_eq!(
        (exit.requested, exit.description.as_str()),
        (false, "killed by signal 9")
    );
    assert_eq!(control_state(&status), ControlState::InProduction);
    for (backend, _) in backends {
        assert!(
            rustix::process::test_kill_process(backend).is_err(),
            "{backend} outlived its postmaster"
        );
    }
    assert!(!busy.wait().unwrap().success());
    pod.start(ServerRole::alone()).await;
}

#[tokio::test]
async fn row_70_term_shuts_a_primary_down() {
    let mut pod = Pod::with_data();
    pod.supervise().await;
    pod.start_primary().await;
    pod.signal(Signal::TERM);
    assert!(pod.ended().await.success(), "{}", pod.log());
    assert_eq!(pod.control_state(), "shut down");
    assert!(!pod.socket().exists());
}

#[tokio::test]
async fn row_70_term_shuts_a_standby_down_that_needed_no_licence() {
    let mut pod = Pod::with_data();
    pod.supervise().await;
    pod.start(STANDBY).await;
    assert_eq!(pod.sql("SELECT pg_is_in_recovery()"), "t");
    pod.signal(Signal::INT);
    assert!(pod.ended().await.success(), "{}", pod.log());
    assert_eq!(pod.control_state(), "shut down in recovery");
}

#[tokio::test]
async fn row_70_a_second_term_is_immediate() {
    let mut pod = Pod::with_data();
    pod.supervise().await;
    let postmaster = pod.start_primary().await;
    let (stuck, _) = children_of(postmaster)[0];
    kill_process(stuck, Signal::STOP).unwrap();
    pod.signal(Signal::TERM);
    let status = pod.until(stopping(StopMode::Fast)).await;
    assert!(status.stopping);
    pod.signal(Signal::TERM);
    pod.until(stopping(StopMode::Immediate)).await;
    let refusal = pod
        .refused(SupervisorRequest::Start {
            server: STANDBY,
            promised: None,
        })
        .await;
    assert_eq!(refusal, "the supervisor is stopping");
    kill_process(stuck, Signal::CONT).unwrap();
    assert!(pod.ended().await.success(), "{}", pod.log());
    assert_eq!(pod.control_state(), "in production");
}

#[tokio::test]
async fn a_postmaster_that_survives_an_immediate_stop_is_killed() {
    let mut pod = Pod::with_data();
    pod.stop_timeout = std::time::Duration::from_millis(300);
    pod.supervise().await;
    let postmaster = pod.start_primary().await;
    kill_process(postmaster, Signal::STOP).unwrap();
    pod.ask(SupervisorRequest::Stop {
        mode: StopMode::Immediate,
    })
    .await;
    let status = pod.until(stopped).await;
    let Postmaster::Stopped {
        last_exit: Some(exit),
    } = &status.postmaster
    else {
        panic!("{status:?}");
    };
    assert_eq!(
        (exit.requested, exit.description.as_str()),
        (true, "killed by signal 9")
    );
    pod.start(ServerRole::alone()).await;
}

#[tokio::test]
async fn what_does_not_fit_the_state_is_refused() {
    let mut pod = Pod::with_data();
    pod.supervise().await;
    let start = |server| SupervisorRequest::Start {
        server,
        promised: None,
    };
    assert_eq!(
        pod.refused(start(ServerRole::alone())).await,
        "cannot start as primary: no licence"
    );
    let reload = SupervisorRequest::Reload {
        server: STANDBY,
        promised: None,
    };
    assert_eq!(pod.refused(reload.clone()).await, "PostgreSQL is not running");
    pod.start_primary().await;
    assert_eq!(
        pod.refused(start(ServerRole::alone())).await,
        "PostgreSQL is running"
    );
    let job = JobRequest::Initdb;
    assert_eq!(
        pod.refused(SupervisorRequest::Run { job }).await,
        "PostgreSQL is running"
    );
    assert_eq!(
        pod.refused(reload).await,
        "PostgreSQL runs in the other role: a reload cannot change it"
    );
    let mut empty = Pod::empty();
    empty.supervise().await;
    assert_eq!(
        empty.refused(start(STANDBY)).await,
        "cannot start: the data directory is empty"
    );
}

#[tokio::test]
async fn a_reload_points_a_standby_at_another_upstream() {
    let mut pod = Pod::with_data();
    pod.supervise().await;
    pod.start(STANDBY).await;
    assert_eq!(pod.sql("SHOW primary_slot_name"), "");
    let server = ServerRole::Standby {
        upstream: Some(nobody()),
    };
    let status = pod
        .ask(SupervisorRequest::Reload {
            server: server.clone(),
            promised: None,
        })
        .await;
    assert!(matches!(status.postmaster, Postmaster::Running { role, .. } if role == server));
    // The reply comes after the signal; PostgreSQL reads its files a moment later.
    while pod.sql("SHOW primary_slot_name") != "podgres_pg_1" {}
}

#[tokio::test]
async fn hangup_reloads_with_what_is_there_now() {
    let mut pod = Pod::with_data();
    pod.supervise().await;
    pod.start_primary().await;
    let loaded = pod.sql("SELECT pg_conf_load_time()");
    pod.signal(Signal::HUP);
    while pod.sql("SELECT pg_conf_load_time()") == loaded {}
}
