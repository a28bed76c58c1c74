//! What must hold all the time, and what must hold once everything has healed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use podgres::demo::control::{DemoStatus, Reply, Request, request};
use podgres::demo::{DemoState, Target, dsn};
use serde_json::Value;
use tokio_postgres::{Config, NoTls};

use super::Stop;
use super::clients::Seen;
use crate::harness::{Demo, LIMIT, members, wait_for};

/// A container restarts about once for a fault; in a loop it would restart every few seconds.
const MOST_RESTARTS: u32 = 40;
/// Longer than the longest pause between two starts of a container.
const QUIET: Duration = Duration::from_secs(6);
const STANDBYS: [&str; 2] = ["1", "2"];

/// One primary, the first, and two standbys that stream.
pub(super) fn all_stream(status: &Value) -> bool {
    let found: BTreeMap<u64, String> = members(status)
        .iter()
        .filter_map(|member| Some((member["ordinal"].as_u64()?, member["state"].as_str()?.to_owned())))
        .collect();
    let expected = ["running", "streaming", "streaming"];
    found.len() == 3
        && (0..)
            .zip(expected)
            .all(|(ordinal, state)| found.get(&ordinal).is_some_and(|s| s == state))
}

/// Asks every server again and again, past the routes: whose data it has, and whether it takes writes.
pub(super) struct Watch {
    stop: Stop,
    thread: JoinHandle<(usize, Vec<String>)>,
}

impl Watch {
    pub(super) fn start(demo: &Demo, identifier: &str) -> Self {
        let stop = Stop::default();
        let (asked, directory, identifier) = (stop.clone(), demo.directory.clone(), identifier.to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        let thread = std::thread::spawn(move || {
            let (mut answers, mut wrong) = (0, Vec::new());
            while !asked.asked() {
                let state = DemoState::load(&directory).expect("demo.json").expect("a demo");
                for pod in &state.pods {
                    let url = dsn(&state, Target::Member(pod.ordinal)).expect("dsn");
                    let limit = Duration::from_secs(1);
                    let asked = async { tokio::time::timeout(limit, ask(&url)).await };
                    let Ok(Some((found, writable))) = runtime.block_on(asked) else {
                        continue;
                    };
                    answers += 1;
                    if found != identifier || (writable && pod.ordinal != state.first_ordinal) {
                        wrong.push(format!("{}: system {found}, writable: {writable}", pod.name));
                    }
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            (answers, wrong)
        });
        Self { stop, thread }
    }

    pub(super) fn stop(self) {
        self.stop.ask();
        let (answers, wrong) = self.thread.join().expect("watch");
        assert!(answers > 0, "no server ever answered");
        assert_eq!(wrong, Vec::<String>::new());
    }
}

/// The system identifier, and whether a table can be made.
async fn ask(url: &str) -> Option<(String, bool)> {
    let config: Config = url.parse().expect("dsn");
    let (client, connection) = config.connect(NoTls).await.ok()?;
    tokio::spawn(connection);
    let sql = "SELECT system_identifier::text FROM pg_control_system()";
    let rows = client.simple_query(sql).await.ok()?;
    let identifier = rows.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(ToOwned::to_owned),
        _ => None,
    })?;
    let made = client
        .simple_query("BEGIN; CREATE TABLE chaos_probe (); ROLLBACK")
        .await;
    Some((identifier, made.is_ok()))
}

/// Everything that must hold while nothing is wrong and nobody writes.
pub(super) fn all(demo: &Demo, seen: &Seen) {
    let wrong = seen.wrong.lock().expect("lock").clone();
    assert_eq!(wrong, Vec::<String>::new(), "NOT AS ACKNOWLEDGED");
    assert!(seen.worked(), "nothing was written, or nothing read");
    rows_are_everywhere(demo, seen);
    slots_are_the_members(demo);
    no_leftovers(demo);
    nothing_restarts(demo);
}

fn rows_are_everywhere(demo: &Demo, seen: &Seen) {
    let sql = "SELECT writer, string_agg(number::text, ',') FROM chaos GROUP BY writer";
    let rows = demo.sql(&["--member", "0"], sql);
    let kept: BTreeMap<i32, BTreeSet<i64>> = rows
        .lines()
        .filter_map(|line| line.split_once('|'))
        .map(|(writer, numbers)| {
            let numbers = numbers.split(',').map(|number| number.parse().expect("a number"));
            (writer.parse().expect("a number"), numbers.collect())
        })
        .collect();
    for (writer, acknowledged) in seen.acknowledged.lock().expect("lock").iter() {
        let none = BTreeSet::new();
        let kept = kept.get(writer).unwrap_or(&none);
        let lost: Vec<&i64> = acknowledged.difference(kept).collect();
        assert!(
            lost.is_empty(),
            "NOT AS ACKNOWLEDGED: writer {writer}: lost {lost:?}"
        );
    }
    let sum =
        "SELECT count(*), md5(string_agg(writer || '/' || number, ',' ORDER BY writer, number)) FROM chaos";
    let expected = demo.sql(&["--member", "0"], sum);
    for standby in STANDBYS {
        demo.wait_replayed("0", standby);
        let found = demo.sql(&["--member", standby], sum);
        assert_eq!(found, expected, "NOT AS ACKNOWLEDGED: on {standby}");
    }
}

fn slots_are_the_members(demo: &Demo) {
    let sql =
        "SELECT string_agg(slot_name || ' ' || active, ',' ORDER BY slot_name) FROM pg_replication_slots";
    demo.wait_sql(&["--member", "0"], sql, "podgres_demo_1 true,podgres_demo_2 true");
}

fn no_leftovers(demo: &Demo) {
    for pod in ["demo-0", "demo-1", "demo-2"] {
        let data = demo.data_directory(pod);
        let volume = data.parent().expect("a volume");
        let entries = || -> Vec<PathBuf> {
            let entries = std::fs::read_dir(volume).expect("volume");
            entries.map(|entry| entry.expect("entry").path()).collect()
        };
        // A large directory is deleted in the background.
        let alone = wait_for(LIMIT, || entries() == [data.clone()]);
        assert!(alone, "{pod}: {:?}", entries());
    }
}

fn nothing_restarts(demo: &Demo) {
    let before = restarts(demo);
    std::thread::sleep(QUIET);
    assert_eq!(
        restarts(demo),
        before,
        "containers restart though nothing is wrong"
    );
    for (pod, restarts) in before {
        for (container, times) in restarts {
            assert!(times < MOST_RESTARTS, "{pod} {container}: {times} restarts");
        }
    }
}

type Restarts = BTreeMap<String, Vec<(String, u32)>>;

fn restarts(demo: &Demo) -> Restarts {
    let pods = controller(demo).pods.into_iter().map(|pod| {
        let restarts = pod.restarts.into_iter();
        let named = restarts.map(|(container, times)| (container.to_string(), times));
        (format!("{} {}", pod.name, pod.uid), named.collect())
    });
    pods.collect()
}

pub(crate) fn controller(demo: &Demo) -> DemoStatus {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let reply = runtime
        .expect("runtime")
        .block_on(request(&demo.directory, &Request::Status));
    match reply.expect("the demo") {
        Reply::Status(status) => status,
        other => panic!("{other:?}"),
    }
}
