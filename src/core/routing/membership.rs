//! Whether a standby is in or out of a policy just now: separate limits for leaving and returning, a least
//! time outside, and a slow start after it.
//!
//! A standby over its limit is out at once, whatever this says; this keeps one at the limit from flapping.

use super::{RoutePolicy, Server, unfit};
use crate::core::routing::RouteTable;
use crate::core::status::Role;

/// The least time outside.
const DWELL_MS: u64 = 500;
/// Who returns gets its full share after so long.
const WARMING_MS: u64 = 5_000;
/// The least share.
const COLDEST_PERCENT: u64 = 10;
/// Who returns is at most so far from the limits for leaving.
const RETURN_DIVISOR: u64 = 2;

/// One standby's place under one policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// `returned_at_ms`: it was out before, until then.
    In {
        returned_at_ms: Option<u64>,
    },
    Out {
        since_ms: u64,
    },
}

impl Membership {
    /// The place after a look at `now_ms`; `before` is `None` at the first look.
    #[must_use]
    pub fn next(
        before: Option<Self>,
        policy: &RoutePolicy,
        table: &RouteTable,
        server: &Server,
        now_ms: u64,
    ) -> Self {
        let fits =
            |policy: &RoutePolicy| server.role == Role::Primary || unfit(policy, table, server).is_none();
        match before {
            Some(Self::In { .. }) | None if !fits(policy) => Self::Out { since_ms: now_ms },
            None => Self::In { returned_at_ms: None },
            Some(Self::Out { since_ms })
                if now_ms.saturating_sub(since_ms) >= DWELL_MS && fits(&to_return(policy)) =>
            {
                Self::In {
                    returned_at_ms: Some(now_ms),
                }
            }
            Some(same) => same,
        }
    }

    #[must_use]
    pub fn is_in(self) -> bool {
        matches!(self, Self::In { .. })
    }

    /// How much of its share of new sessions it gets, in percent.
    #[must_use]
    pub fn warm_percent(self, now_ms: u64) -> u8 {
        let Self::In {
            returned_at_ms: Some(returned_at_ms),
        } = self
        else {
            return 100;
        };
        let age_ms = now_ms.saturating_sub(returned_at_ms).min(WARMING_MS);
        let percent = COLDEST_PERCENT + (100 - COLDEST_PERCENT) * age_ms / WARMING_MS;
        u8::try_from(percent).unwrap_or(100)
    }
}

fn to_return(policy: &RoutePolicy) -> RoutePolicy {
    RoutePolicy {
        max_staleness_ms: policy.max_staleness_ms / RETURN_DIVISOR,
        max_lag_bytes: policy.max_lag_bytes / RETURN_DIVISOR,
        ..policy.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::RouteMode;
    use super::super::tests::{standby, table};
    use super::*;

    fn look(before: Option<Membership>, staleness_ms: u64, now_ms: u64) -> Membership {
        let server = Server {
            staleness_ms: Some(staleness_ms),
            ..standby("s", 0)
        };
        let policy = RoutePolicy::new(RouteMode::ReadOnly);
        Membership::next(before, &policy, &table(vec![server.clone()]), &server, now_ms)
    }

    #[test]
    fn leaving_and_returning_have_limits_of_their_own() {
        let at_first = look(None, 9_000, 0);
        assert_eq!(at_first, Membership::In { returned_at_ms: None });
        assert_eq!(at_first.warm_percent(0), 100);
        let out = look(Some(at_first), 10_001, 1_000);
        assert_eq!(out, Membership::Out { since_ms: 1_000 });
        assert!(!look(Some(out), 9_000, 9_000).is_in(), "not near enough");
        assert!(!look(Some(out), 0, 1_499).is_in(), "not long enough");
        let back = look(Some(out), 5_000, 1_500);
        assert!(back.is_in());
        for (now_ms, percent) in [(1_500, 10), (4_000, 55), (6_500, 100), (60_000, 100)] {
            assert_eq!(back.warm_percent(now_ms), percent);
        }
    }
}
