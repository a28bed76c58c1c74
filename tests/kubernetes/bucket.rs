//! `components/backup-s3`: WAL and backups go to a bucket, and a lost cluster comes back from it as it was at a moment. The bucket is in this process.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::OnceLock;

use serde_json::json;

use crate::backup::{apply, run_now};
use crate::cluster::Cluster;
use crate::overlay::Overlay;
use crate::restore::Page;
use crate::runner::Group;
use crate::s3_server::S3;
use crate::wait::until;

/// What the component asks its user for: the endpoint. And no runs but those that the tests begin.
const ENDPOINT: &str = "  - target: {kind: ConfigMap, name: pg-settings}
    patch: |-
      - {op: add, path: /data/AWS_ENDPOINT_URL, value: \"http://bucket:9000\"}
  - target: {kind: CronJob}
    patch: |-
      - {op: replace, path: /spec/schedule, value: \"0 0 1 1 *\"}
";
const CREDENTIALS: &str = "--from-literal=credentials=[default]
aws_access_key_id = key
aws_secret_access_key = secret
";

pub(crate) const GROUP: Group = Group {
    name: "bucket",
    alone: false,
    overlay: || {
        let mut overlay = Overlay::new("lease").with("backup").with("backup-s3");
        overlay.patches.push(ENDPOINT.to_owned());
        overlay
    },
    begin,
    tests: &[
        ("the_primarys_wal_arrives_in_the_bucket", archived),
        ("a_run_leaves_a_backup_in_the_bucket", backed_up),
        ("a_backup_in_the_bucket_is_proven", proven),
        ("a_lost_cluster_comes_back_as_it_was_at_a_moment", gone_back),
    ],
};

static BUCKET: OnceLock<S3> = OnceLock::new();

/// Whether there is an object whose key has this in it.
fn holds(part: &str) -> bool {
    let keys = BUCKET.get().map(S3::keys).unwrap_or_default();
    keys.iter().any(|key| key.contains(part))
}

fn begin(cluster: &Cluster) {
    let secret = ["create", "secret", "generic", "pg-backup-s3", CREDENTIALS];
    cluster.kubectl(&secret);
    cluster.apply();
    let address = serve(cluster);
    cluster.settle();
    let list = ["/podgres/podgres", "backups", "--from", "s3://my-bucket/pg"];
    let ask = || cluster.try_kubectl(&[&["exec", "pg-0", "-c", "postgres", "--"], &list[..]].concat());
    let (_, list) = until(
        &format!("pods reach the bucket, which is served at {address} by this process"),
        ask,
        Result::is_ok,
    );
    list.expect("a list");
}

/// The bucket at this machine's address as pods see it, behind the name that the settings have.
fn serve(cluster: &Cluster) -> SocketAddr {
    let known = || {
        cluster
            .pods()
            .into_values()
            .find_map(|pod| pod.address.parse().ok())
    };
    let (_, pod) = until("a pod has an address", known, Option::is_some);
    let ours = address_towards(pod.expect("an address"));
    let address = BUCKET.get_or_init(|| S3::start_at(ours)).address;
    let port = json!({"name": "http", "port": address.port(), "protocol": "TCP"});
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "bucket"},
            "spec": {"ports": [{"name": "http", "port": 9000, "targetPort": address.port()}]}},
        {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "bucket"},
            "subsets": [{"addresses": [{"ip": ours}], "ports": [port]}]},
    ]});
    apply(cluster, &objects.to_string());
    // The component lets members out to port 443 alone.
    let rule = json!({"ports": [{"protocol": "TCP", "port": address.port()}]});
    let patch = json!([{"op": "add", "path": "/spec/egress/-", "value": rule}]).to_string();
    cluster.kubectl(&["patch", "networkpolicy", "pg", "--type=json", "-p", &patch]);
    address
}

/// From which of this machine's addresses a pod is reached; nothing is sent.
fn address_towards(pod: IpAddr) -> IpAddr {
    let any: IpAddr = match pod {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).expect("a socket");
    socket
        .connect((pod, 8008))
        .unwrap_or_else(|error| panic!("this machine has no route to the pod at {pod}: {error}"));
    socket.local_addr().expect("an address").ip()
}

/// Ends a WAL file and waits until it is in the bucket; its name.
fn archive(cluster: &Cluster) -> String {
    let primary = cluster.primary();
    // A file with nothing in it would not be ended.
    cluster.sql(&primary, "SELECT pg_logical_emit_message(false, 'test', 'ended')");
    let file = cluster.sql(&primary, "SELECT pg_walfile_name(pg_switch_wal())");
    until("its WAL is in the bucket", || holds(&file), |holds| *holds);
    file
}

fn archived(cluster: &Cluster) {
    archive(cluster);
    let primary = cluster.primary();
    let metrics = || {
        cluster
            .http("GET", &primary, 8008, "/metrics")
            .unwrap_or_default()
    };
    let none = |text: &String| text.lines().any(|line| line == "podgres_archive_waiting_files 0");
    until("no WAL waits", metrics, none);
}

fn backed_up(cluster: &Cluster) {
    cluster.sql(
        &cluster.primary(),
        "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number",
    );
    let log = run_now(cluster, "backup");
    assert!(log.contains("-physical: physical of pg-"), "{log}");
    assert!(holds("-physical/backup.json"));
    assert!(!cluster.claims().contains(&"pg-backup".to_owned()), "no volume");
}

fn proven(cluster: &Cluster) {
    // What the backup needs beyond its own WAL is looked for too.
    archive(cluster);
    let log = run_now(cluster, "verify");
    assert!(log.contains("-physical: verified"), "{log}");
    assert!(log.contains("archived WAL follows without a gap"), "{log}");
}

fn gone_back(cluster: &Cluster) {
    let primary = cluster.primary();
    let identifier = cluster.status()["system_identifier"].clone();
    cluster.sql(&primary, "INSERT INTO kept SELECT generate_series(1001, 1500)");
    let moment = cluster.sql(&primary, "SELECT clock_timestamp()");
    cluster.sql(&primary, "DROP TABLE kept");
    archive(cluster);
    let page = Page::read();
    page.clear_away(cluster);
    page.by_the_members(cluster, &moment);
    cluster.settle();
    assert_eq!(cluster.status()["system_identifier"], identifier);
    for pod in cluster.pods().keys() {
        assert_eq!(cluster.sql(pod, "SELECT count(*) FROM kept"), "1500", "{pod}");
    }
    let file = archive(cluster);
    assert!(file.starts_with("00000002"), "on a timeline of its own: {file}");
    assert!(holds("00000002.history"));
}
