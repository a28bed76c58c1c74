//! Who may serve which routing endpoint: from a table of servers to candidates in order.
//!
//! Never opens a connection and never counts one; the proxy does that and asks here.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::status::Role;

/// One server that accepts connections, as the agent knows it now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    pub name: String,
    /// PostgreSQL itself, not another route.
    pub address: SocketAddr,
    pub role: Role,
    /// It answers. One that runs and does not answer gets no new sessions and keeps those it has.
    pub answering: bool,
    /// A standby whose WAL receiver streams; true for a primary.
    pub streaming: bool,
    /// Bytes behind the primary's newest known position; `None` if that is not known.
    pub lag_bytes: Option<u64>,
    /// Grows when the server behind the address restarts or changes its role: older sessions are cut.
    pub incarnation: u64,
}

/// Every member, for cancel requests, and every server that accepts connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTable {
    pub servers: Vec<Server>,
    /// PostgreSQL addresses of all known members, accepting or not.
    pub members: Vec<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteMode {
    ReadWrite,
    ReadOnly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadOnlyFallback {
    Primary,
    None,
}

/// What one listener promises its clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutePolicy {
    pub mode: RouteMode,
    pub max_lag_bytes: u64,
    pub fallback: ReadOnlyFallback,
}

/// Why a server gets none of a policy's new sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Only the primary serves this policy.
    Standby,
    /// Only standbys serve this policy.
    Primary,
    /// Another server says that it is the primary too; neither is believed.
    SeveralPrimaries,
    NotAnswering,
    NotStreaming,
    LagUnknown,
    LagTooLarge {
        lag_bytes: u64,
        max_lag_bytes: u64,
    },
}

impl fmt::Display for Unfit {
    /// Reads on from `server "name"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standby => f.write_str("is a standby"),
            Self::Primary => f.write_str("is the primary"),
            Self::SeveralPrimaries => f.write_str("is one of several that say they are the primary"),
            Self::NotAnswering => f.write_str("runs but does not answer"),
            Self::NotStreaming => f.write_str("is a standby that does not stream"),
            Self::LagUnknown => f.write_str("is a standby of unknown lag"),
            Self::LagTooLarge {
                lag_bytes,
                max_lag_bytes,
            } => write!(f, "is {lag_bytes} bytes behind, {max_lag_bytes} are allowed"),
        }
    }
}

/// Why `server` may not get a new session under `policy`; `None` if it may.
///
/// Under read-only with fallback a fit primary is only used while no standby is fit: see [`candidates`].
#[must_use]
pub fn unfit(policy: &RoutePolicy, table: &RouteTable, server: &Server) -> Option<Unfit> {
    match (policy.mode, server.role) {
        _ if !server.answering => Some(Unfit::NotAnswering),
        (RouteMode::ReadWrite, Role::Standby) => Some(Unfit::Standby),
        (RouteMode::ReadOnly, Role::Standby) => unfit_standby(policy, server),
        (RouteMode::ReadOnly, Role::Primary) if policy.fallback == ReadOnlyFallback::None => {
            Some(Unfit::Primary)
        }
        (RouteMode::ReadWrite | RouteMode::ReadOnly, Role::Primary) => {
            several_primaries(table).then_some(Unfit::SeveralPrimaries)
        }
    }
}

/// The servers that may get a new session, best first: standbys by lag, then by name, or the one primary.
///
/// Two primaries are a split brain or a failover half seen: writing to either could lose data, so
/// neither is a candidate, not even as the fallback of read-only (a session there may write too).
/// Fit standbys go on serving read-only.
#[must_use]
pub fn candidates<'a>(policy: &RoutePolicy, table: &'a RouteTable) -> Vec<&'a Server> {
    let mut fit: Vec<&Server> = table
        .servers
        .iter()
        .filter(|server| unfit(policy, table, server).is_none())
        .collect();
    if fit.iter().any(|server| server.role == Role::Standby) {
        fit.retain(|server| server.role == Role::Standby);
    }
    fit.sort_by(|a, b| (a.lag_bytes, &a.name).cmp(&(b.lag_bytes, &b.name)));
    fit
}

/// The order in which to try the candidates: the less used of two random ones, the other, then the rest
/// by use. `sessions` tells how many sessions a server has; `draws` are two random numbers.
#[must_use]
pub fn choose<'a>(
    candidates: &[&'a Server],
    sessions: &dyn Fn(&Server) -> usize,
    draws: [usize; 2],
) -> Vec<&'a Server> {
    let mut rest: Vec<(usize, &Server)> = candidates
        .iter()
        .map(|server| (sessions(server), *server))
        .collect();
    let mut pair = Vec::with_capacity(rest.len());
    for draw in draws {
        if !rest.is_empty() {
            pair.push(rest.remove(draw % rest.len()));
        }
    }
    pair.sort_by_key(|(used, _)| *used);
    rest.sort_by_key(|(used, _)| *used);
    pair.into_iter().chain(rest).map(|(_, server)| server).collect()
}

/// Whether a session that was opened to this incarnation of the server may go on.
///
/// Cut: the server has vanished from the table, has restarted, or its role no longer fits. Not cut:
/// growing lag, a WAL receiver that stopped (reads outlive the primary), a second primary (which of
/// the two is wrong is for the agents to find out; theirs then loses its role), and a read-only
/// session that fell back to the primary: it stays there when a standby becomes fit, because moving
/// it would break a session to repair nothing.
#[must_use]
pub fn keeps(policy: &RoutePolicy, table: &RouteTable, name: &str, incarnation: u64) -> bool {
    table.servers.iter().any(|server| {
        server.name == name && server.incarnation == incarnation && role_fits(policy, server.role)
    })
}

fn role_fits(policy: &RoutePolicy, role: Role) -> bool {
    match (policy.mode, role) {
        (RouteMode::ReadWrite, role) => role == Role::Primary,
        (RouteMode::ReadOnly, Role::Standby) => true,
        (RouteMode::ReadOnly, Role::Primary) => policy.fallback == ReadOnlyFallback::Primary,
    }
}

fn unfit_standby(policy: &RoutePolicy, server: &Server) -> Option<Unfit> {
    if !server.streaming {
        return Some(Unfit::NotStreaming);
    }
    match server.lag_bytes {
        None => Some(Unfit::LagUnknown),
        Some(lag_bytes) if lag_bytes > policy.max_lag_bytes => Some(Unfit::LagTooLarge {
            lag_bytes,
            max_lag_bytes: policy.max_lag_bytes,
        }),
        Some(_) => None,
    }
}

fn several_primaries(table: &RouteTable) -> bool {
    let primaries = table.servers.iter().filter(|server| server.role == Role::Primary);
    primaries.count() > 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str, role: Role, lag_bytes: Option<u64>) -> Server {
        Server {
            name: name.to_owned(),
            address: SocketAddr::from(([127, 0, 0, 1], 5432)),
            role,
            streaming: true,
            lag_bytes,
            answering: true,
            incarnation: 7,
        }
    }

    fn primary(name: &str) -> Server {
        server(name, Role::Primary, Some(0))
    }

    fn standby(name: &str, lag_bytes: u64) -> Server {
        server(name, Role::Standby, Some(lag_bytes))
    }

    fn stopped(name: &str) -> Server {
        Server {
            streaming: false,
            ..standby(name, 0)
        }
    }

    fn policy(mode: RouteMode, fallback: ReadOnlyFallback) -> RoutePolicy {
        RoutePolicy {
            mode,
            max_lag_bytes: 100,
            fallback,
        }
    }

    fn read_write() -> RoutePolicy {
        policy(RouteMode::ReadWrite, ReadOnlyFallback::Primary)
    }

    fn read_only(fallback: ReadOnlyFallback) -> RoutePolicy {
        policy(RouteMode::ReadOnly, fallback)
    }

    fn names(servers: &[&Server]) -> String {
        let names: Vec<&str> = servers.iter().map(|server| server.name.as_str()).collect();
        names.join(" ")
    }

    #[test]
    fn candidates_by_table() {
        let unknown = || server("u", Role::Standby, None);
        // servers, read-write, read-only with fallback, read-only without
        let cases: [(Vec<Server>, &str, &str, &str); 10] = [
            (vec![], "", "", ""),
            (vec![primary("p")], "p", "p", ""),
            (vec![standby("s", 0)], "", "s", "s"),
            (vec![primary("p"), standby("s", 100)], "p", "s", "s"),
            (vec![primary("p"), standby("s", 101)], "p", "p", ""),
            (vec![primary("p"), stopped("s"), unknown()], "p", "p", ""),
            (vec![stopped("s"), unknown()], "", "", ""),
            (
                vec![
                    standby("c", 5),
                    primary("p"),
                    standby("b", 9),
                    standby("a", 9),
                    stopped("x"),
                ],
                "p",
                "c a b",
                "c a b",
            ),
            (vec![primary("p"), primary("q")], "", "", ""),
            (vec![primary("p"), primary("q"), standby("s", 1)], "", "s", "s"),
        ];
        for (servers, write, fallback, none) in cases {
            let table = RouteTable {
                servers,
                members: vec![],
            };
            let got = |policy: &RoutePolicy| names(&candidates(policy, &table));
            assert_eq!(got(&read_write()), write, "read-write of {table:?}");
            assert_eq!(
                got(&read_only(ReadOnlyFallback::Primary)),
                fallback,
                "fallback of {table:?}"
            );
            assert_eq!(
                got(&read_only(ReadOnlyFallback::None)),
                none,
                "read-only of {table:?}"
            );
        }
    }

    #[test]
    fn the_reason_names_what_is_missing() {
        let table = RouteTable {
            servers: vec![primary("p"), standby("s", 101), stopped("t")],
            members: vec![],
        };
        let reason = |policy: &RoutePolicy, at: usize| {
            unfit(policy, &table, &table.servers[at]).map(|r| r.to_string())
        };
        assert_eq!(reason(&read_write(), 0), None);
        assert_eq!(reason(&read_write(), 1).as_deref(), Some("is a standby"));
        let none = read_only(ReadOnlyFallback::None);
        assert_eq!(reason(&none, 0).as_deref(), Some("is the primary"));
        assert_eq!(
            reason(&none, 1).as_deref(),
            Some("is 101 bytes behind, 100 are allowed")
        );
        assert_eq!(
            reason(&none, 2).as_deref(),
            Some("is a standby that does not stream")
        );
    }

    #[test]
    fn the_less_used_of_two_comes_first_and_nobody_is_left_out() {
        let (a, b, c, d) = (standby("a", 0), standby("b", 0), standby("c", 0), standby("d", 0));
        let used = |server: &Server| match server.name.as_str() {
            "a" => 9,
            "b" => 1,
            "c" => 5,
            _ => 0,
        };
        for (draws, expected) in [
            ([0, 0], "b a d c"),
            ([0, 1], "c a d b"),
            ([1, 0], "b a d c"),
            ([2, 2], "d c b a"),
            ([3, 2], "d c b a"),
            ([4 + 2, 3], "c a d b"),
        ] {
            assert_eq!(
                names(&choose(&[&a, &b, &c, &d], &used, draws)),
                expected,
                "{draws:?}"
            );
        }
        assert_eq!(names(&choose(&[&a], &used, [5, 8])), "a");
        assert_eq!(names(&choose(&[], &used, [5, 8])), "");
    }

    #[test]
    fn a_session_stays_or_is_cut() {
        let keeps_on = |policy: &RoutePolicy, servers: Vec<Server>| {
            let table = RouteTable {
                servers,
                members: vec![],
            };
            keeps(policy, &table, "s", 7)
        };
        let (write, fallback) = (read_write(), read_only(ReadOnlyFallback::Primary));
        let none = read_only(ReadOnlyFallback::None);
        for (servers, on_write, on_fallback, on_none) in [
            (vec![], false, false, false),
            (vec![primary("p")], false, false, false),
            (vec![primary("s")], true, true, false),
            (vec![primary("s"), standby("t", 0)], true, true, false),
            (vec![primary("s"), primary("q")], true, true, false),
            (vec![standby("s", 0)], false, true, true),
            (vec![standby("s", 1 << 40)], false, true, true),
            (vec![stopped("s")], false, true, true),
            (vec![server("s", Role::Standby, None)], false, true, true),
            (
                vec![Server {
                    incarnation: 8,
                    ..standby("s", 0)
                }],
                false,
                false,
                false,
            ),
        ] {
            assert_eq!(keeps_on(&write, servers.clone()), on_write, "{servers:?}");
            assert_eq!(keeps_on(&fallback, servers.clone()), on_fallback, "{servers:?}");
            assert_eq!(keeps_on(&none, servers.clone()), on_none, "{servers:?}");
        }
    }
}
