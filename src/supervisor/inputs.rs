//! What the server is made from, as it is now: settings with freshly read logins, and a look at the mounted files.
//!
//! Never in the loop itself, since a file system may hang.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::postgres::mounted::{Fingerprint, fingerprint};
use crate::postgres::{Login, ReadLogins, ServerSettings};
use crate::watched;

/// Small files, usually in memory.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// Where settings come from.
pub(super) struct Inputs {
    /// As they were at the start; of these only the logins change.
    pub(super) settings: ServerSettings,
    logins: Option<ReadLogins>,
    /// As last read.
    known: Mutex<(Login, Login)>,
}

impl Inputs {
    pub(super) fn new(settings: ServerSettings, logins: Option<ReadLogins>) -> Self {
        let known = Mutex::new((settings.superuser.clone(), settings.replication.clone()));
        Self {
            settings,
            logins,
            known,
        }
    }

    /// The settings with the logins as they are now, or as they were last if they cannot be read. Blocks.
    pub(super) fn now(&self) -> ServerSettings {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // The agent reads the same files, and says what is wrong with them.
        if let Some(Ok(logins)) = self.logins.as_ref().map(|read| read()) {
            *known = logins;
        }
        let (superuser, replication) = known.clone();
        ServerSettings {
            superuser,
            replication,
            ..self.settings.clone()
        }
    }
}

/// As [`Inputs::now`], on a thread of its own; those of the start if that takes too long.
pub(super) async fn now(inputs: &Arc<Inputs>) -> ServerSettings {
    let reading = tokio::task::spawn_blocking({
        let inputs = Arc::clone(inputs);
        move || inputs.now()
    });
    match timeout(READ_LIMIT, reading).await {
        Ok(Ok(settings)) => settings,
        Ok(Err(_)) | Err(_) => inputs.settings.clone(),
    }
}

/// Tells `mounted` what the mounted files are like, each time that it is `due`. Files that cannot be read tell nothing.
pub(super) async fn watch(
    inputs: Arc<Inputs>,
    due: Arc<Notify>,
    mounted: watch::Sender<Option<Fingerprint>>,
) -> Infallible {
    loop {
        due.notified().await;
        let inputs = Arc::clone(&inputs);
        let looked = tokio::task::spawn_blocking(move || fingerprint(&inputs.now())).await;
        if let Ok(Ok(found)) = looked {
            watched::set(&mounted, Some(found));
        }
    }
}
