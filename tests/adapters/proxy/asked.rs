//! What routes ask of the servers themselves: to end sessions that are idle, and how far they are.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt as _, StreamExt as _};
use podgres::core::routing::{RouteMode, RoutePolicy, RouteTable, Server};
use podgres::core::wal::Lsn;
use podgres::postgres::routed::RoutedServer;
use podgres::postgres::{Login, Secret};
use podgres::proxy::{Knowledge, Limits};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_postgres::Client;

use super::cluster::{cluster, member};
use super::routes::{PATIENCE, Route, answer, table};

/// The server behind a member's HTTP address, asked as its podgres does.
fn server(http: SocketAddr) -> RoutedServer {
    let login = || Login {
        user: "postgres".to_owned(),
        password: Secret::new(String::new()),
    };
    let logins = Arc::new(move || Ok((login(), login())));
    RoutedServer::new(SocketAddr::new(http.ip(), 5432), logins)
}

pub(super) fn knowledge(table: watch::Receiver<Arc<RouteTable>>) -> Knowledge {
    let servers: Vec<_> = (0..3)
        .map(|n| (member(n).http_address, Arc::new(server(member(n).http_address))))
        .collect();
    let find = Arc::new(move |http| {
        let found = servers.iter().find(|(address, _)| *address == http);
        Arc::clone(&found.expect("a member").1)
    });
    let [ending, asking, waiting] = [(); 3].map(|()| Arc::clone(&find));
    Knowledge {
        end_sessions: Some(Arc::new(move |http, clients, which| {
            let server = ending(http);
            async move {
                let ended = server.end_sessions(&clients, which).await;
                ended.map_err(|error| error.to_string())
            }
            .boxed()
        })),
        ask_position: Some(Arc::new(move |http| {
            let server = asking(http);
            async move { server.position().await.ok() }.boxed()
        })),
        wait_for_replay: Some(Arc::new(move |http, lsn, limit| {
            let server = waiting(http);
            timeout(limit, replays(server, lsn))
                .map(|reached| reached.is_ok())
                .boxed()
        })),
        ..Knowledge::of_table(table)
    }
}

async fn replays(server: Arc<RoutedServer>, lsn: Lsn) {
    while server.replayed().await.is_ok_and(|replayed| replayed < lsn) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn route(mode: RouteMode, servers: Vec<Server>) -> Route {
    let limits = Limits::default();
    Route::knowing(RoutePolicy::new(mode), limits, table(servers), None, knowledge).await
}

const TRANSACTION: [&str; 3] = ["BEGIN", "SELECT pg_sleep(0.03)", "COMMIT"];
/// Statements that are on their way at any time: while the server sleeps, they lead to the end of a transaction.
const AHEAD: usize = 5;

/// Sends transactions without waiting for answers, until the session ends: why, if that is inside of one.
async fn ahead(client: Client) -> Option<String> {
    let mut answers = FuturesOrdered::new();
    let mut statements = TRANSACTION.iter().cycle();
    for answered in 0.. {
        let missing = statements.by_ref().take(AHEAD - answers.len());
        answers.extend(missing.map(|statement| client.batch_execute(statement)));
        if let Some(Err(error)) = answers.next().await {
            let inside = answered % TRANSACTION.len() > 0;
            return inside.then(|| error.to_string());
        }
    }
    None
}

/// The server was never seen idle, or only for the moment between two of the transactions that it had been sent.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_always_send_ahead_were_cut_at_the_drain_timeout() {
    let _cluster = cluster();
    let write = route(RouteMode::ReadWrite, vec![member(0)]).await;
    let mut sessions = Vec::new();
    for _ in 0..6 {
        let client = write.connect().await.expect("session");
        sessions.push(tokio::spawn(ahead(client)));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    write.set(vec![Server {
        leaving: true,
        ..member(0)
    }]);
    let ended = timeout(PATIENCE, futures_util::future::join_all(sessions)).await;
    let ended = ended.expect("in time").into_iter();
    let inside: Vec<_> = ended.filter_map(|end| end.expect("no panic")).collect();
    assert!(
        inside.is_empty(),
        "sessions ended inside of a transaction: {inside:?}"
    );
    assert_eq!(write.stats.cut_total.load(Ordering::Relaxed), 0);
}

/// A standby that was fresh enough when it was chosen was taken however old its data had become while it was waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_had_grown_stale_while_it_was_waited_for_was_taken() {
    let _cluster = cluster();
    let (sender, receiver) = watch::channel(());
    let waiting = |table: watch::Receiver<Arc<RouteTable>>| Knowledge {
        wait_for_replay: Some(Arc::new({
            let table = table.clone();
            move |http, _, _| {
                let (asked, mut stale) = (sender.clone(), table.clone());
                async move {
                    asked.send_replace(());
                    // The next table is the one in which it is stale; the primary is asked only after that.
                    http != member(1).http_address || stale.changed().await.is_ok()
                }
                .boxed()
            }
        })),
        ..Knowledge::of_table(table)
    };
    let aged = |staleness_ms: u64| {
        let standby = Server {
            staleness_ms: Some(staleness_ms),
            ..member(1)
        };
        vec![member(0), standby]
    };
    let (policy, limits) = (RoutePolicy::new(RouteMode::ReadOnly), Limits::default());
    let read = Route::knowing(policy, limits, table(aged(0)), None, waiting).await;
    let options = "sslmode=disable options='-c podgres.max_staleness=1s -c podgres.min_lsn=0/1'";
    let session = read.spawn_psql(options, "SELECT pg_is_in_recovery()");
    let mut asked = receiver;
    timeout(PATIENCE, asked.changed())
        .await
        .expect("in time")
        .expect("asked");
    read.set(aged(5_000));
    let output = session.wait_with_output().await.expect("psql");
    assert_eq!(answer(&output), "f", "the primary answers");
}

/// The primary was given no time at all to say that it has what the client wrote.
#[tokio::test(flavor = "multi_thread")]
async fn the_fallback_of_a_causal_read_was_not_waited_for() {
    let _cluster = cluster();
    let slow = |table: watch::Receiver<Arc<RouteTable>>| Knowledge {
        wait_for_replay: Some(Arc::new(|http, _, limit| {
            let primary = http == member(0).http_address;
            let says = async move {
                // As long as a login takes.
                tokio::time::sleep(Duration::from_millis(50)).await;
                primary
            };
            timeout(limit, says).map(|said| said.unwrap_or(false)).boxed()
        })),
        ..Knowledge::of_table(table)
    };
    let (policy, limits) = (RoutePolicy::new(RouteMode::ReadOnly), Limits::default());
    let read = Route::knowing(policy, limits, table(vec![member(0), member(1)]), None, slow).await;
    let options = "sslmode=disable options='-c podgres.min_lsn=0/1 -c podgres.wait=100ms'";
    assert_eq!(
        answer(&read.psql(options, "SELECT pg_is_in_recovery()").await),
        "f"
    );
}

/// It has what the primary had a moment ago: that is its lag too.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_of_unknown_lag_was_not_asked_to_prove_itself() {
    let _cluster = cluster();
    let unknown = Server {
        lag_bytes: None,
        staleness_ms: None,
        ..member(1)
    };
    let read = route(RouteMode::ReadOnly, vec![member(0), unknown]).await;
    let ask = async |options: &str| {
        let options = format!("sslmode=disable options='{options}'");
        answer(&read.psql(&options, "SELECT pg_is_in_recovery()").await)
    };
    // A busy machine may take longer for the proof than a client is kept waiting for it.
    let proven = async { while ask("-c podgres.max_staleness=1s").await != "t" {} };
    timeout(PATIENCE, proven).await.expect("it proves itself");
    assert_eq!(
        ask("").await,
        "f",
        "the endpoint's own bounds have nothing asked for"
    );
}
