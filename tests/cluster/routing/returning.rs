//! Standbys that leave the read-only route and come back: at which limits, how soon, and with which share of the sessions.

use std::time::{Duration, Instant};

use podgres::demo::Target;

use super::clients::{Clients, Work, config_of};
use super::looped::{Looping, Session, address, quick};
use super::switched::Direct;
use crate::harness::{Demo, Start, wait_for};

/// What the routes promise.
const WITHIN: Duration = Duration::from_secs(1);
/// Of times that are measured one by one on a machine that is busy with other tests: most hold the promise, and none is far from it.
const WORST: Duration = Duration::from_secs(3);
const ROUNDS: usize = 5;
/// What an endpoint promises by default, and from where on a standby may return.
const MAX_STALENESS: Duration = Duration::from_secs(10);
const TO_RETURN: Duration = Duration::from_secs(5);
/// Who returns has its full share after so long.
const WARMING: Duration = Duration::from_secs(5);

fn delay(demo: &Demo, ordinal: &str, delay: &str) {
    let member = ["--member", ordinal];
    demo.sql(
        &member,
        &format!("ALTER SYSTEM SET recovery_min_apply_delay = '{delay}'"),
    );
    demo.sql(&member, "SELECT pg_reload_conf()");
    demo.wait_sql(&member, "SHOW recovery_min_apply_delay", delay);
}

fn share(of: &[Session], on: impl Fn(&Session) -> bool) -> f64 {
    let its = of.iter().filter(|session| on(session)).count();
    f64::from(u32::try_from(its).expect("few")) / f64::from(u32::try_from(of.len()).expect("few"))
}

#[test]
fn a_standby_leaves_at_one_limit_returns_at_another_and_gets_its_share_slowly() {
    let demo = Start::new(16).with(&["--replicas", "3"]).run();
    demo.wait_streaming(2);
    demo.sql(&[], "CREATE TABLE work (n int)");
    let writers = Clients::start(&demo.directory, Target::ReadWrite, Work::Write, 1);
    let looping = Looping::start(quick(&demo, &config_of(&demo, 0, Target::ReadOnly)));
    let (slow, other) = (address(&demo, 1), address(&demo, 2));
    let on_slow = |session: &Session| session.server == slow;
    looping.first("it serves at first", Instant::now(), on_slow);

    delay(&demo, "1", "7s");
    looping.first(
        "beyond the limit to return, a standby that is in stays",
        Instant::now(),
        |session| on_slow(session) && session.age > TO_RETURN + Duration::from_secs(1),
    );

    demo.sql(&["--member", "1"], "SELECT pg_wal_replay_pause()");
    let paused = Instant::now();
    let left = |since: Instant| wait_for(MAX_STALENESS, || since.elapsed() > MAX_STALENESS / 2);
    assert!(left(paused));
    let oldest = looping.since(paused).into_iter().filter(on_slow);
    let oldest = oldest.map(|session| session.age).max();
    // The route knows no age younger than it is.
    let at_the_limit = TO_RETURN + Duration::from_secs(3)..MAX_STALENESS + WITHIN;
    assert!(
        oldest.is_some_and(|oldest| at_the_limit.contains(&oldest)),
        "{oldest:?}"
    );

    demo.sql(&["--member", "1"], "SELECT pg_wal_replay_resume()");
    let lagging = "SELECT clock_timestamp() - pg_last_xact_replay_timestamp() < interval '9s'";
    demo.wait_sql(&["--member", "1"], lagging, "t");
    let within_the_limit = Instant::now();
    let met = looping.wait_for_more(within_the_limit, 200);
    assert!(
        met.iter().all(|session| session.server == other),
        "7 s are within the limit to stay, not within the one to return"
    );

    let told = Instant::now();
    delay(&demo, "1", "0");
    let back = looping.first("it comes back by itself", told, on_slow);
    assert!(back.age < TO_RETURN, "{:?}", back.age);
    let warm = back.began + WARMING;
    assert!(wait_for(WARMING * 2, || Instant::now() > warm));
    let both = looping.wait_for_more(warm, 200);
    let (early, late) = (looping.since(back.began), looping.since(warm));
    let first_ones = early
        .iter()
        .filter(|session| session.began < back.began + WITHIN * 2);
    let first_ones: Vec<Session> = first_ones.skip(1).copied().collect();
    let (at_first, in_the_end) = (share(&first_ones, on_slow), share(&late, on_slow));
    println!(
        "of {} sessions in the first two seconds {at_first:.2}, of {} later {in_the_end:.2}",
        first_ones.len(),
        both.len()
    );
    assert!(first_ones.len() >= 15, "too slow a machine: {}", first_ones.len());
    assert!(at_first < 0.4 && in_the_end > 0.35, "{at_first} {in_the_end}");
    looping.stop();
    writers.stop();
}

/// The median and the worst.
fn of_rounds(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() - 1])
}

#[test]
fn standbys_that_are_newly_fit_join_and_unfit_ones_leave_within_a_second() {
    let demo = Start::new(16)
        .with(&["--replicas", "2", "--set", "PODGRES_MAX_LAG=100kB"])
        .run();
    demo.wait_streaming(1);
    demo.sql(&[], "CREATE TABLE work (n int)");
    // Of the pod with the primary and of the other, which knows its own server.
    let routes = [0, 1].map(|ordinal| config_of(&demo, ordinal, Target::ReadOnly));
    let quick = quick(&demo, &routes[0]);
    let routes = routes.map(|route| {
        let mut one = route;
        one.user("quick")
            .password(quick.get_password().expect("a password"));
        Looping::start(one)
    });
    let [at_primary, at_standby] = ["demo-0", "demo-1"].map(|member| Direct::open(&demo, member));
    let standby = address(&demo, 1);
    let on_it = |session: &Session| session.server == standby;
    let (mut leaving, mut joining) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for route in &routes {
            route.first("it serves", Instant::now(), on_it);
        }
        demo.sql(&["--member", "1"], "SELECT pg_wal_replay_pause()");
        demo.wait_sql(
            &["--member", "1"],
            "SELECT pg_get_wal_replay_pause_state()",
            "paused",
        );
        let insert = "INSERT INTO work SELECT generate_series(1, 10000)";
        at_primary.execute(insert).expect("inserted");
        let unfit = Instant::now();
        for route in &routes {
            let elsewhere = route.first("another serves", unfit + WITHIN, |session| !on_it(session));
            let met = route.since(unfit).into_iter().filter(on_it);
            let last = met.map(|session| session.began).max().unwrap_or(unfit);
            assert!(last < elsewhere.began, "it came and went");
            leaving.push(last - unfit);
        }
        // All that it lacks lies on its disk, and is a few milliseconds' work.
        let fit = Instant::now();
        at_standby
            .execute("SELECT pg_wal_replay_resume()")
            .expect("resumed");
        for route in &routes {
            let back = route.first("it serves again", fit, on_it);
            joining.push(back.answered - fit);
        }
    }
    routes.into_iter().for_each(Looping::stop);
    let (left, joined) = (of_rounds(leaving), of_rounds(joining));
    println!("median and worst: left after {left:?}, joined after {joined:?}");
    assert!(left.0 < WITHIN && joined.0 < WITHIN, "{left:?} {joined:?}");
    assert!(left.1 < WORST && joined.1 < WORST, "{left:?} {joined:?}");
}
