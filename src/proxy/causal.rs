//! Causal reads: only a server that has replayed up to the client's token may answer.
//!
//! Whoever is known to be there already is taken at once; else all that fit are asked to say when they are, and the
//! first one wins. In the end the policy's fallback decides.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, timeout_at};

use crate::core::routing::freshness::written_end;
use crate::core::routing::{ReadOnlyFallback, RoutePolicy, RouteTable, Server, unfit};
use crate::core::status::Role;
use crate::core::wal::Lsn;

use super::connection::Endpoint;
use super::refusal::Refusal;
use super::upstream::Wish;

/// Beyond the time that a member waits, for its answer to come.
const GRACE: Duration = Duration::from_millis(100);

impl Endpoint {
    /// Those of `fit` that may answer the wish now; waits for one as long as the client allows. The primary is asked too: one that was
    /// put in office by force may lack what an earlier one acknowledged.
    pub(super) async fn reach<'a>(
        &self,
        wish: &Wish<'_>,
        fit: Vec<&'a Server>,
        seen: &'a RouteTable,
    ) -> Result<Vec<&'a Server>, Refusal> {
        let Some(token) = wish.options.min_lsn else {
            return Ok(fit);
        };
        if fit.is_empty() {
            return Ok(fit);
        }
        let there = |server: &&&Server| self.knowledge.has_reached(&server.name, token);
        let arrived: Vec<&Server> = fit.iter().filter(there).copied().collect();
        if !arrived.is_empty() {
            return Ok(arrived);
        }
        let wait = wish.options.wait();
        if let Some(server) = self.first_to_reach(&fit, written_end(token), wait).await {
            return Ok(vec![server]);
        }
        let last = fall_back(wish.policy, seen).unwrap_or_default();
        let reached = self
            .first_to_reach(&last, written_end(token), Duration::ZERO)
            .await;
        let refused = Refusal::NotReplayed { min_lsn: token, wait };
        reached.map(|server| vec![server]).ok_or(refused)
    }

    async fn first_to_reach<'a>(&self, fit: &[&'a Server], token: Lsn, wait: Duration) -> Option<&'a Server> {
        let Some(ask) = &self.knowledge.wait_for_replay else {
            return fit.iter().find(|server| server.role == Role::Primary).copied();
        };
        let deadline = Instant::now() + wait + GRACE;
        let asked = fit.iter().map(|server| {
            let answer = ask(server.http_address, token, wait);
            async move { answer.await.then_some(*server) }
        });
        let mut answers: FuturesUnordered<_> = asked.collect();
        let first = async {
            while let Some(answer) = answers.next().await {
                if answer.is_some() {
                    return answer;
                }
            }
            None
        };
        timeout_at(deadline, first).await.ok().flatten()
    }
}

/// The primary, if the policy allows it.
fn fall_back<'a>(policy: &RoutePolicy, seen: &'a RouteTable) -> Option<Vec<&'a Server>> {
    if policy.fallback == ReadOnlyFallback::None {
        return None;
    }
    let primary = |server: &&Server| server.role == Role::Primary && unfit(policy, seen, server).is_none();
    let servers: Vec<&Server> = seen.servers.iter().filter(primary).collect();
    (!servers.is_empty()).then_some(servers)
}
