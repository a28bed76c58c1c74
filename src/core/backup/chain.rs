//! Incremental backups and what they build on: whether all of it is there, and good.

use super::{Entry, Kind};
use crate::core::wal::{Lsn, Relation, TimelineHistory, WalPosition};

/// Why a chain of backups cannot be put together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenChain {
    #[error("backup \"{name}\" builds on \"{parent}\", which is gone")]
    Gone { name: String, parent: String },
    #[error("backup \"{name}\" builds on \"{parent}\", which failed its verification: {first}")]
    Bad {
        name: String,
        parent: String,
        first: String,
    },
}

/// Whether a physical backup ends where a timeline's way does not lead past.
#[must_use]
pub fn forked(entry: &Entry, history: &TimelineHistory) -> bool {
    let position = WalPosition {
        timeline: entry.record.timeline,
        lsn: entry.record.stop_lsn,
    };
    entry.record.kind == Kind::Physical && history.relation(position, Lsn(u64::MAX)) != Relation::Contained
}

/// The backup itself and everything that it builds on, the full one first.
///
/// # Errors
/// One is gone or known to be bad. Of the backup itself only what it builds on is judged.
pub fn chain<'a>(entries: &'a [Entry], entry: &'a Entry) -> Result<Vec<&'a Entry>, BrokenChain> {
    let mut links = vec![entry];
    let mut child = entry;
    while let Some(parent) = &child.record.parent {
        let (name, parent) = (child.record.name.clone(), parent.clone());
        // Made earlier: so there is no circle.
        let found = entries
            .iter()
            .find(|entry| entry.record.name == parent && entry.record.sequence < child.record.sequence);
        let Some(found) = found else {
            return Err(BrokenChain::Gone { name, parent });
        };
        if let Some(first) = found.first_difference() {
            let first = first.to_owned();
            return Err(BrokenChain::Bad { name, parent, first });
        }
        links.push(found);
        child = found;
    }
    links.reverse();
    Ok(links)
}

/// Not known to be bad, nor anything that it builds on.
#[must_use]
pub fn sound(entries: &[Entry], entry: &Entry) -> bool {
    entry.good() && chain(entries, entry).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::backup::fixtures::{child, entry, failed};

    /// A full backup, two that add to it, and a full one.
    fn entries() -> Vec<Entry> {
        let first = entry(1, 1_000);
        let second = child(2, 2_000, &first);
        let third = child(3, 3_000, &second);
        vec![first, second, third, entry(4, 4_000)]
    }

    #[test]
    fn chains() {
        let mut entries = entries();
        let numbers = |entries: &[Entry], at: usize| {
            chain(entries, &entries[at]).map(|chain| {
                chain
                    .iter()
                    .map(|entry| entry.record.sequence)
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(numbers(&entries, 2), Ok(vec![1, 2, 3]));
        assert_eq!(numbers(&entries, 3), Ok(vec![4]));
        let third = entries[2].clone();
        assert!(sound(&entries, &third));
        entries[1] = failed(entries[1].clone());
        assert!(matches!(numbers(&entries, 2), Err(BrokenChain::Bad { .. })));
        entries.remove(1);
        assert!(matches!(numbers(&entries, 1), Err(BrokenChain::Gone { .. })));
        assert!(!sound(&entries, &third));
        // One that says it builds on itself.
        entries[0].record.parent = Some(entries[0].record.name.clone());
        assert!(matches!(numbers(&entries, 0), Err(BrokenChain::Gone { .. })));
    }
}
