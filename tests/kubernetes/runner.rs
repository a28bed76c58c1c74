//! Runs groups of tests in their order, each group on a StatefulSet of its own; says what failed and shows the pods' logs then.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::cluster::Cluster;
use crate::overlay::Overlay;
use crate::selection::selects;
use crate::world::World;

/// Tests that share a StatefulSet.
pub(crate) struct Group {
    /// Part of the namespace's name; as an argument it selects this group.
    pub(crate) name: &'static str,
    pub(crate) overlay: fn() -> Overlay,
    /// What is done before the first test: usually the overlay is applied, and all members wait to be ready.
    pub(crate) begin: fn(&Cluster),
    pub(crate) tests: &'static [Test],
    /// It takes away what all groups need, the API server or a node.
    pub(crate) alone: bool,
}

/// Most of a group's time is waiting for the cluster; two cores carry two groups.
const GROUPS_AT_ONCE: usize = 2;

/// A name and what is to hold.
pub(crate) type Test = (&'static str, fn(&Cluster));

#[derive(Default)]
struct Tally {
    passed: u32,
    failed: Vec<&'static str>,
}

/// Runs what the arguments select; all without arguments.
pub(crate) fn run(groups: &'static [Group]) -> ExitCode {
    // What `cargo test` hands to every test binary is of no use here.
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
        .collect();
    let names: Vec<&str> = groups.iter().map(|group| group.name).collect();
    let world = World::open();
    let tally = Mutex::new(Tally::default());
    let begun = Instant::now();
    let chosen = |group: &'static Group| -> Option<(&Group, Vec<&Test>)> {
        let selected = |(test, _): &&Test| selects(&words, &names, (group.name, test));
        let tests: Vec<&Test> = group.tests.iter().filter(selected).collect();
        (!tests.is_empty()).then_some((group, tests))
    };
    for (alone, at_once) in [(false, GROUPS_AT_ONCE), (true, 1)] {
        let groups: Vec<_> = groups
            .iter()
            .filter(|group| group.alone == alone)
            .filter_map(|group| chosen(group))
            .collect();
        let left = Mutex::new(groups.into_iter());
        let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
        std::thread::scope(|scope| {
            for _ in 0..at_once {
                scope.spawn(|| {
                    while let Some((group, tests)) = next() {
                        run_group(&world, group, &tests, &tally);
                    }
                });
            }
        });
    }
    let tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
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

fn run_group(world: &World, group: &Group, tests: &[&Test], tally: &Mutex<Tally>) {
    let count = |count: &dyn Fn(&mut Tally)| count(&mut tally.lock().unwrap_or_else(PoisonError::into_inner));
    println!("\ngroup {} ({} tests)", group.name, tests.len());
    let begun = Instant::now();
    let cluster = Cluster::prepare(world, group.name, &(group.overlay)());
    if catch_unwind(AssertUnwindSafe(|| (group.begin)(&cluster))).is_err() {
        println!("group {} could not be set up", group.name);
        cluster.show();
        count(&|tally| tally.failed.extend(tests.iter().map(|(name, _)| *name)));
        return cluster.remove();
    }
    println!("group {} set up in {:.1?}", group.name, begun.elapsed());
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
            count(&|tally| tally.passed += 1);
        } else {
            cluster.show();
            count(&|tally| tally.failed.push(name));
        }
    }
    cluster.remove();
}
