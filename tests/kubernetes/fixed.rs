//! `overlays/fixed`, started in order: identity, names, order, storage, and that no right on the API is needed.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use crate::cluster::Cluster;
use crate::kubectl;
use crate::overlay::{Overlay, POSTGRES_IMAGE};
use crate::runner::Group;
use crate::switch;
use crate::volumes;
use crate::wait::until;
use crate::world::image;
use crate::writer::Example;

pub(crate) const GROUP: Group = Group {
    name: "fixed",
    alone: false,
    overlay: || Overlay::new("fixed"),
    begin: |cluster| cluster.start(),
    tests: &[
        ("row_02_a_pods_host_name_is_its_name", row_02),
        (
            "row_03_and_04_pods_begin_in_order_each_after_the_one_before_is_ready",
            row_03,
        ),
        ("row_10_and_11_names_resolve_to_the_pods", row_10),
        ("row_12_and_13_init_says_which_role_it_takes", row_12),
        ("row_16_and_22_the_logs_end_as_postgresql_ends_them", row_16),
        (
            "row_18_the_password_is_a_file_for_the_pods_group_and_no_variable",
            row_18,
        ),
        ("row_26_two_standbys_stream_and_read_what_was_written", row_26),
        ("row_30_and_31_each_pod_has_a_volume_of_its_own", volumes::row_30),
        (
            "row_35_claim_templates_of_a_live_set_cannot_change",
            volumes::row_35,
        ),
        ("no_token_is_in_any_pod", no_token),
        ("containers_are_restricted", restricted),
        (
            "row_06_07_15_and_32_the_first_pod_returns_and_nothing_is_set_up_anew",
            row_06,
        ),
        (
            "row_05_25_27_29_33_and_45_scaling_adds_and_removes_the_highest_and_keeps_volumes",
            row_05,
        ),
        (
            "row_38_and_78_the_todo_list_is_shown_while_nothing_can_be_written",
            switch::without_a_primary,
        ),
        ("row_20_ping_pong_counts_on_after_all_pods_were_off", row_20),
        ("row_34_and_36_volumes_outlive_the_set", volumes::row_34),
        (
            "row_36_and_63_a_first_member_without_its_volume_makes_no_second_database",
            volumes::first_lost,
        ),
    ],
};

const FIRST: &str = "pg-0";

fn row_02(cluster: &Cluster) {
    for pod in ["pg-0", "pg-1", "pg-2"] {
        assert_eq!(
            cluster
                .kubectl(&["exec", pod, "-c", "postgres", "--", "hostname"])
                .trim(),
            pod
        );
    }
}

fn row_03(cluster: &Cluster) {
    for (earlier, later) in [("pg-0", "pg-1"), ("pg-1", "pg-2")] {
        let ready = ready_since(&cluster.get(earlier).expect("the pod"));
        let pod: Pod = cluster.get(later).expect("the pod");
        let made = pod.metadata.creation_timestamp.clone().expect("a time").0;
        assert!(
            made >= ready,
            "{later} was made at {made}, {earlier} was ready at {ready}"
        );
    }
}

fn ready_since(pod: &Pod) -> Timestamp {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .expect("conditions");
    let ready = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")
        .expect("Ready");
    ready.last_transition_time.as_ref().expect("a time").0
}

fn row_10(cluster: &Cluster) {
    let addresses = |name: &str| -> Vec<String> {
        let found = cluster.kubectl(&["exec", "pg-1", "-c", "postgres", "--", "getent", "ahostsv4", name]);
        let mut found: Vec<String> = found
            .lines()
            .filter_map(|line| line.split(' ').next())
            .map(str::to_owned)
            .collect();
        found.sort();
        found.dedup();
        found
    };
    assert_eq!(addresses("pg").len(), 3, "the headless Service");
    for pod in ["pg-0", "pg-1", "pg-2"] {
        let object: Pod = cluster.get(pod).expect("the pod");
        let own = object
            .status
            .and_then(|status| status.pod_ip)
            .expect("an address");
        for name in [
            format!("{pod}.pg"),
            format!("{pod}.pg.{}.svc.cluster.local", cluster.namespace),
        ] {
            assert_eq!(addresses(&name), [own.as_str()], "{name}");
        }
    }
    elsewhere(cluster);
}

/// The full name, from another namespace.
fn elsewhere(cluster: &Cluster) {
    let name = format!("pg-1.pg.{}.svc.cluster.local", cluster.namespace);
    let image = image(POSTGRES_IMAGE.0, POSTGRES_IMAGE.1);
    let pod = format!("podgres-test-{:04x}", fastrand::u16(..));
    let run = |arguments: &[&str]| kubectl::text(kubectl::kubectl().args(["-n", "default"]).args(arguments));
    run(&[
        "run",
        &pod,
        "--image",
        &image,
        "--restart=Never",
        "--command",
        "--",
        "getent",
        "ahostsv4",
        &name,
    ]);
    let phase = || run(&["get", "pod", &pod, "-o", "jsonpath={.status.phase}"]);
    until("it has asked", phase, |phase| phase == "Succeeded");
    let found = run(&["logs", &pod]);
    run(&["delete", "pod", &pod, "--wait=false"]);
    assert!(found.starts_with(&cluster.pod("pg-1").address), "{found}");
}

fn row_12(cluster: &Cluster) {
    let first = cluster.logs(FIRST, "bootstrap", &[]);
    assert!(first.contains("init is done"), "{first}");
    assert!(
        first.to_lowercase().contains("primary") || first.contains("initdb"),
        "{first}"
    );
    let second = cluster.logs("pg-1", "bootstrap", &[]);
    assert!(second.contains("clone") || second.contains("Clone"), "{second}");
}

fn row_16(cluster: &Cluster) {
    let last = |pod: &str| cluster.logs(pod, "postgres", &["--tail", "12"]);
    assert!(
        last(FIRST).contains("database system is ready to accept connections"),
        "{}",
        last(FIRST)
    );
    for pod in ["pg-1", "pg-2"] {
        let lines = last(pod);
        assert!(
            lines.contains("database system is ready to accept read-only connections"),
            "{lines}"
        );
        assert!(lines.contains("started streaming WAL from primary at"), "{lines}");
    }
}

fn row_18(cluster: &Cluster) {
    let run = |script: &str| cluster.kubectl(&["exec", "pg-1", "-c", "postgres", "--", "sh", "-c", script]);
    assert_eq!(
        run("stat -Lc '%a %g' /etc/podgres/secret/password").trim(),
        "440 999"
    );
    let variables = run("cat /proc/1/environ | tr '\\0' '\\n'; env");
    assert!(
        !variables.contains(crate::cluster::PASSWORD),
        "the password is in an environment"
    );
    let arguments = run("for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null; done");
    assert!(
        !arguments.contains(crate::cluster::PASSWORD),
        "the password is in an argument"
    );
}

fn row_26(cluster: &Cluster) {
    cluster.sql(FIRST, "CREATE TABLE seen AS SELECT 42 AS answer");
    assert_eq!(
        cluster.sql(
            FIRST,
            "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
        ),
        "2"
    );
    for pod in ["pg-1", "pg-2"] {
        drop(until(
            "the row is there",
            || cluster.try_sql(pod, ("127.0.0.1", 5432), "SELECT answer FROM seen"),
            |seen| seen.as_deref() == Ok("42"),
        ));
        let refused = cluster
            .try_sql(pod, ("127.0.0.1", 5432), "INSERT INTO seen VALUES (1)")
            .expect_err("a standby");
        assert!(refused.contains("read-only transaction"), "{refused}");
    }
}

fn no_token(cluster: &Cluster) {
    for container in ["postgres", "sidecar"] {
        let pod: Pod = cluster.get("pg-1").expect("the pod");
        let mounts: Vec<String> = pod
            .spec
            .iter()
            .flat_map(|spec| {
                spec.containers
                    .iter()
                    .chain(spec.init_containers.iter().flatten())
            })
            .filter(|found| found.name == container)
            .flat_map(|found| found.volume_mounts.iter().flatten())
            .map(|mount| mount.mount_path.clone())
            .collect();
        assert!(
            !mounts.is_empty() && !mounts.iter().any(|path| path.contains("serviceaccount")),
            "{mounts:?}"
        );
    }
    let lease = cluster.try_kubectl(&["get", "lease/pg"]);
    assert!(lease.expect_err("no Lease").contains("NotFound"));
}

fn restricted(cluster: &Cluster) {
    let run =
        |script: &str| cluster.try_kubectl(&["exec", "pg-1", "-c", "postgres", "--", "sh", "-c", script]);
    assert_eq!(run("id -u").expect("a user").trim(), "999");
    // As the user that it is it could not write there anyway: the reason counts.
    let refused = run("touch /mine").expect_err("a read-only root file system");
    assert!(refused.contains("Read-only file system"), "{refused}");
    let status = run("cat /proc/1/status").expect("a status");
    for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} in {status}");
    }
    let megabytes = run("df -m /dev/shm | tail -n 1 | tr -s ' ' | cut -d' ' -f2").expect("a size");
    assert!(
        megabytes.trim().parse::<u64>().is_ok_and(|size| size > 64),
        "{megabytes}"
    );
}

fn row_06(cluster: &Cluster) {
    cluster.sql(FIRST, "CREATE TABLE IF NOT EXISTS kept AS SELECT 7 AS number");
    let before = cluster.pods();
    let address = address(cluster, FIRST);
    cluster.delete_pod(FIRST, false);
    until(
        "another pod of that name",
        || cluster.pods(),
        |pods| pods.get(FIRST).is_some_and(|pod| pod.uid != before[FIRST].uid),
    );
    cluster.settle();
    let after = cluster.pods();
    for other in ["pg-1", "pg-2"] {
        assert_eq!(after[other], before[other], "{other} was not touched");
        assert_eq!(clones(cluster, other), 0, "{other} was not cloned again");
    }
    assert_ne!(
        self::address(cluster, FIRST),
        address,
        "the test wants another address"
    );
    assert_eq!(cluster.sql(FIRST, "SELECT number FROM kept"), "7");
    assert_eq!(cluster.primary(), FIRST);
}

fn address(cluster: &Cluster, pod: &str) -> String {
    let object: Pod = cluster.get(pod).expect("the pod");
    object
        .status
        .and_then(|status| status.pod_ip)
        .expect("an address")
}

/// Clones that the pod's sidecar has seen.
fn clones(cluster: &Cluster, pod: &str) -> usize {
    cluster.logs(pod, "sidecar", &[]).matches("cloning").count()
}

fn row_05(cluster: &Cluster) {
    cluster.sql(FIRST, "CREATE TABLE IF NOT EXISTS old AS SELECT 1 AS row");
    cluster.scale(4);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/pg-3", "--timeout=60s"]);
    assert_eq!(
        cluster.sql("pg-3", "SELECT row FROM old"),
        "1",
        "what was written before it existed"
    );
    let lines = cluster.logs("pg-3", "postgres", &["--tail", "12"]);
    assert!(lines.contains("started streaming WAL from primary at"), "{lines}");
    until(
        "reads reach it, with no setting changed",
        || cluster.read_by(),
        |name| name == "pg-3",
    );
    cluster.kubectl(&["scale", "statefulset/pg", "--replicas=2"]);
    until(
        "the highest ordinal goes before the next one does",
        || cluster.pods(),
        |pods| {
            let next_goes = pods.get("pg-2").is_none_or(|pod| pod.leaving);
            assert!(!next_goes || !pods.contains_key("pg-3"), "{pods:?}");
            next_goes
        },
    );
    cluster.scale(2);
    assert_eq!(cluster.pods().into_keys().collect::<Vec<_>>(), ["pg-0", "pg-1"]);
    assert_eq!(cluster.claims().len(), 4, "claims stay");
    cluster.scale(3);
    let log = cluster.logs("pg-2", "bootstrap", &[]);
    assert!(!log.contains("cloning"), "its old volume was used: {log}");
}

fn row_20(cluster: &Cluster) {
    let example = Example::deploy(cluster, "ping-pong");
    let pong = || example.request("GET", "/");
    until("an answer", pong, Option::is_some);
    let before = pong().expect("an answer");
    cluster.scale(0);
    assert!(pong().is_none(), "there is no database");
    cluster.scale(3);
    let (_, after) = until("an answer", pong, Option::is_some);
    let count = |text: &str| {
        text.trim()
            .trim_start_matches("pong ")
            .parse::<u64>()
            .expect("a number")
    };
    assert_eq!(count(&after.expect("an answer")), count(&before) + 1);
    example.remove();
}
