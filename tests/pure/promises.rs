//! `docs/promises.md` lists every promise that a test or a comment calls by its number, and names only tests that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::source::files_below;

/// The folders in which promises are called by number.
const FOLDERS: [&str; 4] = ["src", "tests", "k8s", "benches"];

/// The last cell of each row of the page, by the row's number.
fn page() -> BTreeMap<u32, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/promises.md");
    let text = fs::read_to_string(path).expect("the page can be read");
    let rows = text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        let number = cells.next()?.parse().ok()?;
        Some((number, cells.nth(1)?.to_owned()))
    });
    rows.collect()
}

/// The numbers behind each `row_`, "row" and "rows" of a text: `row_37_to_42_…`, "rows 16 and 22".
fn called(text: &str) -> BTreeSet<u32> {
    let mut numbers = BTreeSet::new();
    for line in text.to_lowercase().lines() {
        for start in ["row_", "row ", "rows "] {
            for tail in line.split(start).skip(1) {
                numbers.extend(leading_numbers(tail));
            }
        }
    }
    numbers
}

/// "37 to 42 and 78 of …": all of them.
fn leading_numbers(text: &str) -> Vec<u32> {
    let (mut numbers, mut range) = (Vec::new(), false);
    for word in text.split([' ', '_', ',']) {
        let word = word.trim_end_matches(|c: char| !c.is_alphanumeric());
        match (word.parse::<u32>(), numbers.last().copied()) {
            (Ok(number), Some(last)) if range => numbers.extend(last + 1..=number),
            (Ok(number), _) => numbers.push(number),
            (Err(_), Some(_)) if matches!(word, "" | "to" | "and") => {}
            _ => break,
        }
        range = word == "to";
    }
    numbers
}

#[test]
fn every_promise_that_is_called_by_its_number_is_on_the_page() {
    let page = page();
    let mut found = BTreeSet::new();
    for source in FOLDERS.into_iter().flat_map(files_below) {
        for number in called(&source.text) {
            assert!(
                page.contains_key(&number),
                "{} mentions row {number}, which docs/promises.md does not have",
                source.path
            );
            found.insert(number);
        }
    }
    assert!(found.len() > 50, "only {found:?}");
}

#[test]
fn every_test_that_the_page_of_promises_names_exists() {
    let sources: Vec<_> = FOLDERS.into_iter().flat_map(files_below).collect();
    let mut count = 0;
    for (number, shown_by) in page() {
        let names: Vec<&str> = shown_by.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "row {number} names no test");
        for name in names {
            let exists = sources.iter().any(|source| source.text.contains(name));
            assert!(exists, "row {number} names \"{name}\", and there is no such test");
            count += 1;
        }
    }
    assert!(count > 100, "only {count} names");
}

#[test]
fn numbers_are_read_from_names_and_sentences() {
    let numbers = |text| called(text).into_iter().collect::<Vec<_>>();
    assert_eq!(
        numbers("fn row_19_20_and_70_off() // Rows 3 to 5"),
        [3, 4, 5, 19, 20, 70]
    );
    assert_eq!(numbers("row_57_to_a_moment, 8 rows of 9"), [57]);
}
