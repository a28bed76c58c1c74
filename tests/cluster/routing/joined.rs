//! `podgres route` without anybody's password, while members come, go and move: it knows them by DNS alone.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio_postgres::NoTls;

use super::beside::{Beside, PATIENCE, READ_ONLY, READ_WRITE};
use super::clients::{Clients, Counts, Work};
use super::looped::{Looping, address, quick};
use super::{leased, primary};
use crate::harness::{Demo, Start, wait_for};

/// From when a member can serve until it does, or from when it cannot until it does not; the promise is a second, and this bears a busy machine.
const SOON: Duration = Duration::from_secs(3);

/// The sum of a counter of one of the route's endpoints.
fn counted(route: &Beside, name: &str) -> u64 {
    let page = route.get("/metrics").expect("a page").1;
    let value = page
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name} ")));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

#[test]
fn a_route_without_a_password_follows_the_primary_and_cuts() {
    let demo = leased(&[]);
    demo.sql(&[], "CREATE TABLE work (n int)");
    let route = Beside::without_password(&demo);
    assert!(!route.on_standby(&demo, READ_WRITE));
    assert!(wait_for(PATIENCE, || route.on_standby(&demo, READ_ONLY)));
    let writers = Clients::start_as(&route.config(&demo, READ_WRITE), &NoTls, Work::Write, 4);
    for _ in 0..2 {
        writers.wait_for_more(50);
        let before = primary(&demo.status().expect("status"));
        demo.done(&["switchover"]);
        writers.wait_for_more(50);
        assert_ne!(before, primary(&demo.wait_streaming(2)));
    }
    let counts = writers.stop();
    let page = route.get("/metrics").expect("a page").1;
    let mut refused = page
        .lines()
        .filter(|line| line.starts_with("podgres_route_refused_total{"));
    assert!(
        refused.all(|line| line.ends_with(" 0")),
        "whoever comes anew is held: {page}"
    );
    let [done, broken] = [&counts.done, &counts.broken].map(Counts::get);
    let there: u64 = demo
        .sql(&[], "SELECT count(*) FROM work")
        .parse()
        .expect("a count");
    assert!((done..=done + broken).contains(&there), "{there} of {counts:?}");
    let drained = "podgres_route_drained_total{route=\"read_write\"}";
    assert_eq!(counted(&route, drained), 0, "nobody ends sessions for it");
    let cut = counted(&route, "podgres_route_cut_total{route=\"read_write\"}");
    // Some in the middle of their login.
    assert!(
        cut > 0 && Counts::get(&counts.refused) <= cut,
        "{cut} of {counts:?}"
    );

    demo.done(&["read-only", "on"]);
    assert!(wait_for(SOON, || route.on_standby(&demo, READ_WRITE)));
    demo.done(&["read-only", "off"]);
    assert!(wait_for(SOON, || !route.on_standby(&demo, READ_WRITE)));
    assert_eq!(route.stop(), Some(0));
}

/// A demo of so many pods with a fixed primary, a route beside it, and a client that connects in a loop.
fn beside(replicas: &str) -> (Demo, Beside, Looping) {
    let demo = Start::new(16).with(&["--replicas", replicas]).run();
    demo.wait_streaming(replicas.parse::<usize>().expect("a number") - 1);
    let route = Beside::without_password(&demo);
    let looping = Looping::start(quick(&demo, &route.config(&demo, READ_ONLY)));
    (demo, route, looping)
}

/// A session of the route on a server, which lasts.
fn serves(looping: &Looping, server: IpAddr, since: Instant) -> Duration {
    let first = looping.first("a member serves", since, |session| session.server == server);
    first.answered - since
}

#[test]
fn members_that_are_scaled_up_serve_soon_and_those_scaled_away_serve_nobody() {
    let (demo, route, looping) = beside("2");
    serves(&looping, address(&demo, 1), Instant::now());
    demo.ask(&["scale", "3"]);
    assert!(wait_for(PATIENCE * 3, || demo
        .get(2, "/readiness")
        .is_some_and(|(code, _)| code == 200)));
    let (ready, newest) = (Instant::now(), address(&demo, 2));
    let joined = serves(&looping, newest, ready);
    println!("joined {joined:?} after it was ready");
    assert!(joined < SOON, "{joined:?}");

    demo.ask(&["scale", "2"]);
    demo.wait_streaming(1);
    let gone = Instant::now();
    looping.wait_for_more(gone, 100);
    let met = looping.since(gone);
    assert!(
        met.iter().all(|session| session.server != newest),
        "it served when it had gone"
    );
    let known = || route.get("/readiness").expect("an answer").1;
    let forgotten = wait_for(PATIENCE, || !known().contains("demo-2"));
    assert!(forgotten && known().contains("demo-1"), "{}", known());
    looping.stop_cut();
    assert_eq!(route.stop(), Some(0));
}

#[test]
fn pods_that_moved_to_new_addresses_serve_there() {
    let (demo, route, looping) = beside("3");
    for ordinal in [1, 0] {
        let old = address(&demo, ordinal);
        demo.ask(&["delete-pod", &ordinal.to_string(), "--move-address"]);
        assert!(
            wait_for(PATIENCE, || address(&demo, ordinal) != old),
            "it has not moved"
        );
        assert!(wait_for(PATIENCE * 3, || demo
            .get(ordinal, "/readiness")
            .is_some_and(|(code, _)| code == 200)));
        let ready = Instant::now();
        if ordinal == 0 {
            let written = || writes(&demo, &route);
            assert!(wait_for(SOON, written), "{:?}", ready.elapsed());
        } else {
            let served = serves(&looping, address(&demo, ordinal), ready);
            assert!(served < SOON, "{served:?}");
        }
        let met = looping.since(ready);
        assert!(
            met.iter().all(|session| session.server != old),
            "at its old address"
        );
    }
    looping.stop_cut();
    assert_eq!(route.stop(), Some(0));
}

/// Whether a write through the route comes to its end.
fn writes(demo: &Demo, route: &Beside) -> bool {
    let config = route.config(demo, READ_WRITE);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(async {
        let Ok((client, connection)) = config.connect(NoTls).await else {
            return false;
        };
        tokio::spawn(connection);
        let written = client.batch_execute("CREATE TEMPORARY TABLE written (i int)");
        written.await.is_ok()
    })
}
