//! What a routing endpoint counts: for the metrics page, and for the choice between servers.
//!
//! Counters only grow, gauges end with the guard that raised them. Never decides anything.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::core::status::Role;

use super::refusal::RefusalReason;

/// The counters of one listener; shared with whoever shows them.
#[derive(Debug, Default)]
pub struct RouteStats {
    /// Sessions that are relayed now.
    pub sessions: AtomicU64,
    pub sessions_total: AtomicU64,
    /// Connections that wait for a server now.
    pub held: AtomicU64,
    pub held_total: AtomicU64,
    /// How long connections have waited for a server, ended waits only.
    pub held_microseconds_total: AtomicU64,
    /// Cancel requests that were forwarded.
    pub cancels_total: AtomicU64,
    /// Sessions cut because their server is lost, or did not come to the end of a transaction in time.
    pub cut_total: AtomicU64,
    /// Sessions ended between two transactions because their server no longer fits, or because the endpoint stops.
    pub drained_total: AtomicU64,
    pub bytes_to_server_total: AtomicU64,
    pub bytes_to_client_total: AtomicU64,
    /// Attempts to reach a candidate that failed.
    pub connect_failures_total: AtomicU64,
    refused_total: [AtomicU64; RefusalReason::ALL.len()],
    servers: Mutex<BTreeMap<String, ServerStats>>,
}

/// The counters of one server behind a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerStats {
    pub sessions_total: u64,
    /// From the attempt to its first byte.
    pub connect_microseconds_total: u64,
    /// Of its data when sessions began, added up.
    pub staleness_milliseconds_total: u64,
}

impl RouteStats {
    /// How many connections were refused, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (RefusalReason, u64)> {
        let counts = self
            .refused_total
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        RefusalReason::ALL.into_iter().zip(counts)
    }

    pub(super) fn count_refusal(&self, reason: RefusalReason) {
        let at = RefusalReason::ALL.iter().position(|known| *known == reason);
        if let Some(count) = at.and_then(|at| self.refused_total.get(at)) {
            count_one(count);
        }
    }

    /// The servers that had sessions, by name.
    pub fn servers(&self) -> BTreeMap<String, ServerStats> {
        self.servers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn count_opened(&self, server: &str, took: Duration, staleness_ms: Option<u64>) {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if !servers.contains_key(server) {
            servers.insert(server.to_owned(), ServerStats::default());
        }
        if let Some(stats) = servers.get_mut(server) {
            stats.sessions_total += 1;
            stats.connect_microseconds_total += u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            stats.staleness_milliseconds_total += staleness_ms.unwrap_or(0);
        }
    }

    pub(super) fn count_wait(&self, waited: Duration) {
        let microseconds = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        self.held_microseconds_total
            .fetch_add(microseconds, Ordering::Relaxed);
    }
}

pub(super) fn count_one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// One more on a gauge, until it is dropped.
#[derive(Debug)]
pub(super) struct Raised<'a>(&'a AtomicU64);

impl<'a> Raised<'a> {
    pub(super) fn new(gauge: &'a AtomicU64) -> Self {
        gauge.fetch_add(1, Ordering::Relaxed);
        Self(gauge)
    }
}

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many sessions each server has or is about to get, over all listeners that share this.
#[derive(Debug, Default)]
pub struct SessionCounts {
    /// By name, and by the role that it had when they began.
    by_server: Mutex<BTreeMap<(String, Role), usize>>,
}

impl SessionCounts {
    /// Sessions of the server called `name`.
    pub fn of(&self, name: &str) -> usize {
        let by_server = self.lock();
        let its = by_server.iter().filter(|((server, _), _)| server == name);
        its.map(|(_, count)| count).sum()
    }

    /// Servers with sessions that began while they were the primary.
    pub fn primaries(&self) -> Vec<String> {
        let by_server = self.lock();
        let primaries = by_server.keys().filter(|(_, role)| *role == Role::Primary);
        primaries.map(|(server, _)| server.clone()).collect()
    }

    /// Counts a session of that server until the guard is dropped.
    pub(super) fn open(self: &Arc<Self>, name: &str, role: Role) -> CountedSession {
        let server = (name.to_owned(), role);
        *self.lock().entry(server.clone()).or_default() += 1;
        CountedSession {
            counts: Arc::clone(self),
            server,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, Role), usize>> {
        self.by_server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One session of one server.
#[derive(Debug)]
pub(super) struct CountedSession {
    counts: Arc<SessionCounts>,
    server: (String, Role),
}

impl Drop for CountedSession {
    fn drop(&mut self) {
        let mut by_server = self.counts.lock();
        if let Some(count) = by_server.get_mut(&self.server) {
            *count -= 1;
            if *count == 0 {
                by_server.remove(&self.server);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_counts_while_its_guard_lives() {
        let counts = Arc::new(SessionCounts::default());
        let first = counts.open("a", Role::Primary);
        let second = counts.open("a", Role::Standby);
        assert_eq!((counts.of("a"), counts.of("b")), (2, 0));
        assert_eq!(counts.primaries(), ["a"]);
        drop(first);
        assert!(counts.primaries().is_empty());
        drop(second);
        assert_eq!(counts.of("a"), 0);
        assert!(counts.lock().is_empty());
    }

    #[test]
    fn refusals_are_counted_by_reason() {
        let stats = RouteStats::default();
        for reason in RefusalReason::ALL {
            stats.count_refusal(reason);
        }
        stats.count_refusal(RefusalReason::NoServer);
        let counted: Vec<_> = stats.refused().filter(|(_, count)| *count > 1).collect();
        assert_eq!(counted, [(RefusalReason::NoServer, 2)]);
        assert!(stats.refused().all(|(_, count)| count > 0));
    }
}
