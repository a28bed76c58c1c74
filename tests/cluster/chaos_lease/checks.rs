//! What must hold once everything has healed and nobody writes any more.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::anomalies::{Lists, anomalies};
use super::ledger::{Acknowledged, Ledger, Office};
use super::lists;
use crate::harness::{Demo, LIMIT, members, wait_for};

/// The Lease's object, from the demo's file: it answers while the API does not.
pub(super) fn lease(demo: &Demo) -> Option<Value> {
    let bytes = std::fs::read(demo.directory.join("api.json")).ok()?;
    let stored: Value = serde_json::from_slice(&bytes).ok()?;
    stored["leases"].get(0).cloned()
}

/// The ordinal of who holds the Lease.
pub(super) fn holder(demo: &Demo) -> Option<u32> {
    let lease = lease(demo)?;
    let (pod, _) = lease["spec"]["holderIdentity"].as_str()?.split_once('/')?;
    pod.rsplit_once('-')?.1.parse().ok()
}

/// One primary and two standbys that stream, and nobody else.
pub(super) fn all_stream(status: &Value) -> bool {
    let members = members(status);
    let states: BTreeSet<(&str, &str)> = members
        .iter()
        .filter_map(|member| Some((member["role"].as_str()?, member["state"].as_str()?)))
        .collect();
    members.len() == 3
        && states == BTreeSet::from([("primary", "running"), ("standby", "streaming")])
        && members
            .iter()
            .filter(|member| member["role"] == "primary")
            .count()
            == 1
}

/// The ordinal of the one primary.
pub(super) fn primary(status: &Value) -> Option<String> {
    let primary = members(status)
        .iter()
        .find(|member| member["role"] == "primary")?;
    Some(primary["ordinal"].to_string())
}

/// Commits wait for somebody, and have somebody to wait for.
pub(super) fn wait_synchronous(demo: &Demo) {
    let came = wait_for(LIMIT, || {
        let set = demo.status().map(|status| {
            let members = members(&status).iter();
            members.filter(|member| member["sync"] == true).count()
        });
        set.is_some_and(|count| count > 0)
    });
    assert!(came, "no synchronous standby: {:#?}", lease(demo));
}

/// All stream, and each standby has flushed what the primary had written a moment ago: any one copy may be lost now.
pub(super) fn everybody_has_everything(demo: &Demo) -> bool {
    let Some(status) = demo.status().filter(all_stream) else {
        return false;
    };
    let Some(primary) = primary(&status) else {
        return false;
    };
    let one = |sql: &str| {
        let output = demo.try_sql(&["--member", &primary], sql);
        let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        output.status.success().then_some(text)
    };
    let Some(written) = one("SELECT pg_current_wal_flush_lsn()") else {
        return false;
    };
    let sql = format!(
        "SELECT count(*) FROM pg_stat_replication WHERE application_name IN ('demo-0', 'demo-1', 'demo-2') \
         AND state = 'streaming' AND flush_lsn >= '{written}'"
    );
    wait_for(std::time::Duration::from_secs(2), || {
        one(&sql).as_deref() == Some("2")
    })
}

pub(super) fn all(demo: &Demo, ledger: &Ledger, identifier: &Value) {
    let status = demo.wait_streaming(2);
    let primary = primary(&status).expect("a primary");
    let mut wrong = std::mem::take(&mut ledger.book().wrong);
    wrong.extend(two_acknowledged(ledger));
    let lost = rows_are_there(demo, &primary, ledger);
    if ledger.durable {
        wrong.extend(lost);
        wrong.extend(lists_are_sound(demo, &primary, ledger));
    } else if !lost.is_empty() {
        super::say(&format!("as asynchronous replication may: {}", lost.join("; ")));
    }
    for member in members(&status) {
        if member["system_identifier"] != *identifier {
            wrong.push(format!("{} is not of {identifier}: {member}", member["name"]));
        }
    }
    wrong.extend(same_everywhere(demo, &primary));
    let book = ledger.book();
    assert!(!book.rows.is_empty(), "no row was ever acknowledged");
    assert!(
        book.transactions
            .iter()
            .any(super::anomalies::Transaction::committed)
    );
    drop(book);
    assert!(wrong.is_empty(), "NOT AS ACKNOWLEDGED: {}", wrong.join("\n"));
}

/// What [`two_at_once`] finds in the book.
fn two_acknowledged(ledger: &Ledger) -> Vec<String> {
    let book = ledger.book();
    let lists = book.transactions.iter().filter(|t| t.committed());
    let lists = lists.filter_map(|t| Some((t.office.clone()?, t.begun_us, t.told_us)));
    let rows = book
        .rows
        .iter()
        .map(|row| (row.office.clone(), row.begun_us, row.told_us));
    two_at_once(rows.chain(lists))
}

/// Nothing is acknowledged for an earlier office that was *asked for* after a later office had acknowledged something:
/// such a commit was confirmed when another member was in office already. (When a client is told says less: an answer that
/// was sent in time may be read late.) Timelines grow with each office; one server per timeline.
///
/// Takes the office, when it was asked for and when it was told, by one clock.
pub(crate) fn two_at_once(commits: impl Iterator<Item = (Office, u64, u64)>) -> Vec<String> {
    let mut servers: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    // Of each timeline: the last that was asked for, the first that was told.
    let mut spans: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    for (office, begun_us, told_us) in commits {
        servers.entry(office.timeline).or_default().insert(office.server);
        let span = spans.entry(office.timeline).or_insert((begun_us, told_us));
        *span = (span.0.max(begun_us), span.1.min(told_us));
    }
    let mut wrong: Vec<String> = servers
        .iter()
        .filter(|(_, servers)| servers.len() > 1)
        .map(|(timeline, servers)| format!("timeline {timeline} was acknowledged by {servers:?}"))
        .collect();
    for (early, (last_begun_us, _)) in &spans {
        for (later, (_, first_told_us)) in spans.range(early + 1..) {
            if last_begun_us > first_told_us {
                wrong.push(format!(
                    "timeline {early} acknowledged what was asked for at {last_begun_us} us; timeline {later} \
                     had acknowledged since {first_told_us} us"
                ));
            }
        }
    }
    wrong
}

fn rows_are_there(demo: &Demo, primary: &str, ledger: &Ledger) -> Vec<String> {
    let sql = "SELECT number FROM chaos";
    let kept: BTreeSet<i64> = demo
        .sql(&["--member", primary], sql)
        .lines()
        .map(|line| line.parse().expect("a number"))
        .collect();
    let book = ledger.book();
    let lost: Vec<&Acknowledged> = book
        .rows
        .iter()
        .filter(|row| !kept.contains(&row.number))
        .collect();
    let mut by_office: BTreeMap<&Office, Vec<&Acknowledged>> = BTreeMap::new();
    for row in lost {
        by_office.entry(&row.office).or_default().push(row);
    }
    let say = by_office.into_iter().map(|(office, rows)| {
        let some: Vec<String> = rows
            .iter()
            .take(20)
            .map(|row| format!("{}/{} {}..{}", row.writer, row.number, row.begun_us, row.told_us))
            .collect();
        format!(
            "{} rows lost that {office:?} acknowledged (us): {some:?}",
            rows.len()
        )
    });
    say.collect()
}

fn lists_are_sound(demo: &Demo, primary: &str, ledger: &Ledger) -> Vec<String> {
    let sql = "SELECT key, array_to_string(items, ',') FROM lists";
    let text = demo.sql(&["--member", primary], sql);
    let rows = text.lines().filter_map(|line| line.split_once('|'));
    let lists: Lists = rows
        .map(|(key, items)| (key.parse().expect("a key"), lists::items(items)))
        .collect();
    anomalies(&ledger.book().transactions, &lists)
}

/// Every member holds the same, once it has replayed what the primary had written.
fn same_everywhere(demo: &Demo, primary: &str) -> Vec<String> {
    let sum = "SELECT (SELECT count(*) || ' ' || md5(string_agg(c::text, ',' ORDER BY writer, number)) FROM chaos c), \
               (SELECT count(*) || ' ' || md5(string_agg(l::text, ',' ORDER BY key)) FROM lists l), \
               (SELECT system_identifier FROM pg_control_system())";
    let expected = demo.sql(&["--member", primary], sum);
    let mut wrong = Vec::new();
    for standby in ["0", "1", "2"].into_iter().filter(|ordinal| *ordinal != primary) {
        demo.wait_replayed(primary, standby);
        let found = demo.sql(&["--member", standby], sum);
        if found != expected {
            wrong.push(format!("demo-{standby} holds {found}, the primary {expected}"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::super::ledger::{Acknowledged, Office};
    use super::*;

    /// On a timeline, by a server, asked for and told.
    type Row = (u32, &'static str, u64, u64);

    fn judged(rows: &[Row]) -> Vec<String> {
        let ledger = Ledger::new(true);
        let row = |(timeline, server, begun_us, told_us): &Row| Acknowledged {
            writer: 1,
            number: 1,
            begun_us: *begun_us,
            told_us: *told_us,
            office: Office {
                timeline: *timeline,
                server: (*server).to_owned(),
                started: String::new(),
            },
        };
        ledger.book().rows.extend(rows.iter().map(row));
        two_acknowledged(&ledger)
    }

    #[test]
    fn two_that_acknowledge_are_found_and_a_sound_hand_over_is_not_blamed() {
        let sound = [
            (1, "a", 0, 5),
            (1, "a", 10, 30),
            (2, "b", 12, 20),
            (2, "b", 40, 41),
        ];
        assert_eq!(
            judged(&sound),
            Vec::<String>::new(),
            "an answer that was read late"
        );
        let cases: [(&[Row], &str); 2] = [
            (
                &[(1, "a", 0, 5), (1, "b", 6, 9)],
                "timeline 1 was acknowledged by",
            ),
            (
                &[(1, "a", 0, 5), (2, "b", 7, 9), (1, "a", 10, 12)],
                "asked for at 10 us",
            ),
        ];
        for (rows, words) in cases {
            let wrong = judged(rows);
            assert!(wrong.len() == 1 && wrong[0].contains(words), "{words}: {wrong:?}");
        }
    }
}
