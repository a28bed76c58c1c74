//! TLS that ends at the routes of a whole cluster: moves, changed certificates, encrypted cancel requests.

use std::net::SocketAddr;

use podgres::demo::{Target, dsn};
use podgres::postgres::tls::ClientTls;
use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, LoadBalanceHosts, SslMode};

use super::clients::{Clients, Counts, Work, drained_and_cut};
use super::primary;
use crate::authority::Authority;
use crate::harness::{Demo, LIMIT, Start, members, wait_for};
use crate::kit::count;
use crate::mounted::Mounted;

/// Under a Lease, with TLS from the folder that is mounted.
fn demo_with_tls(mounted: &Mounted, more: &[&str]) -> Demo {
    let set = |key: &str| format!("{key}={}", mounted.path().display());
    let demo = Start::lease(15)
        .with(more)
        .with(&["--set", &set("PODGRES_TLS_DIR")])
        .with(&["--set", &set("PODGRES_CONFIGURATION_DIR")])
        .run();
    demo.wait("two synchronous standbys", |status| {
        let sync = members(status).iter().filter(|member| member["sync"] == true);
        let recorded = status["synchronous"]["members"].as_array().map_or(0, Vec::len);
        (sync.count(), recorded) == (2, 2)
    });
    demo
}

/// The routes of all pods, by the names in the certificate, with nothing but TLS.
fn config(demo: &Demo, target: Target) -> Config {
    let state = demo.deployed();
    let plain: Config = dsn(&state, target)
        .expect("dsn")
        .parse()
        .expect("connection string");
    let port = match target {
        Target::ReadWrite => state.ports.read_write,
        Target::ReadOnly => state.ports.read_only,
        Target::Member(_) => state.ports.postgres,
    };
    let mut config = Config::new();
    for pod in &state.pods {
        config.host(format!("{}.demo.default.svc.cluster.local", pod.name));
        config.hostaddr(pod.address).port(port);
    }
    config.user(&state.superuser).dbname(&state.database);
    config.password(plain.get_password().expect("a password"));
    config.ssl_mode(SslMode::Require);
    // A login that somebody else's certificate came between fails, whether the route ends TLS or passes it through.
    config.channel_binding(ChannelBinding::Require);
    config.load_balance_hosts(LoadBalanceHosts::Random);
    config
}

/// Whether every pod's routes show a certificate of `authority`, and let clients in that bind to it.
fn verified(demo: &Demo, authority: &Authority) -> bool {
    let state = demo.deployed();
    let ports = [state.ports.read_write, state.ports.read_only];
    let pods = state.pods.iter();
    let mut routes = pods.flat_map(|pod| ports.map(|port| SocketAddr::new(pod.address, port)));
    routes.all(|address| {
        let options = "sslmode=verify-full channel_binding=require";
        crate::tls::client(demo, address, "demo-0", authority, options)
            .status
            .success()
    })
}

#[test]
fn a_switchover_and_a_changed_certificate_break_no_encrypted_transaction() {
    let (before, after) = (Authority::new("before"), Authority::new("after"));
    let mounted = Mounted::new();
    mounted.put_tls(&before, &before);
    let demo = demo_with_tls(&mounted, &["--set", "PODGRES_TLS=terminate"]);
    assert!(wait_for(LIMIT, || verified(&demo, &before)));
    demo.sql(&[], "CREATE TABLE work (n int)");

    let authority = ClientTls::open(before.directory.path()).expect("authority");
    let start = |target, work, number| {
        Clients::start_as(
            &config(&demo, target),
            &authority.postgres_connector(),
            work,
            number,
        )
    };
    let writers = start(Target::ReadWrite, Work::Write, 4);
    let readers = start(Target::ReadOnly, Work::Read, 2);
    writers.wait_for_more(50);
    let first = primary(&demo.status().expect("status"));
    demo.done(&["switchover"]);
    writers.wait_for_more(50);
    assert_ne!(first, primary(&demo.wait_streaming(2)));
    let (writers, readers) = (writers.stop(), readers.stop());
    writers.assert_moved();
    readers.assert_moved();
    assert!(
        Counts::get(&writers.between) >= 4,
        "sessions were ended: {writers:?}"
    );
    let there = demo.sql(&[], "SELECT count(*) FROM work");
    assert_eq!(there, Counts::get(&writers.done).to_string());

    mounted.put_tls(&after, &after);
    assert!(
        wait_for(LIMIT, || verified(&demo, &after)),
        "the new certificate is not shown"
    );
    // The members' own connections did not notice.
    demo.wait_streaming(2);
    assert_eq!(
        count(&demo.log("demo-0", "sidecar"), "keeping the previous certificate"),
        0
    );
}

/// The routes read no byte of what they drain.
#[test]
fn switchovers_break_no_transaction_whose_encryption_passes_through() {
    let authority = Authority::new("through");
    let mounted = Mounted::new();
    mounted.put_tls(&authority, &authority);
    // Unoptimised TLS of all clients on one thread: their pauses inside of transactions are long on a busy machine.
    let demo = demo_with_tls(&mounted, &["--set", "PODGRES_DRAIN_TIMEOUT=10s"]);
    demo.sql(&[], "CREATE TABLE work (n int)");
    let folder = ClientTls::open(authority.directory.path()).expect("authority");
    let start = |target, work, number| {
        Clients::start_as(&config(&demo, target), &folder.postgres_connector(), work, number)
    };
    let writers = start(Target::ReadWrite, Work::Write, 6);
    let ahead = start(Target::ReadWrite, Work::WriteAhead, 2);
    let readers = start(Target::ReadOnly, Work::Read, 2);
    for _ in 0..3 {
        writers.wait_for_more(50);
        let before = primary(&demo.status().expect("status"));
        demo.done(&["switchover"]);
        writers.wait_for_more(50);
        assert_ne!(before, primary(&demo.wait_streaming(2)));
    }
    let counts = [writers.stop(), ahead.stop(), readers.stop()];
    for counts in &counts {
        counts.assert_moved();
    }
    let (drained, cut) = drained_and_cut(&demo);
    assert!(drained > 0 && cut == 0, "{drained} drained, {cut} cut");
    let there = demo.sql(&[], "SELECT count(*) FROM work");
    let acknowledged = Counts::get(&counts[0].done) + Counts::get(&counts[1].done);
    assert_eq!(there, acknowledged.to_string());
}
