//! `overlays/lease`: failover in a cluster, planned moves, updates, evictions, and chaos under load.

use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;

use crate::chaos;
use crate::cluster::{Cluster, states};
use crate::outside;
use crate::overlay::{self, Overlay};
use crate::routes;
use crate::runner::Group;
use crate::switch;
use crate::upkeep;
use crate::volumes;
use crate::wait::until;
use crate::writer::Writer;

pub(crate) const GROUP: Group = Group {
    name: "lease",
    alone: false,
    overlay: || Overlay::new("lease").with("role-label").with("events"),
    begin: |cluster| cluster.start(),
    tests: &[
        ("row_75_all_started_at_once_and_there_is_one_primary", row_75),
        (
            "row_37_and_43_the_services_lead_to_the_primary_and_to_every_standby",
            row_43,
        ),
        ("the_readmes_commands_show_what_it_says", readme),
        ("the_role_label_and_events_follow_the_primary", labels),
        ("the_token_is_not_where_sql_runs", token),
        (
            "a_primary_deleted_by_force_is_replaced_and_nothing_is_lost",
            forced,
        ),
        ("a_primary_deleted_gracefully_hands_over", graceful),
        ("a_switchover_is_one_command_in_a_pod", switchover),
        ("orders_are_given_from_outside_by_the_api_alone", outside::orders),
        (
            "row_44_a_standby_that_does_not_stream_leaves_the_services_and_comes_back",
            upkeep::row_44,
        ),
        (
            "row_46_an_evicted_member_returns_and_the_budget_allows_one_at_a_time",
            upkeep::row_46,
        ),
        (
            "a_changed_password_is_taken_up_without_a_restart",
            upkeep::password,
        ),
        ("podgres_check_looks_at_the_live_objects", upkeep::check_live),
        (
            "row_37_to_42_the_read_only_switch_keeps_the_todo_list_running",
            switch::todo,
        ),
        (
            "routes_in_pods_of_their_own_lead_to_the_primary_and_to_the_standbys",
            routes::alone,
        ),
        (
            "a_bad_image_stops_at_one_member_and_is_rolled_back",
            upkeep::bad_image,
        ),
        ("an_update_replaces_all_pods_and_loses_nothing", upkeep::rolling),
        ("a_primary_that_is_scaled_away_hands_over", volumes::scaled_away),
        (
            "row_61_pods_deleted_at_random_under_load_lose_nothing",
            chaos::pods,
        ),
        (
            "a_first_member_without_its_volume_is_cloned_and_nothing_is_lost",
            volumes::primary_lost,
        ),
        ("row_20_all_pods_off_and_on_again", volumes::all_off),
        (
            "all_pods_gone_at_once_while_the_last_one_was_the_primary",
            volumes::all_gone,
        ),
    ],
};

const OUTAGE_LIMIT: Duration = Duration::from_secs(10);

fn row_75(cluster: &Cluster) {
    let states = states(&cluster.status());
    assert_eq!(
        states.iter().filter(|state| state.contains(" primary ")).count(),
        1,
        "{states:?}"
    );
    let lease: Lease = cluster.get("pg").expect("the Lease");
    let holder = lease
        .spec
        .and_then(|spec| spec.holder_identity)
        .expect("a holder");
    let primary = cluster.primary();
    assert!(
        holder.contains(&cluster.pod(&primary).uid),
        "{holder} is not {primary}'s"
    );
    assert_eq!(cluster.sql(&primary, "SELECT pg_is_in_recovery()"), "f");
}

fn row_43(cluster: &Cluster) {
    let primary = cluster.primary();
    cluster
        .sql_by("pg-rw", "CREATE TABLE IF NOT EXISTS routed AS SELECT 1 AS one")
        .expect("written");
    assert_eq!(
        cluster.sql_by("pg-rw", "SELECT pg_is_in_recovery()").as_deref(),
        Ok("f")
    );
    let answered = std::cell::RefCell::new(std::collections::BTreeSet::new());
    until(
        "both standbys answer",
        || cluster.read_by(),
        |name| {
            assert_ne!(*name, primary, "reads go to standbys while there are any");
            answered.borrow_mut().insert(name.clone());
            answered.borrow().len() == 2
        },
    );
}

/// Step 5 of k8s/README.md, word by word.
fn readme(cluster: &Cluster) {
    let block = overlay::readme("console");
    let commands: Vec<&str> = block.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    let [function, write, read] = commands[..] else {
        panic!("three commands: {block}")
    };
    let function = function.replace("-n shop", &format!("-n {}", cluster.namespace));
    let run = |command: &str| {
        let script = format!("{function}; {command}");
        let output = Command::new("bash").args(["-c", &script]).output();
        String::from_utf8(output.expect("bash runs").stdout).expect("text")
    };
    let shown = |command: &str| {
        let after = block
            .split_once(&format!("$ {command}\n"))
            .expect("the command")
            .1;
        let lines = after.lines().take_while(|line| !line.starts_with("$ "));
        lines.map(str::trim_end).collect::<Vec<_>>()
    };
    let written = run(write);
    assert_eq!(written.lines().collect::<Vec<_>>(), shown(write));
    let lines = |text: &str| -> Vec<String> {
        let lines = text.lines().map(|line| line.trim_end().to_owned());
        lines.filter(|line| !line.is_empty()).collect()
    };
    until(
        "a standby has it",
        || lines(&run(read)),
        |found| *found == shown(read),
    );
}

fn labels(cluster: &Cluster) {
    let labelled = |role: &str| -> Vec<String> {
        let selector = ListParams::default().labels(&format!("podgres.dev/role={role}"));
        let found = cluster
            .world
            .now(cluster.api::<Pod>().list(&selector))
            .expect("pods");
        found
            .items
            .into_iter()
            .filter_map(|pod| pod.metadata.name)
            .collect()
    };
    let as_it_is = || {
        let primary = cluster.primary();
        until(
            "one pod is labelled primary",
            || labelled("primary"),
            |names| *names == [primary.clone()],
        );
        until(
            "two are labelled standby",
            || labelled("standby").len(),
            |count| *count == 2,
        );
        primary
    };
    let before = as_it_is();
    cluster.switch_over(&cluster.standby());
    let primary = as_it_is();
    assert_ne!(primary, before);
    cluster.settle();
    drop(until(
        "the Service follows",
        || cluster.sql_by("pg-primary", "SELECT pg_is_in_recovery()"),
        |answer| answer.as_deref() == Ok("f"),
    ));
    let events = cluster.kubectl(&[
        "get",
        "events",
        "--field-selector",
        &format!("involvedObject.name={primary}"),
    ]);
    assert!(events.contains("Primary"), "{events}");
}

fn token(cluster: &Cluster) {
    let list = |folder: &str| cluster.try_kubectl(&["exec", "pg-0", "-c", "postgres", "--", "ls", folder]);
    list("/etc/podgres/secret").expect("what is mounted is seen");
    let refused = list("/var/run/secrets/kubernetes.io").expect_err("no token in the PostgreSQL container");
    assert!(refused.contains("No such file"), "{refused}");
}

fn forced(cluster: &Cluster) {
    let writer = Writer::start(cluster);
    let mut outages = Vec::new();
    for _ in 0..3 {
        let primary = cluster.primary();
        outages.push(writer.outage(|| cluster.delete_pod(&primary, true)));
        cluster.settle();
    }
    println!("    outage by pg-rw, pod deleted by force: {outages:?}");
    writer.verify();
    writer.remove();
    assert!(outages.iter().all(|outage| *outage < OUTAGE_LIMIT), "{outages:?}");
}

fn graceful(cluster: &Cluster) {
    let writer = Writer::start(cluster);
    let primary = cluster.primary();
    let outage = writer.outage(|| cluster.delete_pod(&primary, false));
    println!("    outage by pg-rw, pod deleted gracefully: {outage:?}");
    writer.verify();
    writer.remove();
    assert_ne!(cluster.primary(), primary);
    cluster.settle();
    let log = cluster.logs(&primary, "bootstrap", &[]);
    assert!(!log.contains("cloning"), "it follows from its own volume: {log}");
    assert!(outage < OUTAGE_LIMIT, "{outage:?}");
}

fn switchover(cluster: &Cluster) {
    let to = cluster.standby();
    let said = cluster.switch_over(&to);
    println!("    {}", said.trim());
    assert_eq!(cluster.primary(), to);
    let table = cluster.kubectl(&["exec", &to, "-c", "sidecar", "--", "podgres", "status"]);
    assert!(table.contains(&to) && table.contains("primary"), "{table}");
}
