//! What people read: how long nobody could write after each kind of fault, and everything about a run that failed.

use std::collections::BTreeMap;

use crate::harness::Demo;

use super::ledger::Ledger;
use super::{checks, say, seconds};

/// The longest time between two acknowledgements, by kind of fault; faults that overlap count together.
pub(super) fn gaps(ledger: &Ledger) {
    let book = ledger.book();
    let mut told: Vec<u64> = book.rows.iter().map(|row| row.told_us).collect();
    told.sort_unstable();
    let mut faults: Vec<(u64, String)> = Vec::new();
    for fault in &book.faults {
        match faults.last_mut() {
            // Drawn for the same moment.
            Some((at, kinds)) if fault.at_us < *at + 50_000 => {
                kinds.push_str(" + ");
                kinds.push_str(&fault.kind);
            }
            _ => faults.push((fault.at_us, fault.kind.clone())),
        }
    }
    let mut table: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut longest_pair: Option<(u64, &str)> = None;
    for (at, (from_us, kind)) in faults.iter().enumerate() {
        let next_us = faults.get(at + 1).map_or(u64::MAX, |(next_us, _)| *next_us);
        let rest_us = book.rests.iter().find(|rest_us| *rest_us > from_us);
        let until_us = next_us.min(rest_us.copied().unwrap_or(u64::MAX));
        let around = told
            .windows(2)
            .filter(|pair| pair[1] > *from_us && pair[0] < until_us);
        let gap = around
            .map(|pair| pair[1].min(until_us) - pair[0].max(*from_us))
            .max();
        let kind = if kind.contains(" + ") {
            longest_pair = longest_pair.max(gap.map(|gap| (gap, kind.as_str())));
            "two at a time"
        } else {
            kind
        };
        table.entry(kind.to_owned()).or_default().extend(gap);
    }
    say("longest time without an acknowledged row, after each kind of fault:");
    for (kind, mut gaps) in table {
        gaps.sort_unstable();
        let (Some(longest), middle) = (gaps.last(), gaps.get(gaps.len() / 2)) else {
            continue;
        };
        say(&format!(
            "  {kind:40} {:3} times, median {:5.2} s, longest {:5.2} s",
            gaps.len(),
            seconds(*middle.unwrap_or(longest)),
            seconds(*longest)
        ));
    }
    if let Some((gap, kinds)) = longest_pair {
        say(&format!("  of two the longest, {:.2} s: {kinds}", seconds(gap)));
    }
}

/// Everything that helps to understand a run that failed, while its demo still runs.
pub(super) fn failure(demo: &Demo, ledger: &Ledger, seed: u64) {
    say(&format!("FAILED with seed {seed}; faults:"));
    let book = ledger.book();
    for fault in &book.faults {
        say(&format!(
            "  {:8.2} s {} {}",
            seconds(fault.at_us),
            fault.what,
            fault.fault
        ));
    }
    drop(book);
    say(&format!(
        "after {:.2} s: {}",
        seconds(ledger.now_us()),
        ledger.summary()
    ));
    say(&format!(
        "the Lease: {:#}",
        checks::lease(demo).unwrap_or_default()
    ));
    for pod in demo.deployed().pods {
        let path = demo.directory.join(format!("{}-decisions.json", pod.name));
        let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            demo.get(pod.ordinal.0, "/debug/decisions")
        }));
        if let Ok(Some((_, body))) = asked {
            drop(std::fs::write(path, body));
        }
    }
}
