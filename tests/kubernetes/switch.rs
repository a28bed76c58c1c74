//! The read-only switch: an application goes on listing, and nobody but the asking session is on the primary.

use crate::cluster::Cluster;
use crate::wait::until;
use crate::writer::Example;

const CLOSED: &str = "Read-only for the moment";

/// Rows 37 to 42, by way of the todo list.
pub(crate) fn todo(cluster: &Cluster) {
    let todo = Example::deploy(cluster, "todo");
    let page = || todo.request("GET", "/").unwrap_or_default();
    let open = |page: &String| page.contains("<form") && !page.contains(CLOSED);
    until("the page", page, open);
    let primary = cluster.primary();
    cluster.sql(&primary, "CREATE TABLE IF NOT EXISTS todo (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text NOT NULL)");
    cluster.sql(&primary, "INSERT INTO todo (text) VALUES ('buy bread')");
    until("the item is listed", page, |page| page.contains("buy bread"));
    let switch = |position: &str| {
        cluster.kubectl(&[
            "exec",
            &primary,
            "-c",
            "sidecar",
            "--",
            "podgres",
            "read-only",
            position,
        ])
    };
    switch("on");
    let (after, shown) = until("the banner", page, |page| page.contains(CLOSED));
    println!("    the banner was shown after {after:.1?}");
    assert!(
        shown.contains("buy bread") && shown.contains("<fieldset disabled>"),
        "{shown}"
    );
    let others =
        "SELECT count(*) FROM pg_stat_activity WHERE datid > 0 AND application_name = 'podgres-examples'";
    until(
        "the primary has no client session",
        || cluster.sql(&primary, others),
        |count| count == "0",
    );
    let refused = cluster
        .sql_by("pg-rw", "CREATE TABLE no (one int)")
        .expect_err("read-only");
    assert!(refused.contains("read-only transaction"), "{refused}");
    switch("off");
    until("writes are back", page, |page| {
        page.contains("buy bread") && open(page)
    });
    cluster
        .sql_by("pg-rw", "CREATE TABLE yes (one int)")
        .expect("written");
    todo.remove();
}
