//! A standby that a partition keeps from the primary, and from nobody else.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use podgres::demo::Target;
use tokio_postgres::NoTls;

use super::clients::config_of;
use crate::harness::{Demo, LIMIT, Start, members, wait_for};
use crate::kit::open_folder;
use crate::namespaces::{Cut, has_run_inside, inside};
use crate::preloaded::Preloaded;

const BOUND: Duration = Duration::from_secs(2);
/// Members are asked every 500 ms; the rest is for a busy machine.
const DETECTION: Duration = Duration::from_secs(2);
/// New sessions through each route of which none goes to the standby, after which it has left.
const SESSIONS: u32 = 40;

/// Whose data a new session through the read-only route of a pod reads.
fn reads_from(demo: &Demo, route: u32) -> Result<IpAddr, tokio_postgres::Error> {
    let config = config_of(demo, route, Target::ReadOnly);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(async {
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        let row = client.query_one("SELECT inet_server_addr()", &[]).await?;
        Ok(row.get(0))
    })
}

/// Every route leads to `member` now and then.
fn all_lead_to(demo: &Demo, member: IpAddr) -> bool {
    (0..3).all(|route| (0..10).any(|_| reads_from(demo, route).is_ok_and(|found| found == member)))
}

#[test]
fn a_standby_cut_off_from_the_primary_leaves_the_route_within_its_bound_and_comes_back_by_itself() {
    let name =
        "a_standby_cut_off_from_the_primary_leaves_the_route_within_its_bound_and_comes_back_by_itself";
    if has_run_inside(&format!("routing::cut_off::{name}")) {
        return;
    }
    assert!(inside(), "only root can cut a pod off: run this test as root");
    let folder = open_folder();
    let preloaded = Preloaded::new(&folder.path().join("faults"));
    let mut start = Start::lease(16).with(&["--set", "PODGRES_MAX_STALENESS=2s"]);
    start.arguments.extend(preloaded.words());
    let demo = start.run();
    demo.wait_streaming(2);
    demo.sql(&["--member", "0"], "CREATE TABLE work (n int)");
    let pods: Vec<IpAddr> = demo.deployed().pods.iter().map(|pod| pod.address).collect();
    let (primary, standby) = (pods[0], pods[1]);
    assert!(wait_for(LIMIT, || all_lead_to(&demo, standby)));

    let office = || {
        let status = demo.status().expect("a status");
        let promised = members(&status)
            .iter()
            .map(|member| member["promised_term"].as_u64());
        let promised: Vec<_> = promised.collect();
        assert!(promised.iter().all(Option::is_some), "{status}");
        (status["term"].clone(), super::primary(&status), promised)
    };
    let before = office();
    let cut = Cut::between(primary, standby);
    let began = Instant::now();
    demo.sql(&["--member", "0"], "INSERT INTO work VALUES (1)");
    // From here on each route is asked until it no longer leads there.
    let (mut last, mut without) = (Duration::ZERO, 0);
    while without < SESSIONS {
        let asked = began.elapsed();
        assert!(asked < LIMIT, "sessions still go to the standby");
        let found: Result<Vec<IpAddr>, _> = (0..3).map(|route| reads_from(&demo, route)).collect();
        let found = found.unwrap_or_else(|error| panic!("{asked:?} after the cut: {error:?}"));
        without += 1;
        if found.contains(&standby) {
            (last, without) = (asked, 0);
        }
    }
    assert!(last < BOUND + DETECTION, "{last:?} after the cut");
    let rows = demo.sql(&["--member", "1"], "SELECT count(*) FROM work");
    assert_eq!(rows, "0", "clients reach it, and it has not heard of the row");
    assert!(cut.packets() > 0);
    assert_eq!(office(), before, "one member's suspicion was enough");

    drop(cut);
    let back = || all_lead_to(&demo, standby);
    assert!(wait_for(LIMIT, back), "it does not come back by itself");
    demo.wait_sql(&["--member", "1"], "SELECT count(*) FROM work", "1");
}
