//! One container: a process with its log file, started by whoever keeps the pod.
//!
//! Never restarts anything and never signals; says that the process has ended, and how.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::orphans;
use crate::postgres::user::ServerUser;

/// A log that has grown beyond this is put aside when its container starts next.
const LOG_LIMIT_BYTES: u64 = 16 << 20;

/// The containers of a pod, by the verb that they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Container {
    Init,
    Sidecar,
    Postgres,
}

impl Container {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Sidecar => "sidecar",
            Self::Postgres => "postgres",
        }
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Everything that one container is started with.
pub(super) struct Launch {
    pub program: PathBuf,
    pub container: Container,
    /// All of it: nothing is inherited.
    pub environment: BTreeMap<String, String>,
    pub working_directory: PathBuf,
    pub log: PathBuf,
    pub user: Option<ServerUser>,
}

/// How a container's first process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exit {
    pub success: bool,
    /// `exited with code 1`, `killed by signal 9`.
    pub description: String,
}

/// A container's first process, running or ended.
#[derive(Clone)]
pub(super) struct Running {
    pub pid: u32,
    exit: watch::Receiver<Option<Exit>>,
}

impl Running {
    /// Waits for the end, as long as it takes.
    pub(super) async fn ended(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone(),
            Err(_) => None,
        }
        .unwrap_or_else(|| Exit {
            success: false,
            description: "was lost sight of".to_owned(),
        })
    }

    /// Waits for the end, but not longer than `limit`; whether it came.
    pub(super) async fn ended_within(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.ended()).await.is_ok()
    }

    pub(super) fn alive(&self) -> bool {
        self.exit.borrow().is_none()
    }
}

/// The processes that somebody waits for: no one else may reap them. Clones share the list.
#[derive(Clone, Default)]
pub(super) struct Children(Arc<Mutex<BTreeSet<u32>>>);

impl Children {
    /// Starts a container's process. Linux ties a wish to die with the parent to the *thread* that starts the
    /// process, so this runs on threads that live as long as the demo: the runtime's workers.
    pub(super) fn launch(&self, launch: &Launch) -> io::Result<Running> {
        let log = open_log(&launch.log)?;
        let mut command = Command::new(&launch.program);
        command
            .arg(launch.container.as_str())
            .env_clear()
            .envs(&launch.environment)
            .current_dir(&launch.working_directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Its own group: a Ctrl-C in the terminal is for the demo alone.
            .process_group(0);
        if let Some(user) = &launch.user {
            // With a user given, the standard library also drops all supplementary groups of root's.
            command.uid(user.uid).gid(user.gid);
        }
        let child = self.spawn(&mut command)?;
        let pid = child.id().unwrap_or_default();
        let (sender, exit) = watch::channel(None);
        let children = self.clone();
        tokio::spawn(async move {
            sender.send_replace(Some(children.wait(child, pid).await));
        });
        Ok(Running { pid, exit })
    }

    /// Reaps every orphan that this process has inherited.
    pub(super) fn reap_orphans(&self) {
        let awaited = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        orphans::reap(&awaited);
    }

    fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        // Held across the start, so that a process that ends at once is not taken for an orphan.
        let mut awaited = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.spawn()?;
        awaited.extend(child.id());
        Ok(child)
    }

    async fn wait(&self, mut child: Child, pid: u32) -> Exit {
        let status = child.wait().await;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
        match status {
            Ok(status) => Exit {
                success: status.success(),
                description: describe(status),
            },
            Err(error) => Exit {
                success: false,
                description: format!("could not be waited for: {error}"),
            },
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    if fs::metadata(path).is_ok_and(|log| log.len() > LOG_LIMIT_BYTES) {
        fs::rename(path, path.with_extension("log.1"))?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}
