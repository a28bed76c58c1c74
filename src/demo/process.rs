//! What the demo does with its own process: signals that end it, orphans that it inherits and reaps.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::container::Children;
use super::{DemoError, Options};

/// The signals that end a demo; none if the process is not the demo's own.
pub(super) struct Signals {
    ending: Option<[Signal; 3]>,
}

impl Signals {
    /// Waits for the next one.
    pub(super) async fn end(&mut self) {
        match &mut self.ending {
            Some([interrupt, terminate, hang_up]) => {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hang_up.recv() => {}
                }
            }
            None => std::future::pending().await,
        }
    }
}

/// Takes over the process for the demo, if it is the demo's own.
pub(super) fn own(options: &Options, children: &Children) -> Result<Signals, DemoError> {
    if !options.own_process {
        return Ok(Signals { ending: None });
    }
    let failed = |source: io::Error| DemoError::Process {
        action: "handle signals and orphans",
        source,
    };
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| failed(error.into()))?;
    let mut ended = signal(SignalKind::child()).map_err(failed)?;
    let children = children.clone();
    tokio::spawn(async move {
        while ended.recv().await.is_some() {
            children.reap_orphans();
        }
    });
    let on = |kind| signal(kind).map_err(failed);
    let ending = [
        on(SignalKind::interrupt())?,
        on(SignalKind::terminate())?,
        on(SignalKind::hangup())?,
    ];
    Ok(Signals { ending: Some(ending) })
}
