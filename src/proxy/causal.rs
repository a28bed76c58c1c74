//! Causal reads: only a server that has replayed up to the client's token may answer, and under a policy of monotonic reads up
//! to what its earlier sessions may have read.
//!
//! Whoever is known to be there already is taken at once; else all that fit are asked to say when they are, and the
//! first one wins. In the end the policy's fallback decides.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, timeout_at};

use crate::core::routing::freshness::written_end;
use crate::core::routing::monotonic::Floor;
use crate::core::routing::{ReadOnlyFallback, RoutePolicy, RouteTable, Server, unfit};
use crate::core::status::Role;
use crate::core::wal::{Lsn, TimelineId};

use super::connection::Endpoint;
use super::refusal::Refusal;
use super::upstream::Wish;

/// Beyond the time that a member waits, for its answer to come.
const GRACE: Duration = Duration::from_millis(100);

/// For the primary to say whether it has what no standby had in time: its podgres may have to log in first.
const FALLBACK_LIMIT: Duration = Duration::from_millis(300);

/// How far a server must be.
#[derive(Clone, Copy)]
struct Least {
    lsn: Lsn,
    /// Known of a server only once this timeline is.
    timeline: TimelineId,
    /// It is the client's own token, of which even a primary may know nothing.
    token: bool,
}

impl Endpoint {
    /// Those of `fit` that may answer the wish now; waits for one as long as the client allows. For the client's own token the primary is
    /// asked too: one that was put in office by force may lack what an earlier one acknowledged.
    pub(super) async fn reach<'a>(
        &self,
        wish: &Wish<'_>,
        fit: Vec<&'a Server>,
        seen: &'a RouteTable,
    ) -> Result<Vec<&'a Server>, Refusal> {
        let Some(least) = self.least(wish, &fit, seen).await? else {
            return Ok(fit);
        };
        let arrived: Vec<&Server> = fit
            .iter()
            .filter(|server| self.is_there(server, least))
            .copied()
            .collect();
        if !arrived.is_empty() {
            return Ok(arrived);
        }
        let (wait, asked) = (wish.options.wait(), written_end(least.lsn));
        if let Some(server) = self.first_to_reach(&fit, asked, wait).await {
            return Ok(vec![server]);
        }
        let last = fall_back(wish.policy, seen).unwrap_or_default();
        let refused = Refusal::NotReplayed {
            min_lsn: least.lsn,
            wait,
        };
        let reached = match last.first() {
            Some(primary) if !least.token => Some(*primary),
            _ => self.first_to_reach(&last, asked, FALLBACK_LIMIT).await,
        };
        reached.map(|server| vec![server]).ok_or(refused)
    }

    /// `None`: any of `fit` will do.
    async fn least(
        &self,
        wish: &Wish<'_>,
        fit: &[&Server],
        seen: &RouteTable,
    ) -> Result<Option<Least>, Refusal> {
        let token = wish.options.min_lsn;
        let standbys = fit.iter().any(|server| server.role == Role::Standby);
        let floor = if wish.policy.monotonic && standbys {
            let floor = self.floor(wish.client, seen).await;
            floor.ok_or(Refusal::ReadsUnknown)?
        } else {
            Floor::default()
        };
        let lsn = floor.lsn.max(token.unwrap_or_default());
        let wanted = !fit.is_empty() && (token.is_some() || floor != Floor::default());
        Ok(wanted.then_some(Least {
            lsn,
            timeline: floor.timeline,
            token: token.is_some(),
        }))
    }

    /// A primary has everything that is left of what anybody can have read.
    fn is_there(&self, server: &Server, least: Least) -> bool {
        let replayed = self.knowledge.timeline() >= least.timeline
            && self.knowledge.has_reached(&server.name, least.lsn);
        replayed || (server.role == Role::Primary && !least.token)
    }

    pub(super) async fn first_to_reach<'a>(
        &self,
        fit: &[&'a Server],
        token: Lsn,
        wait: Duration,
    ) -> Option<&'a Server> {
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
