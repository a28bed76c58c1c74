//! Single containers beside a DNS server: what each waits for, how it ends, and the supervisor as process 1.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::hand::{Container, Pod};
use crate::harness::{LIMIT, wait_for};
use crate::kit::{count, family, signal};
use crate::network::Network;
use crate::plain::{Plain, control_data, listing, postgres_user};

const PRIMARY: &str = "pg-0.pg.default.svc.cluster.local";

/// Waits for words in the log of a container, which must go on running for a while then.
fn goes_on_waiting(container: &mut Container, words: &str) {
    assert!(
        wait_for(LIMIT, || container.log().contains(words)),
        "{}",
        container.log()
    );
    let ended = wait_for(Duration::from_millis(1500), || !container.running());
    assert!(!ended, "{}", container.log());
}

#[test]
fn row_12_init_on_pod_0_names_it_the_primary_and_waits_for_nobody() {
    let mut network = Network::new(16);
    let first = network.pod(0);
    let (code, log) = first.init();
    assert_eq!(code, 0, "{log}");
    assert_eq!(count(&log, "pg-0 will be the primary"), 1, "{log}");
    // With data there, there is nothing to do but to say so.
    let begun = Instant::now();
    let (code, log) = first.init();
    assert_eq!(code, 0, "{log}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(count(&log, "ready to start as primary"), 1, "{log}");
    assert_eq!(count(&log, "waiting"), 0, "{log}");
}

#[test]
fn row_13_and_79_init_on_a_standby_waits_on_dns_and_sees_a_new_name_at_once() {
    let mut network = Network::new(16);
    let mut first = network.unnamed_pod(0);
    first.run();
    first.wait_ready();
    let standby = network.unnamed_pod(1);
    let mut init = standby.start("init");
    goes_on_waiting(
        &mut init,
        &format!("host name \\\"{PRIMARY}\\\" does not exist yet"),
    );
    // Said once a reason ("asking", "does not exist"), not once a try.
    assert!(
        (1..=2).contains(&count(&init.log(), "standby waiting on DNS")),
        "{}",
        init.log()
    );
    // It has been told NXDOMAIN just now, to be kept for 5 s. It asks once a second all the same.
    let begun = Instant::now();
    network.list(0);
    assert!(
        wait_for(LIMIT, || init.log().contains("it is cloned")),
        "{}",
        init.log()
    );
    assert!(
        begun.elapsed() < Duration::from_millis(3500),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(init.ended(LIMIT), Some(0), "{}", init.log());
}

#[test]
fn row_14_init_on_a_standby_waits_until_the_primary_accepts_connections() {
    let mut network = Network::new(16);
    let mut first = network.pod(0);
    let standby = network.pod(1);
    let mut init = standby.start("init");
    goes_on_waiting(&mut init, "5432 was refused");
    assert!(listing(&standby.volume).is_empty());
    // Another member of the cluster is named and not there yet: asked for a while.
    first.set("PODGRES_DISCOVERY_TIMEOUT", "1s");
    first.run();
    first.wait_ready();
    assert_eq!(init.ended(LIMIT), Some(0), "{}", init.log());
}

/// A StatefulSet is updated from the highest ordinal down: pod 1 is new while pod 0 is still the old, single server.
#[test]
fn row_74_a_single_server_becomes_a_replicated_one_in_place() {
    let mut network = Network::new(16);
    let mut old = Plain::initdb(&network, &network.path().join("old"), 0);
    old.start();
    old.admit("host all all all scram-sha-256");
    old.sql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS i");
    let identifier = control_data(
        &network,
        &network.path().join("old"),
        "Database system identifier",
    );
    let mut first = network.pod(0);
    let mut standby = network.pod(1);
    let mut init = standby.start("init");
    // Neither a role nor a line in pg_hba.conf is there for it.
    goes_on_waiting(&mut init, "waiting_for_primary");
    assert!(listing(&standby.volume).is_empty(), "{}", init.log());
    assert_eq!(count(&init.log(), "initialising"), 0, "{}", init.log());

    old.stop();
    std::fs::rename(network.path().join("old"), first.data_directory()).expect("rename");
    first.run();
    first.wait_ready();
    assert_eq!(init.ended(LIMIT), Some(0), "{}", init.log());
    standby.run();
    standby.wait_ready();
    for pod in [&first, &standby] {
        assert_eq!(pod.sql("SELECT count(*) FROM kept"), "1000");
        let found = control_data(&network, &pod.data_directory(), "Database system identifier");
        assert_eq!(found, identifier);
    }
    let role = "SELECT rolcanlogin AND rolreplication FROM pg_roles WHERE rolname = 'podgres_replication'";
    assert_eq!(first.sql(role), "t");
}

/// `podgres postgres` as process 1 of a process namespace, as in a container.
fn start_as_process_1(network: &Network, pod: &Pod) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(pod.directory.join("postgres.log"))
        .expect("log");
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    match postgres_user() {
        Some((user, group)) => {
            let (user, group) = (format!("--reuid={user}"), format!("--regid={group}"));
            command.args(["setpriv", &user, &group, "--clear-groups"]);
        }
        None => {
            command.args(["--user", "--map-current-user"]);
        }
    }
    command
        .arg(network.path().join("podgres"))
        .arg("postgres")
        .env_clear()
        .envs(&pod.environment)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("log"))
        .stderr(log);
    command.spawn().expect("unshare")
}

#[test]
fn row_70_as_process_1_it_reaps_orphans_and_ends_cleanly_on_term() {
    let mut network = Network::new(16);
    let pod = network.pod(0);
    let (code, log) = pod.init();
    assert_eq!(code, 0, "{log}");
    let mut namespace = start_as_process_1(&network, &pod);
    let _sidecar = pod.start("sidecar");
    pod.wait_ready();
    assert_eq!(pod.status().expect("status")["pids"]["supervisor"], 1);
    let supervisor = family(namespace.id())
        .iter()
        .find(|one| one.parent == namespace.id())
        .expect("a supervisor")
        .pid;
    let orphans = || {
        let mut family = family(supervisor);
        family.retain(|one| one.parent == supervisor && one.name == "sleep");
        family
    };
    pod.sql("COPY (SELECT 1) TO PROGRAM 'sleep 4 & sleep 4 & sleep 4 &'");
    assert!(
        wait_for(Duration::from_secs(5), || orphans().len() == 3),
        "{:?}",
        orphans()
    );
    assert!(
        wait_for(LIMIT, || orphans().is_empty()),
        "not reaped: {:?}",
        orphans()
    );

    let begun = Instant::now();
    signal(supervisor, Signal::TERM);
    let ended = || namespace.try_wait().expect("wait").is_some();
    assert!(wait_for(LIMIT, ended), "{}", pod.logs());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(namespace.wait().expect("wait").code(), Some(0), "{}", pod.logs());
    let state = control_data(&network, &pod.data_directory(), "Database cluster state");
    assert_eq!(state, "shut down");
}
