//! The read-only switch under a Lease, where one pod alone does not reach the API server.

use std::time::{Duration, Instant};

use podgres::demo::Target;

use super::clients::{config_of, on_standby};
use super::{ordinal_of, primary};
use crate::api_way::ApiWay;
use crate::harness::{Start, members, wait_for};

/// Its read-write route went on serving the primary, for as long as it did not reach the API.
#[test]
fn a_pod_cut_off_from_the_api_alone_followed_the_switch_only_when_it_was_back() {
    let way = ApiWay::open();
    let demo = way.run(Start::lease(16));
    let first = primary(&demo.wait_streaming(2));
    let last = if first == "demo-2" { "demo-1" } else { "demo-2" };
    let _silent = way.close_for(&demo, last);

    let config = config_of(
        &demo,
        ordinal_of(last).parse().expect("an ordinal"),
        Target::ReadWrite,
    );
    assert_eq!(on_standby(&config), Some(false), "writes at first");
    for (turn, standby) in [("on", true), ("off", false), ("on", true)] {
        let began = Instant::now();
        demo.done(&["read-only", turn, "--reason", "a migration"]);
        let follows = || on_standby(&config) == Some(standby);
        assert!(
            wait_for(Duration::from_secs(2), follows),
            "{turn}: the route of {last} does not follow"
        );
        println!("{turn}: the command and the route took {:?}", began.elapsed());
        let told = demo.wait("the switch in everybody's status", |status| {
            status["read_only"] == standby && members(status).len() == 3
        });
        let reason = &told["read_only_switch"]["reason"];
        assert_eq!(reason == "a migration", standby, "{reason}");
    }
    let log = demo.log(last, "sidecar");
    let began_anew = log.rfind("none came within").expect("cut off");
    assert!(!log[began_anew..].contains("the Kubernetes API answers again"));
}
