//! Why no server took a connection, told from the table and from the attempts that failed.
//!
//! Text for people only; the decision itself is in `core::routing`.

use std::net::SocketAddr;
use std::time::Duration;

use crate::core::routing::{RouteMode, RoutePolicy, RouteTable, Unfit, unfit};

/// How many servers or members one message lists.
const LISTED: usize = 16;

/// No candidate within the time that a connection is held.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    #[error("no server is available for {} sessions", mode.as_str())]
    NoServer {
        mode: RouteMode,
        waited: Duration,
        members: Vec<String>,
    },
    #[error("no server is available for {} sessions: more than one says that it is the primary", mode.as_str())]
    SeveralPrimaries {
        mode: RouteMode,
        waited: Duration,
        members: Vec<String>,
    },
}

/// An attempt to reach a candidate that failed.
#[derive(Debug)]
pub(super) struct FailedAttempt {
    pub(super) server: String,
    pub(super) cause: String,
    /// The server's certificate is not the one that the client was shown.
    pub(super) other_certificate: bool,
}

impl Unavailable {
    /// `failures` are the latest attempts, `waited` the time since the client asked.
    pub(super) fn of(
        policy: &RoutePolicy,
        table: &RouteTable,
        failures: &[FailedAttempt],
        waited: Duration,
    ) -> Self {
        let split = table
            .servers
            .iter()
            .any(|server| unfit(policy, table, server) == Some(Unfit::SeveralPrimaries));
        let members = describe(policy, table, failures);
        let mode = policy.mode;
        if split {
            Self::SeveralPrimaries {
                mode,
                waited,
                members,
            }
        } else {
            Self::NoServer {
                mode,
                waited,
                members,
            }
        }
    }

    pub(super) fn detail(&self) -> String {
        let (Self::NoServer { waited, members, .. } | Self::SeveralPrimaries { waited, members, .. }) = self;
        let mut listed = members
            .iter()
            .take(LISTED)
            .cloned()
            .collect::<Vec<_>>()
            .join("; ");
        if members.len() > LISTED {
            listed = format!("{listed}; and {} more", members.len() - LISTED);
        }
        if members.is_empty() {
            "No member of the cluster is known.".clone_into(&mut listed);
            return listed;
        }
        format!("Waited {:.1} s: {listed}.", waited.as_secs_f64())
    }

    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::SeveralPrimaries { .. } => {
                "Stop the server that must not be the primary; standbys go on serving read-only sessions."
            }
            Self::NoServer {
                mode: RouteMode::ReadWrite,
                ..
            } => "Connect again once the cluster has a primary.",
            Self::NoServer {
                mode: RouteMode::ReadOnly,
                ..
            } => "Connect again once a standby streams within the allowed lag.",
        }
    }
}

fn describe(policy: &RoutePolicy, table: &RouteTable, failures: &[FailedAttempt]) -> Vec<String> {
    let servers = table.servers.iter().map(|server| {
        let failure = failures.iter().find(|failure| failure.server == server.name);
        let state = match (unfit(policy, table, server), failure) {
            (Some(reason), _) => reason.to_string(),
            (None, Some(failure)) => format!("did not take the connection: {}", failure.cause),
            (None, None) => "has just become available".to_owned(),
        };
        format!("server \"{}\" {state}", server.name)
    });
    let accepting: Vec<SocketAddr> = table.servers.iter().map(|server| server.address).collect();
    let others = table
        .members
        .values()
        .filter(|address| !accepting.contains(address))
        .map(|address| format!("member {address} does not accept connections"));
    servers.chain(others).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::core::routing::Server;
    use crate::core::status::Role;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 5432))
    }

    fn member(last: u8) -> (String, SocketAddr) {
        (format!("pg-{last:02}"), address(last))
    }

    pub(in crate::proxy) fn server(name: &str, last: u8, role: Role) -> Server {
        Server {
            name: name.to_owned(),
            address: address(last),
            role,
            http_address: address(last),
            streaming: true,
            lag_bytes: Some(9),
            staleness_ms: Some(0),
            leaving: false,
            answering: true,
            incarnation: 1,
        }
    }

    fn policy(mode: RouteMode) -> RoutePolicy {
        RoutePolicy {
            max_lag_bytes: 5,
            ..RoutePolicy::new(mode)
        }
    }

    #[test]
    fn the_detail_says_what_is_known_of_every_member() {
        let table = RouteTable {
            servers: vec![server("pg-0", 1, Role::Primary), server("pg-1", 2, Role::Standby)],
            members: (1..=3).map(member).collect(),
            ..RouteTable::default()
        };
        let failures = [FailedAttempt {
            other_certificate: false,
            server: "pg-0".to_owned(),
            cause: "connection refused".to_owned(),
        }];
        let got = Unavailable::of(
            &policy(RouteMode::ReadOnly),
            &table,
            &failures,
            Duration::from_secs(10),
        );
        assert_eq!(got.to_string(), "no server is available for read-only sessions");
        assert_eq!(
            got.detail(),
            "Waited 10.0 s: server \"pg-0\" did not take the connection: connection refused; server \"pg-1\" is 9 \
             bytes behind, 5 are allowed; member 10.0.0.3:5432 does not accept connections."
        );
    }

    #[test]
    fn a_split_is_named() {
        let table = RouteTable {
            servers: vec![server("a", 1, Role::Primary), server("b", 2, Role::Primary)],
            members: BTreeMap::new(),
            ..RouteTable::default()
        };
        let got = Unavailable::of(&policy(RouteMode::ReadWrite), &table, &[], Duration::ZERO);
        assert!(matches!(got, Unavailable::SeveralPrimaries { .. }));
        assert!(
            got.detail()
                .contains("server \"b\" is one of several that say they are the primary")
        );
    }

    #[test]
    fn a_long_list_is_cut() {
        let table = RouteTable {
            servers: vec![],
            members: (0..40).map(member).collect(),
            ..RouteTable::default()
        };
        let got = Unavailable::of(&policy(RouteMode::ReadWrite), &table, &[], Duration::ZERO);
        assert!(got.detail().ends_with("; and 24 more."), "{}", got.detail());
    }
}
