//! A client's own limit may be stricter than the pause between two questions to a standby: then it is asked now.
//!
//! The primary says where it is, and a standby that has replayed so far proves to be as fresh as that question, and to lack
//! nothing of it: an unknown lag is known then. One that is known to be too large is taken for what it is. What the pauses of
//! an endpoint are made for, its own limits, is never asked for here.

use std::time::Duration;

use tokio::time::timeout;

use crate::core::routing::{RouteTable, Server, Unfit, unfit};
use crate::core::status::Role;

use super::connection::Endpoint;
use super::upstream::Wish;

/// A standby that does not prove itself so soon is behind, and not merely unasked.
const PROOF_TIMEOUT: Duration = Duration::from_millis(300);

impl Endpoint {
    /// `fit`; if there is no standby among them because the last answers are older than the client's limit, one that
    /// proves to be fresh enough.
    pub(super) async fn with_proof<'a>(
        &self,
        wish: &Wish<'_>,
        fit: Vec<&'a Server>,
        seen: &'a RouteTable,
    ) -> Vec<&'a Server> {
        let found = fit.iter().any(|server| server.role == Role::Standby);
        let Some(limit_ms) = wish.options.max_staleness_ms.filter(|_| !found) else {
            return fit;
        };
        // Counted from before the first question, so that the proof is never older than the limit.
        let limit = PROOF_TIMEOUT.min(Duration::from_millis(limit_ms));
        let proven = timeout(limit, self.proven_fresh(wish, seen, limit)).await;
        proven.ok().flatten().map_or(fit, |server| vec![server])
    }

    async fn proven_fresh<'a>(
        &self,
        wish: &Wish<'_>,
        seen: &'a RouteTable,
        limit: Duration,
    ) -> Option<&'a Server> {
        let ask = self.knowledge.ask_position.as_ref()?;
        let unasked = |server: &&Server| {
            let reason = unfit(wish.policy, seen, server);
            matches!(
                reason,
                Some(Unfit::StalenessUnknown | Unfit::TooStale { .. } | Unfit::LagUnknown)
            )
        };
        let standbys: Vec<&Server> = seen.servers.iter().filter(unasked).collect();
        let mut primaries = seen.servers.iter().filter(|server| server.role == Role::Primary);
        let (Some(primary), None) = (primaries.next(), primaries.next()) else {
            return None;
        };
        if standbys.is_empty() {
            return None;
        }
        let here = ask(primary.http_address).await.filter(|here| here.primary)?;
        let first = self.first_to_reach(&standbys, here.lsn, limit).await?;
        let there = ask(first.http_address).await?;
        let follows = there.streaming && !there.primary && there.timeline == here.timeline;
        (follows && there.lsn >= here.lsn).then_some(first)
    }
}
