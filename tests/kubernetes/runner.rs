//! Runs groups of tests in their order, each group on a StatefulSet of its own; says what failed and shows the pods' logs then.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use crate::cluster::Cluster;
use crate::overlay::Overlay;
use crate::world::World;

/// Tests that share a StatefulSet.
pub(crate) struct Group {
    /// Part of the namespace's name; as an argument it selects all its tests.
    pub(crate) name: &'static str,
    pub(crate) overlay: fn() -> Overlay,
    /// What is done before the first test: usually the overlay is applied, and all members wait to be ready.
    pub(crate) begin: fn(&Cluster),
    pub(crate) tests: &'static [Test],
}

/// A name and what is to hold.
pub(crate) type Test = (&'static str, fn(&Cluster));

#[derive(Default)]
struct Tally {
    passed: u32,
    failed: Vec<&'static str>,
}

/// Runs what the arguments select; all without arguments.
pub(crate) fn run(groups: &[Group]) -> ExitCode {
    // What `cargo test` hands to every test binary is of no use here.
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
        .collect();
    let selected = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let world = World::open();
    let mut tally = Tally::default();
    let begun = Instant::now();
    for group in groups {
        let tests: Vec<&Test> = group
            .tests
            .iter()
            .filter(|(name, _)| selected(name) || words.iter().any(|word| word == group.name))
            .collect();
        if !tests.is_empty() {
            run_group(&world, group, &tests, &mut tally);
        }
    }
    let result = if tally.failed.is_empty() && tally.passed > 0 {
        "ok"
    } else {
        "FAILED"
    };
    println!(
        "\ntest result: {result}. {} passed; {} failed; finished in {:.1?}",
        tally.passed,
        tally.failed.len(),
        begun.elapsed()
    );
    for name in &tally.failed {
        println!("    {name}");
    }
    ExitCode::from(u8::from(result != "ok"))
}

fn run_group(world: &World, group: &Group, tests: &[&Test], tally: &mut Tally) {
    println!("\ngroup {} ({} tests)", group.name, tests.len());
    let begun = Instant::now();
    let cluster = Cluster::prepare(world, group.name, &(group.overlay)());
    if catch_unwind(AssertUnwindSafe(|| (group.begin)(&cluster))).is_err() {
        println!("group {} could not be set up", group.name);
        cluster.show();
        tally.failed.extend(tests.iter().map(|(name, _)| *name));
        return cluster.remove();
    }
    println!("    set up in {:.1?}", begun.elapsed());
    for (index, (name, test)) in tests.iter().enumerate() {
        let begun = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            // As the one before should have left it.
            if index > 0 {
                cluster.settle();
            }
            test(&cluster);
        }));
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!(
            "test {} :: {name} ... {word} ({:.1?})",
            group.name,
            begun.elapsed()
        );
        if outcome.is_ok() {
            tally.passed += 1;
        } else {
            cluster.show();
            tally.failed.push(name);
        }
    }
    cluster.remove();
}
