//! A standby ordinal and the data directories that it must not make, touch or start writable.

use std::fs;
use std::time::Duration;

use crate::hand::Pod;
use crate::harness::{LIMIT, wait_for};
use crate::network::{Network, PASSWORD};
use crate::plain::{Plain, as_postgres, control_data, give_away, listing, run};

/// Nothing at all: not even an empty PGDATA or a staging directory.
fn assert_untouched(pod: &Pod) {
    let found = listing(&pod.volume);
    assert!(found.is_empty(), "{} holds {found:?}\n{}", pod.name, pod.logs());
}

#[test]
fn row_62_standby_never_runs_initdb_whatever_keeps_it_from_the_primary() {
    let mut network = Network::silent(15);
    let standby = network.unnamed_pod(1);
    let mut init = standby.start("init");
    standby.wait_situation("waiting_for_name", "pg-0.pg.default.svc.cluster.local");
    assert_untouched(&standby);

    // Row 79: names that did not exist are asked for again; nothing here remembers that.
    network.answer();
    standby.wait_situation("waiting_for_name", "does not exist yet");
    assert_untouched(&standby);
    network.list(0);
    standby.wait_situation("waiting_for_primary", "refused");
    assert_untouched(&standby);

    let mut primary = Plain::initdb(&network, &network.path().join("plain"), 0);
    // Before the start, since the standby is quick to ask.
    primary.admit("host replication all all reject");
    primary.start();
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 100) AS i");
    standby.wait_situation(
        "waiting_for_primary",
        "pg_hba.conf rejects replication connection",
    );
    assert_untouched(&standby);
    primary.admit("host replication all all trust");
    standby.wait_situation(
        "waiting_for_primary",
        "role \"podgres_replication\" does not exist",
    );
    assert_untouched(&standby);
    primary.sql("CREATE ROLE podgres_replication LOGIN REPLICATION PASSWORD 'another'");
    primary.admit("host replication all all scram-sha-256");
    standby.wait_situation("waiting_for_primary", "password authentication failed");
    assert_untouched(&standby);
    assert!(init.running(), "init gave up:\n{}", init.log());

    primary.sql(&format!("ALTER ROLE podgres_replication PASSWORD '{PASSWORD}'"));
    assert_eq!(init.ended(LIMIT), Some(0), "{}", init.log());
    let log = init.log();
    assert!(!log.contains("initialising"), "initdb ran:\n{log}");
    for reason in [
        "does not exist yet",
        "was refused",
        "pg_hba.conf rejects",
        "role \\\"podgres_replication\\\" does not exist",
        "password authentication failed",
    ] {
        assert_eq!(
            log.matches(reason).count(),
            1,
            "lines about \"{reason}\" in\n{log}"
        );
    }
    let identifier = |directory| control_data(&network, directory, "Database system identifier");
    assert_eq!(
        identifier(&standby.data_directory()),
        identifier(&network.path().join("plain"))
    );
}

#[test]
fn row_66_a_foreign_data_directory_is_refused_and_left_alone() {
    let mut network = Network::new(16);
    let mut primary = network.pod(0);
    let standby = network.unnamed_pod(1);
    let directory = standby.data_directory();
    drop(Plain::initdb(&network, &directory, 1));
    fs::write(directory.join("standby.signal"), "").expect("standby.signal");
    give_away(&directory.join("standby.signal"));
    primary.run();
    primary.wait_ready();
    let before = listing(&standby.volume);

    let (code, log) = standby.init();
    assert_eq!(code, 65, "{log}");
    let identifier = |directory| control_data(&network, directory, "Database system identifier");
    for found in [identifier(&directory), identifier(&primary.data_directory())] {
        assert!(log.contains(&found), "{found} is not named in\n{log}");
    }
    assert!(log.contains("hint: "), "{log}");
    assert_eq!(listing(&standby.volume), before, "the directory was touched");
}

#[test]
fn row_66_a_foreign_directory_found_out_late_is_stopped_and_never_writable() {
    let mut network = Network::new(15);
    let mut standby = network.pod(1);
    let mut primary = network.pod(0);
    let directory = standby.data_directory();
    drop(Plain::initdb(&network, &directory, 1));
    fs::write(directory.join("standby.signal"), "").expect("standby.signal");
    give_away(&directory.join("standby.signal"));
    // Nobody contradicts it while the primary is away: it serves what it has, read-only.
    standby.run();
    standby.wait_situation("primary_unreachable", "");
    assert_eq!(standby.sql("SELECT pg_is_in_recovery()"), "t");
    assert!(standby.get("/readiness").is_some_and(|(code, _)| code == 503));

    drop(Plain::initdb(&network, &primary.data_directory(), 0));
    primary.run();
    primary.wait_ready();
    standby.wait_situation("foreign_data_directory", "system identifier");
    let stopped = || standby.status().is_some_and(|me| me["state"] == "stopped");
    assert!(wait_for(LIMIT, stopped), "{}", standby.logs());
    let state = control_data(&network, &directory, "Database cluster state");
    assert_eq!(state, "shut down in recovery");
}

/// A base backup of the primary at PGDATA, as made by hand without `-R`: no standby.signal.
fn copy_by_hand(network: &Network, primary: &Pod, standby: &Pod) {
    let mut basebackup = as_postgres(&network.program("pg_basebackup"));
    basebackup
        .args(["-U", "postgres", "--checkpoint=fast", "--no-sync", "-h"])
        .arg(primary.address.to_string())
        .arg("-D")
        .arg(standby.data_directory())
        .env("PGPASSWORD", PASSWORD);
    run(&mut basebackup);
}

#[test]
fn row_67_a_copy_without_standby_signal_on_a_standby_ordinal_is_a_standby() {
    let mut network = Network::new(15);
    let mut primary = network.pod(0);
    let configuration = network.file(
        "configuration/pg_hba.conf",
        "host replication postgres all scram-sha-256\n",
    );
    let configuration = configuration
        .parent()
        .expect("folder")
        .to_str()
        .expect("utf-8")
        .to_owned();
    primary.set("PODGRES_CONFIGURATION_DIR", &configuration);
    primary.run();
    primary.wait_ready();
    primary.sql("CREATE TABLE t AS SELECT 1 AS i");

    let mut standby = network.pod(1);
    copy_by_hand(&network, &primary, &standby);
    assert!(!standby.data_directory().join("standby.signal").exists());
    // What `-R` leaves in the data directory where the password came from the environment.
    let settings = standby.data_directory().join("postgresql.auto.conf");
    fs::write(&settings, "primary_conninfo = 'host=nowhere password=hunter2'\n").expect("settings");
    standby.run();
    standby.wait_situation("streaming", "");
    assert_eq!(standby.sql("SELECT pg_is_in_recovery(), count(*) FROM t"), "t|1");
    let settings = fs::read_to_string(&settings).expect("settings");
    assert!(!settings.contains("hunter2"), "{settings}");
    standby.stop();

    // The same with a directory that has run as a standby.
    fs::remove_file(standby.data_directory().join("standby.signal")).expect("standby.signal");
    standby.run();
    standby.wait_situation("streaming", "");
    assert_eq!(standby.sql("SELECT pg_is_in_recovery()"), "t");
}

#[test]
fn row_67_a_directory_that_was_writable_is_never_started_on_a_standby_ordinal() {
    let mut network = Network::new(18);
    let standby = network.pod(1);
    let mut earlier = Plain::initdb(&network, &standby.data_directory(), 1);
    earlier.start();
    earlier.sql("CREATE TABLE only_here AS SELECT 1 AS i");
    earlier.stop();
    let before = listing(&standby.volume);
    // With the primary away, so that no identifier speaks against it.
    let (code, log) = standby.init();
    assert_eq!(code, 65, "{log}");
    assert!(log.contains("last used by a primary"), "{log}");
    assert!(log.contains("no standby.signal"), "{log}");
    assert_eq!(listing(&standby.volume), before, "the directory was touched");

    // Nor do the other containers start it, should they run.
    let mut sidecar = standby.start("sidecar");
    let mut supervisor = standby.start("postgres");
    standby.wait_situation("was_writable", "no standby.signal");
    std::thread::sleep(Duration::from_millis(500));
    assert!(sidecar.running() && supervisor.running());
    assert!(!standby.data_directory().join("postmaster.pid").exists());
    assert_eq!(listing(&standby.volume), before, "the directory was touched");
}
