//! Waits until a member's server has replayed so far. Many clients ask the same few members, so connections are kept for the next one.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use super::client::{Connection, RequestError};
use super::way::Reach;
use crate::core::wal::Lsn;

/// Beyond the time that the member waits.
const GRACE: Duration = Duration::from_millis(500);
/// A member at which too many wait is asked again after this.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// Connections to one member that rest.
const MOST_RESTING: usize = 8;
/// Members end a connection that rests for longer than 10 s.
const LONGEST_REST: Duration = Duration::from_secs(5);

/// Who waits for replay, with the connections of those who have.
#[derive(Default)]
pub struct ReplayWaits {
    resting: Mutex<BTreeMap<String, Vec<(Instant, Connection)>>>,
}

impl ReplayWaits {
    /// Whether `member` has replayed up to `lsn` within `wait`.
    ///
    /// # Errors
    /// It is not heard.
    pub async fn wait(&self, member: &Reach, lsn: Lsn, wait: Duration) -> Result<bool, RequestError> {
        let begun = Instant::now();
        let limit = wait + GRACE;
        let late = |_| RequestError::TimedOut {
            target: member.target(),
            limit,
        };
        let asked = async {
            loop {
                let left = wait.saturating_sub(begun.elapsed());
                if let Some(reached) = self.ask(member, lsn, left).await? {
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
    async fn ask(&self, member: &Reach, lsn: Lsn, wait: Duration) -> Result<Option<bool>, RequestError> {
        let target = member.target();
        let path = format!("/wait?lsn={lsn}&timeout={}ms", wait.as_millis());
        let rested = self.take(&target);
        // It may have ended while it rested: then this is the first that is heard of it.
        let answered = match rested {
            Some(connection) => ask(connection, &path, &target).await.ok(),
            None => None,
        };
        let (connection, answer) = match answered {
            Some(answered) => answered,
            None => ask(member.connect().await?, &path, &target).await?,
        };
        self.keep(target, connection);
        Ok(answer)
    }

    fn take(&self, target: &str) -> Option<Connection> {
        let mut resting = self.lock();
        let of_member = resting.get_mut(target)?;
        of_member.retain(|(since, _)| since.elapsed() < LONGEST_REST);
        of_member.pop().map(|(_, connection)| connection)
    }

    fn keep(&self, target: String, connection: Connection) {
        let mut resting = self.lock();
        // Members come and go, and with them their addresses.
        resting.retain(|_, of_member| {
            of_member.retain(|(since, _)| since.elapsed() < LONGEST_REST);
            !of_member.is_empty()
        });
        let of_member = resting.entry(target).or_default();
        if of_member.len() < MOST_RESTING {
            of_member.push((Instant::now(), connection));
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<(Instant, Connection)>>> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn ask(
    mut connection: Connection,
    path: &str,
    target: &str,
) -> Result<(Connection, Option<bool>), RequestError> {
    let response = connection.get(path, target).await?;
    let (status, body): (StatusCode, Value) = connection.json(response).await?;
    let busy = status == StatusCode::SERVICE_UNAVAILABLE && body["reached"].is_null();
    Ok((connection, (!busy).then_some(status == StatusCode::OK)))
}
