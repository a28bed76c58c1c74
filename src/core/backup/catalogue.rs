//! The list of backups as `podgres backups` prints it.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::name::Utc;
use super::{Entry, Kind};
use crate::core::cluster::table::size_text;

/// What the list says beside the backups themselves.
#[derive(Clone, Copy, Debug)]
pub struct Listing<'a> {
    /// Oldest first.
    pub entries: &'a [Entry],
    /// Seconds since 1970.
    pub now: u64,
    /// Whether there is archived WAL, so that a restore can go past a backup's end.
    pub archive: bool,
}

/// One line a backup: name, kind, size, age, source, timeline, verified, what it can be restored to.
#[must_use]
pub fn table(listing: &Listing<'_>) -> String {
    let mut rows = vec![
        [
            "NAME",
            "KIND",
            "SIZE",
            "STORED",
            "AGE",
            "SOURCE",
            "TIMELINE",
            "VERIFIED",
            "RESTORABLE",
        ]
        .map(str::to_owned),
    ];
    rows.extend(listing.entries.iter().map(|entry| row(listing, entry)));
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        // Writing to a String cannot fail.
        writeln!(text, "{}", cells.join("  ").trim_end()).ok();
    }
    text
}

fn row(listing: &Listing<'_>, entry: &Entry) -> [String; 9] {
    let record = &entry.record;
    [
        record.name.clone(),
        record.kind.as_str().to_owned(),
        size_text(record.bytes()),
        size_text(record.stored_bytes()),
        age_text(listing.now.saturating_sub(record.finished_at)),
        record.source.clone(),
        record.timeline.to_string(),
        verified_word(entry).to_owned(),
        restorable(listing, entry),
    ]
}

/// `yes`, `no` (a verification found a difference) or `-` (never verified).
fn verified_word(entry: &Entry) -> &'static str {
    match (entry.good(), entry.verified()) {
        (false, _) => "no",
        (true, true) => "yes",
        (true, false) => "-",
    }
}

fn restorable(listing: &Listing<'_>, entry: &Entry) -> String {
    let end = Utc::from_unix(entry.record.finished_at).text();
    match (entry.good(), entry.record.kind) {
        (false, _) => "no".to_owned(),
        (true, Kind::Physical) if listing.archive => format!("from {end} on"),
        (true, _) => format!("to {end}"),
    }
}

/// The two largest units: `3d 4h`, `17min`.
fn age_text(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}min", seconds / 60),
        3_600..86_400 => format!("{}h {}min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// The same for programs: each record with `verification`, `good` and sums.
#[must_use]
pub fn json(listing: &Listing<'_>) -> Value {
    let entries = listing.entries.iter().map(|entry| {
        let mut value = json!(entry.record);
        if let Value::Object(fields) = &mut value {
            fields.insert("bytes".to_owned(), json!(entry.record.bytes()));
            fields.insert("stored_bytes".to_owned(), json!(entry.record.stored_bytes()));
            fields.insert("good".to_owned(), json!(entry.good()));
            fields.insert("verified".to_owned(), json!(entry.verified()));
            fields.insert("verification".to_owned(), json!(entry.verification));
        }
        value
    });
    json!({ "backups": entries.collect::<Vec<_>>(), "archive": listing.archive })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::backup::Verification;
    use crate::core::backup::fixtures::{entry, failed};

    #[test]
    fn the_list_as_people_read_it() {
        let mut verified = entry(3, 1_795_281_330);
        verified.verification = Some(Verification {
            at: 1_795_281_340,
            differences: Vec::new(),
            checks: Vec::new(),
        });
        let entries = [entry(1, 1_795_000_000), failed(entry(2, 1_795_200_000)), verified];
        let listing = Listing {
            entries: &entries,
            now: 1_795_281_390,
            archive: true,
        };
        insta::assert_snapshot!(table(&listing));
        let value = json(&listing);
        assert_eq!(value["backups"][1]["good"], false);
        assert_eq!(value["backups"][2]["verified"], true);
        assert_eq!(value["backups"][2]["verification"]["at"], 1_795_281_340);
    }

    #[test]
    fn ages() {
        for (seconds, text) in [(0, "0s"), (61, "1min"), (7_260, "2h 1min"), (180_000, "2d 2h")] {
            assert_eq!(age_text(seconds), text);
        }
    }
}
