//! The sessions that are relayed now, and how each is told to go on, to hold still or to end.
//!
//! Shared between the relays, which report who spoke last, and the warden, which gives the orders.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;

use crate::core::routing::{Opened, RoutePolicy};
use crate::core::status::Role;

use super::reads::Reading;
use super::stats::CountedSession;

/// What a relay is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Run,
    /// Nothing more is read from the client.
    Freeze,
    Cut,
}

/// Who sent the last bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// One relayed session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) server: String,
    pub(super) incarnation: u64,
    /// Its role when the session began.
    role: Role,
    /// The server's podgres, which can ask it about its sessions.
    pub(super) http_address: SocketAddr,
    /// The relay's own end of the connection to it: `client_addr` and `client_port` over there.
    pub(super) local: SocketAddr,
    /// The client, if its encryption passes through.
    unreadable: Option<IpAddr>,
    pub(super) policy: Arc<RoutePolicy>,
    _reading: Option<Box<Reading>>,
    _counted: CountedSession,
    order: AtomicU8,
    /// Bits of [`SERVER_SPOKE`] and [`FROZEN`].
    report: AtomicU8,
    /// The relay is to look whether its peers have room.
    look: AtomicBool,
    waker: AtomicWaker,
}

/// The last bytes came from the server: it owes no answer that has not begun.
const SERVER_SPOKE: u8 = 1;
/// The relay has seen the order to freeze, and has nothing left to pass to the server.
const FROZEN: u8 = 2;

/// What a session is between.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) server: String,
    pub(super) incarnation: u64,
    pub(super) role: Role,
    pub(super) http_address: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) unreadable: Option<IpAddr>,
    pub(super) reading: Option<Box<Reading>>,
}

impl Session {
    pub(super) fn new(ends: Ends, policy: Arc<RoutePolicy>, counted: CountedSession) -> Self {
        Self {
            server: ends.server,
            incarnation: ends.incarnation,
            role: ends.role,
            http_address: ends.http_address,
            local: ends.local,
            unreadable: ends.unreadable,
            policy,
            _reading: ends.reading,
            _counted: counted,
            order: AtomicU8::new(Order::Run as u8),
            report: AtomicU8::new(0),
            look: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        }
    }

    pub(super) fn opened(&self) -> Opened<'_> {
        Opened {
            server: &self.server,
            incarnation: self.incarnation,
            role: self.role,
        }
    }

    /// The order in force; `waker` is woken when it changes.
    pub(super) fn order(&self, waker: &Waker) -> Order {
        self.waker.register(waker);
        match self.order.load(Ordering::Acquire) {
            order if order == Order::Run as u8 => Order::Run,
            order if order == Order::Freeze as u8 => Order::Freeze,
            _ => Order::Cut,
        }
    }

    /// Has the relay look at its peers' room.
    pub(super) fn look(&self) {
        self.look.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Whether it is to, now.
    pub(super) fn takes_look(&self) -> bool {
        self.look.load(Ordering::Relaxed) && self.look.swap(false, Ordering::AcqRel)
    }

    pub(super) fn spoke(&self, side: Side) {
        let report = match side {
            Side::Client => 0,
            Side::Server => SERVER_SPOKE,
        };
        if self.report.load(Ordering::Relaxed) & SERVER_SPOKE != report {
            self.report.store(report, Ordering::Release);
        }
    }

    /// The relay holds still; `emptied`: everything that the client sent has been passed on.
    pub(super) fn froze(&self, emptied: bool) {
        if emptied {
            self.report.fetch_or(FROZEN, Ordering::AcqRel);
        }
    }

    /// Whether it changes anything: a cut is for good.
    pub(super) fn command(&self, order: Order) -> bool {
        let changed = self.order.try_update(Ordering::AcqRel, Ordering::Acquire, |now| {
            (now != Order::Cut as u8).then_some(order as u8)
        });
        if changed.is_ok() {
            self.report.fetch_and(!FROZEN, Ordering::AcqRel);
            self.waker.wake();
        }
        changed.is_ok()
    }

    pub(super) fn is_cut(&self) -> bool {
        self.order.load(Ordering::Acquire) == Order::Cut as u8
    }

    /// Nothing moves, and whatever the client sent before has been answered, at least in part.
    pub(super) fn is_settled(&self) -> bool {
        self.report.load(Ordering::Acquire) == SERVER_SPOKE | FROZEN
    }
}

/// All sessions of one listener.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_number: Mutex<BTreeMap<u64, Arc<Session>>>,
    next: AtomicU64,
    /// Told when one has to leave that the warden has not seen yet.
    pub(super) come_late: Notify,
}

impl Sessions {
    pub(super) fn enter(self: &Arc<Self>, session: Arc<Session>) -> Entered {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, session);
        Entered {
            sessions: Arc::clone(self),
            number,
        }
    }

    pub(super) fn all(&self) -> Vec<Arc<Session>> {
        self.lock().values().cloned().collect()
    }

    /// Where a client has sessions whose encryption passes through.
    pub(super) fn servers_of(&self, client: IpAddr) -> BTreeSet<String> {
        let by_number = self.lock();
        let its = by_number
            .values()
            .filter(|session| session.unreadable == Some(client));
        its.map(|session| session.server.clone()).collect()
    }

    /// How many of these are still there.
    pub(super) fn count_of(&self, sessions: &[Arc<Session>]) -> usize {
        let by_number = self.lock();
        let there = |session: &&Arc<Session>| by_number.values().any(|known| Arc::ptr_eq(known, session));
        sessions.iter().filter(there).count()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<Session>>> {
        self.by_number.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's place in the list, until it ends.
#[derive(Debug)]
pub(super) struct Entered {
    sessions: Arc<Sessions>,
    number: u64,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.sessions.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Waker;

    use super::*;
    use crate::core::routing::RouteMode;
    use crate::proxy::SessionCounts;

    fn session() -> Session {
        let address = SocketAddr::from(([127, 0, 0, 1], 5432));
        let ends = Ends {
            server: "pg-0".to_owned(),
            incarnation: 1,
            role: Role::Primary,
            http_address: address,
            local: address,
            unreadable: None,
            reading: None,
        };
        let counted = Arc::new(SessionCounts::default()).open("pg-0", Role::Primary);
        let policy = Arc::new(RoutePolicy::new(RouteMode::ReadWrite));
        Session::new(ends, policy, counted)
    }

    #[test]
    fn settled_is_who_holds_still_after_the_servers_word() {
        // Who spoke, in order; whether the relay has seen the order to freeze; whether all that was read is passed on.
        for (spoke, froze, settled) in [
            (&[][..], None, false),
            (&[], Some(true), false),
            (&[Side::Server], None, false),
            (&[Side::Server], Some(false), false),
            (&[Side::Server], Some(true), true),
            (&[Side::Server, Side::Client], Some(true), false),
            (&[Side::Client], Some(true), false),
            (&[Side::Client, Side::Server], Some(true), true),
        ] {
            let session = session();
            for side in spoke {
                session.spoke(*side);
            }
            assert!(session.command(Order::Freeze));
            if let Some(emptied) = froze {
                session.froze(emptied);
            }
            assert_eq!(session.is_settled(), settled, "{spoke:?} {froze:?}");
        }
    }

    #[test]
    fn who_goes_on_is_settled_no_more_and_a_cut_is_for_good() {
        let session = session();
        session.spoke(Side::Server);
        session.command(Order::Freeze);
        session.froze(true);
        assert!(session.is_settled());
        session.spoke(Side::Client);
        assert!(!session.is_settled(), "a late answer is owed");
        session.spoke(Side::Server);
        session.froze(true);
        assert!(session.is_settled());
        assert!(session.command(Order::Run));
        assert!(!session.is_settled());
        assert_eq!(session.order(Waker::noop()), Order::Run);

        assert!(session.command(Order::Cut) && session.is_cut());
        for order in [Order::Run, Order::Freeze, Order::Cut] {
            assert!(!session.command(order), "{order:?}");
        }
        assert_eq!(session.order(Waker::noop()), Order::Cut);
    }
}
