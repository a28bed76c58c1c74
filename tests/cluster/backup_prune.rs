//! What `--keep` deletes of the archive: WAL that no kept backup needs, on every timeline, and nothing else.

use std::collections::BTreeSet;
use std::fs;

use crate::backup::{Lab, answer, ask_restored, text};
use crate::harness::{LIMIT, Start, members, wait_for};

const VERSION: u32 = 16;
const SEGMENT: u64 = 16 << 20;

/// The names in the archive.
fn archived(lab: &Lab) -> BTreeSet<String> {
    let identifier = lab.list()[0]["system_identifier"].clone();
    let identifier = identifier.as_str().map_or(identifier.to_string(), str::to_owned);
    let folder = lab.destination().join("wal").join(identifier);
    let names = fs::read_dir(folder).expect("archive").map(|entry| {
        let name = entry.expect("entry").file_name().into_string().expect("utf-8");
        name.strip_suffix(".zst").expect("a WAL file").to_owned()
    });
    names.collect()
}

/// Counted from the beginning of all WAL; `None` for a history.
fn segment_number(name: &str) -> Option<u64> {
    let digits = |range| u64::from_str_radix(name.get(range)?, 16).ok();
    Some(digits(8..16)? * ((1 << 32) / SEGMENT) + digits(16..24)?)
}

fn start_segment(lab: &Lab, name: &str) -> u64 {
    let list = lab.list();
    let entry = list.iter().find(|entry| entry["name"] == name).expect("listed");
    let lsn = entry["start_lsn"].as_str().expect("a position");
    let (high, low) = lsn.split_once('/').expect("a position");
    let half = |digits| u64::from_str_radix(digits, 16).expect("a number");
    (half(high) << 32 | half(low)) / SEGMENT
}

fn switchover(lab: &Lab) {
    let status = lab.demo.wait_streaming(2);
    let standby = members(&status).iter().find(|member| member["role"] == "standby");
    let to = standby.expect("a standby")["name"]
        .as_str()
        .expect("a name")
        .to_owned();
    // Segments that were switched a moment ago are on their way, and who lacks them is refused.
    let switched = wait_for(LIMIT, || {
        let order = ["switchover", "--dir", text(&lab.demo.directory), "--to", &to];
        lab.command(&order).status().expect("podgres").success()
    });
    assert!(switched, "\"{to}\" never fitted");
    lab.demo.wait("the new primary", |status| {
        let named = |member: &&serde_json::Value| member["name"] == to.as_str();
        members(status)
            .iter()
            .find(named)
            .is_some_and(|member| member["role"] == "primary")
    });
    lab.demo.wait_streaming(2);
}

#[test]
fn what_is_pruned_is_needed_by_no_kept_backup() {
    let lab = Lab::new(Start::lease(VERSION));
    lab.demo.sql(&[], "CREATE TABLE t (i int)");
    let mut names = Vec::new();
    for number in 1..=4 {
        lab.demo.sql(&[], &format!("INSERT INTO t VALUES ({number})"));
        lab.archive_all();
        let before = if number == 1 {
            BTreeSet::new()
        } else {
            archived(&lab)
        };
        // A standby begins at its last restartpoint, which may be that of the backup before.
        lab.backup(&["--keep", "2", "--from", "primary"]);
        let list = lab.list();
        names.push(
            list.last().expect("the new one")["name"]
                .as_str()
                .expect("a name")
                .to_owned(),
        );
        assert_eq!(list.len(), names.len().min(2), "{list:#?}");
        let oldest = &names[names.len().saturating_sub(2)];
        let needed_from = start_segment(&lab, oldest);
        let after = archived(&lab);
        let unneeded = |name: &&String| segment_number(name).is_some_and(|number| number < needed_from);
        let expected: BTreeSet<&String> = before.iter().filter(unneeded).collect();
        let gone: BTreeSet<&String> = before.difference(&after).collect();
        assert_eq!(gone, expected, "after backup {number}");
        assert!(
            number < 3 || !gone.is_empty(),
            "nothing was pruned: the test shows nothing"
        );
        if number == 2 || number == 3 {
            switchover(&lab);
        }
    }
    lab.demo.sql(&[], "INSERT INTO t VALUES (5)");
    lab.archive_all();
    let after = archived(&lab);
    for history in ["00000002.history", "00000003.history"] {
        assert!(after.contains(history), "{after:?}");
    }
    let numbers = "SELECT string_agg(i::text, ' ' ORDER BY i) FROM t";
    for name in &names[2..] {
        let directory = lab.restored(name);
        answer(&lab.restore(&directory, &["--backup", name, "--latest"]));
        assert_eq!(ask_restored(VERSION, &directory, numbers), "1 2 3 4 5", "{name}");
    }
}
