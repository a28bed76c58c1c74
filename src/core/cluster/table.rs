//! The table of `podgres status`, from the value that `/cluster` gives.
//!
//! Reads a foreign value: what is missing or of another type shows as a dash.

use std::fmt::Write;

use serde_json::Value;

pub(super) const COLUMNS: [(&str, &str); 9] = [
    ("MEMBER", "name"),
    ("ROLE", "role"),
    ("STATE", "state"),
    ("TL", "timeline"),
    ("LSN", "replay_lsn"),
    ("LAG", "lag_bytes"),
    ("SYNC", "sync"),
    ("HOST", "host"),
    ("SITUATION", "situation"),
];

/// Two lines about the cluster, then one line per member under a header; no trailing spaces.
#[must_use]
pub fn table(cluster: &Value) -> String {
    let empty = Vec::new();
    let members = cluster["members"].as_array().unwrap_or(&empty);
    let mut rows = vec![COLUMNS.map(|(title, _)| title.to_owned()).to_vec()];
    rows.extend(
        members
            .iter()
            .map(|member| COLUMNS.map(|(_, key)| cell(member, key)).to_vec()),
    );
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();

    let mut text = heading(cluster);
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a String cannot fail.
            let _never = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

pub(super) fn heading(cluster: &Value) -> String {
    let mut text = format!(
        "cluster {}, system identifier {}, term {}\nleadership {}, durability {}",
        plain(&cluster["cluster"]),
        plain(&cluster["system_identifier"]),
        plain(&cluster["term"]),
        plain(&cluster["leadership"]),
        plain(&cluster["durability"]),
    );
    if !cluster["lease_holder"].is_null() {
        text.push_str(", lease held by ");
        text.push_str(&plain(&cluster["lease_holder"]));
    }
    for (flag, words) in [
        ("read_only", "read-only"),
        ("read_only_default", "direct sessions too"),
        ("paused", "paused"),
    ] {
        if cluster[flag] == true {
            text.push_str(", ");
            text.push_str(words);
        }
    }
    text.push_str("\n\n");
    text
}

pub(super) fn cell(member: &Value, key: &str) -> String {
    match (key, &member[key]) {
        ("sync", Value::Bool(sync)) => (if *sync { "yes" } else { "no" }).to_owned(),
        ("lag_bytes", Value::Number(lag)) => lag.as_u64().map_or_else(|| "-".to_owned(), size_text),
        ("situation", value) => plain(value) + &progress(&member["job"]),
        (_, value) => plain(value),
    }
}

/// How far a clone is: ` (45 % of 2048 MB, 120 MB/s)`; nothing while that is not known.
fn progress(job: &Value) -> String {
    let number = |key: &str| job[key].as_u64().unwrap_or_default();
    let (done, total, rate) = (
        number("done_bytes"),
        number("total_bytes"),
        number("bytes_per_second"),
    );
    match done.saturating_mul(100).checked_div(total) {
        None => String::new(),
        Some(percent) => format!(" ({percent} % of {}, {}/s)", size_text(total), size_text(rate)),
    }
}

/// A value in one cell. It came from another machine: no control characters reach the terminal.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() => text
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect(),
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        _ => "-".to_owned(),
    }
}

/// Bytes in the largest unit of which there are at least ten, as `pg_size_pretty` does: `16 MB`.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    let mut size = bytes;
    for unit in ["B", "kB", "MB", "GB"] {
        if size < 10 * 1024 {
            return format!("{size} {unit}");
        }
        size /= 1024;
    }
    format!("{size} TB")
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{peer, primary, standby, view};
    use super::super::{PeerContact, json::cluster_json};
    use super::*;
    use crate::core::policy::Leadership;
    use crate::core::wal::Lsn;

    #[test]
    fn the_table_as_people_read_it() {
        let mut behind = standby(1);
        behind.server.as_mut().expect("server").replay_lsn = Lsn(0x200_0000);
        let mut lost = peer(standby(10));
        (lost.contact, lost.name) = (PeerContact::TimedOut, "pg-10".to_owned());
        let mut never = lost.clone();
        (never.ordinal.0, never.name, never.status) = (11, "pg-11".to_owned(), None);
        let mut seen = view(primary(0), vec![never, lost, peer(behind)]);
        (seen.leadership, seen.lease_holder) = (Some(Leadership::Lease), Some("pg-0".to_owned()));
        (seen.term, seen.read_only) = (3, true);
        insta::assert_snapshot!(table(&cluster_json(&seen)));
    }

    #[test]
    fn a_clone_shows_how_far_it_is() {
        let job = serde_json::json!({ "done_bytes": 900 << 20, "total_bytes": 2000 << 20, "bytes_per_second": 120 << 20 });
        assert_eq!(progress(&job), " (45 % of 2000 MB, 120 MB/s)");
        assert_eq!(progress(&serde_json::json!({ "total_bytes": 0 })), "");
    }

    #[test]
    fn a_hostile_value_neither_panics_nor_writes_to_the_terminal() {
        for text in ["null", "[]", "{\"members\": 1}", "{\"members\": [1, null, {}]}"] {
            let value: Value = serde_json::from_str(text).expect(text);
            assert!(table(&value).contains("MEMBER"), "{text}");
        }
        let value = serde_json::json!({ "members": [{ "name": "\u{1b}[2J" }] });
        assert!(!table(&value).contains('\u{1b}'));
    }

    #[test]
    fn sizes_read_as_pg_size_pretty_writes_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (10_239, "10239 B"),
            (10_240, "10 kB"),
            (16 << 20, "16 MB"),
        ] {
            assert_eq!(size_text(bytes), text);
        }
    }
}
