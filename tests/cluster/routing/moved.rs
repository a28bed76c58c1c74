//! Planned moves under load.

use std::time::Duration;

use podgres::demo::Target;

use super::clients::{Clients, Counts, Work, drained_and_cut};
use super::{found_primary, leased, ordinal_of, primary, verb};
use crate::harness::wait_for;

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
        verb(&demo, &["switchover"]);
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
    let there: u64 = demo
        .sql(&[], "SELECT count(*) FROM work")
        .parse()
        .expect("a number");
    // A commit whose answer was lost may be there too.
    let done = Counts::get(&counts.done);
    assert!((done..=done + 4).contains(&there), "{there} of {counts:?}");
}
