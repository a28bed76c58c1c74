//! Planned moves under load.

use std::time::{Duration, Instant};

use podgres::demo::Target;
use rustix::process::Signal;
use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls};

use super::clients::{Clients, Counts, Work, config_of, drained_and_cut, on_standby};
use super::{found_primary, leased, ordinal_of, primary};
use crate::harness::{Demo, member, members, wait_for};
use crate::kit::signal;

/// The peer timeout of 2 s, and what a busy machine takes to see that it is over and to say so.
const SOON_HEARD: Duration = Duration::from_secs(8);

#[test]
fn a_switchover_breaks_no_transaction() {
    let demo = leased(&[]);
    demo.sql(&[], "CREATE TABLE work (n int)");
    let writers = Clients::start(&demo.directory, Target::ReadWrite, Work::Write, 8);
    let readers = Clients::start(&demo.directory, Target::ReadOnly, Work::Read, 4);
    let ahead = Clients::start(&demo.directory, Target::ReadWrite, Work::WriteAhead, 4);
    for _ in 0..3 {
        writers.wait_for_more(50);
        let before = primary(&demo.status().expect("status"));
        demo.done(&["switchover"]);
        writers.wait_for_more(50);
        let after = primary(&demo.wait_streaming(2));
        assert_ne!(before, after);
    }
    let (writers, readers, ahead) = (writers.stop(), readers.stop(), ahead.stop());
    for counts in [&writers, &readers, &ahead] {
        counts.assert_moved();
        assert_eq!(Counts::get(&counts.read_only), 0, "{counts:?}");
    }
    let (drained, cut) = drained_and_cut(&demo);
    assert!(drained > 0 && cut == 0, "{drained} drained, {cut} cut");
    assert!(
        Counts::get(&writers.between) >= 8,
        "sessions were ended: {writers:?}"
    );
    assert!(Counts::get(&ahead.between) >= 4, "sessions were ended: {ahead:?}");
    // Every acknowledged insert is there, once.
    let there = demo.sql(&[], "SELECT count(*) FROM work");
    let acknowledged = Counts::get(&writers.done) + Counts::get(&ahead.done);
    assert_eq!(there, acknowledged.to_string());
}

#[test]
fn clients_of_a_lost_primary_hear_at_once_and_find_the_next_one() {
    let demo = leased(&[]);
    demo.sql(&[], "CREATE TABLE work (n int)");
    let writers = Clients::start(&demo.directory, Target::ReadWrite, Work::Write, 4);
    writers.wait_for_more(20);
    let lost = primary(&demo.status().expect("status"));
    demo.ask(&["delete-pod", &ordinal_of(&lost), "--force"]);
    writers.wait_for_more(20);
    let moved = wait_for(Duration::from_secs(30), || {
        let holder = demo.status().as_ref().and_then(found_primary);
        holder.is_some_and(|name| name != lost)
    });
    assert!(moved, "{lost} is still the primary");
    let counts = writers.stop();
    assert_eq!(
        Counts::get(&counts.refused),
        0,
        "held, and not refused: {counts:?}"
    );
    let there: u64 = demo
        .sql(&[], "SELECT count(*) FROM work")
        .parse()
        .expect("a number");
    // A commit whose answer was lost may be there too.
    let done = Counts::get(&counts.done);
    assert!((done..=done + 4).contains(&there), "{there} of {counts:?}");
}

/// A pod that is deleted with some notice ends the sessions through its endpoint between transactions.
#[test]
fn sessions_through_the_endpoint_of_a_pod_that_stops_end_between_transactions() {
    let demo = leased(&[]);
    demo.sql(&[], "CREATE TABLE work (n int)");
    let first = primary(&demo.status().expect("status"));
    let other = (0..3).find(|ordinal| ordinal_of(&first) != ordinal.to_string());
    let other = other.expect("a standby");
    let config = config_of(&demo, other, Target::ReadWrite);
    let writers = Clients::start_as(&config, &NoTls, Work::Write, 6);
    writers.wait_for_more(50);
    demo.ask(&["delete-pod", &other.to_string()]);
    writers.wait_for_more(50);
    let counts = writers.stop();
    // Where there is no pod nobody is held: only what was refused is not asserted.
    for count in [&counts.broken, &counts.closed] {
        assert_eq!(Counts::get(count), 0, "{counts:?}");
    }
    assert!(Counts::get(&counts.between) >= 6, "{counts:?}");
    let there = demo.sql(&[], "SELECT count(*) FROM work");
    assert_eq!(there, Counts::get(&counts.done).to_string());
}

/// No word comes from a frozen pod, and its connections stay open: it is the route beside another member that ends them.
#[test]
fn a_session_on_a_primary_that_fell_silent_ends_and_its_client_finds_the_successor() {
    let demo = leased(&[]);
    let lost = primary(&demo.wait_streaming(2));
    let first: u32 = ordinal_of(&lost).parse().expect("an ordinal");
    let through = config_of(&demo, (first + 1) % 3, Target::ReadWrite);
    let runtime = Runtime::new().expect("runtime");
    let asleep = runtime.spawn({
        let through = through.clone();
        async move {
            let (client, connection) = through.connect(NoTls).await.expect("session");
            tokio::spawn(connection);
            client.batch_execute("SELECT pg_sleep(60)").await
        }
    });
    demo.wait_sql(
        &["--member", &ordinal_of(&lost)],
        "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'",
        "1",
    );
    demo.ask(&["freeze", &ordinal_of(&lost)]);
    let frozen = Instant::now();
    let heard = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), asleep).await });
    let heard = heard.expect("an end").expect("no panic");
    println!("its client heard after {:?}: {heard:?}", frozen.elapsed());
    assert!(heard.is_err(), "{heard:?}");
    assert!(frozen.elapsed() < SOON_HEARD, "{:?}", frozen.elapsed());
    let again = || on_standby(&through) == Some(false);
    assert!(
        wait_for(Duration::from_secs(30), again),
        "the successor is not found"
    );
    demo.ask(&["thaw", &ordinal_of(&lost)]);
    // What it said of itself before it froze may be read for a moment.
    demo.wait("two standbys of another primary", |status| {
        let streaming = members(status)
            .iter()
            .filter(|member| member["state"] == "streaming");
        streaming.count() == 2 && found_primary(status).is_some_and(|name| name != lost)
    });
}

/// A session through the primary's endpoint, on that standby.
fn session_on(demo: &Demo, runtime: &Runtime, first: u32, standby: &str) -> Client {
    let through = config_of(demo, first, Target::ReadOnly);
    let address = demo.sql(&["--member", standby], "SELECT inet_server_addr()");
    let mut found = None;
    let came = wait_for(Duration::from_secs(20), || {
        found = runtime.block_on(async {
            let (client, connection) = through.connect(NoTls).await.ok()?;
            tokio::spawn(connection);
            let row = client
                .query_one("SELECT inet_server_addr()::text", &[])
                .await
                .ok()?;
            row.get::<_, String>(0).starts_with(&address).then_some(client)
        });
        found.is_some()
    });
    assert!(came, "no session came to {standby}");
    found.expect("a session")
}

/// PostgreSQL does not notice: the other pods' routes cut the sessions on it.
#[test]
fn sessions_were_cut_when_the_sidecar_beside_their_standby_restarted() {
    let demo = leased(&[]);
    let status = demo.wait_streaming(2);
    let first: u32 = ordinal_of(&primary(&status)).parse().expect("an ordinal");
    let standby = ((first + 1) % 3).to_string();
    let runtime = Runtime::new().expect("runtime");
    let session = session_on(&demo, &runtime, first, &standby);
    let name = format!("demo-{standby}");
    for _ in 0..3 {
        let killed = demo.pid(&name, "sidecar");
        signal(killed, Signal::KILL);
        demo.wait("another sidecar", |status| {
            let pid = member(status, &name)["pids"]["sidecar"].as_u64();
            pid.is_some_and(|pid| pid != u64::from(killed))
        });
        demo.wait_streaming(2);
        let answered = runtime.block_on(session.simple_query("SELECT 1"));
        assert!(answered.is_ok(), "{answered:?}");
    }
}
