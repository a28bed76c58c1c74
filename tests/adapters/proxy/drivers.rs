//! Drivers with protocol code of their own, in TLS that passes through and in TLS that ends at the route: logins, verification, a cancel in the middle of a query.
//! What libpq does is in `direct`, `encrypted` and `sessions`.

use std::path::Path;
use std::process::Stdio;

use podgres::core::routing::RouteMode;
use podgres::proxy::Limits;
use tokio::process::Command;
use tokio::time::timeout;

use super::cluster::{Cluster, PASSWORD, cluster, member};
use super::newer::clients;
use super::routes::{PATIENCE, Route};
use super::{encrypted, routes};

const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/adapters/proxy/drivers");

/// What a program prints: with `require` and with `verify-full`, through each of these routes.
async fn run(mut program: Command, source: &str, cluster: &Cluster, routes: [&Route; 2]) -> String {
    program
        .arg(Path::new(PROGRAMS).join(source))
        .arg(cluster.tls().join("ca.crt"))
        .args(routes.map(|route| route.address.port().to_string()))
        .env("PGHOST", routes[0].address.ip().to_string())
        .env("PGUSER", "app")
        .env("PGPASSWORD", PASSWORD)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(PATIENCE * 2, program.output()).await;
    routes::answer(&output.expect("in time").expect("a program"))
}

#[tokio::test(flavor = "multi_thread")]
async fn jdbc_asyncpg_and_node_postgres_log_in_and_cancel_in_tls() {
    let (cluster, clients) = (cluster(), clients());
    let servers = || vec![member(0), member(1)];
    let pass = Route::read_write(Limits::default(), servers()).await;
    let end = encrypted::route(&cluster, RouteMode::ReadWrite, Limits::default(), servers()).await;
    let both = [&pass, &end];
    let mut java = Command::new("java");
    java.args([
        "-Xshare:auto",
        "-XX:TieredStopAtLevel=1",
        "-cp",
        "/usr/share/java/postgresql.jar",
    ]);
    let mut node = Command::new("node");
    node.env("NODE_PATH", clients.join("node_modules"));
    let python = Command::new(clients.join("python/bin/python"));
    let said = tokio::join!(
        run(java, "Driver.java", &cluster, both),
        run(node, "driver.js", &cluster, both),
        run(python, "driver.py", &cluster, both),
    );
    let of_a_route = "require: encrypted, cancelled\nverify-full: encrypted, cancelled";
    let expected = [of_a_route; 2].join("\n");
    for (driver, said) in [("JDBC", said.0), ("node-postgres", said.1), ("asyncpg", said.2)] {
        assert_eq!(said, expected, "{driver}");
    }
}
