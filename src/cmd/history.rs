//! `podgres history`: every change of the primary that the Lease remembers.

use std::fmt::Write as _;
use std::sync::Arc;

use clap::Args;

use crate::core::lease::HistoryEntry;

use super::backing::print;
use super::lease_orders::Kubernetes;
use super::place::Place;
use super::status::Output;
use super::{ExitStatus, Failure};

#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pub place: Place,
    #[command(flatten)]
    pub kubernetes: Kubernetes,
    /// Output
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Prints it, oldest first.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let entries = match arguments.kubernetes.lease()? {
        Some(lease) => Arc::unwrap_or_clone(lease.record().await?.history),
        None => asked(&arguments.place).await?,
    };
    let text = match arguments.output {
        Output::Table if entries.is_empty() => "the primary has never changed\n".to_owned(),
        Output::Table => table(&entries),
        Output::Json => format!("{:#}\n", serde_json::json!(entries)),
    };
    print(&text)
}

/// What a member knows of it.
async fn asked(place: &Place) -> Result<Vec<HistoryEntry>, Failure> {
    let mut cluster = place.cluster().await?;
    let history = cluster["history"].take();
    if history.is_null() && cluster["leadership"] == "lease" {
        let unread = "the member that answers has not read the Lease yet";
        return Err(Failure::new(ExitStatus::Overdue, unread));
    }
    // With fixed leadership the primary never changes.
    if history.is_null() {
        return Ok(Vec::new());
    }
    serde_json::from_value(history)
        .map_err(|error| Failure::new(ExitStatus::Bug, format!("could not read the history: {error}")))
}

fn table(entries: &[HistoryEntry]) -> String {
    let mut text = format!(
        "{:>5}  {:>4}  {:<14}  {:<27}  {:<12}  REASON\n",
        "TERM", "TL", "LSN", "AT", "PRIMARY"
    );
    for entry in entries {
        let timeline = entry
            .timeline
            .map_or_else(|| "-".to_owned(), |timeline| timeline.to_string());
        let lsn = entry.lsn.map_or_else(|| "-".to_owned(), |lsn| lsn.to_string());
        let plain = |text: &str| -> String {
            text.chars()
                .map(|c| if c.is_control() { '?' } else { c })
                .collect()
        };
        // Writing to a String cannot fail.
        let _never = writeln!(
            text,
            "{:>5}  {timeline:>4}  {lsn:<14}  {:<27}  {:<12}  {}",
            entry.term,
            plain(&entry.at),
            plain(&entry.new_leader),
            plain(&entry.reason)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::wal::{Lsn, TimelineId};

    #[test]
    fn a_line_for_each_change() {
        let entry = HistoryEntry {
            term: 2,
            timeline: Some(TimelineId(1)),
            lsn: Some(Lsn(0x300_0000)),
            reason: "switchover".to_owned(),
            at: "2026-01-01T00:00:00.000000Z".to_owned(),
            new_leader: "pg-1".to_owned(),
        };
        let unknown = HistoryEntry {
            term: 3,
            timeline: None,
            lsn: None,
            reason: "\u{1b}[2J".to_owned(),
            ..entry.clone()
        };
        let text = table(&[entry, unknown]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1],
            "    2     1  0/3000000       2026-01-01T00:00:00.000000Z  pg-1          switchover"
        );
        assert_eq!(
            lines[2],
            "    3     -  -               2026-01-01T00:00:00.000000Z  pg-1          ?[2J"
        );
    }
}
