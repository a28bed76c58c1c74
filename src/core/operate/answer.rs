//! How an order ended.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// How an order ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Done,
    /// Under way, and not waited for any longer.
    Accepted,
    /// The request itself is wrong.
    Invalid,
    /// Another one is under way.
    Pending,
    /// As things are it would endanger data, or has no meaning.
    NotPossible,
    /// It was tried, or could not be begun.
    Failed,
}

impl Outcome {
    /// Patroni's codes.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::Done => 200,
            Self::Accepted => 202,
            Self::Invalid => 400,
            Self::Pending => 409,
            Self::NotPossible => 412,
            Self::Failed => 503,
        }
    }
}

/// The answer to an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub outcome: Outcome,
    /// One sentence in PostgreSQL's style.
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// After a move: who is the primary now, and in which term.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<u64>,
    /// Whose sessions were ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<Box<[SocketAddr]>>,
    /// As [`super::EndedSessions::working`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working: Option<Box<[SocketAddr]>>,
    /// How long it took.
    #[serde(default)]
    pub elapsed_ms: u64,
}

impl Answer {
    #[must_use]
    pub fn new(outcome: Outcome, message: impl Into<String>) -> Self {
        Self {
            outcome,
            message: message.into(),
            hint: None,
            primary: None,
            term: None,
            clients: None,
            working: None,
            elapsed_ms: 0,
        }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
