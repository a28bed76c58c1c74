//! The list of backups as `podgres backups` prints it.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::archive::{Archive, Reach};
use super::chain::sound;
use super::name::{sequence_of, utc_text};
use super::{Entry, Kind, Record};
use crate::core::cluster::table::size_text;

/// What the list says beside the backups themselves.
#[derive(Clone, Copy, Debug)]
pub struct Listing<'a> {
    /// Oldest first.
    pub entries: &'a [Entry],
    /// Seconds since 1970.
    pub now: u64,
    /// Of archived WAL, with which a restore can go past a backup's end.
    pub archive: &'a Archive,
}

/// What is verified where nothing is named, oldest first: of each kind the newest, since one proves nothing of the other.
#[must_use]
pub fn newest_of_each_kind(entries: &[Entry]) -> Vec<&Entry> {
    let newest = |kind: Kind| entries.iter().rfind(|entry| entry.record.kind == kind);
    let mut found: Vec<&Entry> = [Kind::Physical, Kind::Logical]
        .into_iter()
        .filter_map(newest)
        .collect();
    found.sort_by_key(|entry| entry.record.sequence);
    found
}

/// One line a backup: name, kind, what it builds on, size, age, source, timeline, verified, what it can be restored to.
#[must_use]
pub fn table(listing: &Listing<'_>) -> String {
    let mut rows = vec![
        [
            "NAME",
            "KIND",
            "PARENT",
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

fn row(listing: &Listing<'_>, entry: &Entry) -> [String; 10] {
    let record = &entry.record;
    [
        record.name.clone(),
        record.kind.as_str().to_owned(),
        parent_number(record),
        size_text(record.bytes()),
        size_text(record.stored_bytes()),
        age_text(listing.now.saturating_sub(record.finished_at)),
        record.source.clone(),
        record.timeline.to_string(),
        verified_word(listing, entry).to_owned(),
        restorable(listing, entry),
    ]
}

/// The number that its name begins with, or `-`.
fn parent_number(record: &Record) -> String {
    let number = record.parent.as_deref().and_then(sequence_of);
    number.map_or_else(|| "-".to_owned(), |number| format!("{number:06}"))
}

/// `yes`, `no` (a verification found a difference, or what it builds on is gone or bad) or `-` (never verified).
fn verified_word(listing: &Listing<'_>, entry: &Entry) -> &'static str {
    match (sound(listing.entries, entry), entry.verified()) {
        (false, _) => "no",
        (true, true) => "yes",
        (true, false) => "-",
    }
}

fn restorable(listing: &Listing<'_>, entry: &Entry) -> String {
    let end = utc_text(entry.record.finished_at);
    match (sound(listing.entries, entry), entry.record.kind) {
        (false, _) => "no".to_owned(),
        (true, Kind::Physical) if !listing.archive.files.is_empty() => archived(listing.archive, entry, &end),
        (true, _) => format!("to {end}"),
    }
}

/// With archived WAL.
fn archived(archive: &Archive, entry: &Entry, end: &str) -> String {
    let record = &entry.record;
    match (&archive.history, archive.reach(entry)) {
        (
            _,
            Some(Reach {
                lsn, gap: Some(_), ..
            }),
        ) => format!("from {end} to {lsn}, then a gap"),
        (_, Some(Reach { lsn, .. })) if lsn > record.stop_lsn => format!("from {end} to {lsn}"),
        (_, Some(_)) => format!("to {end}"),
        (Some(_), None) => format!("from {end} on timeline {} only", record.timeline),
        (None, None) => format!("from {end} on"),
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
            fields.insert("good".to_owned(), json!(sound(listing.entries, entry)));
            fields.insert("verified".to_owned(), json!(entry.verified()));
            fields.insert("archived".to_owned(), json!(listing.archive.reach(entry)));
            fields.insert("verification".to_owned(), json!(entry.verification));
        }
        value
    });
    json!({ "backups": entries.collect::<Vec<_>>(), "archive": !listing.archive.files.is_empty() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::backup::Verification;
    use crate::core::backup::fixtures::{child, entry, failed};
    use crate::core::wal::{Lsn, TimelineHistory, TimelineId};
    use crate::core::wal_file::WalFile;

    #[test]
    fn where_dumps_and_copies_lay_together_one_kind_was_never_verified() {
        let logical = |sequence| {
            let mut entry = entry(sequence, 100);
            entry.record.kind = Kind::Logical;
            entry
        };
        let entries = [entry(1, 100), logical(2), entry(3, 100), logical(4), logical(5)];
        let sequences = |entries: &[Entry]| -> Vec<u64> {
            let found = newest_of_each_kind(entries);
            found.iter().map(|entry| entry.record.sequence).collect()
        };
        assert_eq!(sequences(&entries), [3, 5]);
        assert_eq!(sequences(&entries[..3]), [2, 3]);
        assert_eq!(sequences(&entries[..1]), [1]);
        assert!(sequences(&[]).is_empty());
    }

    #[test]
    fn the_list_as_people_read_it() {
        let mut verified = entry(3, 1_795_281_330);
        verified.verification = Some(Verification {
            at: 1_795_281_340,
            differences: Vec::new(),
            checks: Vec::new(),
        });
        let bad = failed(entry(2, 1_795_200_000));
        let orphan = child(4, 1_795_281_350, &bad);
        let more = child(5, 1_795_281_360, &verified);
        let mut left = entry(6, 1_795_281_370);
        left.record.timeline = TimelineId(2);
        let entries = [entry(1, 1_795_000_000), bad, verified, orphan, more, left];
        let segment = |number: u64| WalFile::segment(TimelineId(1), Lsn(number << 24), 16 << 20);
        let archive = Archive {
            files: [1, 3, 4].map(segment).into(),
            history: TimelineHistory::parse(TimelineId(1), "").ok(),
        };
        let listing = Listing {
            entries: &entries,
            now: 1_795_281_390,
            archive: &archive,
        };
        insta::assert_snapshot!(table(&listing));
        let value = json(&listing);
        assert_eq!(value["backups"][1]["good"], false);
        assert_eq!(value["backups"][2]["verified"], true);
        assert_eq!(value["backups"][2]["verification"]["at"], 1_795_281_340);
        assert_eq!(value["backups"][3]["good"], false, "what it builds on is bad");
        assert_eq!(value["backups"][0]["archived"]["gap"], "000000010000000000000002");
        assert_eq!(value["backups"][2]["archived"]["lsn"], "0/5000000");
        assert_eq!(value["backups"][4]["parent"], "000003-20261121T171530Z-physical");
    }

    #[test]
    fn ages() {
        for (seconds, text) in [(0, "0s"), (61, "1min"), (7_260, "2h 1min"), (180_000, "2d 2h")] {
            assert_eq!(age_text(seconds), text);
        }
    }
}
