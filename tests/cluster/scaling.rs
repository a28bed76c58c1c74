//! `podgres demo scale`: the only thing that an operator does for another replica.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::harness::{Start, member, members};
use crate::kit::{answer, count, psql};

const ROWS: &str = "SELECT count(*) FROM items";

#[test]
fn row_25_27_28_and_45_scaling_alone_adds_standbys_with_all_data_that_serve_reads() {
    let demo = Start::new(16).with(&["--replicas", "1"]).run();
    demo.wait_streaming(0);
    demo.sql(&[], "CREATE TABLE items AS SELECT generate_series(1, 5000) AS i");
    let dsn = demo.route("demo-0", "read_only_port");
    let served = || answer(&psql(&dsn, "SELECT inet_server_addr()"));
    let primary = served();
    for replicas in 2..=3 {
        demo.ask(&["scale", &replicas.to_string()]);
        let status = demo.wait_streaming(replicas - 1);
        let newest = format!("{}", replicas - 1);
        let pod = format!("demo-{newest}");
        crate::smoke::ends_as_a_standby(&demo.log(&pod, "postgres"));
        assert_eq!(demo.sql(&["--member", &newest], ROWS), "5000");
        let standbys: BTreeSet<String> = members(&status)
            .iter()
            .filter(|member| member["role"] == "standby")
            .map(|member| member["host"].as_str().expect("host").to_owned())
            .collect();
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut met = BTreeSet::new();
        while met != standbys {
            assert!(
                Instant::now() < deadline,
                "only {met:?} of {standbys:?} serve reads"
            );
            let server = served();
            // Until the route has heard of the first standby.
            if server != primary {
                met.insert(server);
            }
        }
    }
    let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    assert_eq!(demo.sql(&["--member", "0"], streaming), "2");
}

#[test]
fn row_29_scaled_down_and_up_again_a_standby_joins_with_its_old_volume() {
    let demo = Start::new(16).run();
    demo.wait_streaming(2);
    demo.sql(&[], "CREATE TABLE items AS SELECT generate_series(1, 1000) AS i");
    demo.wait_replayed("0", "1");
    demo.wait_replayed("0", "2");
    demo.ask(&["scale", "1"]);
    // From the highest, one after the other.
    let seen = std::cell::RefCell::new(BTreeSet::new());
    demo.wait("one member", |status| {
        let names = members(status)
            .iter()
            .filter(|member| member["state"] == "streaming" || member["state"] == "running");
        let names: Vec<String> = names.map(|member| member["name"].to_string()).collect();
        seen.borrow_mut().insert(names);
        members(status).len() == 1
    });
    let impossible = vec!["\"demo-0\"".to_owned(), "\"demo-2\"".to_owned()];
    assert!(!seen.borrow().contains(&impossible), "demo-1 went before demo-2");
    for pod in ["demo-1", "demo-2"] {
        assert!(
            demo.data_directory(pod).join("PG_VERSION").exists(),
            "row 33: {pod}"
        );
    }
    demo.sql(&[], "INSERT INTO items VALUES (1001)");
    demo.ask(&["scale", "3"]);
    let status = demo.wait_streaming(2);
    for ordinal in ["1", "2"] {
        let pod = format!("demo-{ordinal}");
        demo.wait_sql(&["--member", ordinal], ROWS, "1001");
        assert_eq!(
            count(&demo.log(&pod, "init"), "\"message\":\"cloning\""),
            1,
            "{pod}"
        );
        assert_eq!(member(&status, &pod)["clones_total"], 0);
    }
}

#[test]
fn row_75_pods_that_start_all_together_converge_to_one_primary() {
    let demo = Start::new(16).with(&["--pod-management", "Parallel"]).run();
    let status = demo.wait_streaming(2);
    assert_eq!(member(&status, "demo-0")["role"], "primary");
    let first_line = |pod: &str| {
        let log = demo.log(pod, "init");
        let (_, rest) = log.split_once("\"timestamp\":\"").expect("a timestamp");
        rest.split_once('"').expect("its end").0.to_owned()
    };
    let log = demo.log("demo-0", "init");
    let done = log
        .lines()
        .find(|line| line.contains("init is done"))
        .expect("init is done");
    for pod in ["demo-1", "demo-2"] {
        let began = first_line(pod);
        assert!(
            done.contains(&first_line("demo-0")) || began.as_str() < &done[14..],
            "{pod} came after demo-0"
        );
        let log = demo.log(pod, "init");
        assert_eq!(count(&log, "initialising"), 0, "{log}");
        assert_eq!(count(&log, "\"message\":\"cloning\""), 1, "{log}");
    }
    let identifier = |pod: &str| demo.control_data(pod)["Database system identifier"].clone();
    assert_eq!(identifier("demo-1"), identifier("demo-0"));
    assert_eq!(identifier("demo-2"), identifier("demo-0"));
}

/// The longest names that Kubernetes lets be, and nothing at its default.
#[test]
fn row_72_any_namespace_domain_service_first_ordinal_and_names_of_63_letters() {
    let cluster = format!("a-1-{}", "b".repeat(57));
    let service = format!("s{}", "v".repeat(62));
    let namespace = format!("n{}", "s".repeat(62));
    let demo = Start::new(16)
        .with(&[
            "--replicas",
            "2",
            "--first-ordinal",
            "7",
            "--cluster-domain",
            "k8s.example",
        ])
        .with(&[
            "--cluster",
            &cluster,
            "--service",
            &service,
            "--namespace",
            &namespace,
        ])
        .run();
    let status = demo.wait_streaming(1);
    let (primary, standby) = (format!("{cluster}-7"), format!("{cluster}-8"));
    assert_eq!(primary.len(), 63);
    assert_eq!(member(&status, &primary)["role"], "primary");
    assert_eq!(member(&status, &standby)["role"], "standby");
    demo.sql(&[], "CREATE TABLE t AS SELECT 1 AS i");
    demo.wait_sql(&["--member", "8"], "SELECT count(*) FROM t", "1");
    let host = format!("{primary}.{service}.{namespace}.svc.k8s.example");
    assert!(demo.log(&standby, "init").contains(&host));
    // The slot's name has no room for all of the cluster's.
    let slot = demo.sql(
        &["--member", "7"],
        "SELECT slot_name, active FROM pg_replication_slots",
    );
    let (slot, active) = slot.split_once('|').expect("two columns");
    assert!(
        slot.len() == 63 && slot.ends_with("b_8") && active == "t",
        "{slot}"
    );
    demo.ask(&["delete-pod", "7"]);
    demo.wait_streaming(1);
    demo.sql(&[], "INSERT INTO t VALUES (2)");
    demo.wait_sql(&["--read-only"], "SELECT count(*) FROM t", "2");
}

#[test]
fn names_that_cannot_be_are_refused() {
    let long = "a".repeat(62);
    for (words, named) in [
        (["--cluster", "Capital"], "cluster \"Capital\""),
        (["--cluster", &long], "cluster \"aaaaaa"),
        (["--cluster=-a", "--verbose"], "cluster \"-a\""),
        (["--namespace", "a.b"], "namespace \"a.b\""),
        (["--service", ""], "service \"\""),
        (["--cluster-domain", "a..b"], "cluster domain \"\""),
        (["--replicas", "51"], "number of replicas \"51\""),
    ] {
        let folder = crate::kit::open_folder();
        let output = crate::harness::podgres()
            .args(["demo", "--dir"])
            .arg(folder.path().join("demo"))
            .arg("--program-dir")
            .arg(crate::harness::programs(16))
            .args(words)
            .output()
            .expect("podgres demo");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{words:?}: {message}");
        assert!(message.contains(named), "{words:?}: {message}");
    }
}
