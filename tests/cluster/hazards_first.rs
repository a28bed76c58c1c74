//! The first ordinal with an empty directory: it makes a cluster only where there is none, and completely.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::hand::Pod;
use crate::harness::{LIMIT, wait_for};
use crate::network::Network;
use crate::plain::{control_data, give_away, listing, names_in};

fn identifier(network: &Network, pod: &Pod) -> String {
    control_data(network, &pod.data_directory(), "Database system identifier")
}

fn lose_volume(pod: &Pod) {
    fs::remove_dir_all(pod.data_directory()).expect("PGDATA");
}

#[test]
fn row_63_an_empty_first_ordinal_refuses_while_a_peer_holds_data() {
    let mut network = Network::new(15);
    let mut first = network.pod(0);
    first.run();
    first.wait_ready();
    first.sql("CREATE TABLE t AS SELECT generate_series(1, 100) AS i");
    let mut standby = network.pod(1);
    standby.run();
    standby.wait_situation("streaming", "");
    let known = identifier(&network, &standby);

    // Its volume is lost while the standby runs.
    first.stop();
    lose_volume(&first);
    let (code, log) = first.init();
    assert_eq!(code, 65, "{log}");
    assert!(log.contains("pg-1") && log.contains(&known), "{log}");
    assert!(log.contains("PODGRES_NEW_CLUSTER"), "{log}");
    assert!(listing(&first.volume).is_empty(), "{log}");
    // Nobody was harmed, and reads go on.
    assert_eq!(standby.sql("SELECT count(*) FROM t"), "100");

    // The same when everything starts at once, with podManagementPolicy Parallel.
    standby.stop();
    let mut init = first.start("init");
    standby.run();
    assert_eq!(init.ended(LIMIT), Some(65), "{}", init.log());
    assert!(init.log().contains(&known), "{}", init.log());
    assert!(listing(&first.volume).is_empty());

    standby.stop();

    // Only the operator's word makes a new cluster; the standby then keeps what it has and refuses.
    let before = listing(&standby.volume);
    first.set("PODGRES_NEW_CLUSTER", "true");
    first.run();
    first.wait_ready();
    assert_ne!(identifier(&network, &first), known);
    let (code, log) = standby.init();
    assert_eq!(code, 65, "{log}");
    assert!(log.contains(&known), "{log}");
    assert_eq!(
        listing(&standby.volume),
        before,
        "the only copy of the data was touched"
    );
}

/// Two scripts that tell how far they are, and take long enough to be killed in.
fn scripts(network: &Network) -> (String, std::path::PathBuf) {
    let mark = network.path().join("marks");
    fs::create_dir(&mark).expect("folder");
    give_away(&mark);
    let text = mark.display();
    let shell = network.file(
        "scripts/1_shell.sh",
        &format!(
            "touch {text}/shell\npsql -v ON_ERROR_STOP=1 -U \"$POSTGRES_USER\" -d \"$POSTGRES_DB\" -c \
                  'CREATE TABLE shell AS SELECT 1 AS i'\nsleep 0.3\n"
        ),
    );
    network.file(
        "scripts/2_sql.sql",
        &format!("\\! touch {text}/sql\nCREATE TABLE sql AS SELECT 1 AS i;\nSELECT pg_sleep(0.3);\nINSERT INTO sql VALUES (2);\n"),
    );
    let folder = shell
        .parent()
        .expect("folder")
        .to_str()
        .expect("utf-8")
        .to_owned();
    (folder, mark)
}

/// When to kill.
enum At<'a> {
    Mark(&'a Path),
    Staged(u64),
    After(Duration),
}

impl At<'_> {
    fn reached(&self, pod: &Pod, begun: Instant) -> bool {
        match self {
            At::Mark(path) => path.exists(),
            At::Staged(bytes) => crate::plain::bytes_below(&pod.volume) > *bytes,
            At::After(time) => begun.elapsed() > *time,
        }
    }
}

#[test]
fn row_65_killed_anywhere_before_the_end_of_bootstrap_the_next_start_completes_it() {
    let mut network = Network::new(15);
    let (folder, marks) = scripts(&network);
    let mut first = network.pod(0);
    first.set("PODGRES_INITDB_SCRIPTS", &folder);
    first.set("POSTGRES_DB", "app");
    let begun = Instant::now();
    let (code, log) = first.init();
    assert_eq!(code, 0, "{log}");
    let whole = begun.elapsed();

    let (shell, sql) = (marks.join("shell"), marks.join("sql"));
    let mut points = vec![
        (At::Staged(0), Signal::KILL),
        (At::Staged(1 << 20), Signal::KILL),
        (At::Staged(20 << 20), Signal::TERM),
        (At::Mark(&shell), Signal::KILL),
        (At::Mark(&shell), Signal::TERM),
        (At::Mark(&sql), Signal::KILL),
    ];
    for signal in [Signal::KILL, Signal::TERM, Signal::KILL, Signal::TERM] {
        points.push((At::After(whole.mul_f64(fastrand::f64())), signal));
    }
    let mut complete = 0;
    lose_volume(&first);
    for (index, (at, signal)) in points.iter().enumerate() {
        for mark in [&shell, &sql] {
            fs::remove_file(mark).ok();
        }
        let mut init = first.start("init");
        let begun = Instant::now();
        let reached = wait_for(LIMIT, || at.reached(&first, begun) || !init.running());
        assert!(reached, "point {index} did not come\n{}", init.log());
        init.signal(*signal);
        let code = init.ended(LIMIT);
        assert_ne!(code, Some(65), "point {index}: {}", init.log());
        let directory = first.data_directory();
        if directory.join("global/pg_control").exists() {
            assert_eq!(
                control_data(&network, &directory, "Database cluster state"),
                "shut down"
            );
            assert_complete(&mut first);
            lose_volume(&first);
            complete += 1;
        } else {
            assert!(
                !directory.exists(),
                "point {index} left {:?}",
                listing(&directory).keys()
            );
        }
    }
    assert!(
        complete < points.len() / 2,
        "most kills came too late: {complete}"
    );
    assert_complete(&mut first);
}

/// The next start needs nobody's help, and nothing of the bootstrap is missing or there twice.
fn assert_complete(first: &mut Pod) {
    first.run();
    first.wait_ready();
    let found = first.sql(
        "SELECT (SELECT count(*) FROM pg_roles WHERE rolname = 'podgres_replication' AND rolreplication AND rolcanlogin),
                (SELECT count(*) FROM pg_database WHERE datname = 'app')",
    );
    assert_eq!(found, "1|1");
    let tables = first.sql_in(
        "app",
        "SELECT (SELECT count(*) FROM shell), (SELECT count(*) FROM sql)",
    );
    assert_eq!(tables, "1|2");
    first.stop();
    assert_eq!(names_in(&first.volume), ["pgdata"]);
}
