//! The read-only switch: rows 37 to 42 and 78 of `docs/promises.md`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use podgres::core::member::Ordinal;
use podgres::demo::Target;
use rustix::process::Signal;
use tokio_postgres::NoTls;

use super::clients::{Clients, Counts, Work, begun_on, config, config_of, on_standby};
use super::{found_primary, leased, ordinal_of, primary};
use crate::api::Api;
use crate::harness::{Demo, Start, member, programs, wait_for};
use crate::kit::signal;

/// For all endpoints, from before the operator's command, the command itself included.
const ALL_FOLLOW: Duration = Duration::from_secs(1);
/// Of times that are measured one by one on a machine that is busy with other tests: most hold the promise, and none is far from it.
const WORST: Duration = Duration::from_secs(3);
const TURNS: usize = 5;
/// For the sessions that are there, which end between two transactions: some hundred milliseconds, and a second or two where 20 processes want two processors.
const LEFT: Duration = Duration::from_secs(2);
/// The default, after which they are cut.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(10);

/// What a new session on the read-write routes is told.
fn insert(demo: &Demo) -> Result<(), String> {
    let output = demo.try_sql(&[], "INSERT INTO work VALUES (7)");
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

const OTHERS: &str = "FROM pg_stat_activity WHERE datid > 0 AND pid <> pg_backend_pid() \
                      AND application_name NOT IN ('podgres', 'podgres_gate')";

/// Who has a session on a member beside the one that asks, as row 39 says: whatever has a database in `pg_stat_activity`. Left out are those of the
/// pod's own sidecar alone, by their names: it looks after the server, and is the other end of the commit gate.
fn others_on(demo: &Demo, member: &str) -> String {
    let listed = "string_agg(concat_ws(' ', backend_type, application_name, client_addr, query), chr(10))";
    let sql = format!("SELECT coalesce({listed}, '') {OTHERS}");
    demo.sql(&["--member", &ordinal_of(member)], &sql)
}

/// Whether new sessions on one pod's read-write route are on a standby.
fn writes_on_standby(demo: &Demo, ordinal: u32) -> Option<bool> {
    on_standby(&config_of(demo, ordinal, Target::ReadWrite))
}

/// Whether the pages of all members show the switch so.
fn pages_show(demo: &Demo, line: &str) -> bool {
    let shows = |ordinal| {
        let page = demo.get(ordinal, "/metrics");
        page.is_some_and(|(_, text)| text.lines().any(|found| found == line))
    };
    (0..3).all(shows)
}

/// From before the operator's command until every pod's route has begun a session where it belongs, by the servers' word (all on one clock).
fn all_endpoints_follow(demo: &Demo, turned: &str, began: SystemTime) -> Duration {
    let first = |ordinal: u32| {
        let config = config_of(demo, ordinal, Target::ReadWrite);
        let mut begun = None;
        wait_for(Duration::from_secs(5), || {
            begun = begun_on(&config, turned == "on");
            begun.is_some()
        });
        begun.unwrap_or_else(|| panic!("{turned}: pod {ordinal} does not follow"))
    };
    let followed = std::thread::scope(|scope| {
        let routes = [0, 1, 2].map(|ordinal| scope.spawn(move || first(ordinal)));
        routes.map(|route| route.join().expect("a route"))
    });
    let last = followed.into_iter().max().expect("three");
    last.duration_since(began).unwrap_or_default()
}

/// How long, from before the command, all endpoints take to follow the switch and the clients to leave the primary, on and off by turns.
fn turns(demo: &Demo, first: &str) -> [Vec<Duration>; 2] {
    let open = Direct::open(demo, first);
    let (mut followed, mut left) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        assert!(wait_for(PATIENCE, || open.others() > 0), "clients come back");
        let (began, clock) = (Instant::now(), SystemTime::now());
        let all_followed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let leaving = scope.spawn(|| {
                let mut last = began;
                loop {
                    let sure = all_followed.load(Ordering::Relaxed);
                    if open.others() > 0 {
                        last = Instant::now();
                        assert!(began.elapsed() < PATIENCE, "clients are on the primary");
                    } else if sure {
                        return last - began;
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
            demo.done(&["read-only", "on"]);
            followed.push(all_endpoints_follow(demo, "on", clock));
            all_followed.store(true, Ordering::Relaxed);
            left.push(leaving.join().expect("no panic"));
        });
        let clock = SystemTime::now();
        demo.done(&["read-only", "off"]);
        followed.push(all_endpoints_follow(demo, "off", clock));
    }
    [followed, left]
}

/// Gives what [`turns`] does.
fn there_and_back(demo: &Demo) -> [Vec<Duration>; 2] {
    let status = demo.wait_streaming(2);
    let first = primary(&status);
    demo.sql(&[], "CREATE TABLE work (n int)");
    insert(demo).expect("row 37: by default clients can add items");
    assert!(pages_show(demo, "podgres_read_only 0"), "before the switch");
    let writers = Clients::start(&demo.directory, Target::ReadWrite, Work::Write, 4);
    let readers = Clients::start(&demo.directory, Target::ReadWrite, Work::Read, 4);
    let by_standbys =
        || (0..3).all(|ordinal| on_standby(&config_of(demo, ordinal, Target::ReadOnly)) == Some(true));
    assert!(
        wait_for(Duration::from_secs(10), by_standbys),
        "freshness is known"
    );
    let undisturbed = Clients::start(&demo.directory, Target::ReadOnly, Work::Read, 2);
    undisturbed.wait_for_more(20);
    writers.wait_for_more(20);
    assert_ne!(others_on(demo, &first), "");

    let [mut followed, mut leaving] = turns(demo, &first);
    followed.sort();
    leaving.sort();
    assert!(
        followed[TURNS] < ALL_FOLLOW && followed[2 * TURNS - 1] < WORST,
        "{followed:?}"
    );
    assert!(
        leaving[TURNS / 2] < LEFT && leaving[TURNS - 1] < DRAIN_TIMEOUT,
        "{leaving:?}"
    );
    writers.wait_for_more(20);
    demo.done(&["read-only", "on", "--reason", "a migration"]);
    let left = wait_for(Duration::from_secs(5), || others_on(demo, &first).is_empty());
    assert!(left, "row 39: on the primary are\n{}", others_on(demo, &first));
    let refused = insert(demo).expect_err("row 38: writing is disabled");
    assert!(refused.contains("25006"), "row 78: {refused}");
    assert!(
        demo.sql(&[], "SELECT count(*) FROM work WHERE n = 7") == "1",
        "row 38: old items"
    );
    assert_eq!(demo.sql(&[], "SELECT pg_is_in_recovery()"), "t");
    readers.wait_for_more(50);
    let status = demo.wait("the switch in the status", |status| status["read_only"] == true);
    assert!(
        wait_for(Duration::from_secs(5), || pages_show(demo, "podgres_read_only 1")),
        "switched on"
    );
    assert_eq!(status["read_only_switch"]["reason"], "a migration");
    assert!(
        status["read_only_switch"]["by"]
            .as_str()
            .is_some_and(|by| by.contains('@'))
    );
    let standbys = ["demo-0", "demo-1", "demo-2"]
        .into_iter()
        .filter(|name| *name != first);
    let seen = standbys
        .map(|name| others_on(demo, name))
        .filter(|others| !others.is_empty());
    assert!(seen.count() > 0, "row 40: client sessions are on the standbys");

    demo.done(&["read-only", "off"]);
    let writable = wait_for(Duration::from_secs(5), || insert(demo).is_ok());
    assert!(writable, "row 42: {:?}", insert(demo));
    let off_shown = || pages_show(demo, "podgres_read_only 0");
    assert!(wait_for(Duration::from_secs(5), off_shown), "switched off");
    writers.wait_for_more(20);
    let (writers, readers) = (writers.stop(), readers.stop());
    assert!(Counts::get(&writers.read_only) > 0, "{writers:?}");
    writers.assert_moved();
    readers.assert_moved();
    assert_eq!(Counts::get(&readers.read_only), 0, "row 41: {readers:?}");
    let undisturbed = undisturbed.stop();
    undisturbed.assert_moved();
    assert_eq!(Counts::get(&undisturbed.between), 0, "row 41: {undisturbed:?}");
    [followed, leaving]
}

#[test]
fn row_37_to_42_the_switch_with_a_fixed_primary() {
    let mut demo = Start::new(16).with(&["--replicas", "3"]).run();
    let [followed, left] = there_and_back(&demo);
    println!("all followed {followed:?}, the primary was left {left:?} after the command began");
    // It outlives the pod that was asked, and the primary.
    demo.done(&["read-only", "on"]);
    assert_eq!(
        insert_at(&demo, "demo-0"),
        Ok(()),
        "whoever connects directly is not concerned by default"
    );
    demo.ask(&["delete-pod", "1", "--force"]);
    demo.wait("pod 1 again, and read-only", |status| {
        member(status, "demo-1")["state"] == "streaming" && status["read_only"] == true
    });
    demo.done(&["read-only", "off"]);
    turned_on_while_the_primary_is_dead(&demo);
    let demo = all_pods_anew_forgot_the_switch(&mut demo);
    demo.done(&["read-only", "off"]);
    let writable = wait_for(Duration::from_secs(10), || insert(&demo).is_ok());
    assert!(writable, "{:?}", insert(&demo));
}

fn turned_on_while_the_primary_is_dead(demo: &Demo) {
    demo.ask(&["freeze", "0"]);
    demo.done(&["read-only", "on", "--reason", "the primary is frozen"]);
    let served = || {
        [1, 2]
            .iter()
            .all(|ordinal| writes_on_standby(demo, *ordinal) == Some(true))
    };
    assert!(
        wait_for(Duration::from_secs(15), served),
        "reads without a primary"
    );
    demo.ask(&["thaw", "0"]);
    demo.wait_streaming(2);
    let heard = wait_for(Duration::from_secs(10), || {
        writes_on_standby(demo, 0) == Some(true)
    });
    assert!(heard, "who was frozen meanwhile hears of it");
    let refused = insert(demo).expect_err("the primary is back, and the switch is on");
    assert!(refused.contains("25006"), "{refused}");
}

/// It was kept where it goes with the pods, and all of them had gone.
fn all_pods_anew_forgot_the_switch(demo: &mut Demo) -> Demo {
    assert_eq!(demo.stop(), Some(0));
    let again = Start::new(16).with(&["--replicas", "3"]).run_in(&demo.directory);
    let status = again.wait_streaming(2);
    assert_eq!(status["read_only"], true, "{status}");
    let refused = insert(&again).expect_err("still switched to read-only");
    assert!(refused.contains("25006"), "{refused}");
    again
}

#[test]
fn row_37_to_42_the_switch_with_a_lease() {
    let demo = leased(&["--set", "PODGRES_READ_ONLY_DEFAULT=on"]);
    let [followed, left] = there_and_back(&demo);
    println!("all followed {followed:?}, the primary was left {left:?} after the command began");
    direct_sessions_follow(&demo);
}

/// It cannot know what was acknowledged, and takes over from nobody. Reads ended with its WAL receiver: nobody bore witness that the primary was lost.
#[test]
fn the_last_of_three_members_served_nobody_behind_the_switch() {
    let demo = leased(&[]);
    demo.sql(&[], "CREATE TABLE work (n int)");
    insert(&demo).expect("a write");
    let first: u32 = ordinal_of(&primary(&demo.wait_streaming(2)))
        .parse()
        .expect("an ordinal");
    let (frozen, left) = ([first, (first + 1) % 3], (first + 2) % 3);
    for ordinal in frozen {
        demo.ask(&["freeze", &ordinal.to_string()]);
    }
    demo.done(&["read-only", "on", "--reason", "two of three are gone"]);
    let route = config_of(&demo, left, Target::ReadWrite);
    let on_itself = || on_standby(&route) == Some(true);
    assert!(
        wait_for(Duration::from_secs(20), on_itself),
        "nobody serves reads"
    );
    let began = Instant::now();
    // Longer than the WAL receiver waits for a word, and than the age that a read-only endpoint allows.
    while began.elapsed() < Duration::from_secs(12) {
        assert_eq!(on_standby(&route), Some(true), "after {:?}", began.elapsed());
        assert_eq!(insert_through(&route), Err("25006".to_owned()));
    }
    for ordinal in frozen {
        demo.ask(&["thaw", &ordinal.to_string()]);
    }
    let all = |standby| (0..3).all(|ordinal| writes_on_standby(&demo, ordinal) == Some(standby));
    demo.wait_streaming(2);
    assert!(
        wait_for(Duration::from_secs(15), || all(true)),
        "who was frozen hears of it"
    );
    demo.done(&["read-only", "off"]);
    assert!(wait_for(Duration::from_secs(15), || all(false)), "and of the end");
    insert(&demo).expect("a write again");
}

/// What a new session with this configuration is told: the SQLSTATE of a refusal.
fn insert_through(config: &tokio_postgres::Config) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(async {
        let told = |error: tokio_postgres::Error| {
            let code = error.code().map(|code| code.code().to_owned());
            code.unwrap_or_else(|| error.to_string())
        };
        let (client, connection) = config.connect(NoTls).await.map_err(told)?;
        tokio::spawn(connection);
        client
            .batch_execute("INSERT INTO work VALUES (7)")
            .await
            .map_err(told)
    })
}

const DIRECT: &str = "INSERT INTO work VALUES (9)";

/// What a new session with that server itself is told.
fn insert_at(demo: &Demo, member: &str) -> Result<(), String> {
    let output = demo.try_sql(&["--member", &ordinal_of(member)], DIRECT);
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// One session with a server itself, kept open.
pub(super) struct Direct {
    runtime: tokio::runtime::Runtime,
    client: tokio_postgres::Client,
}

impl Direct {
    pub(super) fn open(demo: &Demo, member: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("runtime");
        let ordinal = Ordinal(ordinal_of(member).parse().expect("an ordinal"));
        let config = config(&demo.directory, Target::Member(ordinal));
        let client = runtime.block_on(async {
            let (client, connection) = config.connect(NoTls).await.expect("a direct session");
            tokio::spawn(connection);
            client
        });
        Self { runtime, client }
    }

    /// How many have a session on its server beside it: see [`others_on`].
    fn others(&self) -> i64 {
        let sql = format!("SELECT count(*) {OTHERS}");
        let row = self.runtime.block_on(self.client.query_one(&sql, &[]));
        row.expect("a row").get(0)
    }

    fn insert(&self) -> Result<(), String> {
        self.execute(DIRECT)
    }

    /// The SQLSTATE of what was refused.
    pub(super) fn execute(&self, sql: &str) -> Result<(), String> {
        let done = self.runtime.block_on(self.client.batch_execute(sql));
        done.map_err(|error| {
            error
                .code()
                .map_or(error.to_string(), |code| code.code().to_owned())
        })
    }
}

/// With `PODGRES_READ_ONLY_DEFAULT=on`, through a failover, and back.
fn direct_sessions_follow(demo: &Demo) {
    let first = primary(&demo.wait_streaming(2));
    let open = Direct::open(demo, &first);
    open.insert().expect("a write while the switch is off");
    demo.done(&["read-only", "on", "--reason", "an upgrade"]);
    let refused = wait_for(Duration::from_secs(3), || {
        open.insert() == Err("25006".to_owned())
    });
    assert!(refused, "a session that was open before: {:?}", open.insert());
    let new = insert_at(demo, &first).expect_err("a new session");
    assert!(new.contains("25006"), "{new}");
    let at_first = ["--member", &ordinal_of(&first)];
    open.execute("SET default_transaction_read_only = off")
        .expect("a default is no lock");
    open.insert().expect("a session may say otherwise");
    let dump = std::process::Command::new(programs(16).join("pg_dump"))
        .args(["--table", "work", &demo.ask(&["dsn", at_first[0], at_first[1]])])
        .output()
        .expect("pg_dump");
    assert!(dump.status.success(), "{dump:?}");
    demo.wait("the default in the status", |status| {
        status["read_only_default"] == true
    });
    let explained = demo.done(&["explain"]);
    assert!(
        explained
            .contains("an upgrade; routed clients are off the primary, direct sessions begin read-only too")
    );

    demo.ask(&["delete-pod", at_first[1], "--force"]);
    let others = ["demo-0", "demo-1", "demo-2"]
        .into_iter()
        .filter(|name| *name != first);
    let others: Vec<&str> = others.collect();
    demo.wait("another primary", |status| {
        for other in &others {
            assert_ne!(insert_at(demo, other), Ok(()), "the new primary took a write");
        }
        found_primary(status).is_some_and(|name| name != first)
    });
    let second = primary(&demo.wait_streaming(2));
    let refused = insert_at(demo, &second).expect_err("still switched to read-only");
    assert!(refused.contains("25006"), "{refused}");
    assert_eq!(
        demo.sql(&["--member", &ordinal_of(&second)], "SELECT pg_is_in_recovery()"),
        "f"
    );

    let open = Direct::open(demo, &second);
    demo.done(&["read-only", "off"]);
    let writable = wait_for(Duration::from_secs(3), || open.insert().is_ok());
    assert!(writable, "{:?}", open.insert());
    assert_eq!(insert_at(demo, &second), Ok(()));
    let setting = "SELECT source FROM pg_settings WHERE name = 'default_transaction_read_only'";
    assert_eq!(
        demo.sql(&["--member", &ordinal_of(&second)], setting),
        "default",
        "nothing is left behind"
    );
}

/// Each turn is told once, by one member, though all follow it and the one that tells begins anew in between.
#[test]
fn a_turn_of_the_switch_is_one_event_that_says_who_and_why() {
    let demo = leased(&["--set", "PODGRES_EMIT_EVENTS=true"]);
    let api = Api::of(&demo);
    let told = |reason: &str| {
        let events = api.ask("GET", "events.k8s.io/v1/events", None);
        let events = events["items"].as_array().expect("a list").clone();
        let notes = events.into_iter().filter(|event| event["reason"] == reason);
        notes
            .map(|event| {
                (
                    event["type"].clone(),
                    event["note"].as_str().expect("a note").to_owned(),
                )
            })
            .collect::<Vec<_>>()
    };
    demo.done(&["read-only", "on", "--reason", "a migration"]);
    let switch = demo.status().expect("a status")["read_only_switch"].clone();
    let (by, at) = (switch["by"].as_str(), switch["at"].as_str());
    let note = format!(
        "{} has switched the cluster to read-only at {}: a migration",
        by.expect("who"),
        at.expect("when")
    );
    assert!(wait_for(Duration::from_secs(5), || !told("ReadOnlySwitchOn").is_empty()));
    let first = primary(&demo.status().expect("a status"));
    let before = demo.pid(&first, "sidecar");
    signal(before, Signal::KILL);
    demo.wait("another sidecar", |status| {
        let pid = member(status, &first)["pids"]["sidecar"].as_u64();
        pid.is_some_and(|pid| pid != u64::from(before)) && found_primary(status).is_some()
    });
    demo.wait_streaming(2);
    demo.done(&["read-only", "off"]);
    assert!(wait_for(Duration::from_secs(5), || !told("ReadOnlySwitchOff").is_empty()));
    assert_eq!(told("ReadOnlySwitchOn"), [("Warning".into(), note)]);
    let off = told("ReadOnlySwitchOff");
    assert_eq!(off.len(), 1, "{off:?}");
    assert_eq!(off[0].0, "Normal");
    assert!(off[0].1.contains(by.expect("who")), "{off:?}");
}

/// Its client was cut, and the server went on, and committed half a minute after the switch.
#[test]
fn a_long_write_outlived_the_switch_and_its_drain() {
    let demo = leased(&["--set", "PODGRES_DRAIN_TIMEOUT=1s"]);
    let first = primary(&demo.wait_streaming(2));
    demo.sql(&[], "CREATE TABLE work (n int)");
    let long = std::thread::scope(|scope| {
        let writer = scope.spawn(|| demo.try_sql(&[], "INSERT INTO work SELECT 4242 FROM pg_sleep(20)"));
        let begun = wait_for(Duration::from_secs(10), || {
            others_on(&demo, &first).contains("INSERT INTO work")
        });
        assert!(begun, "{}", others_on(&demo, &first));
        demo.done(&["read-only", "on"]);
        let left = wait_for(Duration::from_secs(5), || others_on(&demo, &first).is_empty());
        assert!(left, "on the primary are\n{}", others_on(&demo, &first));
        writer.join().expect("the writer")
    });
    assert!(!long.status.success(), "{long:?}");
    let rows = demo.sql(
        &["--member", &ordinal_of(&first)],
        "SELECT count(*) FROM work WHERE n = 4242",
    );
    assert_eq!(rows, "0");
}
