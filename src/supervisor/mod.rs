//! The parent of PostgreSQL in its container: process 1, and the fence.
//!
//! Runs the postmaster and the tools for the data directory as the agent asks over a unix socket,
//! collects dead children, forwards signals, and stops a writable server by itself when its licence
//! runs out. Never decides what the member should be, and never looks beyond its own pod.
//!
//! While PostgreSQL runs, only PostgreSQL writes to the container's output.
//!
//! A stopped supervisor (SIGSTOP) stops nothing, and PostgreSQL runs on beside it: then only the commit gate, in the
//! sidecar, keeps a primary without a right from acknowledging. Frozen with its whole pod, it acts at the thaw at once.

use std::io;
use std::path::PathBuf;

use crate::core::supervision::{FailureKind, PostmasterExit, SOCKET_NAME};
use crate::postgres::terms::TermsError;
use crate::postgres::{ReadLogins, ServerSettings};

mod bonds;
mod disk;
mod farewell;
mod inputs;
mod kept_switch;
mod licence;
mod only_one;
mod panic;
mod postmaster;
mod promotion;
mod reaper;
mod receiver;
mod requests;
mod run;
mod signals;
mod socket;
mod tools;
mod work;

pub use panic::stop_on_panic;

/// What may differ between `podgres postgres` and `podgres init`.
#[derive(Clone, Default)]
pub struct SupervisorOptions {
    /// Where to listen; `supervisor.sock` in the run directory if `None`.
    pub socket: Option<PathBuf>,
    /// Reads the logins again before each use; without it those of the settings stay.
    pub logins: Option<ReadLogins>,
    /// Whether what this process starts holds the volume too, for as long as it runs: where a server is started, and not where
    /// only its directory is prepared.
    pub children_hold_volume: bool,
}

/// Why a supervisor could not begin its work.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error("could not become the parent of orphaned processes")]
    AdoptOrphans(#[source] io::Error),
    #[error("could not listen for signals")]
    Signals(#[source] io::Error),
    #[error("could not make a timer for the licence")]
    Timer(#[source] io::Error),
    #[error("could not listen on \"{}\"", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Tools(#[from] tools::ToolsError),
}

impl SupervisorError {
    /// What must change before another start can help.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Tools(tools::ToolsError::Terms(TermsError::Garbled { .. })) => FailureKind::Data,
            Self::Tools(tools::ToolsError::Place(error)) => error.kind(),
            Self::AdoptOrphans(_)
            | Self::Signals(_)
            | Self::Timer(_)
            | Self::Socket { .. }
            | Self::Tools(
                tools::ToolsError::Programs(_)
                | tools::ToolsError::Files(_)
                | tools::ToolsError::Terms(TermsError::File(_)),
            ) => FailureKind::Passing,
        }
    }
}

/// How a supervisor ended after it was told to: PostgreSQL is down, no tool runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SupervisorExit {
    /// How the last postmaster ended; `None` if none was ever started.
    pub last_exit: Option<PostmasterExit>,
}

/// Supervises until TERM, INT or QUIT and until PostgreSQL is down.
///
/// Await it on the main thread of a `current_thread` runtime, directly and not in a spawned task:
/// a child's death signal is bound to the thread that started it. The process must have no other
/// children of its own. Dropping the future ends the tools and leaves a running postmaster alone.
///
/// # Errors
/// Only before anything was started.
pub async fn run(
    settings: ServerSettings,
    options: SupervisorOptions,
) -> Result<SupervisorExit, SupervisorError> {
    let socket = options
        .socket
        .unwrap_or_else(|| settings.run_directory.join(SOCKET_NAME));
    let children = options.children_hold_volume;
    run::run(inputs::Inputs::new(settings, options.logins), socket, children).await
}
