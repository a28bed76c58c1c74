//! Processes and files on this machine, as the tests look at them and make them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use podgres::core::supervision::{Postmaster, SupervisorStatus, Upstream};
use rustix::process::Pid;

use crate::postgresql::programs;
use crate::user::{give_away, run_as_server_user};

use super::pod::{LIMIT, PASSWORD};

/// An upstream where nobody listens.
pub(super) fn nobody() -> Upstream {
    Upstream {
        host: "pg-0".into(),
        address: "127.255.255.254".parse().unwrap(),
        port: 1,
        slot: "podgres_pg_1".into(),
        application_name: None,
    }
}

/// The process id in the status.
pub(super) fn postmaster(status: &SupervisorStatus) -> Pid {
    match status.postmaster {
        Postmaster::Running { pid, .. } | Postmaster::Stopping { pid, .. } => {
            Pid::from_raw(pid.try_into().unwrap()).unwrap()
        }
        Postmaster::Stopped { .. } => panic!("no postmaster: {status:?}"),
    }
}

/// Waits until the process has ended, collected or not.
pub(super) async fn gone(pid: Pid) {
    let Ok(process) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return;
    };
    let limit = rustix::time::Timespec::try_from(LIMIT).unwrap();
    let ended = tokio::task::spawn_blocking(move || {
        let mut ended = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut ended, Some(&limit))
    });
    assert_eq!(ended.await.unwrap().unwrap(), 1, "process {pid} did not end");
}

/// The living processes whose parent is `parent`, and the dead ones that it has not collected.
pub(super) fn children_of(parent: Pid) -> Vec<(Pid, String)> {
    let of_parent = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw)?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?.to_owned();
        (fields.next()? == parent.to_string()).then_some((pid, state))
    };
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(of_parent)
        .collect()
}

pub(super) fn own(path: &Path) {
    give_away(path);
    fs::set_permissions(path, fs::Permissions::from_mode(0o750)).unwrap();
}

pub(super) fn run_as_postgres(command: &mut Command) {
    let status = run_as_server_user(command).current_dir("/").status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

/// A cluster that the tests copy. Made anew when nobody holds it any more, and then deleted.
pub(super) fn template_15() -> Arc<tempfile::TempDir> {
    static TEMPLATE: Mutex<Weak<tempfile::TempDir>> = Mutex::new(Weak::new());
    let mut template = TEMPLATE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(folder) = template.upgrade() {
        return folder;
    }
    let folder = tempfile::Builder::new().prefix("template").tempdir().unwrap();
    own(folder.path());
    initdb(&programs(15), &folder.path().join("data"));
    let folder = Arc::new(folder);
    *template = Arc::downgrade(&folder);
    folder
}

pub(super) fn initdb(programs: &Path, data: &Path) {
    let password_file = data.with_extension("password");
    fs::write(&password_file, PASSWORD).unwrap();
    own(&password_file);
    let mut pwfile = std::ffi::OsString::from("--pwfile=");
    pwfile.push(&password_file);
    let arguments: [&OsStr; 6] = [
        "-N".as_ref(),
        "-U".as_ref(),
        "postgres".as_ref(),
        "-A".as_ref(),
        "scram-sha-256".as_ref(),
        &pwfile,
    ];
    let mut command = Command::new(programs.join("initdb"));
    run_as_postgres(
        command
            .args(arguments)
            .arg("-D")
            .arg(data)
            .stdout(std::process::Stdio::null()),
    );
    fs::remove_file(password_file).unwrap();
}
