//! What goes on beside a promise that is on its way to a disk that hangs, and beside which work none is begun.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use rustix::process::getpid;
use tokio::sync::oneshot;

use super::*;
use crate::core::data_directory::DataDirectory;
use crate::core::supervision::{SupervisorReply, Upstream};
use crate::core::switch::SwitchPosition;
use crate::postgres::fixtures::settings;
use crate::supervisor::licence::LicenceClock;
use crate::supervisor::postmaster::Child;
use crate::supervisor::socket::Call;
use crate::supervisor::tools::{Found, Seen};

const ALONE: ServerRole = ServerRole::Standby { upstream: None };
const BEFORE: Terms = Terms { promised: 1, held: 0 };

fn following() -> ServerRole {
    ServerRole::Standby {
        upstream: Some(Upstream {
            host: "pg-0".to_owned(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 5432,
            slot: "podgres_pg_1".to_owned(),
            application_name: None,
        }),
    }
}

/// A standby alone that has promised term 1. Its postmaster is this process, which nothing here signals.
fn supervisor(folder: &Path) -> Supervisor {
    let found = Found {
        major_version: 16,
        terms: Some(BEFORE),
        switch: SwitchPosition::default(),
        seen: Seen {
            data_directory: DataDirectory::Empty,
            incarnation: None,
            diverged: None,
        },
    };
    let inputs = Arc::new(Inputs::new(settings(folder), None));
    let mut supervisor = Supervisor::new(inputs, found, LicenceClock::new().expect("a timer"));
    supervisor.child = Some(Child::new(getpid(), ALONE, None));
    supervisor
}

/// What is answered at once, if anything is.
fn asked(supervisor: &mut Supervisor, request: SupervisorRequest) -> Option<Result<Terms, String>> {
    let (reply, mut answer) = oneshot::channel();
    supervisor.answer(Call { request, reply });
    answer.try_recv().ok().map(|reply| match reply {
        SupervisorReply::Status(status) => Ok(status.terms),
        SupervisorReply::Refused { message } => Err(message),
    })
}

#[tokio::test]
async fn a_reload_from_before_a_promise_attached_the_standby_after_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut supervisor = supervisor(folder.path());
    let (disk, hangs) = std::sync::mpsc::channel::<()>();
    let (reply, answer) = oneshot::channel();
    supervisor.errand = Some(Errand {
        terms: Terms { promised: 2, held: 0 },
        then: Then::EndReceiver,
        reply,
        writing: tokio::task::spawn_blocking(move || {
            hangs.recv().ok();
            Ok(())
        }),
    });
    let reload = |server| SupervisorRequest::Reload {
        server,
        promised: None,
    };
    let refused = asked(&mut supervisor, reload(following()));
    assert_eq!(
        refused,
        Some(Err("a term is being written down first".to_owned()))
    );
    assert!(supervisor.work.is_none());
    // What attaches nothing goes on beside it.
    assert_eq!(asked(&mut supervisor, reload(ALONE)), None);
    supervisor.work.take();
    drop(disk);
    let written = next(&mut supervisor.errand).await;
    supervisor.bound(written);
    assert!(matches!(answer.await, Ok(SupervisorReply::Status(status)) if status.terms.promised == 2));
    // Decided before, and asked after it.
    let late = SupervisorRequest::Reload {
        server: following(),
        promised: Some(1),
    };
    let refused = asked(&mut supervisor, late);
    assert_eq!(refused, Some(Err("term 2 was promised meanwhile".to_owned())));
    let known = SupervisorRequest::Reload {
        server: following(),
        promised: Some(2),
    };
    assert_eq!(asked(&mut supervisor, known), None);
}

#[tokio::test]
async fn no_promise_is_written_beside_what_may_attach_the_standby() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut supervisor = supervisor(folder.path());
    let reload = SupervisorRequest::Reload {
        server: following(),
        promised: None,
    };
    assert_eq!(asked(&mut supervisor, reload), None);
    let detach = SupervisorRequest::Detach { term: 2 };
    let refused = asked(&mut supervisor, detach.clone());
    let busy = "an earlier request is still being carried out".to_owned();
    assert_eq!(refused, Some(Err(busy)));
    assert!(supervisor.errand.is_none() && supervisor.terms == Some(BEFORE));
    supervisor.work.take();
    assert_eq!(asked(&mut supervisor, detach), None);
    assert!(supervisor.errand.is_some());
}
