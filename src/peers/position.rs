//! How far another member's server is, asked on a connection that is kept; and the wait until it is further.

use std::time::Duration;

use hyper::StatusCode;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use super::client::{Connection, RequestError};
use super::way::Reach;
use crate::core::routing::freshness::Position;
use crate::core::wal::Lsn;

/// Beyond the time that the member waits.
const GRACE: Duration = Duration::from_millis(500);
/// A member at which too many wait is asked again after this.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

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

/// Whether a member has replayed up to `lsn` within `wait`.
///
/// # Errors
/// It is not heard.
pub async fn wait_for_replay(member: &Reach, lsn: Lsn, wait: Duration) -> Result<bool, RequestError> {
    let begun = Instant::now();
    let limit = wait + GRACE;
    let late = |_| RequestError::TimedOut {
        target: member.target(),
        limit,
    };
    let asked = async {
        loop {
            let left = wait.saturating_sub(begun.elapsed());
            if let Some(reached) = wait_once(member, lsn, left).await? {
                return Ok(reached);
            }
            if left.is_zero() {
                return Ok(false);
            }
            sleep(BUSY_PAUSE.min(left)).await;
        }
    };
    timeout(limit, asked).await.map_err(late)?
}

/// `None`: too many wait there already.
async fn wait_once(member: &Reach, lsn: Lsn, wait: Duration) -> Result<Option<bool>, RequestError> {
    let path = format!("/wait?lsn={lsn}&timeout={}ms", wait.as_millis());
    let mut connection = member.connect().await?;
    let response = connection.get(&path, &member.target()).await?;
    let (status, body): (StatusCode, Value) = connection.json(response).await?;
    let busy = status == StatusCode::SERVICE_UNAVAILABLE && body["reached"].is_null();
    Ok((!busy).then_some(status == StatusCode::OK))
}
