//! The servers of a policy as an EndpointSlice names them, for clients that want no route in their path.
//!
//! The same candidates that a route would try, by the same rules. The holder of the Lease writes; what somebody of a later term has
//! written is left alone.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::membership::Membership;
use super::{RoutePolicy, RouteTable, Server, candidates};

/// An EndpointSlice, as far as podgres has a say in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Of the holder that wrote it.
    pub term: u64,
    /// By the pods' names.
    pub endpoints: BTreeMap<String, IpAddr>,
}

impl Slice {
    /// Whether this is to be written over what is `stored`.
    #[must_use]
    pub fn replaces(&self, stored: &Self) -> bool {
        self.term >= stored.term && self != stored
    }
}

/// The name of the slice, and of its Service, for an endpoint of the routes.
#[must_use]
pub fn slice_name(cluster: &str, endpoint: &str) -> String {
    format!("{cluster}-direct-{}", endpoint.replace('_', "-"))
}

/// Who is in and out under one policy, from look to look.
#[derive(Clone, Debug, Default)]
pub struct Places(BTreeMap<String, Membership>);

impl Places {
    /// The servers to be named after a look at `now_ms`: the candidates that are in; all of them if none is.
    pub fn next(
        &mut self,
        policy: &RoutePolicy,
        table: &RouteTable,
        now_ms: u64,
    ) -> BTreeMap<String, IpAddr> {
        let look = |server: &Server| {
            let before = self.0.get(&server.name).copied();
            let now = Membership::next(before, policy, table, server, now_ms);
            (server.name.clone(), now)
        };
        self.0 = table.servers.iter().map(look).collect();
        let all = candidates(policy, table);
        let is_in = |server: &&&Server| self.0.get(&server.name).is_some_and(|place| place.is_in());
        let settled: Vec<&Server> = all.iter().filter(is_in).copied().collect();
        let named = if settled.is_empty() { all } else { settled };
        named
            .into_iter()
            .map(|server| (server.name.clone(), server.address.ip()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{primary, standby, table};
    use super::super::{ReadOnlyFallback, RouteMode};
    use super::*;

    fn names(policy: &RoutePolicy, table: &RouteTable) -> Vec<String> {
        Places::default().next(policy, table, 0).into_keys().collect()
    }

    #[test]
    fn a_slice_names_whom_a_route_would_try() {
        let write = RoutePolicy::new(RouteMode::ReadWrite);
        let read = RoutePolicy::new(RouteMode::ReadOnly);
        let strict = RoutePolicy {
            fallback: ReadOnlyFallback::None,
            ..read.clone()
        };
        let stale = Server {
            staleness_ms: Some(10_001),
            ..standby("s2", 0)
        };
        let all = table(vec![primary("p"), standby("s1", 0), stale.clone()]);
        assert_eq!(names(&write, &all), ["p"]);
        assert_eq!(names(&read, &all), ["s1"]);
        let switched = RouteTable {
            read_only: true,
            ..all.clone()
        };
        assert_eq!(
            names(&write, &switched),
            ["s1"],
            "writes fail there, by PostgreSQL's own word"
        );
        let behind = table(vec![primary("p"), stale]);
        assert_eq!(names(&read, &behind), ["p"]);
        assert_eq!(names(&strict, &behind), Vec::<String>::new());
        let lost = table(vec![standby("s1", 0)]);
        assert_eq!(names(&write, &lost), Vec::<String>::new(), "nobody in office");
        let leaving = Server {
            leaving: true,
            ..primary("p")
        };
        assert_eq!(names(&write, &table(vec![leaving])), Vec::<String>::new());
    }

    #[test]
    fn a_standby_at_its_limit_does_not_come_and_go() {
        let read = RoutePolicy::new(RouteMode::ReadOnly);
        let mut places = Places::default();
        let mut at = |staleness_ms, now_ms| {
            let near = Server {
                staleness_ms: Some(staleness_ms),
                ..standby("near", 0)
            };
            let table = table(vec![primary("p"), standby("s", 0), near]);
            places.next(&read, &table, now_ms).contains_key("near")
        };
        assert!(at(9_999, 0));
        assert!(!at(10_001, 1_000));
        assert!(!at(9_999, 2_000), "not far enough within the limit");
        assert!(at(4_000, 3_000));
    }

    #[test]
    fn an_earlier_holder_writes_over_nothing() {
        let of = |term, names: &[&str]| Slice {
            term,
            endpoints: names
                .iter()
                .map(|name| ((*name).to_owned(), IpAddr::from([10, 0, 0, 1])))
                .collect(),
        };
        assert!(of(5, &["pg-1"]).replaces(&of(4, &["pg-0"])));
        assert!(
            of(5, &["pg-1"]).replaces(&of(4, &["pg-1"])),
            "so that the earlier holder knows"
        );
        assert!(of(5, &[]).replaces(&of(5, &["pg-1"])));
        assert!(!of(5, &["pg-1"]).replaces(&of(5, &["pg-1"])));
        assert!(!of(4, &["pg-0"]).replaces(&of(5, &["pg-1"])));
    }

    #[test]
    fn names_are_those_of_kubernetes() {
        assert_eq!(slice_name("pg", "read_write"), "pg-direct-read-write");
        assert_eq!(slice_name("pg", "ro-1s"), "pg-direct-ro-1s");
    }
}
