//! `k8s/examples/route`: the routing endpoints in pods of their own, which have no right on the API.

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;

use crate::cluster::Cluster;
use crate::wait::until;
use crate::writer::apply;

const DEPLOYED: &str = "deployment/pg-route";
const WHERE: &str = "SELECT pg_is_in_recovery()";

pub(crate) fn alone(cluster: &Cluster) {
    apply(cluster, "route", DEPLOYED);
    let ours = ListParams::default().labels("app.kubernetes.io/name=pg-route");
    let pods = cluster.world.now(cluster.api::<Pod>().list(&ours)).expect("pods");
    for pod in &pods.items {
        let spec = pod.spec.as_ref().expect("a specification");
        let mounts = spec
            .containers
            .iter()
            .flat_map(|container| &container.volume_mounts);
        let paths = mounts.flatten().map(|mount| mount.mount_path.as_str());
        assert_eq!(paths.collect::<Vec<_>>(), ["/etc/podgres/secret"], "and no token");
    }
    let is_at = |service: &str| cluster.sql_by(service, WHERE);
    // A pod is ready some time before the nodes know it as one of its Service's.
    drop(until(
        "the primary answers",
        || is_at("pg-route-rw"),
        |answer| answer.as_deref() == Ok("f"),
    ));
    let made = cluster.sql_by("pg-route-rw", "CREATE TABLE by_route AS SELECT 1 AS one");
    made.expect("written by a route");
    drop(until(
        "a standby answers",
        || is_at("pg-route-ro"),
        |answer| answer.as_deref() == Ok("t"),
    ));
    let to = cluster.standby();
    cluster.switch_over(&to);
    let address = || cluster.sql_by("pg-route-rw", "SELECT host(inet_server_addr())");
    let new = cluster.pod(&to).address;
    drop(until("it follows", address, |answer| {
        answer.as_deref() == Ok(new.as_str())
    }));
    cluster
        .sql_by("pg-route-rw", "DROP TABLE by_route")
        .expect("dropped");
    let objects = [
        DEPLOYED,
        "service/pg-route-rw",
        "service/pg-route-ro",
        "poddisruptionbudget/pg-route",
    ];
    cluster.kubectl(&[&["delete"], &objects[..]].concat());
}
