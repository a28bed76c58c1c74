//! Sessions that never hang: every wait has a limit, and a session whose server is silent is dropped with its socket.

use std::path::Path;
use std::time::Duration;

use podgres::demo::{DemoState, Target, dsn};
use tokio_postgres::config::Host;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::ledger::Ledger;

/// An application's own limit; a server that takes longer is taken for lost.
pub(super) const PATIENCE: Duration = Duration::from_millis(1500);
/// Between two attempts to reach somebody.
pub(super) const RETRY: Duration = Duration::from_millis(30);

/// Which way a client goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// Straight to any server.
    Direct,
    /// Through any pod's read-write route.
    Route,
}

pub(super) struct Session {
    client: Client,
    connection: tokio::task::JoinHandle<()>,
    patience: Duration,
}

impl Drop for Session {
    fn drop(&mut self) {
        // Otherwise it would wait for a frozen server's answer.
        self.connection.abort();
    }
}

/// Why a statement gave nothing.
pub(super) enum Ended {
    /// The server said so: what it was asked for has not happened, unless it was a commit.
    Refused(tokio_postgres::Error),
    /// It may have happened or not.
    Unknown,
}

impl Session {
    /// One attempt, at the `attempt`th pod.
    pub(super) async fn open(
        directory: &Path,
        way: Way,
        attempt: usize,
        who: &str,
        ledger: &Ledger,
    ) -> Option<Self> {
        let state = DemoState::load(directory).ok()??;
        let target = match way {
            Way::Direct => Target::Member(state.pods.get(attempt % state.pods.len().max(1))?.ordinal),
            Way::Route => Target::ReadWrite,
        };
        let all: Config = dsn(&state, target).ok()?.parse().expect("dsn");
        let chosen = attempt % all.get_hosts().len();
        let Host::Tcp(host) = &all.get_hosts()[chosen] else {
            panic!("{all:?}");
        };
        let mut config = Config::new();
        config.host(host).port(all.get_ports()[chosen]);
        config
            .user(all.get_user()?)
            .password(all.get_password()?)
            .dbname(all.get_dbname()?);
        match tokio::time::timeout(PATIENCE, config.connect(NoTls)).await {
            Ok(Ok((client, connection))) => {
                let connection = tokio::spawn(async move { drop(connection.await) });
                Some(Self {
                    client,
                    connection,
                    patience: PATIENCE,
                })
            }
            Ok(Err(error)) => {
                ledger.met(who, &error);
                None
            }
            Err(_) => {
                ledger.met_silence();
                None
            }
        }
    }

    /// Waits so long for each answer.
    pub(super) fn patient(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The first column of the first row; an empty text if there is none.
    pub(super) async fn ask(&self, sql: &str, who: &str, ledger: &Ledger) -> Result<String, Ended> {
        match tokio::time::timeout(self.patience, self.client.simple_query(sql)).await {
            Ok(Ok(messages)) => Ok(first(&messages)),
            Ok(Err(error)) => {
                ledger.met(who, &error);
                Err(if error.as_db_error().is_some() {
                    Ended::Refused(error)
                } else {
                    Ended::Unknown
                })
            }
            Err(_) => {
                ledger.met_silence();
                Err(Ended::Unknown)
            }
        }
    }
}

fn first(messages: &[SimpleQueryMessage]) -> String {
    let found = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    found.unwrap_or_default().to_owned()
}
