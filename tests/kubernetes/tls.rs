//! `components/tls`: certificates from a Secret, verified among the members and by backups, replaced while all runs.

use k8s_openapi::api::core::v1::Pod;
use tempfile::TempDir;

use crate::authority::Authority;
use crate::backup;
use crate::cluster::{Cluster, SELECTOR};
use crate::kubectl;
use crate::overlay::Overlay;
use crate::runner::Group;
use crate::wait::until;

pub(crate) const GROUP: Group = Group {
    name: "tls",
    alone: false,
    overlay: || {
        let mut overlay = Overlay::new("lease")
            .with("tls")
            .with("monitoring")
            .with("backup");
        overlay.patches.push(backup::NEVER.to_owned());
        overlay
    },
    begin: |cluster| {
        secret(cluster, &Authority::new("first"), false);
        cluster.start();
    },
    tests: &[
        (
            "replication_is_verified_and_a_new_certificate_is_taken_up",
            certificates,
        ),
        ("servers_with_tls_refused_the_backups", backed_up),
        ("metrics_are_where_the_annotations_say", metrics),
    ],
};

/// Puts a certificate for all members into the Secret `pg-tls`.
fn secret(cluster: &Cluster, authority: &Authority, replace: bool) {
    let folder: TempDir = tempfile::tempdir().expect("a folder");
    let name = |ordinal| format!("DNS:pg-{ordinal}.pg.{}.svc.cluster.local", cluster.namespace);
    let names: Vec<String> = (0..3).map(name).chain(["DNS:pg-rw".to_owned()]).collect();
    authority.issue(folder.path(), &names.join(","));
    let trusted = folder.path().join("ca.crt");
    std::fs::copy(authority.directory.path().join("ca.crt"), trusted).expect("copied");
    let from = format!("--from-file={}", folder.path().display());
    let secret = cluster.kubectl(&[
        "create",
        "secret",
        "generic",
        "pg-tls",
        &from,
        "--dry-run=client",
        "-o",
        "json",
    ]);
    let mut apply = kubectl::kubectl();
    apply.args([
        "-n",
        &cluster.namespace,
        if replace { "replace" } else { "create" },
        "-f",
        "-",
    ]);
    kubectl::text_with_input(&mut apply, &secret);
}

/// What each standby's WAL receiver has connected with.
fn replication_is_verified(cluster: &Cluster) {
    let primary = cluster.primary();
    for pod in ["pg-0", "pg-1", "pg-2"].into_iter().filter(|pod| *pod != primary) {
        let conninfo = cluster.sql(pod, "SELECT conninfo FROM pg_stat_wal_receiver");
        assert!(conninfo.contains("sslmode=verify-full"), "{pod}: {conninfo}");
    }
}

fn certificates(cluster: &Cluster) {
    replication_is_verified(cluster);
    let primary = cluster.primary();
    let encrypted = "SELECT bool_and(ssl) AND count(*) >= 2 FROM pg_stat_ssl JOIN pg_stat_replication USING (pid) WHERE application_name LIKE 'pg-%'";
    assert_eq!(cluster.sql(&primary, encrypted), "t");
    let verify = || {
        let options = "PGSSLMODE=verify-full PGSSLROOTCERT=/etc/podgres/tls/ca.crt PGPASSWORD=$(cat /etc/podgres/secret/password)";
        let script =
            format!("{options} psql -XAtq -h pg-rw -U postgres -d postgres -c 'SELECT pg_is_in_recovery()'");
        cluster.try_kubectl(&["exec", &primary, "-c", "postgres", "--", "sh", "-c", &script])
    };
    assert_eq!(
        verify().as_deref().map(str::trim),
        Ok("f"),
        "end to end through the route"
    );
    let before = cluster.pods();
    // Another authority: what has not been taken up would be seen.
    secret(cluster, &Authority::new("second"), true);
    // A kubelet looks at a pod's volumes when the pod's object changes, else once a minute or two.
    let look_again = || {
        let value = format!("podgres.dev/test=look-{:04x}", fastrand::u16(..));
        cluster.kubectl(&["annotate", "--overwrite", "pods", "-l", SELECTOR, &value]);
    };
    let changed = |pod: &str| {
        cluster
            .logs(pod, "sidecar", &[])
            .contains("the mounted files have changed")
    };
    until(
        "all have taken it up",
        || {
            look_again();
            ["pg-0", "pg-1", "pg-2"].map(changed)
        },
        |all| *all == [true; 3],
    );
    drop(until(
        "the new certificate is served and trusted",
        || verify().map(|text| text.trim().to_owned()),
        |answer| answer.as_deref() == Ok("f"),
    ));
    cluster.settle();
    assert_eq!(cluster.pods(), before, "no container was started again");
    cluster.replace_standby(&before);
    replication_is_verified(cluster);
    assert_eq!(cluster.sql(&primary, encrypted), "t");
}

/// A run reaches the servers from another pod, without a way around TLS.
fn backed_up(cluster: &Cluster) {
    let log = backup::run_now(cluster, "backup");
    assert!(log.contains("-physical: physical of pg-"), "{log}");
    let log = backup::run_now(cluster, "verify");
    assert!(log.contains("-physical: verified"), "{log}");
}

fn metrics(cluster: &Cluster) {
    let pod: Pod = cluster.get("pg-1").expect("the pod");
    let marks = pod.metadata.annotations.expect("annotations");
    assert_eq!(marks["prometheus.io/scrape"], "true");
    let port = marks["prometheus.io/port"].parse().expect("a port");
    let text = cluster.http("GET", "pg-1", port, &marks["prometheus.io/path"]);
    let text = text.expect("an answer");
    assert!(text.lines().any(|line| line.starts_with("podgres_")), "{text}");
}
