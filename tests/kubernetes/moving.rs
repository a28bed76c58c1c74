//! `k8s/examples/from-one-server`: a StatefulSet with one ordinary server becomes a replicated database, in place.

use crate::cluster::{Cluster, PASSWORD};
use crate::kubectl;
use crate::overlay::{Overlay, POSTGRES_IMAGE};
use crate::runner::Group;
use crate::wait::until;
use crate::world::image;

pub(crate) const GROUP: Group = Group {
    name: "moving",
    alone: false,
    overlay: || Overlay::new("lease"),
    begin: one_server,
    tests: &[(
        "row_74_a_single_server_is_replicated_in_place_with_its_data",
        moved,
    )],
};

const FIRST: &str = "pg-0";

/// The server that somebody has, with a row in it.
fn one_server(cluster: &Cluster) {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/k8s/examples/from-one-server/before.yaml"
    );
    let manifest = std::fs::read_to_string(file).expect("the example");
    let wanted = format!("image: {}", image(POSTGRES_IMAGE.0, POSTGRES_IMAGE.1));
    let mut apply = kubectl::kubectl();
    apply.args(["-n", &cluster.namespace, "apply", "-f", "-"]);
    kubectl::text_with_input(&mut apply, &manifest.replace("image: postgres", &wanted));
    cluster.kubectl(&["rollout", "status", "statefulset/pg", "--timeout=90s"]);
    // The official image sets it when it makes the database; this one may not.
    let password = format!("ALTER ROLE postgres PASSWORD '{}'", PASSWORD.replace('\'', "''"));
    for sql in [&password, "CREATE TABLE old AS SELECT 11 AS number"] {
        let run = [
            "exec",
            FIRST,
            "--",
            "psql",
            "-XAtq",
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-d",
            "postgres",
            "-c",
            sql,
        ];
        cluster.kubectl(&run);
    }
}

fn moved(cluster: &Cluster) {
    let before = cluster.pod(FIRST).uid;
    cluster.kubectl(&["delete", "statefulset/pg", "--cascade=orphan"]);
    assert_eq!(cluster.pod(FIRST).uid, before, "the server goes on");
    cluster.apply();
    // The update begins with the highest ordinal, which waits for a primary and never makes a database of its own.
    let second = || {
        cluster
            .try_kubectl(&["logs", "pg-1", "-c", "bootstrap"])
            .unwrap_or_default()
    };
    until("the second one waits", second, |log| {
        log.contains("there is no Lease, and this member is not the one to make it")
    });
    assert_eq!(cluster.pod(FIRST).uid, before, "the server still goes on");
    cluster.delete_pod(FIRST, false);
    until(
        "its pod is replaced",
        || cluster.pods(),
        |pods| pods.get(FIRST).is_some_and(|pod| pod.uid != before),
    );
    cluster.settle();
    assert_eq!(cluster.primary(), FIRST);
    for pod in ["pg-0", "pg-1", "pg-2"] {
        assert_eq!(cluster.sql(pod, "SELECT number FROM old"), "11");
    }
}
