//! Between two primaries: no session begins on the new one before the routes of all members that are there have left the old
//! one, or its right is over for certain.
//!
//! Whom a table waits for is `core::route_table`'s word; the time comes from outside.

use std::sync::Arc;

use super::RouteTable;
use crate::core::status::Role;

/// What is remembered from table to table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settling {
    /// The term whose primary was let through last.
    through: Option<u64>,
    /// The term that is held back, and until when.
    held: Option<(u64, u64)>,
}

impl Settling {
    /// The table as the endpoints are to see it, and when to ask again though nothing has changed.
    ///
    /// `limit_ms` after a new term was first seen, the right of an earlier primary is over. Who is primary of an earlier term than one that
    /// was let through is not that one's successor: after as long it belongs to a cluster that was made anew.
    pub fn next(
        &mut self,
        table: &Arc<RouteTable>,
        now_ms: u64,
        limit_ms: u64,
    ) -> (Arc<RouteTable>, Option<u64>) {
        let Some(term) = table.term else {
            self.held = None;
            return (Arc::clone(table), None);
        };
        let earlier = self.through.is_some_and(|through| term < through);
        let through = self.through == Some(term) || (!earlier && table.waits_for.is_empty());
        let until_ms = match self.held {
            _ if through => None,
            Some((same, until_ms)) if same == term => Some(until_ms),
            _ => Some(now_ms.saturating_add(limit_ms)),
        };
        let until_ms = until_ms.filter(|until_ms| now_ms < *until_ms);
        self.held = until_ms.map(|until_ms| (term, until_ms));
        if until_ms.is_some() {
            return (Arc::new(table.without_primary()), until_ms);
        }
        self.through = Some(term);
        (Arc::clone(table), None)
    }
}

/// The table's term, once no session is left that began on another primary than this table's. `with_sessions`: the servers with
/// sessions that began while they were the primary.
#[must_use]
pub fn settled_term(table: &RouteTable, with_sessions: &[String]) -> Option<u64> {
    let current = |name: &String| {
        let mut primaries = table.servers.iter().filter(|server| server.role == Role::Primary);
        primaries.any(|server| server.name == *name)
    };
    table.term.filter(|_| with_sessions.iter().all(current))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A primary in office for `term`, while the routes of some have not left the one before.
    pub(crate) fn of_term(term: u64, waits_for: &[&str]) -> Arc<RouteTable> {
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

    /// Goes through tables with their times; whether each has its primary.
    fn primaries(steps: &[(u64, &Arc<RouteTable>)]) -> Vec<bool> {
        let mut settling = Settling::default();
        let shown = steps.iter().map(|(now_ms, table)| {
            let (table, until_ms) = settling.next(table, *now_ms, 300);
            assert_eq!(table.servers.is_empty(), table.unclear.contains_key("pg-1"));
            assert_eq!(table.servers.is_empty(), until_ms.is_some());
            !table.servers.is_empty()
        });
        shown.collect()
    }

    #[test]
    fn a_new_primary_is_held_back_until_everybody_has_left_the_old_one() {
        let (old, both, one, none) = (
            of_term(4, &[]),
            of_term(5, &["pg-0", "pg-2"]),
            of_term(5, &["pg-2"]),
            of_term(5, &[]),
        );
        // Who comes later with an old word has nobody to leave.
        let steps = [(0, &old), (1, &both), (2, &one), (3, &none), (4, &one)];
        assert_eq!(primaries(&steps), [true, false, false, true, true]);
    }

    #[test]
    fn who_never_says_so_is_waited_for_until_the_right_is_over() {
        let (old, new, newer) = (of_term(4, &[]), of_term(5, &["pg-0"]), of_term(6, &["pg-0"]));
        let steps = [
            (0, &old),
            (10, &new),
            (309, &new),
            (310, &new),
            (320, &newer),
            (619, &newer),
            (620, &newer),
        ];
        assert_eq!(primaries(&steps), [true, false, false, true, false, false, true]);
    }
    #[test]
    fn a_table_without_a_term_is_let_through_and_ends_the_wait() {
        let without = Arc::new(RouteTable {
            term: None,
            ..RouteTable::clone(&of_term(0, &["pg-0"]))
        });
        let mut settling = Settling::default();
        assert_eq!(settling.next(&without, 0, 300), (Arc::clone(&without), None));
        let new = of_term(5, &["pg-0"]);
        assert_eq!(settling.next(&new, 100, 300).1, Some(400));
        assert_eq!(
            settling.next(&new, 200, 300).1,
            Some(400),
            "not from each look anew"
        );
        assert_eq!(settling.next(&without, 210, 300), (Arc::clone(&without), None));
        assert_eq!(
            settling.next(&new, 220, 300).1,
            Some(520),
            "seen for the first time again"
        );
    }

    #[test]
    fn a_route_went_back_to_an_earlier_primary_when_the_new_one_fell_silent() {
        let (new, old) = (of_term(5, &[]), of_term(4, &[]));
        // Long after that the term is a new cluster's.
        let steps = [
            (0, &new),
            (101, &old),
            (399, &old),
            (400, &old),
            (401, &old),
            (402, &old),
        ];
        assert_eq!(primaries(&steps), [true, false, false, false, true, true]);
        let steps = [(0, &new), (1, &old), (2, &new), (301, &old), (302, &old)];
        assert_eq!(primaries(&steps), [true, false, true, false, false]);
    }

    #[test]
    fn the_term_that_is_let_through_is_not_held_back_again() {
        let mut settling = Settling::default();
        assert_eq!(settling.next(&of_term(5, &[]), 0, 300).1, None);
        let late = of_term(5, &["pg-0"]);
        assert_eq!(settling.next(&late, 1, 300), (Arc::clone(&late), None));
        assert_eq!(
            settling.next(&of_term(6, &["pg-0"]), 2, u64::MAX).1,
            Some(u64::MAX)
        );
    }

    #[test]
    fn a_term_is_settled_once_nobody_is_on_another_primary() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let table = of_term(5, &[]);
        let mut standby = table.servers[0].clone();
        "pg-0".clone_into(&mut standby.name);
        standby.role = Role::Standby;
        let mut servers = table.servers.clone();
        servers.push(standby);
        let beside = RouteTable {
            servers,
            ..RouteTable::clone(&table)
        };
        let without = RouteTable {
            term: None,
            ..beside.clone()
        };
        for (table, with_sessions, expected) in [
            (&without, &[][..], None),
            (&without, &["pg-1"], None),
            (&beside, &[], Some(5)),
            (&beside, &["pg-1"], Some(5)),
            (&beside, &["pg-0"], None),
            (&beside, &["pg-0", "pg-1"], None),
            (&beside, &["pg-2"], None),
            (&beside.without_primary(), &["pg-1"], None),
            (&beside.without_primary(), &[], Some(5)),
        ] {
            let settled = settled_term(table, &names(with_sessions));
            assert_eq!(settled, expected, "{with_sessions:?} on {table:?}");
        }
    }
}
