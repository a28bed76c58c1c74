//! How far another member's server is, asked on a connection that is kept.

use std::time::Duration;

use hyper::StatusCode;
use tokio::time::timeout;

use super::client::{Connection, RequestError};
use super::way::Reach;
use crate::core::routing::freshness::Position;

/// One member, asked again and again.
pub struct PositionAsker {
    member: Reach,
    connection: Option<Connection>,
}

impl PositionAsker {
    #[must_use]
    pub fn new(member: impl Into<Reach>) -> Self {
        Self {
            member: member.into(),
            connection: None,
        }
    }

    /// Its position, within `limit`; `None` if its server tells none now.
    ///
    /// # Errors
    /// It is not heard, or says something else. The next question makes a new connection.
    pub async fn ask(&mut self, limit: Duration) -> Result<Option<Position>, RequestError> {
        let late = |_| RequestError::TimedOut {
            target: self.member.target(),
            limit,
        };
        // Taken out, so that a question that is given up drops it.
        let open = self.connection.take();
        let (connection, answer) = timeout(limit, ask(&self.member, open)).await.map_err(late)??;
        self.connection = Some(connection);
        Ok(answer)
    }
}

async fn ask(
    member: &Reach,
    open: Option<Connection>,
) -> Result<(Connection, Option<Position>), RequestError> {
    let target = member.target();
    let mut connection = match open {
        Some(connection) => connection,
        None => member.connect().await?,
    };
    let response = connection.get("/position", &target).await?;
    let (status, value) = connection.json(response).await?;
    let position = (status == StatusCode::OK).then(|| serde_json::from_value(value));
    let position = position.transpose().map_err(|error| RequestError::Invalid {
        target,
        detail: error.to_string(),
    })?;
    Ok((connection, position))
}
