//! What a quiet cluster under a Lease asks of the API server.

use std::time::{Duration, Instant};

use crate::api_way::ApiWay;
use crate::harness::{Start, wait_for};

const RETRY_PERIOD: Duration = Duration::from_secs(2);
const RENEWALS: usize = 8;

#[test]
fn in_a_quiet_cluster_the_holder_alone_writes_once_in_a_retry_period() {
    let way = ApiWay::open();
    let demo = way.run(Start::lease(16));
    demo.wait_streaming(2);
    let counted = way.counted(&demo, &["demo-0", "demo-1", "demo-2"]);
    demo.wait("commits that wait for a standby", |status| {
        status["synchronous"]["quorum"].as_u64() > Some(0)
    });
    let mut begun = Vec::new();
    let watches = |requests: &[String]| requests.iter().filter(|line| line.contains("watch=")).count();
    let watched = wait_for(Duration::from_secs(20), || {
        begun.extend(counted.take());
        watches(&begun) >= 3
    });
    assert!(watched, "each has a watch: {begun:?}");

    // From one renewal on, so that no beginning counts.
    let writes = |requests: &[String]| requests.iter().filter(|line| !line.starts_with("GET ")).count();
    assert!(
        wait_for(3 * RETRY_PERIOD, || writes(&counted.take()) > 0),
        "nobody renews"
    );
    let (from, mut requests) = (Instant::now(), Vec::new());
    let renewed = wait_for(2 * RETRY_PERIOD * 8, || {
        requests.extend(counted.take());
        writes(&requests) >= RENEWALS
    });
    let lasted = from.elapsed();
    assert!(renewed, "the Lease is not renewed: {requests:?}");
    let periods = RETRY_PERIOD * u32::try_from(RENEWALS - 1).expect("a number");
    assert!(lasted >= periods, "{RENEWALS} writes in {lasted:?}: {requests:?}");
    assert_eq!(watches(&requests), 0, "a new watch: {requests:?}");
    // A look beside the watch, for each member, where nothing has come by it for a while.
    let reads = requests.len() - writes(&requests);
    assert!(reads <= 3, "{reads} reads in {lasted:?}: {requests:?}");
}
