//! A client that connects in a loop: which server each session got, and when.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use podgres::core::member::Ordinal;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Config, NoTls};

use crate::harness::{Demo, wait_for};

/// Longer than anything that is waited for here.
const PATIENCE: Duration = Duration::from_secs(40);
/// Between two sessions, so that the servers have the processor.
const PAUSE: Duration = Duration::from_millis(5);

/// One session, which asked its server who it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Session {
    /// When the client began to connect.
    pub(super) began: Instant,
    pub(super) answered: Instant,
    pub(super) server: IpAddr,
    /// How old the newest transaction was that the server had replayed, by its own word; zero on a primary.
    pub(super) age: Duration,
}

/// The client, until it is stopped.
pub(super) struct Looping {
    sessions: Arc<Mutex<Vec<Session>>>,
    stop: Arc<AtomicBool>,
    /// Gives why sessions failed.
    thread: JoinHandle<Vec<tokio_postgres::Error>>,
}

/// The login of a client that connects often: its password costs nothing to check.
pub(super) fn quick(demo: &Demo, config: &Config) -> Config {
    let role = "SET scram_iterations = 1; CREATE ROLE quick LOGIN PASSWORD 'quick'";
    demo.sql(&[], role);
    for pod in demo.deployed().pods {
        let ordinal = pod.ordinal.0.to_string();
        demo.wait_sql(
            &["--member", &ordinal],
            "SELECT count(*) FROM pg_roles WHERE rolname = 'quick'",
            "1",
        );
    }
    let mut quick = config.clone();
    quick.user("quick").password("quick");
    quick
}

/// Where a pod is now.
pub(super) fn address(demo: &Demo, ordinal: u32) -> IpAddr {
    demo.deployed().pod(Ordinal(ordinal)).expect("a pod").address
}

impl Looping {
    pub(super) fn start(config: Config) -> Self {
        let (sessions, stop) = (
            Arc::<Mutex<Vec<Session>>>::default(),
            Arc::<AtomicBool>::default(),
        );
        let (seen, stopped) = (Arc::clone(&sessions), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("runtime");
            let mut failures = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                match runtime.block_on(session(&config)) {
                    Ok((server, age)) => seen.lock().expect("sessions").push(Session {
                        began,
                        answered: Instant::now(),
                        server,
                        age,
                    }),
                    Err(error) => failures.push(error),
                }
                std::thread::sleep(PAUSE);
            }
            failures
        });
        Self {
            sessions,
            stop,
            thread,
        }
    }

    /// Those that began after that instant.
    pub(super) fn since(&self, at: Instant) -> Vec<Session> {
        let sessions = self.sessions.lock().expect("sessions");
        let later = sessions.iter().filter(|session| session.began >= at);
        later.copied().collect()
    }

    /// Waits for the first one that began after that instant and is as wanted.
    pub(super) fn first(&self, what: &str, at: Instant, wanted: impl Fn(&Session) -> bool) -> Session {
        let mut found = None;
        let came = wait_for(PATIENCE, || {
            found = self.since(at).into_iter().find(&wanted);
            found.is_some()
        });
        assert!(came, "{what}: {:?}", self.since(at).last());
        found.expect("a session")
    }

    /// Waits until so many began after that instant.
    pub(super) fn wait_for_more(&self, at: Instant, number: usize) -> Vec<Session> {
        let enough = wait_for(PATIENCE, || self.since(at).len() >= number);
        assert!(enough, "only {} of {number}", self.since(at).len());
        self.since(at)
    }

    /// Ends the client, none of whose sessions must have failed.
    pub(super) fn stop(self) {
        let failures = self.end();
        assert!(failures.is_empty(), "{failures:?}");
    }

    /// Ends the client, none of whose sessions must have failed but for one that was cut, or told to end, with its server.
    pub(super) fn stop_cut(self) {
        let mut failures = self.end();
        failures.retain(|error| error.code().is_some_and(|code| *code != SqlState::ADMIN_SHUTDOWN));
        assert!(failures.is_empty(), "{failures:?}");
    }

    fn end(self) -> Vec<tokio_postgres::Error> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the client")
    }
}

async fn session(config: &Config) -> Result<(IpAddr, Duration), tokio_postgres::Error> {
    const ASK: &str = "SELECT inet_server_addr(), \
                       coalesce(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()), 0)::float8";
    let (client, connection) = config.connect(NoTls).await?;
    let connection = tokio::spawn(connection);
    let row = client.query_one(ASK, &[]).await?;
    drop(client);
    // Until the server has been told, the session counts.
    let _ended = connection.await;
    let age: f64 = row.get(1);
    Ok((row.get(0), Duration::from_secs_f64(age.max(0.0))))
}
