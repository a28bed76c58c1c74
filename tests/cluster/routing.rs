//! The routing endpoints of whole clusters: planned moves, the read-only switch, freshness, causal reads.

mod beside;
mod chosen;
mod clients;
mod cut_off;
mod encrypted;
mod fresh;
mod joined;
mod languages;
mod logged;
mod looped;
mod moved;
mod pgbench;
mod returning;
mod slices;
mod switched;
mod unanswered;

use serde_json::Value;

use crate::harness::{Demo, Start, members};

/// Three pods under a Lease, both standbys synchronous.
fn leased(more: &[&str]) -> Demo {
    let demo = Start::lease(16).with(more).run();
    demo.wait("two synchronous standbys", |status| {
        let sync = members(status).iter().filter(|member| member["sync"] == true);
        let recorded = status["synchronous"]["members"].as_array().map_or(0, Vec::len);
        // Before that nobody can prove that it has every commit.
        let proven = status["synchronous"]["quorum"].as_u64() > Some(0);
        proven && (sync.count(), recorded) == (2, 2)
    });
    demo
}

/// The name of the primary.
fn primary(status: &Value) -> String {
    found_primary(status).expect("a primary")
}

/// As [`primary`], where there may be none just now.
fn found_primary(status: &Value) -> Option<String> {
    let mut found = members(status)
        .iter()
        .filter(|member| member["role"] == "primary");
    Some(found.next()?["name"].as_str()?.to_owned())
}

fn ordinal_of(name: &str) -> String {
    name.rsplit('-').next().expect("an ordinal").to_owned()
}
