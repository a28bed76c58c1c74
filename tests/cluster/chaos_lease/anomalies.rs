//! What a history of list-append transactions proves to be wrong (Kingsbury and Alvaro, "Elle", 2020; anomaly
//! names by Adya). The lists at the end give each list's order of versions, so nothing has to be guessed.
//!
//! Every transaction appends something: one that only reads on a lost primary may see what was never acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use super::ledger::Office;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Append { key: i64, value: i64 },
    Read { key: i64, items: Vec<i64> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Committed,
    Aborted,
    Unknown,
}

#[derive(Clone, Debug)]
pub(super) struct Transaction {
    pub(super) begun_us: u64,
    pub(super) told_us: u64,
    pub(super) outcome: Outcome,
    pub(super) operations: Vec<Operation>,
    pub(super) office: Option<Office>,
}

impl Transaction {
    pub(super) fn committed(&self) -> bool {
        self.outcome == Outcome::Committed
    }

    fn appends(&self) -> impl Iterator<Item = (i64, i64)> {
        self.operations.iter().filter_map(|operation| match operation {
            Operation::Append { key, value } => Some((*key, *value)),
            Operation::Read { .. } => None,
        })
    }

    fn reads(&self) -> impl Iterator<Item = (i64, &[i64])> {
        self.operations.iter().filter_map(|operation| match operation {
            Operation::Read { key, items } => Some((*key, items.as_slice())),
            Operation::Append { .. } => None,
        })
    }
}

pub(super) type Lists = BTreeMap<i64, Vec<i64>>;

/// Everything that is wrong with a history whose lists ended as `lists`.
pub(super) fn anomalies(history: &[Transaction], lists: &Lists) -> Vec<String> {
    let writers: BTreeMap<i64, usize> = history
        .iter()
        .enumerate()
        .flat_map(|(at, transaction)| transaction.appends().map(move |(_, value)| (value, at)))
        .collect();
    let mut wrong = stored(history, lists, &writers);
    for (at, transaction) in history.iter().enumerate().filter(|(_, t)| t.committed()) {
        let whole = appended(transaction, lists).and_then(|()| seen(history, lists, &writers, at));
        if let Err(what) = whole {
            wrong.push(format!("{what}: {transaction:?}"));
        }
    }
    wrong.extend(late(history, lists));
    if wrong.is_empty() {
        wrong.extend(cycle(history, lists, &writers));
    }
    wrong
}

/// Of the lists themselves: each value once, and of a transaction that may have been committed.
fn stored(history: &[Transaction], lists: &Lists, writers: &BTreeMap<i64, usize>) -> Vec<String> {
    let (mut wrong, mut known) = (Vec::new(), BTreeSet::new());
    for (key, value) in lists
        .iter()
        .flat_map(|(key, items)| items.iter().map(move |v| (key, v)))
    {
        if !known.insert(value) {
            wrong.push(format!("list {key} has {value} twice"));
        }
        match writers.get(value).map(|writer| &history[*writer]) {
            None => wrong.push(format!("list {key} has {value}, which nobody appended")),
            Some(writer) if writer.outcome == Outcome::Aborted => {
                wrong.push(format!("G1a: list {key} has {value} of an aborted {writer:?}"));
            }
            Some(_) => {}
        }
    }
    wrong
}

/// All that it appended is there, in its order.
fn appended(transaction: &Transaction, lists: &Lists) -> Result<(), String> {
    let mut last: BTreeMap<i64, usize> = BTreeMap::new();
    for (key, value) in transaction.appends() {
        let list = lists.get(&key).map_or(&[][..], Vec::as_slice);
        let Some(at) = list.iter().position(|item| *item == value) else {
            return Err(format!("lost: {value} is not in list {key}"));
        };
        if last.insert(key, at).is_some_and(|before| before + 1 != at) {
            return Err(format!(
                "not atomic: {value} in list {key} does not follow its own append"
            ));
        }
    }
    Ok(())
}

/// Each read is a version of its list, whole transactions, with the reader's own appends and no later one.
fn seen(
    history: &[Transaction],
    lists: &Lists,
    writers: &BTreeMap<i64, usize>,
    reader: usize,
) -> Result<(), String> {
    let mut own: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for operation in &history[reader].operations {
        let (key, items) = match operation {
            Operation::Append { key, value } => {
                own.entry(*key).or_default().push(*value);
                continue;
            }
            Operation::Read { key, items } => (key, items),
        };
        let list = lists.get(key).map_or(&[][..], Vec::as_slice);
        if !list.starts_with(items) {
            return Err(format!(
                "list {key} was read as {items:?}, which is no beginning of {list:?}"
            ));
        }
        let mine = own.get(key).map_or(&[][..], Vec::as_slice);
        if !items.ends_with(mine) {
            return Err(format!("list {key} was read without its own {mine:?}"));
        }
        let others = &items[..items.len() - mine.len()];
        let Some(writer) = others.last().and_then(|value| writers.get(value)) else {
            continue;
        };
        if *writer == reader {
            return Err(format!("list {key} was read with an append that came later"));
        }
        let last = history[*writer].appends().filter(|(of, _)| of == key).last();
        if last.map(|(_, value)| value) != others.last().copied() {
            return Err(format!(
                "G1b: list {key} was read in the middle of {:?}",
                history[*writer]
            ));
        }
    }
    Ok(())
}

/// What was acknowledged before a transaction began is in what it read.
fn late(history: &[Transaction], lists: &Lists) -> Vec<String> {
    let mut told: BTreeMap<i64, Vec<(u64, i64)>> = BTreeMap::new();
    for transaction in history.iter().filter(|t| t.committed()) {
        for (key, value) in transaction.appends() {
            told.entry(key).or_default().push((transaction.told_us, value));
        }
    }
    let mut wrong = Vec::new();
    for transaction in history.iter().filter(|t| t.committed()) {
        for (key, items) in transaction.reads() {
            let missing = told.get(&key).into_iter().flatten().find(|(told_us, value)| {
                *told_us < transaction.begun_us && !items.contains(value) && lists.contains_key(&key)
            });
            if let Some((told_us, value)) = missing {
                wrong.push(format!(
                    "list {key} was read without {value}, acknowledged at {told_us}: {transaction:?}"
                ));
            }
        }
    }
    wrong
}

/// A circle of write-write, write-read and read-write dependencies (G0, G1c, G-single, G2).
fn cycle(history: &[Transaction], lists: &Lists, writers: &BTreeMap<i64, usize>) -> Option<String> {
    let mut after: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); history.len()];
    let mut edge = |from: Option<&i64>, to: Option<usize>| {
        if let Some((from, to)) = from.and_then(|value| writers.get(value)).copied().zip(to)
            && from != to
        {
            after[from].insert(to);
        }
    };
    for list in lists.values() {
        for pair in list.windows(2) {
            edge(Some(&pair[0]), writers.get(&pair[1]).copied());
        }
    }
    for (reader, transaction) in history.iter().enumerate().filter(|(_, t)| t.committed()) {
        for (_, items) in transaction.reads() {
            edge(items.last(), Some(reader));
        }
    }
    for (reader, transaction) in history.iter().enumerate().filter(|(_, t)| t.committed()) {
        for (key, items) in transaction.reads() {
            let next = lists.get(&key).and_then(|list| list.get(items.len()));
            let next = next.and_then(|value| writers.get(value));
            if let Some(next) = next.filter(|next| **next != reader) {
                after[reader].insert(*next);
            }
        }
    }
    let circle = circular(&after);
    (!circle.is_empty()).then(|| {
        let members: Vec<&Transaction> = circle.iter().take(6).map(|at| &history[*at]).collect();
        format!("a circle among {} transactions, with {members:#?}", circle.len())
    })
}

/// Nodes that are left when all that nothing leads to are taken away, and then all that lead nowhere.
fn circular(after: &[BTreeSet<usize>]) -> BTreeSet<usize> {
    let mut left: BTreeSet<usize> = (0..after.len()).filter(|at| !after[*at].is_empty()).collect();
    let mut before: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); after.len()];
    for (from, to) in after
        .iter()
        .enumerate()
        .flat_map(|(from, all)| all.iter().map(move |to| (from, *to)))
    {
        before[to].insert(from);
    }
    for (one, other) in [(after, before.as_slice()), (before.as_slice(), after)] {
        let mut open: Vec<usize> = one
            .iter()
            .map(|of| of.iter().filter(|to| left.contains(to)).count())
            .collect();
        let mut ends: Vec<usize> = left.iter().copied().filter(|at| open[*at] == 0).collect();
        while let Some(end) = ends.pop() {
            left.remove(&end);
            for at in other[end].iter().filter(|at| left.contains(at)) {
                open[*at] -= 1;
                if open[*at] == 0 {
                    ends.push(*at);
                }
            }
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::Operation::{Append, Read};
    use super::*;

    fn transaction(at: u64, outcome: Outcome, operations: &[Operation]) -> Transaction {
        Transaction {
            begun_us: at,
            told_us: at + 5,
            outcome,
            operations: operations.to_vec(),
            office: None,
        }
    }

    fn append(value: i64) -> Operation {
        Append { key: 1, value }
    }

    fn read(items: &[i64]) -> Operation {
        let items = items.to_vec();
        Read { key: 1, items }
    }

    fn found(history: &[Transaction], list: &[i64], words: &str) {
        let wrong = anomalies(history, &BTreeMap::from([(1, list.to_vec()), (2, vec![])]));
        assert!(
            wrong.iter().any(|what| what.contains(words)),
            "{words}: {wrong:?}"
        );
    }

    const OK: Outcome = Outcome::Committed;

    #[test]
    fn each_planted_anomaly_is_found_and_a_sound_history_is_not_blamed() {
        let sound = [
            transaction(0, OK, &[read(&[]), append(1), append(2), read(&[1, 2])]),
            transaction(10, OK, &[read(&[1, 2]), append(3)]),
            transaction(11, Outcome::Aborted, &[append(4)]),
            transaction(12, Outcome::Unknown, &[append(5)]),
        ];
        let lists = |list: &[i64]| BTreeMap::from([(1, list.to_vec())]);
        assert_eq!(anomalies(&sound, &lists(&[1, 2, 3])), Vec::<String>::new());
        assert_eq!(anomalies(&sound, &lists(&[1, 2, 3, 5])), Vec::<String>::new());
        found(&sound, &[1, 2], "lost: 3");
        found(&sound, &[1, 2, 3, 3], "twice");
        found(&sound, &[1, 2, 3, 4], "G1a");
        found(&sound, &[1, 2, 3, 6], "nobody appended");
        found(&sound, &[1, 3, 2], "not atomic");
        let middle = [sound[0].clone(), transaction(1, OK, &[read(&[1]), append(3)])];
        found(&middle, &[1, 2, 3], "G1b");
        let other = [sound[0].clone(), transaction(10, OK, &[read(&[2]), append(3)])];
        found(&other, &[1, 2, 3], "no beginning");
        let stale = [sound[0].clone(), transaction(10, OK, &[read(&[]), append(3)])];
        found(&stale, &[1, 2, 3], "read without 1, acknowledged");
    }

    #[test]
    fn two_that_did_not_see_each_other_are_a_circle() {
        let two = |key, value| Append { key, value };
        let of = |key, items: &[i64]| Read {
            key,
            items: items.to_vec(),
        };
        let skewed = [
            transaction(0, OK, &[of(1, &[]), two(2, 20)]),
            transaction(1, OK, &[of(2, &[]), two(1, 10)]),
        ];
        let lists = BTreeMap::from([(1, vec![10]), (2, vec![20])]);
        let wrong = anomalies(&skewed, &lists);
        assert!(
            wrong.iter().any(|what| what.contains("circle among 2")),
            "{wrong:?}"
        );
        let seen = [skewed[0].clone(), transaction(1, OK, &[of(2, &[20]), two(1, 10)])];
        assert_eq!(anomalies(&seen, &lists), Vec::<String>::new());
    }
}
