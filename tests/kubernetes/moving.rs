//! `k8s/examples/from-one-server` and `from-scripts`: a StatefulSet with one ordinary server, or with servers that shell scripts have made,
//! becomes a replicated database, in place.

use crate::cluster::{Cluster, PASSWORD};
use crate::kubectl;
use crate::overlay::{Overlay, POSTGRES_IMAGE};
use crate::runner::Group;
use crate::wait::{self, until};
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

pub(crate) const SCRIPTS: Group = Group {
    name: "scripts",
    alone: false,
    overlay: || {
        let mut overlay = Overlay::new("lease");
        overlay.patches.push(ONE_REPLICA.to_owned());
        overlay
    },
    begin: by_scripts,
    tests: &[(
        "row_74_a_set_up_of_shell_scripts_is_replaced_with_its_data",
        replaced,
    )],
};

const ONE_REPLICA: &str = "  - target: {kind: StatefulSet, name: pg}
    patch: |-
      - {op: replace, path: /spec/replicas, value: 1}
";

/// The server that somebody has, with a row in it.
fn one_server(cluster: &Cluster) {
    apply(cluster, "from-one-server");
    // The official image sets it when it makes the database; this one may not.
    let password = format!("ALTER ROLE postgres PASSWORD '{}'", PASSWORD.replace('\'', "''"));
    psql(cluster, FIRST, &password);
    psql(cluster, FIRST, "CREATE TABLE old AS SELECT 11 AS number");
}

/// A primary and a standby as their script has made them.
fn by_scripts(cluster: &Cluster) {
    apply(cluster, "from-scripts");
    psql(cluster, FIRST, "CREATE TABLE old AS SELECT 11 AS number");
    until(
        "the standby of the scripts has the row",
        || {
            psql(
                cluster,
                "pg-1",
                "SELECT count(*) FROM pg_class WHERE relname = 'old'",
            )
        },
        |found| found.trim() == "1",
    );
}

/// The example's `before.yaml`, until it runs.
fn apply(cluster: &Cluster, example: &str) {
    let file = format!(
        "{}/k8s/examples/{example}/before.yaml",
        env!("CARGO_MANIFEST_DIR")
    );
    let manifest = std::fs::read_to_string(file).expect("the example");
    let wanted = format!("image: {}", image(POSTGRES_IMAGE.0, POSTGRES_IMAGE.1));
    let mut apply = kubectl::kubectl();
    apply.args(["-n", &cluster.namespace, "apply", "-f", "-"]);
    kubectl::text_with_input(&mut apply, &manifest.replace("image: postgres", &wanted));
    cluster.kubectl(&["rollout", "status", "statefulset/pg", "--timeout=90s"]);
}

fn psql(cluster: &Cluster, pod: &str, sql: &str) -> String {
    // Both sets of servers trust their own pod, or ask for the Secret's password.
    let script = format!(
        "PGPASSWORD='{}' exec psql -XAtq -h 127.0.0.1 -U postgres -d postgres -c \"$0\"",
        PASSWORD.replace('\'', "'\\''")
    );
    cluster.kubectl(&["exec", pod, "-c", "postgres", "--", "sh", "-c", &script, sql])
}

/// Step by step as `k8s/examples/from-scripts` says.
fn replaced(cluster: &Cluster) {
    cluster.kubectl(&["delete", "statefulset/pg", "--cascade=orphan"]);
    cluster.kubectl(&["delete", "pod/pg-1"]);
    let before = cluster.pod(FIRST).uid;
    cluster.apply();
    // Servers that a shell runs may take their whole grace time.
    wait::within(
        2 * wait::LIMIT,
        "the first pod is replaced",
        || cluster.pods(),
        |pods| pods.get(FIRST).is_some_and(|pod| pod.uid != before),
    );
    cluster.scale(1);
    cluster.kubectl(&["delete", "pvc/data-pg-1"]);
    cluster.scale(3);
    cluster.kubectl(&["delete", "configmap/pg-scripts"]);
    assert_eq!(cluster.primary(), FIRST);
    for pod in ["pg-0", "pg-1", "pg-2"] {
        assert_eq!(cluster.sql(pod, "SELECT number FROM old"), "11");
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
