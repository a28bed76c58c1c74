//! Every wait ends, says for what it waited, and does not fill the log meanwhile.

use std::net::TcpListener;

use crate::hand::Pod;
use crate::network::Network;
use crate::plain::listing;

/// Runs an init that must give up: its log.
fn overdue(pod: &Pod) -> String {
    let (code, log) = pod.init();
    assert_eq!(code, 69, "{log}");
    assert!(listing(&pod.volume).is_empty(), "{log}");
    log
}

#[test]
fn row_80_a_standby_that_waits_gives_up_in_time_and_says_why() {
    let mut network = Network::silent(15);
    let mut standby = network.unnamed_pod(1);
    standby.set("PODGRES_INIT_TIMEOUT", "4s");
    let host = "pg-0.pg.default.svc.cluster.local";
    let log = overdue(&standby);
    let last = log.lines().last().expect("a line");
    assert!(last.contains("not ready in time") && last.contains(host), "{log}");

    network.answer();
    let log = overdue(&standby);
    let last = log.lines().last().expect("a line");
    assert!(last.contains(&format!("\"{host}\" does not exist yet")), "{log}");
    // It has asked several times and said so once.
    assert_eq!(log.matches("does not exist yet").count(), 2, "{log}");
    assert!(log.lines().count() < 8, "{log}");

    network.list(0);
    let log = overdue(&standby);
    let last = log.lines().last().expect("a line");
    assert!(last.contains("refused"), "{log}");
    assert!(log.lines().count() < 8, "{log}");
}

#[test]
fn row_80_a_first_ordinal_that_peers_leave_waiting_gives_up_in_time() {
    let mut network = Network::silent(15);
    let mut first = network.unnamed_pod(0);
    first.set("PODGRES_DISCOVERY_TIMEOUT", "2s");
    let log = overdue(&first);
    assert!(log.contains("DNS has not answered"), "{log}");
    assert!(log.lines().count() < 8, "{log}");

    // Something takes the connection and never speaks: it may be a peer with data.
    network.answer();
    network.list(1);
    let silent = TcpListener::bind((network.address(1), 8008)).expect("listener");
    let log = overdue(&first);
    assert!(log.contains("pg-1 has not answered"), "{log}");
    assert!(log.contains("hint: "), "{log}");
    assert!(log.lines().count() < 8, "{log}");
    drop(silent);
}
