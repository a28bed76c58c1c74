//! A standby at its limits: it leaves at one, comes back below another after a least time outside, and slowly.
//!
//! The servers are real and so are the sessions; how far behind one of them is, the test says.

use std::time::Duration;

use podgres::core::routing::Server;
use podgres::proxy::Limits;
use tokio::time::Instant;

use super::cluster::{cluster, loopback, member};
use super::routes::{PATIENCE, Route};

const DWELL: Duration = Duration::from_millis(500);
const MAX_LAG_BYTES: u64 = 16 << 20;
const WARMING: Duration = Duration::from_secs(5);
/// In a row on the other one of two: once in a million times by chance.
const SOME: usize = 20;

/// Whether a new session is on the standby that is looked at, and when it began.
async fn session(read: &Route) -> (bool, Instant) {
    let began = Instant::now();
    let client = read.connect().await.expect("session");
    let row = client.query_one("SELECT host(inet_server_addr())", &[]).await;
    let server: String = row.expect("row").get(0);
    (server == loopback(2).to_string(), began)
}

/// The first standby so far behind, beside another that lacks nothing.
fn behind(read: &Route, staleness_ms: u64, lag_bytes: u64) {
    let first = Server {
        staleness_ms: Some(staleness_ms),
        lag_bytes: Some(lag_bytes),
        ..member(1)
    };
    read.set(vec![member(0), first, member(2)]);
}

/// How many of some sessions it gets while it stays so far behind, as it is told again and again.
async fn its(read: &Route, staleness_ms: u64, lag_bytes: u64) -> usize {
    let mut its = 0;
    for _ in 0..SOME {
        behind(read, staleness_ms, lag_bytes);
        its += usize::from(session(read).await.0);
    }
    its
}

/// Until it gets a session.
async fn returns(read: &Route, staleness_ms: u64, lag_bytes: u64) -> Instant {
    let limit = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < limit, "it does not come back");
        behind(read, staleness_ms, lag_bytes);
        let (it, began) = session(read).await;
        if it {
            return began;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_leaves_at_a_limit_and_returns_below_half_of_it() {
    let _cluster = cluster();
    let most = [(10_000, 0), (0, MAX_LAG_BYTES)];
    for (staleness_ms, lag_bytes) in most {
        let read = Route::read_only(Limits::default(), vec![member(0), member(1), member(2)]).await;
        let over = |part: u64| {
            (
                staleness_ms / part + staleness_ms.min(1),
                lag_bytes / part + lag_bytes.min(1),
            )
        };
        assert!(
            its(&read, staleness_ms, lag_bytes).await > 0,
            "at the limit it is in"
        );
        let (over_ms, over_bytes) = over(1);
        assert_eq!(
            its(&read, over_ms, over_bytes).await,
            0,
            "over it it is out at once"
        );
        let out = Instant::now();
        assert_eq!(
            its(&read, staleness_ms, lag_bytes).await,
            0,
            "and stays out at it"
        );
        let (near_ms, near_bytes) = over(2);
        while out.elapsed() < DWELL * 2 {
            assert_eq!(its(&read, near_ms, near_bytes).await, 0, "near half of it too");
        }
        returns(&read, staleness_ms / 2, lag_bytes / 2).await;
        let stays = returns(&read, staleness_ms, lag_bytes).await;
        assert!(stays > out + DWELL, "who is in has the limit for leaving again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_returns_was_out_for_a_while_and_gets_its_share_slowly() {
    let _cluster = cluster();
    let read = Route::read_only(Limits::default(), vec![member(0), member(1), member(2)]).await;
    assert!(its(&read, 0, 0).await > 0, "it is in from the first");
    let left = Instant::now();
    assert_eq!(its(&read, 60_000, 0).await, 0);
    let back = returns(&read, 0, 0).await;
    assert!(back - left >= DWELL, "{:?}", back - left);
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    while warm.len() < 100 {
        let (it, began) = session(&read).await;
        if began < back + Duration::from_secs(1) {
            cold.push(it);
        } else if began > back + WARMING {
            warm.push(it);
        }
    }
    let share = |sessions: &[bool]| sessions.iter().filter(|it| **it).count() * 100 / sessions.len();
    assert!(cold.len() >= 20, "too slow a machine: {}", cold.len());
    // A tenth of the half that is its due, then more and more of it.
    let (at_first, in_the_end) = (share(&cold), share(&warm));
    assert!(
        at_first < 33 && in_the_end > 33,
        "{at_first} %, then {in_the_end} %"
    );
}
