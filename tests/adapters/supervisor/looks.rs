//! The directory of a stopped server is looked at again: what could not be read, and what was changed by hand.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use podgres::core::data_directory::DataDirectory;
use podgres::core::supervision::{Postmaster, SupervisorRequest, SupervisorStatus};
use rustix::process::{Signal, kill_process};

use super::machine::own;
use super::pod::Pod;

/// The pod's programs, with a `pg_controldata` that runs `trouble` first, once after each [`trouble_ahead`].
fn with_trouble(pod: &mut Pod, trouble: &str) {
    let original = pod.programs.clone();
    let programs = pod.path().join("bin");
    fs::create_dir(&programs).unwrap();
    for entry in fs::read_dir(&original).unwrap().flatten() {
        symlink(entry.path(), programs.join(entry.file_name())).unwrap();
    }
    let program = programs.join("pg_controldata");
    fs::remove_file(&program).unwrap();
    let once = pod.path().join("once").display().to_string();
    let shipped = original.join("pg_controldata");
    let script = format!(
        "#!/bin/sh\nif rm {once} 2>/dev/null; then {trouble}; fi\nexec {} \"$@\"\n",
        shipped.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    own(&programs);
    pod.programs = programs;
}

fn trouble_ahead(root: &Path) {
    fs::write(root.join("once"), "").unwrap();
}

fn unusable(status: &SupervisorStatus) -> bool {
    matches!(status.data_directory, DataDirectory::Unusable { .. })
}

fn stopped(status: &SupervisorStatus) -> bool {
    matches!(status.postmaster, Postmaster::Stopped { .. })
}

#[tokio::test]
async fn a_stall_while_the_directory_was_read_left_the_server_down_for_good() {
    let mut pod = Pod::with_data();
    with_trouble(&mut pod, "sleep 12");
    pod.supervise().await;
    let postmaster = pod.start_primary().await;
    trouble_ahead(pod.path());
    kill_process(postmaster, Signal::KILL).unwrap();
    let status = pod.until(stopped).await;
    let DataDirectory::Unusable { detail } = &status.data_directory else {
        panic!("the stall had no effect: {status:?}");
    };
    assert_eq!(
        detail,
        "could not look at the data directory: no answer within 10 s"
    );
    pod.until(|status| !unusable(status)).await;
    pod.start_primary().await;
}

#[tokio::test]
async fn a_killed_look_counted_as_damage() {
    let mut pod = Pod::with_data();
    with_trouble(&mut pod, "kill -9 $$");
    pod.supervise().await;
    let postmaster = pod.start_primary().await;
    trouble_ahead(pod.path());
    kill_process(postmaster, Signal::KILL).unwrap();
    let status = pod.until(stopped).await;
    assert!(!pod.path().join("once").exists(), "nobody looked");
    assert!(!unusable(&status), "{status:?}");
    pod.start_primary().await;
}

#[tokio::test]
async fn what_is_changed_by_hand_was_not_noticed_until_a_restart() {
    let mut pod = Pod::with_data();
    fs::write(pod.data().join("standby.signal"), "").unwrap();
    pod.supervise().await;
    let signal = |status: &SupervisorStatus| status.data_directory.facts().unwrap().standby_signal;
    assert!(signal(&pod.ask(SupervisorRequest::Status).await));
    fs::remove_file(pod.data().join("standby.signal")).unwrap();
    pod.until(|status| !signal(status)).await;
    pod.start_primary().await;
}

#[tokio::test]
async fn a_look_holds_up_neither_a_start_nor_the_end() {
    let mut pod = Pod::with_data();
    with_trouble(&mut pod, "exec sleep 60");
    pod.supervise().await;
    let hanging = async || {
        trouble_ahead(pod.path());
        while pod.path().join("once").exists() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        std::time::Instant::now()
    };
    let begun = hanging().await;
    let postmaster = pod.start_primary().await;
    assert!(begun.elapsed().as_secs() < 8, "the start waited for the look");
    pod.ask(SupervisorRequest::Stop {
        mode: podgres::core::supervision::StopMode::Fast,
    })
    .await;
    pod.until(stopped).await;
    super::machine::gone(postmaster).await;
    let begun = hanging().await;
    pod.signal(Signal::TERM);
    assert!(pod.ended().await.success(), "{}", pod.log());
    assert!(begun.elapsed().as_secs() < 8, "the end waited for the look");
}
