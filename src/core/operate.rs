//! What an operator can ask of a running cluster, and how it is answered.
//!
//! Plain data that crosses HTTP: the bodies are Patroni's where Patroni has the verb. Carries nothing out.

mod answer;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use answer::{Answer, Outcome};

/// One order. Members are called by their pods' names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// A planned move that loses nothing.
    Switchover {
        /// The primary as the operator knows it: another one, and nothing is done.
        leader: Option<String>,
        /// `None`: whoever fits best.
        candidate: Option<String>,
        wait: bool,
    },
    /// A forced one.
    Failover { candidate: String, wait: bool },
    /// PostgreSQL of one member stops and starts; `None`: of the member that is asked.
    Restart { member: Option<String> },
    /// A standby is cloned afresh; `None`: the member that is asked.
    Reinitialise { member: Option<String> },
    /// No automatic move from now on, or again.
    Pause { paused: bool },
    /// The read-only switch, for the whole cluster.
    ReadOnly { on: bool, reason: String, by: String },
    /// A route wants these clients' sessions ended, by their addresses as the server sees them.
    EndSessions { clients: Vec<SocketAddr>, which: Ending },
    /// A route that is no member's is there, and says whether it has left this member's server, which is leaving.
    /// Said again every second.
    Route { route: String, left: bool },
}

impl Order {
    /// Where it is sent to.
    #[must_use]
    pub fn path(&self) -> &'static str {
        match self {
            Self::Switchover { .. } => "/switchover",
            Self::Failover { .. } => "/failover",
            Self::Restart { .. } => "/restart",
            Self::Reinitialise { .. } => "/reinitialize",
            Self::Pause { paused: true } => "/pause",
            Self::Pause { paused: false } => "/resume",
            Self::ReadOnly { .. } => "/read-only",
            Self::EndSessions { .. } => "/sessions/end",
            Self::Route { .. } => "/sessions/route",
        }
    }

    /// What is sent there.
    #[must_use]
    pub fn body(&self) -> Body {
        match self.clone() {
            Self::Switchover {
                leader,
                candidate,
                wait,
            } => Body {
                leader,
                candidate,
                wait: Some(wait),
                ..Body::default()
            },
            Self::Failover { candidate, wait } => Body {
                candidate: Some(candidate),
                wait: Some(wait),
                ..Body::default()
            },
            Self::Restart { member } | Self::Reinitialise { member } => Body {
                member,
                ..Body::default()
            },
            Self::Pause { .. } => Body::default(),
            Self::ReadOnly { on, reason, by } => Body {
                on: Some(on),
                reason: Some(reason),
                by: Some(by),
                ..Body::default()
            },
            Self::EndSessions { clients, which } => Body {
                clients: Some(clients),
                which: Some(which),
                ..Body::default()
            },
            Self::Route { route, left } => Body {
                route: Some(route),
                left: Some(left),
                ..Body::default()
            },
        }
    }

    /// Reads what was sent to `path`; an empty body is one without fields.
    ///
    /// # Errors
    /// What is wrong with it, as it is answered.
    pub fn read(path: &str, body: &[u8]) -> Result<Self, Box<Answer>> {
        let text = match body.trim_ascii() {
            [] => b"{}",
            text => text,
        };
        if path == "/config" {
            return setting(text);
        }
        let body: Body = serde_json::from_slice(text).map_err(|error| unreadable(&error))?;
        body.refused().map_or(Ok(()), |answer| Err(Box::new(answer)))?;
        Self::of(path, body).map_err(|error| Box::new(Answer::new(Outcome::Invalid, error)))
    }

    fn of(path: &str, body: Body) -> Result<Self, String> {
        let wait = body.wait.unwrap_or(true);
        match path {
            "/switchover" => Ok(Self::Switchover {
                leader: body.leader,
                candidate: body.candidate,
                wait,
            }),
            "/failover" => {
                let candidate = body
                    .candidate
                    .ok_or("a failover needs a candidate: {\"candidate\": \"POD\"}")?;
                // Patroni's rule: who names the primary that is there asks for a move that loses nothing.
                Ok(match body.leader {
                    Some(leader) => Self::Switchover {
                        leader: Some(leader),
                        candidate: Some(candidate),
                        wait,
                    },
                    None => Self::Failover { candidate, wait },
                })
            }
            "/restart" => Ok(Self::Restart { member: body.member }),
            "/reinitialize" => Ok(Self::Reinitialise { member: body.member }),
            "/pause" => Ok(Self::Pause { paused: true }),
            "/resume" => Ok(Self::Pause { paused: false }),
            "/read-only" => Ok(Self::ReadOnly {
                on: body.on.ok_or("the switch needs a position: {\"on\": true}")?,
                reason: body.reason.unwrap_or_default(),
                by: body.by.unwrap_or_default(),
            }),
            "/sessions/end" => Ok(Self::EndSessions {
                clients: body
                    .clients
                    .ok_or("which sessions: {\"clients\": [\"ADDRESS:PORT\"]}")?,
                which: body.which.unwrap_or_default(),
            }),
            "/sessions/route" => Ok(Self::Route {
                route: body.route.ok_or("which route: {\"route\": \"NAME\"}")?,
                left: body.left.unwrap_or(false),
            }),
            other => Err(format!("unknown path \"{other}\"")),
        }
    }
}

/// The fields of all orders' bodies; what a path does not know is refused by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    leader: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", alias = "member_name")]
    candidate: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    member: Option<String>,
    /// False: answered as soon as the order is taken up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wait: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    on: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    clients: Option<Vec<SocketAddr>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    which: Option<Ending>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    left: Option<bool>,
    /// Patroni's, which are refused: see [`Body::refused`].
    #[serde(default, skip_serializing)]
    scheduled_at: Option<Value>,
    #[serde(default, skip_serializing)]
    schedule: Option<Value>,
    #[serde(default, skip_serializing)]
    restart_pending: Option<Value>,
    #[serde(default, skip_serializing)]
    role: Option<Value>,
    #[serde(default, skip_serializing)]
    postgres_version: Option<Value>,
    /// Patroni's, which have no meaning here: what they ask for is done in any case, or never.
    #[serde(default, skip_serializing)]
    force: Option<Value>,
    #[serde(default, skip_serializing)]
    timeout: Option<Value>,
    #[serde(default, skip_serializing, rename = "from-leader", alias = "from_leader")]
    from_leader: Option<Value>,
}

impl Body {
    /// The answer where Patroni would wait or look before it acts.
    fn refused(&self) -> Option<Answer> {
        let invalid = |message: &str, hint: &str| Some(Answer::new(Outcome::Invalid, message).hint(hint));
        if self.scheduled_at.is_some() || self.schedule.is_some() {
            return invalid(
                "cannot schedule an order: it is carried out at once or not at all",
                "Send it when it is due, for instance from a CronJob.",
            );
        }
        let conditions = [&self.restart_pending, &self.role, &self.postgres_version];
        if conditions.into_iter().any(Option::is_some) {
            return invalid(
                "cannot restart on a condition: an order is carried out at once or not at all",
                "Look at GET /patroni first, and leave out \"restart_pending\", \"role\" and \"postgres_version\".",
            );
        }
        None
    }
}

fn unreadable(error: &serde_json::Error) -> Box<Answer> {
    let said = format!("invalid request body: {error}");
    Box::new(Answer::new(Outcome::Invalid, said))
}

/// A change of `/config`: `pause`, where null is Patroni's word for its default, and nothing else.
fn setting(text: &[u8]) -> Result<Order, Box<Answer>> {
    let settings: BTreeMap<String, Value> =
        serde_json::from_slice(text).map_err(|error| unreadable(&error))?;
    let refused =
        |message: String, hint: &str| Err(Box::new(Answer::new(Outcome::Invalid, message).hint(hint)));
    let foreign = settings.keys().find(|name| *name != "pause");
    match (foreign, settings.get("pause")) {
        (None, Some(Value::Bool(paused))) => Ok(Order::Pause { paused: *paused }),
        (None, Some(Value::Null)) => Ok(Order::Pause { paused: false }),
        (None, Some(other)) => refused(
            format!("\"pause\" cannot be {other}"),
            "Give true, false or null.",
        ),
        (foreign, _) => {
            let name = foreign.map_or_else(String::new, |name| format!(": found \"{name}\""));
            let hint = "The others are the pods' environment (PODGRES_...) and the mounted *.conf files: change the StatefulSet or the \
                        ConfigMap.";
            refused(format!("cannot change any setting but \"pause\"{name}"), hint)
        }
    }
}

/// Which of the sessions that are named end now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Those that are idle outside of a transaction, or stream WAL.
    #[default]
    Idle,
    /// Those that stream WAL: they are in no transaction, whoever spoke last.
    Streaming,
    All,
}

/// What became of the sessions that a route wants ended, by their clients' addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndedSessions {
    pub ended: Vec<SocketAddr>,
    /// Whose server is at work on what it has been sent already, and needs nothing more of the client to come to its end.
    pub working: Vec<SocketAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_reads_back_as_it_was_sent() {
        let some = |text: &str| Some(text.to_owned());
        for order in [
            Order::Switchover {
                leader: some("pg-0"),
                candidate: None,
                wait: false,
            },
            Order::Failover {
                candidate: "pg-1".to_owned(),
                wait: true,
            },
            Order::Restart { member: some("pg-2") },
            Order::Reinitialise { member: None },
            Order::Pause { paused: true },
            Order::Pause { paused: false },
            Order::ReadOnly {
                on: true,
                reason: "migration".to_owned(),
                by: "alice".to_owned(),
            },
            Order::EndSessions {
                clients: vec![SocketAddr::from(([10, 0, 0, 1], 5))],
                which: Ending::Streaming,
            },
        ] {
            let body = serde_json::to_vec(&order.body()).expect("JSON");
            assert_eq!(Order::read(order.path(), &body), Ok(order));
        }
    }

    #[test]
    fn bad_bodies_are_named() {
        for (path, body, said) in [
            ("/failover", "", "needs a candidate"),
            ("/failover", "{\"leader\": \"pg-0\"}", "needs a candidate"),
            ("/restart", "{\"role\": \"replica\"}", "on a condition"),
            ("/config", "{\"pause\": 1}", "\"pause\" cannot be 1"),
            ("/config", "{\"pause\": true, \"ttl\": 30}", "found \"ttl\""),
            (
                "/switchover",
                "{\"candidat\": \"pg-0\"}",
                "unknown field `candidat`",
            ),
            ("/switchover", "{\"candidate\": 1}", "invalid type"),
            ("/switchover", "[", "invalid request body"),
            (
                "/switchover",
                "{\"scheduled_at\": \"2030-01-01\"}",
                "cannot schedule",
            ),
            ("/restart", "{\"schedule\": \"2030-01-01\"}", "cannot schedule"),
            ("/config", "{}", "any setting but"),
            ("/nowhere", "", "unknown path"),
        ] {
            let error = Order::read(path, body.as_bytes()).expect_err(body);
            assert_eq!(error.outcome, Outcome::Invalid, "{path} {body}");
            assert!(error.message.contains(said), "{path} {body}: {error:?}");
        }
    }

    /// `patronictl resume` sends null, which was refused.
    #[test]
    fn pause_is_turned_by_patronis_config_too() {
        for (body, paused) in [("true", true), ("false", false), ("null", false)] {
            let body = format!("{{\"pause\": {body}}}");
            let read = Order::read("/config", body.as_bytes());
            assert_eq!(read, Ok(Order::Pause { paused }), "{body}");
        }
    }

    /// It was forced through, whoever the primary was.
    #[test]
    fn a_failover_that_names_the_primary_is_a_switchover() {
        let some = |text: &str| Some(text.to_owned());
        let read = Order::read("/failover", b"{\"leader\": \"pg-0\", \"candidate\": \"pg-1\"}");
        let expected = Order::Switchover {
            leader: some("pg-0"),
            candidate: some("pg-1"),
            wait: true,
        };
        assert_eq!(read, Ok(expected));
    }

    /// `patronictl reinit` sends both, and was refused.
    #[test]
    fn what_patronictl_sends_with_an_order_is_taken() {
        let read = Order::read("/reinitialize", b"{\"force\": false, \"from-leader\": false}");
        assert_eq!(read, Ok(Order::Reinitialise { member: None }));
    }
}
