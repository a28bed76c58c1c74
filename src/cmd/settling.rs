//! Between two primaries: no session begins on the new one before the routes of all members that are there have left
//! the old one, or its right is over for certain.
//!
//! Routes that leave say so through their member's status; that a member is waited for is `core::route_table`'s word.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::core::routing::RouteTable;
use crate::core::status::Role;
use crate::proxy::SessionCounts;

/// The tables as the endpoints of a process are to see them. `limit`: after it the old primary's right is over.
pub(super) fn settled(
    tables: watch::Receiver<Arc<RouteTable>>,
    limit: Duration,
) -> watch::Receiver<Arc<RouteTable>> {
    let (sender, receiver) = watch::channel(Arc::clone(&tables.borrow()));
    tokio::spawn(pass_on(tables, limit, sender));
    receiver
}

async fn pass_on(
    mut tables: watch::Receiver<Arc<RouteTable>>,
    limit: Duration,
    sender: watch::Sender<Arc<RouteTable>>,
) {
    // The newest term whose primary has been let through, and the one that is held back, and until when.
    let mut through: Option<u64> = None;
    let mut held: Option<(u64, Instant)> = None;
    loop {
        let table = Arc::clone(&tables.borrow_and_update());
        held = match (table.term, held) {
            (Some(term), _) if table.waits_for.is_empty() || through >= Some(term) => None,
            (Some(term), Some((same, until))) if same == term => Some((term, until)),
            (Some(term), _) => Some((term, Instant::now() + limit)),
            (None, _) => None,
        };
        let waits = held.filter(|(_, until)| Instant::now() < *until);
        let next = if waits.is_some() {
            Arc::new(table.without_primary())
        } else {
            through = through.max(table.term);
            table
        };
        sender.send_if_modified(|known| {
            let changed = *known != next;
            *known = next;
            changed
        });
        let until = waits.map(|(_, until)| until);
        tokio::select! {
            changed = tables.changed() => if changed.is_err() { return },
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
        }
    }
}

/// The table's term, once no session is left that began on another primary than this table's.
pub(super) fn settled_term(table: &RouteTable, sessions: &SessionCounts) -> Option<u64> {
    let current = |name: &String| {
        let mut primaries = table.servers.iter().filter(|server| server.role == Role::Primary);
        primaries.any(|server| server.name == *name)
    };
    table.term.filter(|_| sessions.primaries().iter().all(current))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(300);
    const LONG: Duration = Duration::from_mins(1);

    fn of_term(term: u64, waits_for: &[&str]) -> Arc<RouteTable> {
        let primary = serde_json::json!({
            "name": "pg-1", "address": "192.0.2.1:5432", "http_address": "192.0.2.1:8008", "role": "primary",
            "answering": true, "streaming": true, "lag_bytes": 0, "staleness_ms": null, "leaving": false,
            "incarnation": 7
        });
        Arc::new(RouteTable {
            servers: vec![serde_json::from_value(primary).expect("a server")],
            term: Some(term),
            waits_for: waits_for.iter().map(|name| (*name).to_owned()).collect(),
            ..RouteTable::default()
        })
    }

    async fn primaries(tables: &mut watch::Receiver<Arc<RouteTable>>) -> usize {
        tables.changed().await.expect("told");
        let table = tables.borrow_and_update();
        assert_eq!(table.servers.is_empty(), table.unclear.contains_key("pg-1"));
        table.servers.len()
    }

    #[tokio::test]
    async fn a_new_primary_is_held_back_until_everybody_has_left_the_old_one() {
        let (sender, raw) = watch::channel(of_term(4, &[]));
        let mut tables = settled(raw, LONG);
        tokio::task::yield_now().await;
        sender.send_replace(of_term(5, &["pg-0", "pg-2"]));
        assert_eq!(primaries(&mut tables).await, 0);
        sender.send_replace(of_term(5, &["pg-2"]));
        assert_eq!(primaries(&mut tables).await, 0);
        sender.send_replace(of_term(5, &[]));
        assert_eq!(primaries(&mut tables).await, 1);
        // Who comes later with an old word has nobody to leave.
        sender.send_replace(of_term(5, &["pg-0"]));
        assert_eq!(primaries(&mut tables).await, 1);
    }

    #[tokio::test]
    async fn who_never_says_so_is_waited_for_until_the_right_is_over() {
        let (sender, raw) = watch::channel(of_term(4, &[]));
        let mut tables = settled(raw, LIMIT);
        tokio::task::yield_now().await;
        let began = Instant::now();
        sender.send_replace(of_term(5, &["pg-0"]));
        assert_eq!(primaries(&mut tables).await, 0);
        assert_eq!(primaries(&mut tables).await, 1);
        assert!(began.elapsed() >= LIMIT, "{:?}", began.elapsed());
    }
}
